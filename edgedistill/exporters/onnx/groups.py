"""The layers of a static file: QDQ groups, found in its graph and checked link by link.

A group is a Gemm or a Conv whose operands come out of DequantizeLinear, and whose result goes into QuantizeLinear. A
runtime that looks for such groups multiplies the codes; any other computes the floats that they stand for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgedistill.errors import VerificationError
from edgedistill.exporters.onnx.contents import Contents, attributes
from edgedistill.exporters.onnx.static import is_power_of_two

PRODUCTS = ("Gemm", "Conv")
INT8 = 3  # of onnx.TensorProto, which is imported late
INVERSE = ".inverse"  # ending of the name of 1 / scale
_MOVES = ("Flatten", "Pad", "Reshape", "Transpose")  # what leaves values, and the 0 of a padding, on their grid
Grid = tuple[str, str]


class Group(NamedTuple):
    """A layer by the names of its values: codes in, weight, and codes out, each with its grid (scale, zero point).

    `sums` are the floats that are rounded to the codes out.
    """

    codes: str
    source: Grid
    weight: str
    scales: str
    sums: str
    output: str
    result: Grid


def groups(file: Contents) -> list[Group]:
    """Every one of them, in the order of the graph.

    Raises:
        VerificationError: where a product of a static weight is not the layer that it should be.
    """
    return [_group(file, node) for node in file.graph.node if _is_static(file, node)]


def centred(file: Contents, dequantize: Any) -> bool:
    """Whether the zero points of a weight's DequantizeLinear, if it has any, are 0 for every channel."""
    if len(dequantize.input) < 3:
        return True
    zeros, scales = (file.array(name) for name in (dequantize.input[2], dequantize.input[1]))
    return zeros.dtype == np.int8 and zeros.shape == scales.shape and not zeros.any()


def rounds_as_trained(file: Contents, quantize: Any) -> bool:
    """Whether an operator that rounds, and ends no group, takes the codes that the student takes (`static.Grid`).

    Its scale is a power of two; or the values were moved to its grid before, `Mul(Round(Mul(x, inverse)), scale)`, or
    are still on it; or they are sums of two branches.
    """
    if quantize.op_type != "QuantizeLinear":
        return True
    scale, source = quantize.input[1], file.makers.get(quantize.input[0])
    if is_power_of_two(float(file.array(scale).max(initial=0))):
        return True
    while source is not None and source.op_type in _MOVES:
        source = file.makers.get(source.input[0])
    if source is None or source.op_type == "DequantizeLinear":
        return source is not None and source.input[1] == scale
    before = [file.makers.get(name) for name in source.input]
    kinds = [None if node is None else node.op_type for node in before]
    if source.op_type == "Add":
        return set(kinds) == {"DequantizeLinear"}
    first = None if before[0] is None or kinds[0] != "Round" else file.makers.get(before[0].input[0])
    inverse = f"{scale.removesuffix('.scale')}{INVERSE}"
    return first is not None and (first.op_type, first.input[1], source.input[1]) == ("Mul", inverse, scale)


def _is_static(file: Contents, node: Any) -> bool:
    weight = file.makers.get(node.input[1]) if node.op_type in PRODUCTS else None
    return weight is not None and weight.op_type == "DequantizeLinear" and len(weight.input) == 3


def _group(file: Contents, product: Any) -> Group:
    """`Q(Gemm(DQ(x, source), DQ(W, scales, 0), DQ(bias, source scale * scales)), result)`, or the same with a Conv."""
    weight = file.makers[product.input[1]]
    cast = file.makers.get(weight.input[0])
    name = str(weight.input[0] if cast is None else cast.input[0])
    told = VerificationError(f"{file.path}: the sums of {name} are not scaled and rounded as a static layer's.")
    source = file.makers.get(product.input[0])
    users = file.readers.get(product.output[0], [])
    if source is None or source.op_type != "DequantizeLinear" or len(source.input) != 3:
        raise told
    if len(users) != 1 or users[0].op_type != "QuantizeLinear" or len(users[0].input) != 3:
        raise told
    if product.op_type == "Gemm" and attributes(product) != {"transB": 1}:
        raise told
    if len(product.input) > 2:
        bias = file.makers.get(product.input[2])
        scale = None if bias is None or len(bias.input) != 2 else file.makers.get(bias.input[1])
        if bias is None or scale is None or bias.op_type != "DequantizeLinear" or attributes(bias) != {"axis": 0}:
            raise told
        if scale.op_type != "Mul" or list(scale.input) != [source.input[1], weight.input[1]]:
            raise told
    (rounded,) = users
    return Group(
        codes=source.input[0],
        source=(source.input[1], source.input[2]),
        weight=name,
        scales=weight.input[1],
        sums=product.output[0],
        output=rounded.output[0],
        result=(rounded.input[1], rounded.input[2]),
    )
