"""How long work tells the outside how far it is. The library never prints; the command line draws these calls."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable  # the tests check annotations at run time
class Progress(Protocol):
    """Receives what happens; every method returns at once."""

    def begin(self, stage: str, total: int = 0, unit: str = "step") -> None:
        """A stage starts; `total` is its number of units, 0 when unknown."""

    def advance(self, units: int = 1, **facts: float) -> None:
        """`units` more are done; `facts` are live figures such as `loss`."""

    def end(self, note: str = "") -> None:
        """The stage is finished; `note` is one line a person wants to read."""


class Silent:
    """Progress that nobody watches."""

    def begin(self, stage: str, total: int = 0, unit: str = "step") -> None:
        """Nothing."""

    def advance(self, units: int = 1, **facts: float) -> None:
        """Nothing."""

    def end(self, note: str = "") -> None:
        """Nothing."""
