"""Energy per inference of all launches, from what the measuring program read while it paused and while it ran.

The figure is everything that the meter saw, idle power included, as a battery pays for it; beside it stands what is
above the idle power of the pause just before. What was not metered is None, never 0, and `note` says why.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgedistill.errors import DataError
from edgedistill.runners._meters import Meter, Readings, Track, meters
from edgedistill.runners._meters._spent import Spent, spent
from edgedistill.runners._perfetto import Recorded
from edgedistill.specs import Energy

NO_METER = "no power meter that may be read"
CHARGED = "the battery is being charged: a cable feeds the device, use wireless adb"


@dataclass(frozen=True)
class Metered:
    """One launch by one meter: what the runs took, and the idle power before them, in mW."""

    meter: Meter
    busy: Spent
    runs: int
    seconds: float
    idle_mw: float | None
    track: Track

    @property
    def step(self) -> float:
        """The smallest difference that the meter can show in these runs, in mJ."""
        return self.track.step if self.track.cumulative else self.track.step * self.seconds

    @property
    def above_idle(self) -> float | None:
        """mJ above idle power; None where the difference drowns in the meter's own uncertainty."""
        if self.idle_mw is None:
            return None
        above = self.busy.total - self.idle_mw * self.seconds
        return above if above > (self.busy.high - self.busy.low) / 2 else None


def energy_of(
    launches: Sequence[Mapping[str, Any] | None], charging: bool | None, recorded: Sequence[Recorded | None] = ()
) -> Energy:
    """The median over the launches that were metered by the first meter that tells something. A launch is the windows
    and the readings of the measuring program, None without any; `recorded` is what Perfetto saw of it.

    A long run without a pause counts alone, where there is one: it is the longest, of the warmest device.
    """
    traces = recorded or [None] * len(launches)
    told = [(launch, trace or Recorded()) for launch, trace in zip(launches, traces, strict=True) if launch]
    told = told[-1:] if told and told[-1][0].get("sustained") else told
    notes = [trace.why for trace in traces if trace and trace.why]
    for meter in meters():
        kept, why = _by(meter, told, charging)
        if kept:
            missed = len(told) - len(kept)
            return _summary(kept, f"{missed} of {len(told)} launches were not metered: {why}" if missed else "")
        notes += [why] if why else []
    return Energy(energy_mj=None, note=notes[-1] if notes else CHARGED if charging else NO_METER)


def _by(
    meter: Meter, told: Sequence[tuple[Mapping[str, Any], Recorded]], charging: bool | None
) -> tuple[list[Metered], str]:
    """The launches that one meter tells, and why not the others; no reason when it is not there."""
    kept, why = list[Metered](), ""
    for launch, recorded in told:
        try:
            track = meter.track(readings_of(launch, recorded))
            if track is None:
                continue
            if charging and meter.BATTERY:
                raise DataError(CHARGED)
            kept.append(_metered(meter, track, launch))
        except DataError as error:
            why = str(error)
    return kept, why


def readings_of(launch: Mapping[str, Any], recorded: Recorded) -> Readings:
    """The program's JSON as values; each moment's texts by path, with those that were read once.

    Raises:
        DataError: it is damaged.
    """
    try:
        names, once = launch["names"], dict(launch["once"])
        moments = [(int(time_ns) / 1e9, {names[place]: str(text) for place, text in texts})
                   for time_ns, texts in launch["readings"]]  # fmt: skip
        offset_s = launch["boot_offset_ns"] / 1e9
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError("what the program read of the meters is damaged") from None
    moments.sort(key=lambda moment: moment[0])
    texts = tuple({**once, **texts} for _, texts in moments)
    return Readings(tuple(time_s for time_s, _ in moments), texts, offset_s, recorded.trace, recorded.battery_v)


def _metered(meter: Meter, track: Track, launch: Mapping[str, Any]) -> Metered:
    begin, end = (value / 1e9 for value in launch["busy_ns"])
    busy = spent(track, begin, end)
    if slack := launch.get("slack_ns", 0) / 1e9:  # the window may lie that much earlier
        early = spent(track, begin - slack, end - slack)
        busy = replace(busy, low=min(busy.low, early.low), high=max(busy.high, early.high))
    if busy.total <= 0:
        raise DataError("the meter did not move during the measurement")
    paused, resumed = (value / 1e9 for value in launch["idle_ns"])
    try:
        idle_mw = spent(track, paused, resumed).total / (resumed - paused)
    except DataError:  # too short for this meter; the figure itself does not need it
        idle_mw = None
    return Metered(meter, busy, launch["runs"], end - begin, idle_mw, track)


def _summary(kept: Sequence[Metered], note: str) -> Energy:
    """Per inference. Bounds are the lowest and the highest of all launches."""
    first, counted = kept[0], kept[0].track.counted
    idle = [one.idle_mw for one in kept if one.idle_mw is not None]
    above = [one.above_idle / one.runs for one in kept if one.above_idle is not None]
    names = sorted(set.intersection(*(set(one.busy.rails) for one in kept)))
    interval = [one.busy.interval_s for one in kept if one.busy.interval_s]
    return Energy(
        energy_mj=statistics.median(one.busy.total / one.runs for one in kept),
        low_mj=min(one.busy.low / one.runs for one in kept),
        high_mj=max(one.busy.high / one.runs for one in kept),
        above_idle_mj=statistics.median(above) if len(above) == len(kept) else None,
        idle_mw=statistics.median(idle) if idle else None,
        source=first.meter.NAME,
        covers=f"{first.meter.COVERS}: {' + '.join(counted)}" if 1 < len(counted) < 6 else first.meter.COVERS,
        resolution_mj=max(one.step / one.runs for one in kept),
        window_s=statistics.median(one.seconds for one in kept),
        interval_ms=statistics.median(interval) * 1e3 if interval else None,
        rails_mj={name: statistics.median(one.busy.rails[name] / one.runs for one in kept) for name in names},
        note=note,
    )
