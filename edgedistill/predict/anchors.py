"""The user's own measurements: three to five of them rescale a device, by runtime and build."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from pathlib import Path
from statistics import mean, median

from edgedistill.errors import SpecError
from edgedistill.predict.classes import CLASSES
from edgedistill.predict.devices import resolve
from edgedistill.predict.latency import class_name, latency
from edgedistill.predict.llm import rate
from edgedistill.predict.specs import Anchor, Calibration, DeviceSpecs, Forecast, LlmWorkload, Workload
from edgedistill.predict.student_lines import CALLED, forecast
from edgedistill.predict.students import ENERGY, LATENCY, MEMORY, STUDENT, is_student
from edgedistill.predict.update import ROUNDS, SPREAD, STUDENT_TRUST, TERM_TRUST, TRUST, update
from edgedistill.specs import Target

FEWEST, MOST = 1, 50
ABSURD = 300.0  # times beside the prediction: seconds for ms are 1 000, a unit that fell back to the CPU was 105 times
CONTRADICTORY = 3.0  # times; a hot phone is 2 times as slow as a cool one
MOST_BYTES = 10**6  # of a calibration's file, which has a few hundred
KNOWN = frozenset(
    [
        *CLASSES,
        *(STUDENT + line for line in (LATENCY, MEMORY, ENERGY)),
        *(f"llm {phase} {unit}" for phase in ("decode", "prefill") for unit in ("cpu", "gpu", "npu")),
    ]
)
TIME = STUDENT + LATENCY
NAMES = ("latency_ms", "decode_tokens_per_s", "prefill_tokens_per_s")


def calibrate_device(
    target: Target | DeviceSpecs | str, anchors: Sequence[Anchor], *, runtime_build: str, out: Path | None = None
) -> Calibration:
    """The factors of each class and of its terms from measured over predicted, drawn to 1 as an anchor is noisy.

    Three anchors of different sizes halve the error of a device known by its specifications alone (bench/results/
    calibration.md). With `out`, the result is written there as JSON.

    Raises:
        SpecError: for no anchors, too many, one that cannot be predicted, or one that is `ABSURD` times off.
    """
    if not FEWEST <= len(anchors) <= MOST:
        raise SpecError(f"{len(anchors)} anchors; give {FEWEST} to {MOST}, three to five of different sizes are best.")
    device = resolve(target)
    seen: dict[str, list[tuple[Anchor, Forecast]]] = {}
    for number, anchor in enumerate(anchors):
        _check_near(number, anchor, _predict(anchor, target)[1])
    for anchor in _apart(anchors):
        name, predicted = _predict(anchor, target)
        seen.setdefault(name, []).append((anchor, predicted))
    ratios = {name: [_ratio(*one) for one in pairs] for name, pairs in seen.items()}
    factors = {name: exp(middle(values)) for name, values in ratios.items()}
    terms: dict[str, dict[str, float]] = {}
    for name, pairs in seen.items():
        if name in (*CLASSES, TIME) and all(_whole(anchor) for anchor, _ in pairs):
            factors[name], terms[name] = _by_term(pairs, STUDENT_TRUST if name == TIME else TERM_TRUST)
    if TIME in terms:
        ratios[TIME] = [_left(*one, factors[TIME], terms[TIME]) for one in seen[TIME]]
    found = Calibration(
        device=device.name,
        runtime_build=runtime_build,
        factors=factors,
        terms=terms,
        anchors={name: len(values) for name, values in ratios.items()},
        spread={name: _spread(values, fitted=name == TIME) for name, values in ratios.items()},
    )
    if out is not None:
        out.write_text(json.dumps(found.model_dump(mode="json"), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return found


def _apart(anchors: Sequence[Anchor]) -> list[Anchor]:
    """One anchor for each workload: the same measured again is the median of what was seen, no second witness.

    Raises:
        SpecError: one workload was measured `CONTRADICTORY` times apart.
    """
    same: dict[tuple[Workload | LlmWorkload, str, float], list[float]] = {}
    for anchor in anchors:
        student = isinstance(anchor.workload, Workload) and is_student(anchor.workload)
        # a student's interval is made from how far its timings lie apart, so another timing counts; a copy does not
        timing = anchor.measured if student else 0.0
        same.setdefault((anchor.workload, anchor.quantity, timing), []).append(anchor.measured)
    for seen in same.values():
        if max(seen) > CONTRADICTORY * min(seen):
            raise SpecError(
                f"one workload was measured {min(seen):g} and {max(seen):g}, more than {CONTRADICTORY:g} times apart:"
                " leave out what was not measured like the others."
            )
    return [Anchor(workload=work, measured=median(seen), quantity=name) for (work, name, _), seen in same.items()]


def _check_near(number: int, anchor: Anchor, predicted: Forecast) -> None:
    ratio = exp(abs(_ratio(anchor, predicted)))
    if ratio > ABSURD:
        raise SpecError(
            f"anchor {number}: measured {anchor.measured:g}, predicted {predicted.median:.3g} {predicted.unit}:"
            f" {ratio:.3g} times apart. Is it in {predicted.unit}, of this very workload and device?"
        )


def _whole(anchor: Anchor) -> bool:
    """Whether its forecast has the terms of its class, not those of two partitions."""
    return isinstance(anchor.workload, Workload) and (anchor.workload.delegated == 1.0 or anchor.workload.unit == "cpu")


def _ratio(anchor: Anchor, predicted: Forecast) -> float:
    """Log of how much slower than predicted."""
    ratio = log(anchor.measured / predicted.median)
    return ratio if predicted.unit in ("ms", "MB", "mJ") else -ratio


def _left(anchor: Anchor, predicted: Forecast, factor: float, terms: Mapping[str, float]) -> float:
    """Log of how much slower than predicted with the factors."""
    now = sum(value * terms[name] for name, value in predicted.terms.items())
    return log(anchor.measured / (factor * now))


def _spread(logs: Sequence[float], *, fitted: bool) -> float:
    """Standard deviation; of what is left after a fit as if it had taken two of the anchors to find."""
    if not fitted:
        return sqrt(mean((value - mean(logs)) ** 2 for value in logs))
    return sqrt(sum(value * value for value in logs) / max(len(logs) - 2, 1))


def _by_term(pairs: Sequence[tuple[Anchor, Forecast]], trust: float) -> tuple[float, dict[str, float]]:
    """The factor of the typical anchor, and of each term beside it."""
    speed, change = update([(predicted.terms, anchor.measured) for anchor, predicted in pairs], trust)
    shares = {
        name: mean(predicted.terms.get(name, 0.0) / predicted.median for _, predicted in pairs) for name in change
    }
    typical = sum(shares[name] * change[name] for name in change) / sum(shares.values())
    return exp(speed + typical), {name: exp(value - typical) for name, value in change.items()}


def middle(values: Sequence[float]) -> float:
    """The pseudo-Huber mean of log ratios, drawn to 0 with `TRUST`: for classes whose terms are not told apart."""
    now = median(values)
    for _ in range(ROUNDS):
        weights = [1 / sqrt(1 + ((value - now) / SPREAD) ** 2) for value in values]
        now = sum(w * v for w, v in zip(weights, values, strict=True)) / (sum(weights) + TRUST)
    return now


def read_calibration(path: Path) -> Calibration:
    """What `calibrate_device` wrote.

    Raises:
        SpecError: if the file cannot be read, is not JSON, or is not a calibration.
    """
    try:
        if path.stat().st_size > MOST_BYTES or not path.is_file():  # a pipe would be waited for
            raise ValueError("no file, or a large one")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not a calibration ({error}). Measure again: edgedistill calibrate.") from None
    if not isinstance(values, dict):
        raise SpecError(f"{path}: not a calibration (a JSON object is expected). Measure again: edgedistill calibrate.")
    found = Calibration.decode(values, where=str(path))
    if foreign := sorted(found.factors.keys() - KNOWN):
        raise SpecError(
            f"{path}: class {foreign[0]!r} is none of this version's. Measure again: edgedistill calibrate."
        )
    return found


def _predict(anchor: Anchor, target: Target | DeviceSpecs | str) -> tuple[str, Forecast]:
    """The class of an anchor and what is predicted for it without its own row."""
    device = resolve(target)
    if isinstance(anchor.workload, Workload) and is_student(anchor.workload):
        quantity = CALLED.get(anchor.quantity or NAMES[0], anchor.quantity)
        if quantity not in (LATENCY, MEMORY, ENERGY):
            raise SpecError(f"anchor quantity {anchor.quantity!r}: of a student give {NAMES[0]}, {MEMORY} or {ENERGY}.")
        return STUDENT + quantity, forecast(device, anchor.workload, quantity, None, None)
    if isinstance(anchor.workload, Workload):
        if anchor.quantity not in ("", NAMES[0]):
            raise SpecError(
                f"anchor quantity {anchor.quantity!r}: of an encoder or vision model only latency_ms is scaled."
            )
        name = class_name(device, anchor.workload)
        return name, latency(device, anchor.workload, _neutral(device.name))
    if anchor.quantity not in NAMES[1:]:
        raise SpecError(f"anchor quantity {anchor.quantity!r}: of a language model give {' or '.join(NAMES[1:])}.")
    phase = "decode" if anchor.quantity == NAMES[1] else "prefill"
    name = f"llm {phase} {anchor.workload.backend}"
    return name, rate(device, anchor.workload, "decode" if phase == "decode" else "prefill", _neutral(device.name))


def _neutral(device: str) -> Calibration:
    """A calibration that changes nothing, so that an exact row is not taken for the prediction."""
    return Calibration(device=device, runtime_build="none", factors={}, anchors={}, spread={})
