"""How fast a device is in a class: by its own rows, by those of its chip, or by its specifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import hypot, log
from statistics import pstdev
from typing import Any, NamedTuple

from edgedistill.predict import tables
from edgedistill.predict.cores import with_kin
from edgedistill.predict.devices import PARALLEL, Device, of_name
from edgedistill.predict.rows import wanted_builds
from edgedistill.predict.specs import Unit, Workload

Z80 = 1.2815515655446004  # standard deviations from the middle to either end of 80 %


class Speed(NamedTuple):
    """How fast a device is in a class, and how that is known."""

    speed: float
    deviation: Sequence[float]
    told: str  # empty: the device's own rows, this build and thread count
    measured: bool
    beyond: float = 0.0  # log distance of its rates from those of the devices that were measured
    untold: float = 0.0  # log, one standard deviation: how far chips differ in what this device does not state


def find_speed(device: Device, work: Workload, name: str) -> Speed:
    """The device's own group, else that of the nearest build, thread count or same chip, else its specifications."""
    return _find_speed(device, work.runtime, work.unit, work.threads, name)


@lru_cache(maxsize=1024)
def _find_speed(device: Device, runtime: str, unit: Unit, used: int, name: str) -> Speed:
    """A search asks for one device's thousands of times."""
    found = tables.coefficients()["latency"]["classes"][name]
    builds = wanted_builds(runtime)

    def distance(group: str) -> tuple[bool, int, float, int]:
        owner, build, threads, mode = group.split("|")
        order = builds.index(build) if build in builds else len(builds)
        return owner not in device.aliases, order, abs(log(int(threads) / used)), 0 if mode in ("", "2") else 1

    own = [
        g for g in found["groups"] if g.split("|")[0] in device.aliases or of_name(g.split("|")[0]).soc == device.soc
    ]
    asked = {"threads": log(min(used, PARALLEL))} if unit == "cpu" else {}  # known of any device: they are asked for
    wanted = {**asked, **device.descriptors(unit, used), **{f"build:{build}": 1.0 for build in builds[:1]}}
    if not own:
        bare = "no row of this device or chip"
        untold = _untold(found, unit, frozenset(wanted))
        return Speed(_expected(found, wanted), _deviation(found, wanted), bare, False, _beyond(found, wanted), untold)
    best = min(own, key=distance)
    near = _of_group(found, device, best, (runtime, unit, used))
    across = _across(own, best, used) if unit == "cpu" else ""
    if not near.told or not across:
        return near
    return _between(near, _of_group(found, device, across, (runtime, unit, used)), best, across, used)


def _of_group(found: Mapping[str, Any], device: Device, name: str, run: tuple[str, Unit, int]) -> Speed:
    """As the rows of a group say, moved to another build or thread count as specifications say."""
    runtime, unit, used = run
    owner, build, threads, mode = name.split("|")
    group = found["groups"][name]
    other = owner not in device.aliases
    if not other and build in wanted_builds(runtime) and (unit != "cpu" or int(threads) == used):
        return Speed(group["speed"], group["deviation"], "", True)
    theirs = {**of_name(owner).descriptors(unit, int(threads), mode), f"build:{build}": 1.0}
    mine = theirs if other and unit != "cpu" else {**of_name(owner).descriptors(unit, used), f"build:{build}": 1.0}
    shift = _expected(found, mine) - _expected(found, theirs)
    ends = zip(group["deviation"], _deviation(found, mine), _deviation(found, theirs), strict=True)
    deviation = [own + to - at for own, to, at in ends]
    told = f"from {owner}, {build}, {threads} thread{'s' if threads != '1' else ''}"
    return Speed(group["speed"] + shift, deviation, told, True)


def _across(groups: Sequence[str], best: str, used: int) -> str:
    """The same device, build and cores with the nearest thread count on the other side of `used`; empty: none."""
    owner, build, threads, mode = best.split("|")
    counts = [int(t) for o, b, t, m in (group.split("|") for group in groups) if (o, b, m) == (owner, build, mode)]
    beyond = [count for count in counts if (count - used) * (int(threads) - used) < 0]
    return "|".join((owner, build, str(min(beyond, key=lambda count: abs(count - used))), mode)) if beyond else ""


