"""What networks of several families are made of, apart from torch's own layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Point(nn.Identity):
    """A place whose values lie on an int8 grid when activations are static: it does nothing in a float network.

    Linear layers need none, they have grids of their own; convolutions, sums of two branches and pools do.
    """

    step = 0.0
    """The scale of the grid, where there is one."""


class Addend(Point):
    """A point whose values, or their squares, are added up: on a grid on which such sums are exact in any order."""


class Share(Point):
    """A point whose values are from 0 to 1."""


class Sum(Point):
    """A point whose values are the sum of two branches. `sources` names the points that the branches come from."""

    def __init__(self, sources: tuple[str, str]) -> None:
        super().__init__()
        self.sources = sources

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # type: ignore[override]
        """The sum; both have one shape."""
        return torch.add(first, second)


class Convolution(nn.Conv2d):
    """A convolution between two points, which are all that a kernel for integers needs to know beside its weight.

    `source` and `result` name the points in the network; with `relu6` a ReLU6 lies between it and `result`.
    """

    def __init__(self, *args: Any, source: str, result: str, relu6: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.source, self.result, self.relu6 = source, result, relu6
