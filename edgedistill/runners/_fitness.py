"""Is a device in a state in which its figures mean something? What passes by itself, and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgedistill.runners import How
from edgedistill.specs import Conditions

# Shares of all cores. A phone's own services take a few per cent; a quarter is somebody's work.
OTHERS_MAX, STEAL_MAX = 0.25, 0.05


def passing(seen: Conditions) -> list[str]:
    """Why not now, but perhaps soon."""
    hot = seen.thermal_status
    return [f"throttled by heat (thermal status {hot}, 0 is needed)"] if hot else []


def lasting(seen: Conditions, how: How) -> list[str]:
    """Why not, until a person does something."""
    reasons = []
    if seen.low_power_mode:
        reasons.append("battery saver is on, which slows it down: switch it off")
    if seen.battery_percent is not None and seen.battery_percent < how.battery_min_percent:
        reasons.append(
            f"battery at {seen.battery_percent:.0f} %, at least {how.battery_min_percent:.0f} % are needed, as phones "
            "slow down when it runs low: charge it"
        )
    # With Intel's and AMD's own drivers "powersave" is the ordinary governor; on Arm it is the lowest clock.
    if seen.governor and "powersave" in seen.governor and seen.frequency_mhz is not None and seen.frequency_mhz < 1000:
        reasons.append(f"its governor is {seen.governor}, which keeps the clock low: choose another")
    return reasons


def disturbed(answer: Mapping[str, Any]) -> list[str]:
    """What happened beside a launch, by its own account; a device that does not say is taken as quiet."""
    shares = answer.get("shares") or {}
    others, steal = shares.get("others_share"), shares.get("steal_share")
    reasons = []
    if others is not None and others > OTHERS_MAX:
        reasons.append(f"other programs took {others:.0%} of its cores, {OTHERS_MAX:.0%} at most are fit")
    if steal is not None and steal > STEAL_MAX:
        reasons.append(f"its hypervisor gave {steal:.0%} of its cores to others, {STEAL_MAX:.0%} at most are fit")
    return reasons
