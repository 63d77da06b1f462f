"""What the converter sees in place of a student's codes: random ones, different for each weight.

The converter renames, merges, transposes and reorders constants, so that its output no longer says which weight is
which, and two weights may hold equal bytes. Random codes pass through it like any others, and what carries them
afterwards is known without doubt, with its layout; only then the real codes are put there (`weights.place`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.grid import CODE_MAX

# How TFLite stores a convolution kernel [O, I, H, W], as the order of our axes; the axis of the channels in it.
LAYOUTS = {"OHWI": (0, 2, 3, 1), "IHWO": (1, 2, 3, 0)}
# A kernel of one pixel as the matrix [O, I] of a linear layer that is applied to every pixel.
POINTWISE = "OI"
CHANNEL_AXIS = {"": 0, "OHWI": 0, "IHWO": 3, POINTWISE: 0}


class Carrier(NamedTuple):
    """Codes and scales of one weight for the converter."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def stored(self) -> dict[str, NDArray[np.int8]]:
        """The codes in every layout that the converter may give them; "" is ours."""
        if self.codes.ndim != 4:
            return {"": self.codes}
        layouts = {"OHWI": self.codes.transpose(LAYOUTS["OHWI"])}
        if self.codes.shape[1] == 1:  # depthwise
            layouts["IHWO"] = self.codes.transpose(LAYOUTS["IHWO"])
        return layouts


def carriers(frozen: FrozenStudent) -> dict[str, Carrier]:
    """A carrier for each weight, the same ones in every process.

    Scales are the student's where the converter computes with them (int32 biases); those of groups it could not hold.
    """
    random = np.random.default_rng(0)
    taken: set[bytes] = set()
    found = {}
    for name, weight in frozen.quantized.items():
        scales = weight.scales if weight.scales.ndim == 1 else np.ones(len(weight.scales), np.float32)
        while True:
            codes = random.integers(-CODE_MAX, CODE_MAX + 1, weight.codes.shape, np.int8)
            carrier = Carrier(codes, scales)
            forms = {form.tobytes() for form in carrier.stored().values()}
            if not forms & taken:
                break
        taken |= forms
        found[name] = carrier
    return found


def stored_as(codes: NDArray[np.int8], layout: str) -> NDArray[np.int8]:
    """The codes in the file's order of axes."""
    if layout == POINTWISE:
        return np.ascontiguousarray(codes[:, :, 0, 0])
    return np.ascontiguousarray(codes.transpose(LAYOUTS[layout])) if layout else codes


def restored(codes: NDArray[np.int8], layout: str) -> NDArray[np.int8]:
    """The inverse of `stored_as`."""
    if layout == POINTWISE:
        return codes[:, :, None, None]
    return np.ascontiguousarray(codes.transpose(np.argsort(LAYOUTS[layout]))) if layout else codes
