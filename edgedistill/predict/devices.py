"""A device as the predictor sees it: its measured names, its chip, and the few facts that set its speed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from math import log
from typing import NamedTuple

from edgedistill import catalog
from edgedistill.errors import SpecError, did_you_mean
from edgedistill.predict import tables
from edgedistill.predict.cores import Core, parse_cores
from edgedistill.predict.names import asked_chip, bare, fold, meant, other_chip, soc_key, states_int8, vector_only
from edgedistill.predict.specs import DeviceSpecs
from edgedistill.predict.stated import stated_cores
from edgedistill.specs import Target

TYPICAL_CORES = 3.0  # of the fastest, that all cores of a phone are worth
PARALLEL_GAIN = 0.83  # exponent of the threads on LiteRT's int8 rows
PARALLEL = 4  # threads up to which an inference gains; more mostly wait for each other
# Bandwidth by the peak of all cores, GB/s and GFLOP/s: least squares of the logs over the 45 chips that state both. It
# misses a chip that was left out by x1.6 (one standard deviation); the mean of all chips misses by x1.9.
BANDWIDTH_TOLD = (1.176, 0.659)
BANDWIDTH_SPREAD = 0.468  # log


class Device(NamedTuple):
    """What is known of a device; None: not known."""

    name: str
    aliases: tuple[str, ...]  # names that measurements use
    soc: str
    cores: tuple[Core, ...]
    one_core_gflops: float | None
    bandwidth_gb_per_s: float | None
    npu_tops: float | None
    battery_wh: float | None
    ram_gb: float | None
    fp16: bool | None
    host: bool = False
    npu: bool | None = None  # whether it has one
    notes: tuple[str, ...] = ()  # what was stated and says nothing

    @property
    def cpu_peak_gflops(self) -> float | None:
        """Peak fp32 GFLOP/s of all cores; three of the fastest where only that one is stated."""
        peak = sum(core.gflops * core.cores for core in self.cores) or TYPICAL_CORES * (self.one_core_gflops or 0.0)
        return peak or None

    @property
    def bandwidth_told(self) -> float | None:
        """Memory bandwidth in GB/s as told from the cores: what a chip of such cores usually has."""
        peak = self.cpu_peak_gflops
        return BANDWIDTH_TOLD[0] * peak ** BANDWIDTH_TOLD[1] if peak else None

    def int8_peak_gmacs(self, threads: int) -> float | None:
        """Peak of the dot products on int8 of so many cores, 10^9 multiply-accumulates a second.

        A dot product does four times what a fused multiply-add does in fp32; without ARMv8.2 a widening multiplication
        does twice. Rows of LiteRT show nothing of the int8 matrices that newer cores have beside. Threads wait for each
        other: n of them are worth n^0.83, as in the rows.
        """
        used = self._used(threads, "")
        one = sum(core.gflops for core in used) / len(used) if used else self.one_core_gflops
        if not one:
            return None
        dot = self.fp16 if self.fp16 is not None else all(core.dot for core in used)
        return one / 2 * (4 if dot else 2) * float(min(len(used) or threads, PARALLEL) ** PARALLEL_GAIN)

    def refuse_absent(self, unit: str) -> None:
        """Nothing is predicted for a unit that the device does not have.

        Raises:
            SpecError: it is an NPU, and the device is known to have none.
        """
        if unit == "npu" and self.npu is False:
            raise SpecError(f"{self.name}: no NPU is stated for it; predict its CPU or GPU, or give DeviceSpecs(...).")

    def descriptors(self, unit: str, threads: int, mode: str = "") -> dict[str, float]:
        """What speed on a unit is explained by: logs of rates, and flags; a fact that is missing is left out."""
        found: dict[str, float] = {"vector": float(vector_only(self.soc))} if unit == "npu" else {}
        if self.bandwidth_gb_per_s and unit != "cpu":
            found["bandwidth"] = log(self.bandwidth_gb_per_s)
        if unit == "npu" and self.npu_tops:
            found["compute"] = log(self.npu_tops / (2 if states_int8(self.soc) else 1))
        if unit == "gpu" and self.cpu_peak_gflops:  # rates of GPUs are not stated; chips of fast cores have fast ones
            found["compute"] = log(self.cpu_peak_gflops)
        if unit != "cpu":
            return found
        used = self._used(threads, mode)
        if used:
            found["compute"] = log(sum(core.gflops for core in used) / len(used))
            found["threads"] = log(min(len(used), PARALLEL))
            found["crowd"] = log(max(len(used), PARALLEL) / PARALLEL)
            found["uneven"] = found["compute"] - log(min(core.gflops for core in used))
            found["in_order"] = sum(core.facts[2] for core in used) / len(used)
            found[f"core:{used[0].name}"] = 1.0
            if used[0].line:
                found[f"line:{used[0].line}"] = 1.0
            found["fp16"] = float(self.fp16 if self.fp16 is not None else all(core.facts[1] for core in used))
            found["dot"] = float(self.fp16 if self.fp16 is not None else all(core.dot for core in used))
        elif self.one_core_gflops:
            found |= {"compute": log(self.one_core_gflops), "threads": log(min(threads, PARALLEL)), "in_order": 0.0}
            found["crowd"] = log(max(threads, PARALLEL) / PARALLEL)
            found["fp16"] = found["dot"] = float(self.fp16 is not False)
        return found

    def _used(self, threads: int, mode: str) -> list[Core]:
        """The cores of a run: the fastest first; mode 1 starts with the slow ones (ncnn's powersave)."""
        single = [Core(1, core.name, core.ghz) for core in self.cores for _ in range(core.cores)]
        return sorted(single, key=lambda core: core.gflops, reverse=mode != "1")[:threads]


def resolve(target: Target | DeviceSpecs | str) -> Device:
    """The device of a target, of specifications alone, or of a name: of a target or of the data files.

    Raises:
        SpecError: if the name is nowhere.
    """
    if isinstance(target, Target):
        return _of_target(target)
    if isinstance(target, DeviceSpecs):
        return _of_specs(target)
    if not isinstance(target, str):
        raise SpecError(f"device = {target!r}: give the name of a target or device, a Target, or DeviceSpecs(...).")
    return _named(target)


@cache
def _named(name: str) -> Device:
    every = (*(specs := _tables())[0], *specs[1], *measured_devices())
    found = meant(name, every, lambda one: of_name(one).soc)
    if len(found) > 1:
        raise SpecError(
            f"device {name!r}: may be {' or '.join(map(repr, found))}, which have different chips; say which."
        )
    if found:
        return _variant(name, _of_its_chip(of_name(found[0])))
    if target := next((one for one in catalog.target_names() if fold(one) == fold(name)), None):
        return _of_target(catalog.load_target(target))
    # `A14` alone may be Apple's chip or Samsung's phone, which are 5 times apart
    chip = None if re.fullmatch(r"\s*a\d+\s*", name.lower()) else _with_chip(asked_chip(name))
    if chip:
        return _another(chip, name)
    known = {*catalog.target_names(), *every}
    raise SpecError(
        f"unknown device {name!r}{did_you_mean(name, known)} Or say what is known of it:"
        ' DeviceSpecs(soc="Snapdragon 8 Gen 3"), or DeviceSpecs(cpu="1xX4@3.3 + 5xA720@3.0 + 2xA520@2.3", ...).'
    )


def _variant(name: str, device: Device) -> Device:
    """The device, or that of the other chip which the name says in brackets: `Galaxy S24 (Exynos 2400)`.

    Raises:
        SpecError: nothing is known of that chip.
    """
    said = other_chip(name, device.soc)
    if not said:
        return device
    try:
        chip = _named(said)
    except SpecError:
        raise SpecError(
            f"device {name!r}: the one that is known has the chip {device.soc!r}, and nothing tells of the one with"
            f' {said!r}. Say what is known of it: DeviceSpecs(soc="Exynos 2400"), or DeviceSpecs(cpu=..., ...).'
        ) from None
    return _another(chip, name)


def _another(chip: Device, name: str) -> Device:
    """Another device with the chip, of which nothing else is known."""
    return chip._replace(name=name, aliases=(name,), battery_wh=None, ram_gb=None, npu=None)


def _with_chip(soc: str) -> Device | None:
    """A device with the chip, of those whose facts are known; None: there is none."""
    specs, facts = _tables()
    names = (name for table in (specs, facts) for name, row in table.items() if soc and soc_key(row["soc"]) == soc)
    return next(map(of_name, names), None)


@cache
def _chip_known(soc: str) -> bool:
    return _with_chip(soc) is not None or any(of_name(name).soc == soc for name in measured_devices())


@cache
def of_name(name: str) -> Device:
    """The device that a row of the data files names; facts are missing where no table has them."""
    specs, facts = _tables()
    row, fact = specs.get(name, {}), facts.get(name, {})
    chipset = measured_devices().get(name, "")
    cores = max((parse_cores(text or "") for text in (row.get("cpu"), fact.get("cpu"), chipset, name)), key=len)
    title = row.get("name") or name
    return Device(
        name=title,
        aliases=tuple(dict.fromkeys([name, title])),
        soc=soc_key(row.get("soc") or fact.get("soc") or chipset or name),
        cores=cores,
        one_core_gflops=max((core.gflops for core in cores), default=None),
        bandwidth_gb_per_s=_first(row.get("mem_bw_gbps"), fact.get("memory_bandwidth_gb_per_s")),
        npu_tops=_first(row.get("npu_int8_tops"), fact.get("npu_int8_tops")),
        battery_wh=_first(row.get("battery_wh")),
        ram_gb=_first(row.get("ram_gb")),
        fp16=None,
        npu=bool(row["npu"] or row["npu_int8_tops"]) if row else None,
    )


@cache
def measured_devices() -> dict[str, str]:
    """Every device with a measurement, and the chip that its rows state."""
    return {row["device"]: row["chipset"] for row in tables.rows("devices_measured.csv")}


@cache
def _measured_as(title: str, soc: str) -> tuple[str, ...]:
    """The names that measurements have for a target of this title; other brackets may be another phone's."""
    near = (name for name in measured_devices() if bare(name) == bare(title))
    return tuple(name for name in near if fold(name) == fold(title) or of_name(name).soc == soc)


def _of_target(target: Target) -> Device:
    cores = parse_cores(target.cpu.name)
    npu = next((unit.int8_tops for unit in target.compute_units if unit.kind == "npu"), None)
    one = target.cpu.one_core_fp32_gflops
    return Device(
        name=target.title,
        aliases=(target.title, *_measured_as(target.title, soc_key(target.soc))),
        soc=soc_key(target.soc),
        cores=cores if one is not None else (),
        one_core_gflops=one,
        bandwidth_gb_per_s=target.memory_bandwidth_gb_per_s,
        npu_tops=npu,
        battery_wh=target.battery_wh,
        ram_gb=target.ram_mb / 1000,
        fp16=None,
        host=target.runner == "host",
        npu=any(unit.kind == "npu" for unit in target.compute_units),
    )


def _of_specs(specs: DeviceSpecs) -> Device:
    cores, notes = stated_cores(specs.cpu)
    one = specs.one_core_fp32_gflops or max((core.gflops for core in cores), default=None)
    if one is None and specs.cpu_peak_fp32_gflops:
        one = specs.cpu_peak_fp32_gflops / TYPICAL_CORES
    chip = asked_chip(specs.soc)
    if chip and not _chip_known(chip):
        notes = (*notes, f"soc {specs.soc!r}: no table has it, so its name tells no rates")
    device = Device(
        name=specs.name,
        aliases=(specs.name,),
        soc=chip,
        cores=cores,
        one_core_gflops=one,
        bandwidth_gb_per_s=specs.memory_bandwidth_gb_per_s,
        npu_tops=specs.npu_int8_tops,
        battery_wh=specs.battery_wh,
        ram_gb=specs.ram_gb,
        fp16=specs.fp16,
        notes=notes,
    )
    return _of_its_chip(device)


def _of_its_chip(device: Device) -> Device:
    """With what another device of the same chip states, where this one states nothing."""
    chip = _with_chip(device.soc)
    if chip is None:
        return device
    bare = device.one_core_gflops is None
    return device._replace(
        cores=chip.cores if bare else device.cores,
        one_core_gflops=chip.one_core_gflops if bare else device.one_core_gflops,
        bandwidth_gb_per_s=device.bandwidth_gb_per_s or chip.bandwidth_gb_per_s,
        npu_tops=device.npu_tops or chip.npu_tops,
    )


@cache
def _tables() -> tuple[dict[str, tables.Row], dict[str, tables.Row]]:
    specs: dict[str, tables.Row] = {}
    for row in tables.rows("device_specs.csv"):
        specs[row["device"]] = specs[row["name"]] = row
    return specs, {row["device"]: row for row in tables.rows("device_facts.csv")}


def _first(*cells: str | None) -> float | None:
    return next((float(cell) for cell in cells if cell), None)


def known_names() -> Iterable[str]:
    """Every device name that `resolve` accepts."""
    specs, facts = _tables()
    return sorted({*specs, *facts, *measured_devices(), *catalog.target_names()})
