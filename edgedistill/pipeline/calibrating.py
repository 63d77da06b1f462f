"""From the user's own measurements on a device to factors that every later plan for it uses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.pipeline import history
from edgedistill.pipeline.recheck import Bundle, open_bundle
from edgedistill.plan.cost import workload
from edgedistill.predict import Anchor, Calibration, calibrate_device, predict
from edgedistill.specs import Measurement, Target
from edgedistill.store import write_json, writing

HOST = "host:"  # how a runner names this machine in a measurement


@dataclass(frozen=True)
class Seen:
    """One figure that was measured, and what is predicted for it without a calibration."""

    anchor: Anchor
    what: str
    predicted: float


@dataclass(frozen=True)
class Calibrated:
    """What was found, where it was written, and every figure it was found from."""

    calibration: Calibration
    path: Path
    seen: tuple[Seen, ...]
    used: str  # the runtime and build whose calibration plans for the target take


def calibrate(target: Target, sources: Sequence[Path], *, runtime_build: str | None, store: Path) -> Calibrated:
    """Compare what was measured with what is predicted, and write the factors for the target into the store.

    A source is a bundle (the model, and on the host its timings), a file that `edgedistill bench --out` wrote for a
    bundle that is given too, or a JSON list of anchors: `{"workload": {...}, "measured": 4.2}`. An earlier calibration
    of the same runtime and build is replaced.

    Raises:
        SpecError: a source cannot be read, was measured on another kind of device, or the runtimes differ.
    """
    bundles = [open_bundle(path) for path in sources if path.is_dir()]
    listed: list[Anchor] = []
    measured: list[tuple[Bundle, Measurement]] = []
    for path in sources:
        if path.is_dir():
            continue
        value = _json(path)
        if isinstance(value, list):
            listed += [Anchor.decode(one, f"{path}: anchor {number}") for number, one in enumerate(value)]
        else:
            measured += [(_bundle_of(seen, bundles, path), seen) for seen in _bench(value, path)]
    if not measured and not listed:
        measured = [(one, seen) for one in bundles for seen in _own(one)]
    if not measured and not listed:
        raise SpecError(
            "nothing was measured in what was given: time a bundle with `edgedistill bench BUNDLE --out FILE`."
        )
    for _, one in measured:
        _same_kind(target, one)
    build = _build(runtime_build, [one.runtime for _, one in measured])
    seen = [item for bundle, one in measured for item in _students(target, bundle, one)]
    found = _factors(target, seen, listed, build)
    path = history.calibration_path(store, target.name, build)
    with writing(store):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found.model_dump(mode="json"))
    used = history.calibrations(store, [target])[target.name].runtime_build
    return Calibrated(found, path, tuple(seen), used)


def _factors(target: Target, seen: Sequence[Seen], listed: Sequence[Anchor], build: str) -> Calibration:
    anchors = [*listed, *(item.anchor for item in seen)]
    return calibrate_device(target, anchors, runtime_build=build).model_copy(update={"device": target.name})


def _students(target: Target, bundle: Bundle, one: Measurement) -> list[Seen]:
    """A student's measured figures beside the plan's own lines for it, at the length that was measured."""
    student, length = bundle.profile.student, _length(one, bundle)
    family = catalog.load_plugin("students", student.family)
    chosen = bundle.manifest.plan.get("chosen")
    config = family.Config.decode(
        chosen.get("config", {}) if isinstance(chosen, dict) else {}, f"{bundle.folder / 'manifest.json'}: plan.chosen"
    )
    buckets = [*(n for n in student.buckets if n != length), length]  # as many signatures, this one the longest
    size = round(bundle.shipped.size_mb * 1e6)
    signatures = len(family.signatures(config, buckets))
    work = workload(family, config, bundle.profile.export.scheme, length, file_bytes=size, signatures=signatures)
    figures = {"latency_p95_ms": undisturbed_ms(one)}
    if length == student.buckets[-1]:  # the plan's own memory and energy are those of the longest
        figures["peak_memory_mb"] = one.peak_memory_mb or 0.0
        figures["energy_mj"] = (one.energy.energy_mj if one.energy else None) or 0.0
    what = f"{bundle.folder.name}, {one.signature}"
    return [
        Seen(Anchor(workload=work, measured=measured, quantity=name), what, predict(target, work, name).median)
        for name, measured in figures.items()
        if measured > 0 and not (name == "energy_mj" and target.battery_wh is None)
    ]


def undisturbed_ms(one: Measurement) -> float:
    """A typical inference, as it is predicted: the 10th percentile of the launch where that is least.

    On a quiet device it is a few percent below the median. Beside other work the median of an inference that is longer
    than the scheduler's slice is that of the others, up to 4 times as long. Without raw samples the median.
    """
    if not one.samples_ms:
        return one.latency_p50_ms
    return 1e-6 * min(sorted(launch)[(len(launch) - 1) // 10] for launch in one.samples_ns if launch)


def _length(one: Measurement, bundle: Bundle) -> int:
    last = one.signature.rpartition("_")[2]
    longest: int = bundle.profile.student.buckets[-1]
    return int(last) if last.isdecimal() and int(last) in bundle.profile.student.buckets else longest


def _same_kind(target: Target, one: Measurement) -> None:
    """A figure of this machine says nothing about a phone, nor the other way round."""
    if one.unfit:
        raise SpecError(f"{one.signature} was measured when {one.device} was not fit: {'; '.join(one.unfit)}.")
    here, host = one.device.startswith(HOST), target.runner == "host"
    if here != host:
        raise SpecError(
            f"measured on {one.device}, and the target is {target.title}: one says nothing about the other. "
            f"{'Measure on the device.' if here else 'Calibrate the target that it was measured on.'}"
        )


def _build(given: str | None, seen: Sequence[str]) -> str:
    names = sorted(set(seen))
    if given is not None:
        if not given.strip():
            raise SpecError("--runtime-build is empty; write the runtime and its build, e.g. 'litert 2.3.0'.")
        return given
    if len(names) > 1:
        raise SpecError(f"measured with {' and '.join(names)}: one runtime and build at a time.")
    if not names:
        raise SpecError("anchors do not say what they were measured with: add --runtime-build 'litert 2.3.0'.")
    return names[0]


def _own(bundle: Bundle) -> list[Measurement]:
    """The shipped file's timings that its build took on the host; none if the bundle came without them."""
    from edgedistill.pipeline.recheck import host_measurement

    found = host_measurement(bundle)
    return [] if found is None else [found]


