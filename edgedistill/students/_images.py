"""What the families for images share: the entry point of their files, and images to try them with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgedistill.students import Port, Signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHADES, NOISE = 6, 0.1


def image_signature(side: int, classes: int) -> Signature:
    """The one entry point, `image`: a square of normalised `pixels`, channels last as cameras give them, to logits."""
    pixels = Port("pixels", (1, side, side, 3), "float32")
    return Signature("image", (pixels,), (Port("logits", (1, classes), "float32"),))


def random_image(side: int, random: np.random.Generator) -> NDArray[np.float32]:
    """An image [1, side, side, 3] of values as after normalisation: slow waves of random colour, with a little noise.

    Neighbouring pixels of photographs are alike, which is what makes the sums in a convolution large; noise alone would
    show a network values far smaller than it meets in use. Deviation about 1, seldom beyond -3..3.
    """
    import numpy as np

    place = np.arange(side) / side
    waves = random.uniform(-2.0, 2.0, (SHADES, 2))  # periods in each direction
    phases = random.uniform(0.0, 2 * np.pi, SHADES)
    colours = random.normal(0.0, (2 / SHADES) ** 0.5, (SHADES, 3))
    turns = waves[:, 0, None, None] * place[:, None] + waves[:, 1, None, None] * place
    shades = np.cos(2 * np.pi * turns + phases[:, None, None])
    image = np.einsum("nrc,nk->rck", shades, colours) + random.normal(0.0, NOISE, (side, side, 3))
    out: NDArray[np.float32] = image[None].astype(np.float32)
    return out
