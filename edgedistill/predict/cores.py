"""Cores of CPUs: what each kind does in a cycle, and how clusters of them are written."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import NamedTuple

# fp32 operations per cycle (fused multiply-add counts two), as device_specs.csv counts them; half precision
# (ARMv8.2); in order. Of public block diagrams, recalled.
CORES: dict[str, tuple[int, bool, bool]] = {
    "arm1176": (1, False, True), "a5": (4, False, True), "a7": (4, False, True), "a8": (4, False, True),
    "a9": (4, False, False), "a15": (8, False, False), "a17": (8, False, False), "a35": (4, False, True),
    "a53": (8, False, True), "a55": (8, True, True), "a57": (8, False, False), "a72": (8, False, False),
    "a73": (8, False, False), "a75": (8, True, False), "a76": (16, True, False), "a77": (16, True, False),
    "a78": (16, True, False), "a78ae": (16, True, False), "a78c": (16, True, False), "a710": (16, True, False),
    "a715": (16, True, False), "a720": (16, True, False), "a725": (16, True, False), "a510": (8, True, True),
    "a520": (8, True, True), "x1": (32, True, False), "x2": (32, True, False), "x3": (32, True, False),
    "x4": (32, True, False), "x925": (32, True, False), "oryon": (32, True, False), "kryo": (8, False, False),
    "carmel": (16, True, False), "denver2": (16, False, False), "cyclone": (16, False, False),
    "ftc664": (8, False, False), "ftc310": (8, False, True), "neoverse": (16, True, False),
    "c1-ultra": (32, True, False), "c1-premium": (32, True, False), "c1-pro": (16, True, False),
    "c1-nano": (8, True, True), "a320": (8, True, True), "m3": (24, False, False), "m4": (24, True, False),
    "m5": (24, True, False), "monsoon": (24, True, False), "vortex": (24, True, False), "tempest": (16, True, False),
    "lightning": (24, True, False), "thunder": (16, True, False),
}  # fmt: skip
# Qualcomm's names of Arm's cores, by the first of their digits: prime, gold, silver.
_KRYO = {
    "2": ("A73", "A73", "A53"), "3": ("A75", "A75", "A55"), "4": ("A76", "A76", "A55"), "5": ("A77", "A77", "A55"),
    "6": ("X1", "A78", "A55"), "7": ("X2", "A710", "A510"),
}  # fmt: skip
# Designs of one line, in the order of their years: they err alike from what their rates tell.
LINES = {
    "little": ("a5", "a7", "a35", "a53", "a55", "a510", "a520", "a320", "c1-nano"),
    "first": ("a9", "a15", "a17", "a57", "a72", "a73", "kryo"),  # of more than one instruction, before dot products
    "big": ("a75", "a76", "a77", "a78", "a78ae", "a78c", "a710", "a715", "a720", "a725", "c1-pro"),
    "prime": ("x1", "x2", "x3", "x4", "x925", "c1-ultra", "c1-premium"),
    "wide": ("oryon", "monsoon", "vortex", "lightning", "firestorm", "avalanche", "everest", "p", "apple-p"),
}
_PLACE = {name: (line, year) for line, names in LINES.items() for year, name in enumerate(names)}
APPLE = re.compile(r"^(p|e|apple.*|firestorm|icestorm|avalanche|blizzard|everest|sawtooth)$")
APPLE_CORE = (32, True, False)
# Cores with half precision whose chips have no dot products on int8: Snapdragon 845, Xavier, Apple's before A13.
NO_DOT = frozenset(["a75", "carmel", "monsoon", "vortex", "tempest"])
# ARMv8.6's matrix instructions on int8 (i8mm), of core names above; Apple's from A15 on.
INT8_MATRICES = frozenset([
    "x2", "x3", "x4", "x925", "a710", "a715", "a720", "a725", "a510", "a520", "a320", "oryon", "c1-ultra", "c1-premium",
    "c1-pro", "c1-nano",
])  # fmt: skip
NO_MATRICES_APPLE = frozenset(["firestorm", "icestorm", "cyclone"])
UNKNOWN_CORE = (16, True, False)


def with_kin(facts: Mapping[str, float], known: Container[str]) -> Mapping[str, float]:
    """Facts of a device, with the nearest known design of its line, rather an older one, for a core not in `known`."""
    name = next((fact.removeprefix("core:") for fact in facts if fact.startswith("core:")), "")
    if name not in _PLACE or f"core:{name}" in known:
        return facts
    line, year = _PLACE[name]
    kin = [(abs(at - year), at > year, other) for at, other in enumerate(LINES[line]) if f"core:{other}" in known]
    return {**facts, f"core:{min(kin)[2]}": 1.0} if kin else facts


class Core(NamedTuple):
    """A cluster of equal cores."""

    cores: int
    name: str
    ghz: float

    @property
    def facts(self) -> tuple[int, bool, bool]:
        """Operations per cycle, half precision, in order."""
        if APPLE.match(self.name):
            return (
                (16, True, False) if self.name in ("e", "apple-e", "icestorm", "blizzard", "sawtooth") else APPLE_CORE
            )
        return CORES.get(self.name, UNKNOWN_CORE)

    @property
    def dot(self) -> bool:
        """Whether the core has dot products on int8 (ARMv8.2's option)."""
        return self.facts[1] and self.name not in NO_DOT

    @property
    def line(self) -> str:
        """The line of designs that the core is of; empty: none that is known."""
        return _PLACE[self.name][0] if self.name in _PLACE else ""

    @property
    def int8_matrices(self) -> bool:
        """Whether the core multiplies int8 matrices (i8mm)."""
        return self.name in INT8_MATRICES or (APPLE.match(self.name) is not None and self.name not in NO_MATRICES_APPLE)

    @property
    def gflops(self) -> float:
        """Peak fp32 GFLOP/s of one core."""
        return self.facts[0] * self.ghz


def parse_cores(text: str) -> tuple[Core, ...]:
    """`1xX3@2.91 + 4xA715@2.37` or `Cortex-A76 2.4GHz x 4` as clusters; what cannot be read is left out."""
    found = []
    text = _NUMBERED.sub(_arm_core, text)
    for count, name, ghz in re.findall(r"(\d+)\s*[x×]\s*([A-Za-z][\w-]*)(?:\s*@\s*|\s+)([\d.]+)", text):
        found.append(Core(int(count), _core_name(name), float(ghz)))
    if not found:
        pattern = r"(?:Cortex-)?([AX]\d{1,3}\w*|Oryon|Carmel|Kr?yro?\w*)\s*@?\s*([\d.]+)\s*GHz(?:\s*[x×]\s*(\d+))?"
        for name, ghz, count in re.findall(pattern, text, re.IGNORECASE):
            found.append(Core(int(count or 1), _core_name(name), float(ghz)))
    return tuple(found)


_NUMBERED = re.compile(r"k(?:ry|yr)o[\s-]*([2-7])\d\d(?:[\s-]+(prime|gold|silver)\b)?", re.IGNORECASE)


def _arm_core(found: re.Match[str]) -> str:
    """`Kryo 585 Silver` -> A55; without a word the big one."""
    return _KRYO[found[1]][("prime", "gold", "silver").index((found[2] or "gold").lower())]


def _core_name(text: str) -> str:
    name = text.lower().removeprefix("cortex-")
    return "kryo" if name.startswith(("kryo", "kyro")) else name
