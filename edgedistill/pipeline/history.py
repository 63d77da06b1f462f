"""What finished builds leave for the next plan: what a student was worth, how fast this machine trains, calibrations.

Records lie in the store's folder `builds`, one JSON file each, calibrations in `calibrations/TARGET`. A build takes the
records that are there when it is first run and keeps them as a stage, `evidence`, so that the same command run again
makes the same plan, to the same bytes, whatever was built in between.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from edgedistill import catalog
from edgedistill.data import read_splits
from edgedistill.errors import SpecError
from edgedistill.pipeline.trained import Trained
from edgedistill.plan import FinishedBuild
from edgedistill.plan.costing import int4_share
from edgedistill.plan.effort import training_macs
from edgedistill.predict import Calibration, read_calibration
from edgedistill.specs import FitSpec, Plan, Profile, Quality, Spec, Target
from edgedistill.store import key_of, storage_errors, version_of, write_json
from edgedistill.teachers import Located

BUILDS, CALIBRATIONS, FILE = "builds", "calibrations", "builds.json"


class Record(Spec):
    """A finished build and, where every stage of training ran in one go, how long it took."""

    build: FinishedBuild
    machine: str = ""
    training_macs: Annotated[float, Field(ge=0)] = 0.0
    training_s: Annotated[float, Field(ge=0)] = 0.0


def request_of(profile: Profile, located: Located, fit: FitSpec, data_key: str) -> str:
    """A name for everything that was asked of a build but the student itself."""
    asked = {
        "data": data_key,
        "teacher": located.sha256,
        "files": located.files_sha256,
        "fit": fit.model_dump(mode="json"),
        "max_length": profile.teacher.max_length,
        "stages": [stage.model_dump(mode="json") for stage in profile.stages],
    }
    return key_of(asked)


def question_of(profile: Profile, targets: Sequence[Target], request: str) -> dict[str, Any]:
    """What a plan answers, without paths: the description of the stage `evidence`."""
    return {
        "request": request,
        "devices": [one.model_dump(mode="json") for one in targets],
        "student": profile.student.model_dump(mode="json"),
        "budget": profile.budget.model_dump(mode="json"),
        "quality": profile.quality.model_dump(mode="json"),
        "scheme": profile.export.scheme.model_dump(mode="json"),
        "aim": [profile.optimize_for, profile.confidence, profile.assistants],
    }


def records(root: Path) -> tuple[Record, ...]:
    """Every finished build's record in the store at `root`, in a fixed order; none if there is no store.

    Raises:
        SpecError: naming a record that cannot be read.
    """
    return tuple(_read(path) for path in sorted((root / BUILDS).glob("*.json")))


def keep(root: Path, out: Path) -> None:
    """Write the builds known now into a stage's folder."""
    write_json(out / FILE, [one.build.model_dump(mode="json") for one in records(root)])


def kept(folder: Path) -> tuple[FinishedBuild, ...]:
    """What `keep` wrote."""
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return tuple(FinishedBuild.decode(one, where=str(folder / FILE)) for one in found)


def remember(root: Path, record: Record) -> None:
    """Add a finished build; a build that was run again replaces its own record, unless it took no time to train."""
    path = root / BUILDS / f"{key_of(record.build.model_dump(mode='json'))}.json"
    if path.exists() and not record.training_s:
        return
    with storage_errors(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record.model_dump(mode="json"))


def finished(
    root: Path,
    plan: Plan,
    trained: Trained,
    located: Located,
    fit: FitSpec,
    qualities: Mapping[str, Quality],
    seconds: float,
) -> None:
    """Record a build that has ended; how long it took counts only if no stage of its training was there before."""
    chosen, facts = plan.chosen, json.loads(trained.recorded.file("facts.json").read_text(encoding="utf-8"))
    family = catalog.load_plugin("students", plan.profile.student.family)
    tensors = family.tensors(family.Config(**chosen.config))
    file, teacher = qualities["file"], qualities["teacher"]
    build = FinishedBuild(
        request=request_of(plan.profile, located, fit, trained.data.key),
        family=plan.profile.student.family,
        parameters=chosen.parameters,
        macs=chosen.macs,
        int4_share=int4_share(tensors, plan.profile.export.scheme),
        teacher_parameters=facts["parameters"],
        assistants=len(trained.assistants),
        correct=file.correct,
        teacher_correct=max(teacher.correct, 1),
        rows=file.rows,
    )
    done = [trained.teacher, trained.recorded, trained.start, *trained.stages.values()]
    fresh = not any(stage.cached for stage in [*done, *(item for one in trained.assistants for item in one.stages)])
    rows = len(read_splits(trained.data.folder).train)
    macs, _ = training_macs(plan, rows, facts["parameters"]) if fresh else (0.0, 0)
    remember(root, Record(build=build, machine=this_machine(plan.profile.threads) if fresh else "",
                          training_macs=macs, training_s=seconds if fresh else 0.0))  # fmt: skip


def this_machine(threads: int) -> str:
    """A name for the processor and the number of threads, so that one machine's speed is not taken for another's."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {threads} threads"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux: the architecture has to do
        return []


def speeds(root: Path, machine: str) -> list[tuple[float, float]]:
    """(Multiply-accumulates, seconds) of the builds that this machine trained."""
    return [(one.training_macs, one.training_s) for one in records(root) if one.machine == machine]


def calibration_path(root: Path, target: str, runtime_build: str) -> Path:
    """Where the calibration of a target for a runtime and build belongs."""
    name = re.sub(r"[^a-z0-9.]+", "_", runtime_build.lower()).strip("_") or "runtime"
    return root / CALIBRATIONS / target / f"{name}.json"


def calibrations(root: Path, targets: Sequence[Target]) -> Mapping[str, Calibration]:
    """By target, the calibration to plan with: that of the installed LiteRT, else the one written last.

    Raises:
        SpecError: naming a calibration that cannot be read.
    """
    found = {}
    for target in targets:
        paths = sorted((root / CALIBRATIONS / target.name).glob("*.json"), key=lambda path: path.lstat().st_mtime)
        seen = [_calibration(path, target.name) for path in paths]
        here = [one for one in seen if version_of("ai-edge-litert") in one.runtime_build.split()]
        if seen:
            found[target.name] = (here or seen)[-1]
    return found


def _calibration(path: Path, target: str) -> Calibration:
    found = read_calibration(path)
    if found.device != target:
        raise SpecError(
            f"{path}: holds what was measured on {found.device!r}, in the folder of {target!r}. Remove it, or measure:"
            " edgedistill calibrate."
        )
    return found


def _read(path: Path) -> Record:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not the record of a build ({error}). Remove the file.") from None
    if not isinstance(values, dict):
        raise SpecError(f"{path}: not the record of a build (a JSON object is expected). Remove the file.")
    return Record.decode(values, where=str(path))
