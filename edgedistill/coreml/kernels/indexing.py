"""Reading and writing at places that another tensor names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgedistill.coreml.values import Arguments, Result, fits
from edgedistill.errors import VerificationError

_IOS17 = 7


def _places(indices: Tensor, size: int, opset: int) -> Tensor:
    """The indices as int64, checked: beyond the end a device's result is undefined, from iOS 17 on also below zero."""
    if indices.numel() == 0:
        return indices.long()
    low, high = int(indices.min()), int(indices.max())
    if high >= size or low < (0 if opset >= _IOS17 else -size):
        raise VerificationError(f"index {low if low < 0 else high} of {size} elements is undefined on a device")
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices) if low < 0 else indices


def _gather(a: Arguments) -> Result:
    x, indices, batch = a["x"], a["indices"], a.integer("batch_dims", 0)
    axis = a.integer("axis", 0) % x.ndim
    places = _places(indices, x.shape[axis], a.opset)
    if not 0 <= batch <= min(axis, indices.ndim) or x.shape[:batch] != indices.shape[:batch]:
        raise VerificationError(f"gather with {batch} batch dimensions along axis {axis}")
    shape = x.shape[:axis] + indices.shape[batch:] + x.shape[axis + 1 :]
    fits(math.prod(shape))
    if batch == 0:
        return x.index_select(axis, places.reshape(-1)).reshape(shape)
    rows = math.prod(x.shape[:batch])
    chosen = [
        part.index_select(axis - batch, place.reshape(-1))
        for part, place in zip(x.reshape(rows, *x.shape[batch:]), places.reshape(rows, -1), strict=True)
    ]
    return torch.stack(chosen).reshape(shape)


def _gather_along_axis(a: Arguments) -> Result:
    x, axis = a["x"], a.integer("axis", 0)
    return torch.gather(x, axis, _places(a["indices"], x.shape[axis], a.opset))


def _flat(indices: Tensor, shape: torch.Size, opset: int) -> Tensor:
    """Places in the flattened leading dimensions `shape`, of indices whose last dimension names one element."""
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for column, size in enumerate(shape):
        flat = flat * size + _places(indices[..., column], size, opset)
    return flat


def _gather_nd(a: Arguments) -> Result:
    x, indices, batch = a["x"], a["indices"], a.integer("batch_dims", 0)
    depth = indices.shape[-1]
    shape = indices.shape[:-1] + x.shape[batch + depth :]
    fits(math.prod(shape))
    places = _flat(indices, x.shape[batch : batch + depth], a.opset)
    rows = math.prod(x.shape[:batch])
    inner = math.prod(x.shape[batch : batch + depth])
    offsets = torch.arange(rows).reshape(-1, 1) * inner
    places = (places.reshape(rows, -1) + offsets).reshape(-1)
    return x.reshape(rows * inner, *x.shape[batch + depth :]).index_select(0, places).reshape(shape)


def _combined(a: Arguments, data: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    """`data` with `updates` [n, ...] combined into the rows `places` [n] of its first dimension."""
    mode = a.text("mode")
    index = places.reshape(-1, *[1] * (data.ndim - 1)).expand(updates.shape)
    match mode:
        case "update":
            return data.scatter(0, index, updates)
        case "add":
            return data.scatter_add(0, index, updates)
        case "sub":
            return data.scatter_add(0, index, -updates)
        case "mul":
            return data.scatter_reduce(0, index, updates, "prod")
        case "div":
            return data / torch.ones_like(data).scatter_reduce(0, index, updates, "prod")
        case "max" | "min":
            return data.scatter_reduce(0, index, updates, f"a{mode}")
    raise VerificationError(f"scatter with mode {mode} is not known here")


def _scatter(a: Arguments) -> Result:
    data, indices, updates = a["data"], a["indices"], a["updates"]
    axis = a.integer("axis", 0) % data.ndim
    places = _places(indices, data.shape[axis], a.opset).reshape(-1)
    updates = updates.reshape([*data.shape[:axis], places.numel(), *data.shape[axis + 1 :]])
    return _combined(a, data.movedim(axis, 0), places, updates.movedim(axis, 0)).movedim(0, axis)


def _scatter_along_axis(a: Arguments) -> Result:
    data, updates = a["data"], a["updates"]
    axis = a.integer("axis", 0) % data.ndim
    along = _places(a["indices"], data.shape[axis], a.opset)
    # every element becomes a row of the flattened tensor
    flat = torch.zeros_like(along)
    for dimension, size in enumerate(data.shape):
        steps = torch.arange(along.shape[dimension]).reshape(-1, *[1] * (along.ndim - 1 - dimension))
        flat = flat * size + (along if dimension == axis else steps)
    return _combined(a, data.reshape(-1), flat.reshape(-1), updates.reshape(-1)).reshape(data.shape)


def _scatter_nd(a: Arguments) -> Result:
    data, indices, updates = a["data"], a["indices"], a["updates"]
    depth = indices.shape[-1]
    places = _flat(indices, data.shape[:depth], a.opset).reshape(-1)
    rows = data.reshape(math.prod(data.shape[:depth]), *data.shape[depth:])
    return _combined(a, rows, places, updates.reshape(places.numel(), *data.shape[depth:])).reshape(data.shape)


def _non_zero(a: Arguments) -> Result:
    return torch.nonzero(a["x"])


def _one_hot(a: Arguments) -> Result:
    indices, size = a["indices"], a.integer("one_hot_vector_size")
    fits(indices.numel() * size)
    on, off = (a.get(name) for name in ("on_value", "off_value"))
    hot = (indices[..., None] == torch.arange(size)).movedim(-1, a.integer("axis", -1))
    like = next((value for value in (on, off) if value is not None), torch.tensor(0, dtype=torch.int32))
    return torch.where(hot, like.new_ones(()) if on is None else on, like.new_zeros(()) if off is None else off)


def _fill(a: Arguments) -> Result:
    shape = a.integers("shape")
    fits(math.prod(shape))
    return (a["value"] if a.has("value") else torch.zeros((), dtype=a.work)).expand(shape).clone()


def _fill_like(a: Arguments) -> Result:
    x = a["ref_tensor"]
    return (a["value"] if a.has("value") else torch.zeros((), dtype=a.work)).expand(x.shape).clone()


def _range_1d(a: Arguments) -> Result:
    start, end, step = a["start"], a["end"], a["step"]
    if not all(bool(torch.isfinite(value.double())) for value in (start, end, step)) or not step.item():
        raise VerificationError(f"a range from {start.item()} to {end.item()} in steps of {step.item()}")
    fits(math.ceil((end.item() - start.item()) / step.item()))
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "fill": _fill,
    "fill_like": _fill_like,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "non_zero": _non_zero,
    "one_hot": _one_hot,
    "range_1d": _range_1d,
    "scatter": _scatter,
    "scatter_along_axis": _scatter_along_axis,
    "scatter_nd": _scatter_nd,
}
