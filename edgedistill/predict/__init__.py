"""What a workload costs on a device it has not run on: `edgedistill.predict(target, workload)`.

>>> from edgedistill import predict
>>> from edgedistill.predict import Workload
>>> work = Workload(model="mobilenet_v2", runtime="litert", unit="cpu", precision="fp32")
>>> predict("pixel9_pro", work).level
'exact row'

A device is a target's or a measured device's name, a `Target`, or `DeviceSpecs`; a workload is a `Workload` (encoder,
vision) or an `LlmWorkload`. The answer is a `Forecast`: median, 80% interval, how it was made, terms and flags. The
module itself is callable, so that the call reads as above and the types have a home; no numpy is imported.
"""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType
from typing import SupportsFloat

from edgedistill import catalog
from edgedistill.errors import SpecError, did_you_mean
from edgedistill.predict import llm, resources, student_lines
from edgedistill.predict.anchors import calibrate_device, read_calibration
from edgedistill.predict.devices import Device, resolve
from edgedistill.predict.latency import latency
from edgedistill.predict.specs import Anchor, Calibration, DeviceSpecs, Forecast, LlmWorkload, Workload
from edgedistill.predict.students import is_student
from edgedistill.specs import Candidate, Plan, Target

VISION = ("latency_ms", "sustained_latency_ms", "first_load_ms", "peak_memory_mb", "energy_mj")
LANGUAGE = (
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
    "sustained_decode_tokens_per_s",
    "first_token_ms",
    "peak_memory_mb",
    "energy_mj",
)
BATTERY = "battery_percent_per_hour"
MOST_PER_HOUR = 1e12  # as of every number that is asked: what is computed from it stays finite


def predict(
    target: Target | DeviceSpecs | str,
    workload: Workload | LlmWorkload | Candidate | Plan,
    quantity: str = "",
    *,
    calibration: Calibration | None = None,
    per_hour: float | None = None,
) -> Forecast:
    """One quantity of one workload on one device; by default latency, or the decode rate of a language model.

    Quantities: `latency_ms`, `sustained_latency_ms`, `first_load_ms`, `peak_memory_mb`, `energy_mj`; of language models
    `decode_tokens_per_s`, `prefill_tokens_per_s`, `sustained_decode_tokens_per_s`, `first_token_ms`, `peak_memory_mb`,
    `energy_mj` (for each token); of both `battery_percent_per_hour`, which needs `per_hour` (inferences or tokens an
    hour). A plan, or one of its candidates, is a workload too: of its student the call says what the plan says.
    `calibration` is what `calibrate_device` found on this very device and build.

    Raises:
        SpecError: for an unknown device, model, runtime or quantity, or when the facts for the quantity are missing.
    """
    workload = _workload(workload)
    if not isinstance(quantity or "", str):
        raise SpecError(f"quantity = {quantity!r}: give a name, one of {', '.join((*VISION, *LANGUAGE, BATTERY))}.")
    if isinstance(target, str) and isinstance(workload, Workload) and is_student(workload):
        # as the plan has it: a target's file rounds its rates, or says more of its chip than the tables
        target = catalog.load_target(target) if target in catalog.target_names() else target
    device = resolve(target)
    _check_own(calibration, device, target)
    found = _answer(device, workload, quantity, calibration, per_hour)
    return found.model_copy(update={"flags": (*found.flags, *device.notes)}) if device.notes else found


def _answer(
    device: Device,
    workload: Workload | LlmWorkload,
    quantity: str,
    calibration: Calibration | None,
    per_hour: float | None,
) -> Forecast:
    if quantity == BATTERY:
        per_hour = _checked_rate(per_hour)
        if not (isinstance(workload, Workload) and is_student(workload)):
            return resources.battery(device, workload, per_hour, calibration)
    if isinstance(workload, LlmWorkload):
        return _language(device, workload, quantity or LANGUAGE[0], calibration)
    if is_student(workload):
        return student_lines.forecast(device, workload, quantity or VISION[0], calibration, per_hour)
    return _vision(device, workload, quantity or VISION[0], calibration)


def _checked_rate(per_hour: object) -> float:
    if isinstance(per_hour, SupportsFloat) and not isinstance(per_hour, bool):
        with contextlib.suppress(OverflowError, TypeError):  # too many digits; an array of several numbers
            if 0 < (rate := float(per_hour)) <= MOST_PER_HOUR:
                return rate
    raise SpecError(
        f"{BATTERY} needs per_hour, inferences or tokens in an hour, above 0 and at most {MOST_PER_HOUR:.0e}; got"
        f" {per_hour!r}."
    )


