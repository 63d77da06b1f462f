"""Integers and floats: quantized activations, and constants stored compressed.

A compressed constant (`constexpr_*`) is an attribute form up to iOS 17 and an input form from iOS 18 on; where both
have one name, their arguments differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgedistill.coreml.blob import unpack
from edgedistill.coreml.values import Arguments, Result, fits
from edgedistill.errors import VerificationError

_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar as it is; a vector, shaped to meet `axis` of `x`."""
    if parameter.ndim == 0:
        return parameter
    if axis is None or parameter.ndim != 1 or parameter.shape[0] != x.shape[axis]:
        raise VerificationError(f"parameter of shape {list(parameter.shape)} for a tensor of {list(x.shape)}")
    axis %= x.ndim
    return parameter.reshape(-1, *[1] * (x.ndim - 1 - axis))


def _quantize(a: Arguments) -> Result:
    """clip(round(x / scale) + zero point); a half rounds to even."""
    x, dtype = a["input"], a.text("output_dtype")
    if dtype not in _RANGES:
        raise VerificationError(f"quantize to {dtype} is not known here")
    axis = a.integer("axis") if a.has("axis") else None
    codes = torch.round(x / _along(a["scale"], x, axis))
    if a.has("zero_point"):
        codes = codes + _along(a["zero_point"], x, axis).to(codes.dtype)
    return codes.clamp(*_RANGES[dtype]).to(torch.int8 if dtype == "int8" else torch.uint8)


def _dequantize(a: Arguments) -> Result:
    axis = a.integer("axis") if a.has("axis") else None
    return _scaled(a, a["input"], axis)


def _constexpr_affine_dequantize(a: Arguments) -> Result:
    return _scaled(a, a["quantized_data"], a.integer("axis"))


def _scaled(a: Arguments, codes: Tensor, axis: int | None) -> Tensor:
    values = codes.to(a.work)
    if a.has("zero_point"):
        values = values - _along(a["zero_point"], codes, axis).to(a.work)
    return values * _along(a["scale"], codes, axis)


def _spread(blocks: Tensor, shape: torch.Size) -> Tensor:
    """One value per block, repeated until it has `shape`."""
    if blocks.ndim != len(shape) or any(size % (count or 1) for size, count in zip(shape, blocks.shape, strict=True)):
        raise VerificationError(f"blocks {list(blocks.shape)} do not divide a tensor of {list(shape)}")
    for axis, size in enumerate(shape):
        if 1 < blocks.shape[axis] < size:
            blocks = blocks.repeat_interleave(size // blocks.shape[axis], axis)
    return blocks  # a size of 1 broadcasts


def _shift_scale(a: Arguments, codes: Tensor) -> Tensor:
    values = codes.to(a.work)
    if a.has("offset"):
        values = values - _spread(a["offset"], codes.shape).to(a.work)
    return values * _spread(a["scale"], codes.shape)


def _constexpr_blockwise_shift_scale(a: Arguments) -> Result:
    return _shift_scale(a, a["data"])


def _looked_up(indices: Tensor, lut: Tensor, axis: int | None) -> Tensor:
    """Entries of look-up tables `lut` [a table per block of `indices`..., entries, vector size].

    A vector fills `axis` of the result, which is then that many times as long.
    """
    *tables, entries, width = lut.shape
    if len(tables) != indices.ndim or (width > 1 and axis is None):
        raise VerificationError(f"a look-up table of {list(lut.shape)} for indices of {list(indices.shape)}")
    if indices.numel() and int(indices.max()) >= entries:
        raise VerificationError(f"index {int(indices.max())} of a table of {entries} entries")
    fits(indices.numel() * width)
    table = _spread(torch.arange(math.prod(tables)).reshape(tables), indices.shape)
    found = lut.reshape(-1, width)[table * entries + indices.long()]
    if width == 1:
        return found[..., 0]
    at = (axis or 0) % indices.ndim
    return found.movedim(-1, at + 1).flatten(at, at + 1)


def _axis_of_vectors(a: Arguments) -> int | None:
    return a.integer("vector_axis") if a.has("vector_axis") else None


def _constexpr_lut_to_dense(a: Arguments) -> Result:
    if not a.has("shape"):
        return _looked_up(a["indices"], a["lut"], _axis_of_vectors(a))
    shape, lut = a.integers("shape"), a["lut"]
    width = (lut.numel() - 1).bit_length()
    if width not in (1, 2, 3, 4, 6, 8) or lut.numel() != 2**width:
        raise VerificationError(f"a look-up table of {lut.numel()} entries")
    indices = _unpacked(a["indices"], width, math.prod(shape))
    return lut[indices.long()].reshape(shape)


def _unpacked(packed: Tensor, width: int, count: int) -> Tensor:
    if packed.dtype != torch.uint8 or packed.numel() != -(-count * width // 8):
        raise VerificationError(f"{packed.numel()} bytes for {count} elements of {width} bits")
    return packed if width == 8 else torch.from_numpy(unpack(packed.numpy(), width, count))


def _dense(values: Tensor, mask: Tensor) -> Tensor:
    """Zeros, but where `mask` is set the next of `values`."""
    kept = mask != 0
    if int(kept.sum()) != values.numel():
        raise VerificationError(f"a mask that keeps {int(kept.sum())} elements, for {values.numel()} values")
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[kept] = values
    return dense


def _constexpr_sparse_to_dense(a: Arguments) -> Result:
    values, mask = a["nonzero_data"], a["mask"]
    if a.has("shape"):
        shape = a.integers("shape")
        mask = _unpacked(mask, 1, math.prod(shape)).reshape(shape)
    return _dense(values, mask)


def _constexpr_lut_to_sparse(a: Arguments) -> Result:
    mask, lut, axis = a["indices_mask"], a["lut"], _axis_of_vectors(a)
    values = _looked_up(_dense(a["indices_nonzero_data"], mask), lut, axis)
    if lut.shape[-1] > 1 and axis is not None:
        mask = mask.repeat_interleave(lut.shape[-1], axis)
    return [mask, values[mask != 0]]


def _constexpr_sparse_blockwise_shift_scale(a: Arguments) -> Result:
    mask = a["data_mask"]
    return [mask, _shift_scale(a, _dense(a["nonzero_data"], mask))[mask != 0]]


def _constexpr_cast(a: Arguments) -> Result:
    return a["source_val"].to(a.work)


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "constexpr_affine_dequantize": _constexpr_affine_dequantize,
    "constexpr_blockwise_shift_scale": _constexpr_blockwise_shift_scale,
    "constexpr_cast": _constexpr_cast,
    "constexpr_lut_to_dense": _constexpr_lut_to_dense,
    "constexpr_lut_to_sparse": _constexpr_lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _constexpr_sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": _constexpr_sparse_to_dense,
    "dequantize": _dequantize,
    "quantize": _quantize,
}
