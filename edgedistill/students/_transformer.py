"""What transformers are made of, in two spellings: torch's own operators, and one that every runtime computes alike.

Float operators such as a softmax or a layer norm end in other last bits in every runtime, and a value on the boundary
of two int8 codes then takes the other one. A static network (`exact`) spells them in steps that leave no choice:

- sums of integers below 2^24 times one power of two, which float32 adds without any rounding, in any order;
- additions, products, quotients and square roots of two numbers, each rounded once, as IEEE 754 demands of everyone.

What is trained is what is shipped: `prepare` and `FrozenStudent.build` both choose the exact spelling.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from edgedistill.students._points import Addend, Share

_EXACT = 2**24
_CODES = 128  # the largest size of a symmetric int8 code
_SHARES = 255  # of a code of a share, whose grid begins at 0
# Scores so far below the largest of their row get no share: exp(-16) is 1e-7, and a share has 8 bits.
_REACH = 16.0


class Exact(nn.Module):
    """A part of a network with two spellings."""

    exact = False


def spell_out(model: nn.Module) -> None:
    """Choose the exact spelling wherever there are two."""
    for module in model.modules():
        if isinstance(module, Exact):
            module.exact = True


class Root(nn.Module):
    """A square root, which a student must round as IEEE 754 says: `quant` puts one that does in its place."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Of numbers that are not negative."""
        return x.sqrt()


class Factor(nn.Linear):
    """A linear layer whose result is multiplied with another's, and the products added up.

    Its static result has a symmetric grid whose scale is one of the integers up to `most` times a power of two, so that
    the sums of these products are exact.
    """

    def __init__(self, inputs: int, outputs: int, most: int = 1) -> None:
        super().__init__(inputs, outputs)
        self.most = most


class AfterGelu(nn.Linear):
    """A linear layer whose input is the GELU of what its sibling `before` answers.

    Its static grid is one on which none of the 256 values that come out of that GELU lies half way between two codes.
    """

    def __init__(self, inputs: int, outputs: int, before: str) -> None:
        super().__init__(inputs, outputs)
        self.before = before


class Norm(Exact, nn.LayerNorm):
    """A layer norm. Its static mean and variance are those of values rounded to int8; what it scales is not rounded.

    Both are exact for a width of up to 1024. The variance is at least that of the rounding itself, `step^2 / 12`.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)
        self.point, self.root = Addend(), Root()
        self.step: float | None = None  # of a frozen network; in training it follows `point`

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Same shapes as `nn.LayerNorm`."""
        if not self.exact:
            return nn.functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        seen, (width,) = self.point(input), self.normalized_shape
        step = self.point.step if self.step is None else self.step
        mean = _divided(seen.sum(-1, keepdim=True), width)
        variance = _divided((seen * seen).sum(-1, keepdim=True), width) - mean * mean
        deviation = self.root(variance.clamp_min(step**2 / 12) + self.eps)
        out: Tensor = (input - mean) / deviation * self.weight + self.bias
        return out


class Attention(Exact):
    """Softmax attention; it has no weights.

    Static, exp(x) of a row's scores less their largest is ((1 + x/16) / (1 - x/16))^8, at most 0.0018 off and 0 below
    -16, and is rounded to 8 bits before it weighs the values and their sum divides them.
    """

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.share = Share()

    def forward(
        self,
        query: Float[Tensor, "batch length width"],
        key: Float[Tensor, "batch length width"],
        value: Float[Tensor, "batch length width"],
        bias: Float[Tensor, "batch 1 1 length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """The values, mixed for each token; `bias` is 0 at tokens and very negative at padding."""
        batch, length, width = query.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, length, self.heads, self.head_width).transpose(1, 2)

        q, k, v = split(query), split(key), split(value)
        root = math.sqrt(self.head_width)
        if self.exact:
            mixed = self._spelled_out(q @ k.transpose(-1, -2) * (1 / (root * _REACH)), v, bias)
        else:
            scores = q @ k.transpose(-1, -2) / root
            mixed = (scores if bias is None else scores + bias).softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(batch, length, width)

    def _spelled_out(self, scores: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """`scores` in units of `_REACH`."""
        if bias is not None:
            scores = scores + bias
        below = scores - scores.amax(-1, keepdim=True)
        share = (1 + below).relu() / (1 - below)
        for _ in range(3):
            share = share * share
        share = self.share(share)
        out: Tensor = share @ v / share.sum(-1, keepdim=True)
        return out


def score_factor(head_width: int) -> int:
    """`most` of queries and keys, whose products are added up over a head."""
    return max(1, math.isqrt(_EXACT // (_CODES**2 * head_width)))


def value_factor(length: int) -> int:
    """`most` of values, which are added up over at most `length` tokens, each times its share."""
    return max(1, _EXACT // (_CODES * _SHARES * length))


class Mean(Exact):
    """The mean over the `count` rows of the middle axis."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.point = Addend()

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch width"]:
        """As `Tensor.mean`; static, of values rounded to int8."""
        if not self.exact:
            return x.mean(1)
        return _divided(self.point(x).sum(1), self.count)


def _divided(total: Float[Tensor, "*shape"], count: int) -> Float[Tensor, "*shape"]:
    """`total / count`, as a power of two, which changes no digit, times one rounded number.

    Of one factor converters make a mean, which runtimes compute in one way or another.
    """
    beyond = 2 ** count.bit_length()
    out: Tensor = total * (1 / beyond) * (beyond / count)
    return out