def predict_all(
    target: Target | DeviceSpecs | str,
    workload: Workload | LlmWorkload | Candidate | Plan,
    *,
    calibration: Calibration | None = None,
) -> tuple[Forecast, ...]:
    """Every quantity that can be said; one whose facts are missing is left out, never guessed.

    Raises:
        SpecError: if not even the first quantity can be predicted.
    """
    names = LANGUAGE if isinstance(workload, LlmWorkload) else VISION
    found = [predict(target, workload, names[0], calibration=calibration)]
    for name in names[1:]:
        try:
            found.append(predict(target, workload, name, calibration=calibration))
        except SpecError:
            continue  # documented: left out
    return tuple(found)


def _check_own(calibration: Calibration | None, device: Device, target: Target | DeviceSpecs | str) -> None:
    """What was measured on one device says nothing about another."""
    if not isinstance(calibration, Calibration | None):
        raise SpecError(f"calibration = {calibration!r}: give what `calibrate_device` or `read_calibration` returns.")
    names = {device.name, *device.aliases, target if isinstance(target, str) else target.name}
    if calibration is not None and calibration.device not in names:
        raise SpecError(
            f"calibration: of {calibration.device!r}, and the device is {device.name!r}; give that of this device, or"
            " none."
        )


def _workload(given: object) -> Workload | LlmWorkload:
    if isinstance(given, Plan):
        given = given.chosen
    if isinstance(given, Candidate):
        if not given.work:
            raise SpecError("the plan's student has no `work`: an earlier version made it; plan again.")
        return Workload.decode(dict(given.work), where="work of a plan's student")
    if not isinstance(given, Workload | LlmWorkload):
        raise SpecError(f"workload = {given!r}: give a Workload(...), an LlmWorkload(...) or a plan.")
    return given


def _vision(device: Device, work: Workload, quantity: str, calibration: Calibration | None) -> Forecast:
    if quantity == "latency_ms":
        return latency(device, work, calibration)
    if quantity == "sustained_latency_ms":
        return resources.sustained(latency(device, work, calibration))
    if quantity == "first_load_ms":
        return resources.first_load(device, work)
    if quantity == "peak_memory_mb":
        return resources.memory(device, work)
    if quantity == "energy_mj":
        return resources.energy(device, work, calibration)
    raise SpecError(f"unknown quantity {quantity!r}{did_you_mean(quantity, [*VISION, BATTERY])}")


def _language(device: Device, work: LlmWorkload, quantity: str, calibration: Calibration | None) -> Forecast:
    if quantity in ("decode_tokens_per_s", "sustained_decode_tokens_per_s"):
        burst = llm.rate(device, work, "decode", calibration)
        return burst if quantity.startswith("decode") else resources.sustained(burst)
    if quantity == "prefill_tokens_per_s":
        return llm.rate(device, work, "prefill", calibration)
    if quantity == "first_token_ms":
        return _first_token(device, work, calibration)
    if quantity == "peak_memory_mb":
        return resources.llm_memory(device, work)
    if quantity == "energy_mj":
        return resources.energy(device, work, calibration)
    raise SpecError(f"unknown quantity {quantity!r}{did_you_mean(quantity, [*LANGUAGE, BATTERY])}")


def _first_token(device: Device, work: LlmWorkload, calibration: Calibration | None) -> Forecast:
    """Time to the first token: prompt tokens over the prefill rate; loading the file is not in it.

    A pass over few tokens reads all weights as one over a single token does, so it takes no less than writing one
    does; nor more than a pass over the prompt that the rates were measured with.
    """
    prefill = llm.rate(device, work, "prefill", calibration)
    tokens = {"median": 1e3 * work.prompt_tokens / prefill.median, "low": 1e3 * work.prompt_tokens / prefill.high,
              "high": 1e3 * work.prompt_tokens / prefill.low}  # fmt: skip
    terms, flags = {"prefill_ms": tokens["median"]}, prefill.flags
    if work.prompt_tokens < llm.CALIBRATED_PROMPT:
        step = llm.rate(device, work.model_copy(update={"prompt_tokens": 1}), "decode", calibration)
        usual = llm.CALIBRATED_PROMPT / work.prompt_tokens
        least = {"median": 1e3 / step.median, "low": 1e3 / step.high, "high": 1e3 / step.low}
        tokens = {end: max(ms, min(least[end], ms * usual)) for end, ms in tokens.items()}
        if tokens["median"] > terms["prefill_ms"]:
            terms["weights_ms"] = tokens["median"] - terms["prefill_ms"]
            flags = (*flags, "prompt: so short that it takes as long as writing one token")
    return prefill.model_copy(
        update={"quantity": "first_token_ms", "unit": "ms", **tokens, "terms": terms, "flags": flags}
    )


class _Callable(ModuleType):
    """`edgedistill.predict` names both this package and the call; a module may be callable through its class."""

    __call__ = staticmethod(predict)


sys.modules[__name__].__class__ = _Callable

__all__ = [
    "Anchor",
    "Calibration",
    "DeviceSpecs",
    "Forecast",
    "LlmWorkload",
    "Workload",
    "calibrate_device",
    "predict",
    "predict_all",
    "read_calibration",
    "resolve",
]
