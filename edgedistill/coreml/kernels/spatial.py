"""Padding, cropping, resizing, and moving values between channels and space."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgedistill.coreml.kernels.linear import torch_padding
from edgedistill.coreml.values import Arguments, Result, fits
from edgedistill.errors import VerificationError


def _pad(a: Arguments) -> Result:
    x, pad, mode = a["x"], a.integers("pad"), a.text("mode", "constant")
    if len(pad) % 2 or len(pad) > 2 * x.ndim or min(pad, default=0) < 0:
        raise VerificationError(f"padding {pad} does not fit a tensor of rank {x.ndim}")
    first = x.ndim - len(pad) // 2
    sizes = [size + sum(pad[2 * i : 2 * i + 2]) for i, size in enumerate(x.shape[first:])]
    fits(math.prod(sizes) * math.prod(x.shape[:first]))
    if mode == "constant":
        return functional.pad(x, torch_padding(pad), value=a.number("constant_val", 0.0))
    if mode not in ("reflect", "replicate"):
        raise VerificationError(f"padding with mode {mode} is not known here")
    for i in range(len(pad) // 2):
        before, after = pad[2 * i : 2 * i + 2]
        last = x.shape[first + i] - 1
        if mode == "reflect" and max(before, after) > last:
            raise VerificationError(f"{max(before, after)} elements cannot be reflected from {last + 1}")
        places = torch.arange(-before, last + 1 + after)
        places = last - (last - places.abs()).abs() if mode == "reflect" else places.clamp(0, last)
        x = x.index_select(first + i, places) if before or after else x
    return x


def _crop(a: Arguments) -> Result:
    x, (top, bottom), (left, right) = a["x"], a.integers("crop_height"), a.integers("crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _sample(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """Values at fractional `points` of an axis, interpolated between the two neighbours."""
    low = points.floor().long().clamp(0, x.shape[axis] - 1)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    share = (points - low).to(x.dtype).reshape(-1, *[1] * (-axis - 1))
    lower = x.index_select(axis, low)
    return lower + share * (x.index_select(axis, high) - lower)


def _grid(size: int, count: int, mode: str) -> Tensor:
    """Points along an axis of `size` elements at which `count` results are sampled [count]."""
    steps = torch.arange(count, dtype=torch.float64)
    match mode:
        case "STRICT_ALIGN_CORNERS" | "ALIGN_CORNERS":
            if count == 1:
                return torch.full((1,), (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0, dtype=torch.float64)
            points = steps * ((size - 1) / (count - 1))
        case "DEFAULT":
            points = steps * (size / count)
        case "OFFSET_CORNERS":
            points = (steps + 0.5) * (max(1, size - 1) / count)
        case "UNALIGN_CORNERS":
            points = (steps + 0.5) * (size / count) - 0.5
        case _:
            raise VerificationError(f"sampling mode {mode} is not known here")
    return points.clamp(0, size - 1)


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    fits(x.numel() // max(1, x.shape[-1] * x.shape[-2]) * height * max(width, x.shape[-1]))
    return _sample(_sample(x, -2, _grid(x.shape[-2], height, mode)), -1, _grid(x.shape[-1], width, mode))


def _nearest(x: Tensor, height: float, width: float, scales: tuple[float, float]) -> Tensor:
    """Each result is the element at floor(place / scale)."""
    fits(x.numel() // max(1, x.shape[-1] * x.shape[-2]) * int(height) * max(int(width), x.shape[-1]))
    for axis, count, scale in ((-2, int(height), scales[0]), (-1, int(width), scales[1])):
        places = (torch.arange(count, dtype=torch.float64) / scale).floor().long()
        x = x.index_select(axis, places.clamp(max=x.shape[axis] - 1))
    return x


def _upsample_nearest(a: Arguments) -> Result:
    x, scales = a["x"], (a.number("scale_factor_height", 1), a.number("scale_factor_width", 1))
    return _nearest(x, math.floor(x.shape[-2] * scales[0]), math.floor(x.shape[-1] * scales[1]), scales)


def _resize_nearest(a: Arguments) -> Result:
    x, height, width = a["x"], a.integer("target_size_height", 1), a.integer("target_size_width", 1)
    return _nearest(x, height, width, (height / x.shape[-2], width / x.shape[-1]))


def _upsample_bilinear(a: Arguments) -> Result:
    x = a["x"]
    corners = a.flag("align_corners", True)
    centres = a.flag("half_pixel_centers", not corners)
    if corners and centres:
        raise VerificationError("align_corners with half_pixel_centers has no defined result")
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS" if centres else "DEFAULT"
    height = math.floor(x.shape[-2] * a.number("scale_factor_height", 1))
    return _bilinear(x, height, math.floor(x.shape[-1] * a.number("scale_factor_width", 1)), mode)


def _resize_bilinear(a: Arguments) -> Result:
    height, width = a.integer("target_size_height", 1), a.integer("target_size_width", 1)
    return _bilinear(a["x"], height, width, a.text("sampling_mode", "DEFAULT"))


def _resize(a: Arguments) -> Result:
    x, wanted = a["x"], a.integers("shape")
    if a.integer("resized_dims") != 2 or len(wanted) < 2:
        raise VerificationError("resize of other than the last two dimensions is not known here")
    height, width = (size or x.shape[axis] for axis, size in zip((-2, -1), wanted[-2:], strict=True))
    mode = a.text("sampling_mode", "DEFAULT")
    if a.text("interpolation_mode", "LINEAR") == "LINEAR":
        return _bilinear(x, height, width, mode)
    if mode != "DEFAULT":
        raise VerificationError(f"resize to the nearest element with sampling mode {mode} is not known here")
    return _nearest(x, height, width, (height / x.shape[-2], width / x.shape[-1]))


def _depth_to_space(a: Arguments) -> Result:
    x, block = a["x"], a.integer("block_size")
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // (block * block), h, w)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (block * block), h * block, w * block)


def _space_to_depth(a: Arguments) -> Result:
    x, block = a["x"], a.integer("block_size")
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block * block, h // block, w // block)


def _space_to_batch(a: Arguments) -> Result:
    x, (rows, columns), (top, bottom, left, right) = a["x"], a.integers("block_shape"), a.integers("paddings")
    fits((x.shape[-2] + top + bottom) * (x.shape[-1] + left + right) * x.shape[0] * x.shape[1])
    x = functional.pad(x, [left, right, top, bottom])
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // rows, rows, w // columns, columns)
    return x.permute(3, 5, 0, 1, 2, 4).reshape(-1, c, h // rows, w // columns)


def _batch_to_space(a: Arguments) -> Result:
    x, (rows, columns), (top, bottom, left, right) = a["x"], a.integers("block_shape"), a.integers("crops")
    n, c, h, w = x.shape
    x = x.reshape(rows, columns, n // (rows * columns), c, h, w).permute(2, 3, 4, 0, 5, 1)
    x = x.reshape(-1, c, h * rows, w * columns)
    return x[..., top : h * rows - bottom, left : w * columns - right]


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "batch_to_space": _batch_to_space,
    "crop": _crop,
    "depth_to_space": _depth_to_space,
    "pad": _pad,
    "pixel_shuffle": lambda a: functional.pixel_shuffle(a["x"], a.integer("upscale_factor")),
    "pixel_unshuffle": lambda a: functional.pixel_unshuffle(a["x"], a.integer("downscale_factor")),
    "resize": _resize,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest,
    "space_to_batch": _space_to_batch,
    "space_to_depth": _space_to_depth,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest,
}
