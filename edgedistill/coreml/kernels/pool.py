"""Pooling over windows of one to three spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgedistill.coreml.kernels.linear import torch_padding, window_count, window_padding
from edgedistill.coreml.values import Arguments, Result, fits
from edgedistill.errors import VerificationError

_MAX = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
_MEAN = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}


def _windows(a: Arguments, x: Tensor) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides, padding, and the further padding at each end that windows of `ceil_mode` reach into."""
    if x.ndim not in _MAX:
        raise VerificationError(f"pooling of rank {x.ndim} is not known here")
    kernel = a.integers("kernel_sizes")
    strides = a.integers("strides", [1] * len(kernel))
    pad = window_padding(a, x.shape[2:], kernel, strides, [1] * len(kernel))
    beyond = []
    for i, (size, width, stride) in enumerate(zip(x.shape[2:], kernel, strides, strict=True)):
        before, after = pad[2 * i : 2 * i + 2]
        padded = size + before + after
        count = window_count(padded, width, stride)
        if a.flag("ceil_mode", False):
            count = -(-(padded - width) // stride) + 1
            if (count - 1) * stride >= size + before and before + after > 0:
                count -= 1  # a window that would start in the padding at the end
        if count < 1:
            raise VerificationError(f"a window of {width} over {padded} elements")
        beyond += [0, max(0, (count - 1) * stride + width - padded)]
    spatial = [size + sum(pad[2 * i : 2 * i + 2]) + beyond[2 * i + 1] for i, size in enumerate(x.shape[2:])]
    fits(math.prod(spatial) * x.shape[0] * x.shape[1])
    return kernel, strides, pad, beyond


def _max_pool(a: Arguments) -> Result:
    x = a["x"]
    kernel, strides, pad, beyond = _windows(a, x)
    edges = [p + b for p, b in zip(pad, beyond, strict=True)]
    if any(edges):
        x = functional.pad(x, torch_padding(edges), value=-math.inf)
    return _MAX[x.ndim](x, kernel, strides)


def _sums(x: Tensor, a: Arguments) -> tuple[Tensor, Tensor | int]:
    """The sum of each window, and how many elements it is to be divided by for the mean."""
    kernel, strides, pad, beyond = _windows(a, x)
    area = math.prod(kernel)
    if not any(pad) and not any(beyond):
        return _MEAN[x.ndim](x, kernel, strides) * area, area
    # padding counts as elements unless excluded; what ceil_mode reaches beyond it never does
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    excluded = a.flag("exclude_padding_from_average", False)
    counted = functional.pad(counted, torch_padding(pad), value=0.0 if excluded else 1.0)
    counted = functional.pad(counted, torch_padding(beyond))
    edges = [p + b for p, b in zip(pad, beyond, strict=True)]
    sums = _MEAN[x.ndim](functional.pad(x, torch_padding(edges)), kernel, strides) * area
    return sums, _MEAN[x.ndim](counted, kernel, strides) * area


def _avg_pool(a: Arguments) -> Result:
    sums, counts = _sums(a["x"], a)
    return sums / counts


def _l2_pool(a: Arguments) -> Result:
    return torch.sqrt(_sums(a["x"].square(), a)[0])


KERNELS: dict[str, Callable[[Arguments], Result]] = {
    "avg_pool": _avg_pool,
    "l2_pool": _l2_pool,
    "max_pool": _max_pool,
}
