"""What networks of several families are made of, apart from torch's own layers."""

from __future__ import annotations

from torch import nn


class Point(nn.Identity):
    """A place whose values lie on an int8 grid when activations are static: it does nothing in a float network.

    Linear layers need none, they have grids of their own; convolutions, sums of two branches and pools do.
    """
