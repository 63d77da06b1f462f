"""Compare what a decoder's file computes with what the student does: to a layer's rounding, or to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.exporters._divergence import Mismatch, shaped

# How far a value may be, as a share of its token's largest: what one layer, or what is between two, rounds.
ROUNDING = 1e-5
_LEAST = 1e-3  # a token whose values are all smaller is compared as if they were this large: nothing there matters
# How far the logits of a whole text may be from the student's in float64, of the largest: the median token's, where
# there are as many as `_MANY`, and the worst one's.
_WHOLE, _MANY = (5e-6, ROUNDING), 8
# Or as far as float32 takes the student itself, this many times, of so many roundings the one that is furthest. Of 27
# texts that SmolLM2-135M read in float32 one had a token that was 1.7e-5 away; the medians were 0.9e-6 to 1.7e-6.
_OWN, _DRAWN = 2.0, 4


def near(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Compare the values of each token, or of each slot.

    Raises:
        Mismatch: they differ by more than rounding.
    """
    ours, theirs = ours.double(), shaped(theirs, ours, what).double()
    away = (ours - theirs).abs().amax(-1) / ours.abs().amax(-1).clamp(min=_LEAST)
    if not float(away.max()) <= ROUNDING:  # nan is a difference
        raise Mismatch(
            f"{what}: up to {float(away.max()):.3g} of a token's largest value, expected <= {ROUNDING:.0e} "
            f"({int((~(away <= ROUNDING)).sum())} of {away.numel()} tokens)"
        )


class Expected(NamedTuple):
    """Logits [tokens, vocabulary] in float64 that another runtime of the file is held to, and how far it may be.

    They are the student's own, of whole texts, where activations are float; with int8 ones the file's, of which every
    layer was compared.
    """

    logits: Tensor
    limit: float


def near_whole(exact: Tensor, theirs: Tensor, own: Callable[[], Iterable[Tensor]]) -> Expected:
    """Compare the file's logits behind the last tokens of a text, from end to end, with the student's in float64.

    Where they are further away than `_WHOLE`, `own` is asked how far float32 takes the student itself: its logits of
    the text, rounded in several ways.

    Raises:
        Mismatch: they are further away than that, `_OWN` times.
    """
    count, largest = len(theirs), float(exact.abs().max())
    found, allowed = _away(exact[-count:], theirs, largest), list(_WHOLE)
    if not all(value <= limit for value, limit in zip(found, allowed, strict=True)):  # nan is a difference
        drawn = [_away(exact, logits, largest) for logits in own()]
        allowed = [max(limit, *(_OWN * one[n] for one in drawn)) for n, limit in enumerate(_WHOLE)]
    for value, limit, which in zip(found, allowed, ("median", "worst"), strict=True):
        if not value <= limit and (which == "worst" or count >= _MANY):
            raise Mismatch(
                f"the logits of the whole text: the {which} token's are {value:.3g} of the largest away from the "
                f"student's in float64, expected <= {limit:.2g}"
            )
    return Expected(exact[-count:], allowed[1] * largest)


def _away(exact: Tensor, theirs: Tensor, largest: float) -> tuple[float, float]:
    away = (theirs - exact).abs().amax(-1) / largest
    return float(away.median()), float(away.max())


def roundings(module: nn.Module, ids: Tensor) -> Iterator[Tensor]:
    """The logits [tokens, vocabulary] of a student with float activations, with the last bit of what each layer answers
    moved at random, in `_DRAWN` ways: one forward in float32 alone may by chance be nearer to float64 than another.
    """
    random = torch.Generator().manual_seed(0)

    def move(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output * (1 + torch.randint(-1, 2, output.shape, generator=random) * 2.0**-23)

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Embedding)]
    hooks = [layer.register_forward_hook(move) for layer in layers]
    try:
        for _ in range(_DRAWN):
            with torch.no_grad():
                logits = module(ids).logits[0]
            yield logits
    finally:
        for hook in hooks:
            hook.remove()


def same_bits(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Whether two arrays of 32-bit numbers are the same, signs of zeros and kinds of nan included."""
    return np.array_equal(ours.view(np.int32), theirs.view(np.int32))