def _bench(value: Any, path: Path) -> list[Measurement]:
    if not isinstance(value, dict) or not value:
        raise SpecError(f"{path}: neither a list of anchors nor what `edgedistill bench --out` writes.")
    found = []
    for name, one in value.items():
        inner = one.get("measurement") if isinstance(one, Mapping) else None
        if not isinstance(inner, Mapping):
            raise SpecError(f"{path}: {name!r} holds no measurement, as `edgedistill bench --out` writes it.")
        seen = Measurement.decode(inner, f"{path}: {name}")
        if not seen.samples_ms:
            raise SpecError(f"{path}: {name}: samples_ms is empty.")
        found.append(seen)
    return found


def _bundle_of(one: Measurement, bundles: Sequence[Bundle], path: Path) -> Bundle:
    for bundle in bundles:
        found = next((each for each in bundle.manifest.artifacts if each.sha256 == one.artifact_sha256), None)
        if found is None:
            continue
        if found.path != bundle.shipped.path:
            raise SpecError(
                f"{path}: measured {found.path}, and plans foretell {bundle.shipped.path}, which {bundle.folder} ships."
                f" Time that: edgedistill bench {bundle.folder} --format {bundle.shipped.format}."
            )
        return bundle
    raise SpecError(
        f"{path}: measured the file with sha256 {one.artifact_sha256[:16]}…, which is in no bundle given. Give its"
        " bundle too: what the student is stands there."
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not UTF-8 JSON: {str(error)[:200]}.") from None
