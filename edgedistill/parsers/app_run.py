"""JSON of benchmark apps and scripts in the form of apple-silicon-llm-bench: one run of a language model on a phone."""

from __future__ import annotations

from typing import Any

from edgedistill.errors import DataError
from edgedistill.parsers._text import as_number, load_json
from edgedistill.specs import Spec


class AppRun(Spec):
    """One run; `curve_tokens_per_s` is the decode speed over a rolling window. None: not told.

    `power_w` comes from the battery's level, in steps of `power_step_w` (half a percent of what was drawn either way).
    """

    device: str
    system: str
    runtime: str
    charging: bool | None
    thermal_first: str
    thermal_last: str
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    first_token_ms: float | None
    memory_mb: float | None
    power_w: float | None
    power_step_w: float | None
    curve_tokens_per_s: tuple[float, ...]

    @property
    def sustained_ratio(self) -> float | None:
        """Speed of the curve's last tenth over that of its first; below 1: it slowed down."""
        tenth = len(self.curve_tokens_per_s) // 10
        if not tenth:
            return None
        first, last = self.curve_tokens_per_s[:tenth], self.curve_tokens_per_s[-tenth:]
        return sum(last) / sum(first) if sum(first) > 0 else None


def parse(text: str) -> AppRun:
    """One run.

    Raises:
        DataError: it is no run, failed, or holds no figure.
    """
    value = load_json(text)
    device, metrics = (value.get(key) if isinstance(value, dict) else None for key in ("device", "metrics"))
    if not isinstance(value, dict) or not isinstance(device, dict) or not isinstance(metrics, dict):
        raise DataError("no 'device' and 'metrics' objects: not a run of a benchmark app")
    conditions = value.get("conditions") if isinstance(value.get("conditions"), dict) else {}
    if conditions and conditions.get("exitCode") not in (None, 0):
        raise DataError(f"the run ended with {str(conditions['exitCode'])[:20]}")
    decode, prefill = _told(metrics, "decodeTokensPerSecond"), _told(metrics, "promptTokensPerSecond")
    curve = metrics.get("decodeRateRollingWindow")
    rates = tuple(as_number(item, "decodeRateRollingWindow") for item in curve) if isinstance(curve, list) else ()
    if decode is None and prefill is None and not rates:
        raise DataError("no speed in 'metrics': the run was cut off")
    state = str(device.get("batteryState", "")).lower()
    power, drawn = _told(metrics, "averagePackagePowerW"), _told(metrics, "batteryDeltaPercent")
    charging = None if state in ("", "unknown") else state != "unplugged"
    return AppRun(
        device=str(device.get("modelIdentifier", "")),
        system=f"{device.get('systemName', '')} {device.get('systemVersion', '')}".strip(),
        runtime=f"{value.get('runtime', '')} {value.get('engineVersion', '')}".strip(),
        charging=charging,
        thermal_first=str(metrics.get("initialThermalState") or device.get("initialThermalState", "")),
        thermal_last=str(metrics.get("finalThermalState", "")),
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        first_token_ms=_told(metrics, "firstTokenLatencyMS"),
        memory_mb=_first(metrics, "memoryPeakDuringDecodeMB", "memoryPeakResidentMB", "memoryMedianResidentMB"),
        power_w=None if charging else power,  # what a cable feeds is not in it
        power_step_w=power * 0.5 / drawn if power and drawn and not charging else None,
        curve_tokens_per_s=rates,
    )


def _told(metrics: dict[str, Any], key: str) -> float | None:
    value = metrics.get(key)
    return None if value is None else as_number(value, key)


def _first(metrics: dict[str, Any], *keys: str) -> float | None:
    return next((value for key in keys if (value := _told(metrics, key)) is not None), None)
