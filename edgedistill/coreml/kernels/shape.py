"""Reshaping, joining and cutting: the values come out as they went in."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgedistill.coreml.values import Arguments, Result, fits
from edgedistill.errors import VerificationError


def _reshape(a: Arguments) -> Result:
    x, shape = a["x"], a.integers("shape")
    if 0 in shape and x.numel() > 0:
        if len(shape) != x.ndim:
            raise VerificationError(f"shape {shape} copies sizes (0) of a tensor of rank {x.ndim}")
        shape = [size or x.shape[axis] for axis, size in enumerate(shape)]
    return x.reshape(shape)


def _reshape_like(a: Arguments) -> Result:
    shape: list[int] = []
    begins, ends, open_ended = a.all("begins"), a.all("ends"), a.all("end_masks")
    for other, begin, end, mask in zip(a.all("ref_tensors"), begins, ends, open_ended, strict=True):
        shape += other.shape[int(begin) : None if bool(mask) else int(end)]
    return a["x"].reshape(shape)


def _flatten2d(a: Arguments) -> Result:
    x, axis = a["x"], a.integer("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _expand_dims(a: Arguments) -> Result:
    x, axes = a["x"], a.integers("axes")
    rank = x.ndim + len(axes)
    shape = list(x.shape)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return x.reshape(shape)


def _squeeze(a: Arguments) -> Result:
    x = a["x"]
    axes = [axis % x.ndim for axis in a.integers("axes", range(x.ndim))]
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes or size != 1])


def _transpose(a: Arguments) -> Result:
    return a["x"].permute(a.integers("perm"))


def _concat(a: Arguments) -> Result:
    values, axis = a.all("values"), a.integer("axis")
    fits(sum(value.numel() for value in values))
    values = [value.reshape(1) if value.ndim == 0 else value for value in values]
    if not a.flag("interleave", False):
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def _stack(a: Arguments) -> Result:
    values = a.all("values")
    fits(sum(value.numel() for value in values))
    return torch.stack(values, a.integer("axis"))


def _split(a: Arguments) -> Result:
    x, axis = a["x"], a.integer("axis")
    size = x.shape[axis]
    if a.has("split_sizes"):
        sizes = a.integers("split_sizes")
    else:
        count = a.integer("num_splits")
        if count < 1 or size % count:
            raise VerificationError(f"{size} elements cannot be split into {count} equal parts")
        sizes = [size // count] * count
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    if sum(sizes) != size:
        raise VerificationError(f"{size} elements cannot be split into {sizes}")
    return [x.narrow(axis, start, length) for start, length in zip(starts, sizes, strict=True)]


def _slices(a: Arguments, x: Tensor) -> list[slice | int]:
    """What each dimension is cut to, as numpy slices it; a number where the dimension is dropped."""
    rank = x.ndim
    begin, end, stride = a.integers("begin"), a.integers("end"), a.integers("stride", [1] * rank)
    if not len(begin) == len(end) == len(stride) == rank:
        raise VerificationError(f"slices {begin}:{end}:{stride} of a tensor of rank {rank}")
    from_start, to_end, dropped = (a.flags(name, rank) for name in ("begin_mask", "end_mask", "squeeze_mask"))
    cuts: list[slice | int] = []
    for axis in range(rank):
        if dropped[axis]:
            cuts.append(0 if from_start[axis] else begin[axis])
            continue
        first = None if from_start[axis] else begin[axis]
        cuts.append(slice(first, None if to_end[axis] else end[axis], stride[axis]))
    return cuts


def _slice_by_index(a: Arguments) -> Result:
    x = a["x"]
    cuts = _slices(a, x)
    for axis, cut in enumerate(cuts):
        if isinstance(cut, slice) and (cut.step or 1) < 0:  # torch slices only forwards
            x = x.index_select(axis, torch.tensor(range(*cut.indices(x.shape[axis])), dtype=torch.int64))
            cuts[axis] = slice(None)
    return x[tuple(cuts)]


def _slice_by_size(a: Arguments) -> Result:
    x, begin, size = a["x"], a.integers("begin"), a.integers("size")
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def _slice_update(a: Arguments) -> Result:
    x, update = a["x"].clone(), a["update"]
    cuts = _slices(a, x)
    if any(isinstance(cut, slice) and (cut.step or 1) < 0 for cut in cuts):
        raise VerificationError("slice_update backwards is not known here")
    target = x[tuple(cuts)]
    target.copy_(update.reshape(target.shape))
    return x


def _tile(a: Arguments) -> Result:
    x, reps = a["x"], a.integers("reps")
    fits(x.numel() * math.prod(reps))
    return x.repeat(reps)


def _sliding_windows(a: Arguments) -> Result:
    x, axis, size = a["x"], a.integer("axis") % a["x"].ndim, a.integer("size")
    fits(x.numel() * size)
    return x.unfold(axis, size, a.integer("stride", 1)).movedim(-1, axis + 1)


def _reverse(a: Arguments) -> Result:
    x = a["x"]
    return x.flip(a.integers("axes", range(x.ndim)))


def _band_part(a: Arguments) -> Result:
    x, lower, upper = a["x"], a.integer("lower", -1), a.integer("upper", -1)
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    kept = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        kept &= rows - columns <= lower
    if upper >= 0:
        kept &= columns - rows <= upper
    return torch.where(kept, x, torch.zeros((), dtype=x.dtype))


def _shape(a: Arguments) -> Result:
    return torch.tensor(a["x"].shape, dtype=torch.int32)


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "band_part": _band_part,
    "concat": _concat,
    "expand_dims": _expand_dims,
    "flatten2d": _flatten2d,
    "reshape": _reshape,
    "reshape_like": _reshape_like,
    "reverse": _reverse,
    "shape": _shape,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
    "sliding_windows": _sliding_windows,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
