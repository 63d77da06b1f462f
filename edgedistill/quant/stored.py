"""The numbers of a frozen student, and what is asked of them when they come from a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgedistill.errors import SpecError
from edgedistill.quant.activations import HIGH, LOW, Range
from edgedistill.quant.grid import round_scales, spread
from edgedistill.specs.quant import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import StoredTensor


class QuantizedTensor(NamedTuple):
    """`weight = codes * scales`: codes of any rank >= 2, int8 whatever their bits; scales [channels] (axis 0) or, for a
    matrix in groups along axis 1, [channels, groups].
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def values(self) -> NDArray[np.float32]:
        """The weight: exact in float32."""
        scales = spread(torch.from_numpy(self.scales.copy()), self.codes.shape).numpy()
        out: NDArray[np.float32] = self.codes * scales
        return out


def split(
    stored: Sequence[StoredTensor], scheme: QuantScheme, arrays: dict[str, NDArray[Any]], where: str
) -> tuple[dict[str, QuantizedTensor], dict[str, NDArray[np.float32]]]:
    """Sort arrays into quantized and float, checking every name, type, shape and value.

    Raises:
        SpecError: naming the tensor that is not what `stored` and `scheme` say, and `where` it was read.
    """
    wanted: dict[str, tuple[tuple[int, ...], type]] = {}
    for tensor in stored:
        grid = tensor.grid(scheme)
        if grid is None:
            wanted[tensor.name] = tensor.shape, np.float32
        else:
            groups = (tensor.shape[1] // grid.granularity.size,) if isinstance(grid.granularity, PerGroup) else ()
            wanted[f"{tensor.name}.codes"] = tensor.shape, np.int8
            wanted[f"{tensor.name}.scales"] = (tensor.shape[0], *groups), np.float32
    if arrays.keys() != wanted.keys():
        odd = ", ".join(sorted(arrays.keys() ^ wanted.keys())[:3])
        raise SpecError(f"{where}: its tensors are not those of the config: missing or unknown: {odd}.")
    for name, (shape, dtype) in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype != dtype:
            seen = f"{arrays[name].dtype}{list(arrays[name].shape)}"
            raise SpecError(f"{where}: {name} is {seen}, must be {np.dtype(dtype).name}{list(shape)}.")
        if not np.isfinite(arrays[name]).all():
            raise SpecError(f"{where}: {name} holds values that are not finite.")
    quantized, floats = {}, {}
    for tensor in stored:
        grid = tensor.grid(scheme)
        if grid is None:
            floats[tensor.name] = arrays[tensor.name]
            continue
        codes, scales = arrays[f"{tensor.name}.codes"], arrays[f"{tensor.name}.scales"]
        _check_numbers(tensor.name, codes, scales, grid, scheme, where)
        quantized[tensor.name] = QuantizedTensor(codes, scales)
    return quantized, floats


def _check_numbers(
    name: str, codes: NDArray[Any], scales: NDArray[Any], grid: WeightGrid, scheme: QuantScheme, where: str
) -> None:
    if codes.min() < grid.code_min or codes.max() > grid.code_max:
        raise SpecError(
            f"{where}: {name} holds codes from {codes.min()} to {codes.max()}, allowed are {grid.code_min} to "
            f"{grid.code_max}."
        )
    held = torch.from_numpy(scales.copy())
    if (scales <= 0).any() or not torch.equal(round_scales(held, scheme.scale_dtype), held):
        raise SpecError(f"{where}: {name} has a scale that is not a positive {scheme.scale_dtype} number.")


def decode_ranges(
    ranges: dict[str, Any],
    points: dict[str, Any],
    scheme: QuantScheme,
    quantized: dict[str, QuantizedTensor],
    where: str,
) -> tuple[dict[str, tuple[Range, Range]], dict[str, Range]]:
    """The grids of activations, checked.

    Raises:
        SpecError: if they are not grids of a student of this scheme.
    """
    static = scheme.activations == "static_int8"
    if bool(ranges) != static or not all(f"{name}.weight" in quantized for name in ranges) or (points and not static):
        raise SpecError(f"{where}: ranges must name the linear layers of a static_int8 student, and only of one.")
    decoded = {}
    for name, pair in ranges.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise SpecError(f"{where}: ranges of {name} must be two pairs [scale > 0, zero point in -128..127].")
        decoded[name] = _decode_range(name, pair[0], where), _decode_range(name, pair[1], where)
    return decoded, {name: _decode_range(name, value, where) for name, value in points.items()}


def _decode_range(name: str, value: Any, where: str) -> Range:
    match value:
        case [float(scale), int(zero)] if 0 < scale < 1e30 and LOW <= zero <= HIGH and not isinstance(zero, bool):
            return Range(scale, zero)
    raise SpecError(f"{where}: the range of {name} must be [scale > 0, zero point in -128..127], it is {value!r}.")