def _between(near: Speed, far: Speed, best: str, across: str, used: int) -> Speed:
    """Between two thread counts that were measured, by the log of the threads: each, alone, would make a step."""
    at, end = (log(int(name.split("|")[2])) for name in (best, across))
    share = (log(used) - at) / (end - at)
    deviation = [(1 - share) * one + share * two for one, two in zip(near.deviation, far.deviation, strict=True)]
    counts = " and ".join(sorted((best.split("|")[2], across.split("|")[2]), key=int))
    told = f"from {', '.join(best.split('|')[:2])}, {counts} threads"
    return near._replace(speed=(1 - share) * near.speed + share * far.speed, deviation=deviation, told=told)


def _expected(found: Mapping[str, Any], facts: Mapping[str, float]) -> float:
    """The speed that specifications tell."""
    slopes = found["slopes"]
    facts = with_kin(facts, slopes)
    names = (name for name in slopes if name != "one" and not name.startswith("mean:"))
    return float(slopes["one"] + sum(slopes[name] * _away(name, facts, slopes) for name in names))


def _beyond(found: Mapping[str, Any], facts: Mapping[str, float]) -> float:
    """The largest log distance of a rate from the range of its class."""
    ends = ((facts[name], *both) for name, both in found["facts"].items() if name in facts)
    return max((max(value - most, least - value, 0.0) for value, least, most in ends), default=0.0)


def _untold(found: Mapping[str, Any], unit: Unit, stated: frozenset[str]) -> float:
    """How far the chips of a class lie apart in log speed by the facts that a device does not state.

    Only where a rate is among them: the other facts of cores say little beside it.
    """
    slopes = found["slopes"]
    lost = [name for name in slopes if f"mean:{name}" in slopes and name not in stated]
    if not {"compute", "bandwidth"}.intersection(lost):
        return 0.0
    owners = {key.split("|")[0]: key.split("|") for key in found["groups"]}
    facts = [of_name(owner).descriptors(unit, int(threads), mode) for owner, _, threads, mode in owners.values()]
    told = [sum(slopes[name] * _away(name, one, slopes) for name in lost if name in one) for one in facts if one]
    return pstdev(told) if len(told) > 1 else 0.0


def without_facts(speed: Speed, low: float, high: float) -> tuple[float, float]:
    """Ends of an interval, log, where the device does not state what its class would use.

    Two errors that do not depend on each other: what the facts miss, and what is not stated.
    """
    apart = Z80 * speed.untold
    return (-hypot(low, apart), hypot(high, apart)) if apart else (low, high)


def _deviation(found: Mapping[str, Any], facts: Mapping[str, float]) -> list[float]:
    """How the terms of such a device stand to those of its class."""
    total = [0.0] * len(found["shape"])
    for name, slopes in found["deviations"].items():
        away = _away(name, facts, found["slopes"])
        total = [now + slope * away for now, slope in zip(total, slopes, strict=True)]
    return total


def _away(name: str, facts: Mapping[str, float], slopes: Mapping[str, float]) -> float:
    """A fact less the mean of its class, which a missing one is taken as; builds and kinds of core have none."""
    mean = slopes.get(f"mean:{name}", 0.0)
    return facts.get(name, mean) - mean


def missing_facts(device: Device, work: Workload, name: str) -> tuple[str, ...]:
    """Names of the facts that a class would use and the device does not state."""
    return _missing_facts(device, work.unit, work.threads, name)


@lru_cache(maxsize=1024)
def _missing_facts(device: Device, unit: Unit, used: int, name: str) -> tuple[str, ...]:
    slopes = tables.coefficients()["latency"]["classes"][name]["slopes"]
    names = {
        "compute": {"cpu": "one_core_fp32_gflops (or cpu)", "npu": "npu_int8_tops", "gpu": "cpu"}[unit],
        "bandwidth": "memory_bandwidth_gb_per_s",
    }
    known = device.descriptors(unit, used)
    return tuple(text for key, text in names.items() if f"mean:{key}" in slopes and key not in known)


def unstated(device: Device, work: Workload, name: str, speed: Speed) -> tuple[tuple[str, ...], list[str]]:
    """Facts that the class would use and the device does not state, and the flags that say so."""
    missing = () if speed.measured else missing_facts(device, work, name)
    wider = ", interval widened" if speed.untold else ""
    return missing, [f"{fact}: not stated, taken as typical{wider}" for fact in missing]
