"""Perfetto traces with Android's power data source (`android.power`): power rails and the battery's counters.

Only what is needed of the format is read. Field numbers: perfetto, `protos/perfetto/trace/trace_packet.proto` and
`protos/perfetto/trace/power/{power_rails,battery_counters}.proto`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from edgedistill.errors import DataError
from edgedistill.parsers.protobuf import Field, each_field, fields
from edgedistill.specs import Spec

PACKET, TIMESTAMP, CLOCK, BATTERY, RAILS, COMPRESSED = 1, 8, 58, 38, 40, 50  # fields of a trace and of its packets
BOOTTIME = 6  # the builtin clock's number; packets without a number have it


class BatteryPoint(Spec):
    """The battery at one moment. `current_ua` is positive when it is drained. None: the device does not tell."""

    time_s: float
    charge_uah: int | None = None
    percent: float | None = None
    current_ua: int | None = None
    voltage_uv: int | None = None


class PowerTrace(Spec):
    """Times are seconds since the device was started. `rails` has, by name, pairs of time and microjoules."""

    rails: Mapping[str, tuple[tuple[float, int], ...]]
    battery: tuple[BatteryPoint, ...]


def parse(data: bytes) -> PowerTrace:
    """A trace as `perfetto -o FILE` writes it.

    Raises:
        DataError: it is no trace, was cut off, is compressed, or holds neither rails nor battery counters.
    """
    names: dict[int, str] = {}
    energies: dict[int, dict[float, int]] = {}
    battery: list[BatteryPoint] = []
    for number, packet in each_field(data):
        if number != PACKET or not isinstance(packet, bytes):
            raise DataError("not a trace of Perfetto")
        told = fields(packet)
        if COMPRESSED in told:
            raise DataError("a compressed trace: record it without compression_type")
        if BATTERY in told or RAILS in told:
            if told.get(CLOCK, BOOTTIME) != BOOTTIME:
                raise DataError(f"a trace whose power is timed by clock {told[CLOCK]!r}, not by the time since boot")
            moment = _whole(told.get(TIMESTAMP), 0) / 1e9
            if isinstance(one := told.get(BATTERY), bytes):
                battery.append(_battery(one, moment))
            if isinstance(some := told.get(RAILS), bytes):
                _rails(some, moment, names, energies)
    rails = _series(names, energies)
    if not rails and not battery:
        raise DataError("a trace with neither power rails nor battery counters: the device has none, or they were not "
                        "asked for (data source android.power)")  # fmt: skip
    return PowerTrace(rails=rails, battery=tuple(sorted(battery, key=lambda point: point.time_s)))


def _rails(data: bytes, moment: float, names: dict[int, str], energies: dict[int, dict[float, int]]) -> None:
    for number, value in each_field(data):
        if number not in (1, 2) or not isinstance(value, bytes):
            continue
        told = fields(value)
        index = _whole(told.get(1), 0)
        if number == 1:
            name = told.get(2, b"")
            names[index] = name.decode("utf-8", "replace") if isinstance(name, bytes) else ""
        elif 3 in told:  # a device that has no new figure leaves it out
            time_s = _whole(told[2], 0) / 1e3 if 2 in told else moment
            energies.setdefault(index, {})[time_s] = _whole(told[3], 0)


def _series(
    names: Mapping[int, str], energies: Mapping[int, Mapping[float, int]]
) -> dict[str, tuple[tuple[float, int], ...]]:
    """Each rail's readings by time; a rail without a name is called by its number, a second one of a name as well."""
    found: dict[str, tuple[tuple[float, int], ...]] = {}
    for index, readings in sorted(energies.items()):
        series = sorted(readings.items())
        if any(value for _, value in series):  # zeros between counts are readings that failed
            series = [(time_s, value) for time_s, value in series if value]
        if any(later[1] < earlier[1] for earlier, later in itertools.pairwise(series)):
            raise DataError(f"rail {names.get(index, index)}: its counter runs backwards")
        name = names.get(index) or f"rail {index}"
        found[name if name not in found else f"{name} ({index})"] = tuple(series)
    return found


def _battery(data: bytes, moment: float) -> BatteryPoint:
    told = fields(data)
    percent = told.get(2)
    return BatteryPoint(
        time_s=moment,
        charge_uah=_whole(told[1]) if 1 in told else None,
        percent=percent if isinstance(percent, float) and 0 <= percent <= 100 else None,
        current_ua=_whole(told[3]) if 3 in told else None,
        voltage_uv=_whole(told[7]) if 7 in told else None,
    )


def _whole(value: Field | None, low: int = -(2**63)) -> int:
    """A varint as the signed number that it stands for."""
    if value is None:
        return 0
    number = value - 2**64 if isinstance(value, int) and value >= 2**63 else value
    if not isinstance(number, int) or not low <= number < 2**63:
        raise DataError("a field of the trace is no number that can be")
    return number
