"""Cores as a caller states them: checked, and what is odd about them said."""

from __future__ import annotations

from edgedistill.errors import SpecError
from edgedistill.predict.cores import APPLE, CORES, Core, parse_cores

MOST_CORES, GHZ = 1024, (0.01, 20.0)  # beyond which a clock was given in MHz, or a count is none


def stated_cores(text: str) -> tuple[tuple[Core, ...], tuple[str, ...]]:
    """The clusters of a `cpu`, and a note on each kind of core that is not known.

    Raises:
        SpecError: it cannot be read, or has counts or clocks that no CPU has.
    """
    cores = parse_cores(text)
    if text and not cores:
        raise SpecError(f"cpu = {text!r}: not read; write cores as `1xX3@2.91 + 4xA715@2.37` (count, core, GHz).")
    odd = next((one for one in cores if not (1 <= one.cores <= MOST_CORES and GHZ[0] <= one.ghz <= GHZ[1])), None)
    if odd is not None:
        raise SpecError(
            f"cpu = {text!r}: {odd.cores} cores of {odd.ghz:g} GHz; 1 to {MOST_CORES} cores of {GHZ[0]:g} to"
            f" {GHZ[1]:g} GHz are expected (count, core, GHz)."
        )
    unknown = {core.name: core for core in cores if core.name not in CORES and not APPLE.match(core.name)}
    return cores, tuple(
        f"core {name}: not known, taken as one of {core.facts[0]} operations a cycle" for name, core in unknown.items()
    )
