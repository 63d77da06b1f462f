"""Products: linear, matmul, einsum, attention, convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgedistill.coreml.values import Arguments, Result, broadcast_fits, fits
from edgedistill.errors import VerificationError

_CONV = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_CONV_TRANSPOSE = {3: functional.conv_transpose1d, 4: functional.conv_transpose2d, 5: functional.conv_transpose3d}


def _linear(a: Arguments) -> Result:
    return functional.linear(a["x"], a["weight"], a.get("bias"))


def _matmul(a: Arguments) -> Result:
    x, y = a["x"], a["y"]
    if a.flag("transpose_x", False):
        x = x.transpose(-1, -2)
    if a.flag("transpose_y", False):
        y = y.transpose(-1, -2)
    broadcast_fits(x, y, of_matrices=True)
    return x @ y


def _einsum(a: Arguments) -> Result:
    equation, values = a.text("equation"), a.all("values")
    terms, _, result = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, value in zip(terms.split(","), values, strict=True):
        for label, size in zip(term, value.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    fits(math.prod(sizes[label] for label in result))
    # Core ML broadcasts a dimension of size 1, torch's einsum too
    answer: Tensor = torch.einsum(equation, *values)
    return answer


def _attention(a: Arguments) -> Result:
    """softmax(q k' / sqrt(d) + mask) v, written out: torch's own gives 0 and not NaN for a row that is masked away."""
    query, key, value, mask = a["query"], a["key"], a["value"], a.get("attn_mask")
    fits(math.prod(query.shape[:-1]) * key.shape[-2])
    scores = query @ key.transpose(-1, -2) * (1 / math.sqrt(query.shape[-1]))
    if mask is not None:
        broadcast_fits(scores, mask)
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ value


def window_padding(
    a: Arguments, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Padding of a convolution or pool over spatial `sizes`: before and after of each dimension in turn.

    "same" keeps ceil(size / stride) windows and puts an odd element of padding after, "same_lower" before.
    """
    kind = a.text("pad_type", "valid")
    if kind == "valid":
        return [0] * (2 * len(sizes))
    if kind == "custom":
        pad = a.integers("pad", [0] * (2 * len(sizes)))
        if len(pad) != 2 * len(sizes) or min(pad) < 0:
            raise VerificationError(f"padding {pad} does not fit {len(sizes)} dimensions")
        return pad
    if kind not in ("same", "same_lower"):
        raise VerificationError(f"padding of type {kind} is not known here")
    found = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        found += [small, large] if kind == "same" else [large, small]
    return found


def torch_padding(pad: Sequence[int]) -> list[int]:
    """The same padding in torch's order, which starts at the last dimension."""
    return [amount for i in range(len(pad) - 2, -1, -2) for amount in pad[i : i + 2]]


def window_count(size: int, width: int, stride: int, dilation: int = 1) -> int:
    """Windows that lie wholly in `size` elements (padding included)."""
    return (size - (width - 1) * dilation - 1) // stride + 1


def _conv(a: Arguments) -> Result:
    x, weight = a["x"], a["weight"]
    rank = x.ndim - 2
    if x.ndim not in _CONV or weight.ndim != x.ndim:
        raise VerificationError(f"conv of rank {x.ndim} and {weight.ndim} is not known here")
    strides, dilations = a.integers("strides", [1] * rank), a.integers("dilations", [1] * rank)
    pad = window_padding(a, x.shape[2:], weight.shape[2:], strides, dilations)
    spatial = [size + sum(pad[2 * i : 2 * i + 2]) for i, size in enumerate(x.shape[2:])]
    fits(math.prod(spatial) * x.shape[0] * x.shape[1])
    windows = zip(spatial, weight.shape[2:], strides, dilations, strict=True)
    fits(math.prod(window_count(*window) for window in windows) * x.shape[0] * weight.shape[0])
    padding: list[int] | int = pad[::2]
    if pad[::2] != pad[1::2]:
        x, padding = functional.pad(x, torch_padding(pad)), 0
    return _CONV[x.ndim](x, weight, a.get("bias"), strides, padding, dilations, a.integer("groups", 1))


def _conv_transpose(a: Arguments) -> Result:
    x, weight, bias = a["x"], a["weight"], a.get("bias")
    rank = x.ndim - 2
    if x.ndim not in _CONV_TRANSPOSE or weight.ndim != x.ndim:
        raise VerificationError(f"conv_transpose of rank {x.ndim} and {weight.ndim} is not known here")
    strides, dilations = a.integers("strides", [1] * rank), a.integers("dilations", [1] * rank)
    kind = a.text("pad_type", "valid")
    if kind not in ("valid", "custom"):
        raise VerificationError(f"conv_transpose with padding of type {kind} is not known here")
    pad = window_padding(a, x.shape[2:], weight.shape[2:], strides, dilations)
    full = [
        (size - 1) * stride + (width - 1) * dilation + 1
        for size, width, stride, dilation in zip(x.shape[2:], weight.shape[2:], strides, dilations, strict=True)
    ]
    sizes = [size - pad[2 * i] - pad[2 * i + 1] for i, size in enumerate(full)]
    if a.has("output_shape"):
        sizes = a.integers("output_shape")[2:]
    groups = a.integer("groups", 1)
    for spatial in (full, sizes):
        fits(math.prod(spatial) * x.shape[0] * weight.shape[1] * groups)
    y = _CONV_TRANSPOSE[x.ndim](x, weight, None, strides, 0, 0, groups, dilations)
    # what the asked-for size adds beyond the last window is zero before the bias
    crop = [edge for i, size in enumerate(full) for edge in (-pad[2 * i], sizes[i] - size + pad[2 * i])]
    if any(crop):
        y = functional.pad(y, torch_padding(crop))
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "einsum": _einsum,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}
