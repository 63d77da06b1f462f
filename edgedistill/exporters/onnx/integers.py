"""The layers of a static file that compute in integers, found in its graph and checked link by link."""

from __future__ import annotations

from typing import Any, NamedTuple

from edgedistill.errors import VerificationError
from edgedistill.exporters.onnx.contents import Contents, attributes

INT8, FLOAT = 3, 1  # of onnx.TensorProto, which is imported late
INVERSE = ".inverse"  # ending of the name of 1 / scale
Grid = tuple[str, str]


class IntegerLayer(NamedTuple):
    """A layer by the names of its values: codes in, weight, and codes out, each with its grid (scale, zero point)."""

    codes: str
    source: Grid
    weight: str
    scales: str
    output: str
    result: Grid


def integer_layers(file: Contents) -> list[IntegerLayer]:
    """Every one of them, in the order of the graph.

    Raises:
        VerificationError: where the sums of a product are not scaled and rounded as a static layer's are.
    """
    found = []
    for node in file.graph.node:
        if node.op_type == "QLinearConv":
            codes, scale, zero, weight, scales, nothing, *result = node.input[:8]
            _is_number(file, nothing, 0)
            weight = _constant(file, weight)
            found.append(IntegerLayer(codes, (scale, zero), weight, scales, node.output[0], (result[0], result[1])))
        elif node.op_type == "MatMulInteger":
            found.append(_linear(file, node))
    return found


def grid_of(file: Contents, quantize: Any) -> Grid:
    """The grid that a QuantizeLinear rounds to: by its scale, or by 1 what was multiplied with the grid's `.inverse`.

    Raises:
        VerificationError: where the latter is not rounded by 1.
    """
    scale, zero = quantize.input[1:3]
    times = file.makers.get(quantize.input[0])
    if times is None or times.op_type != "Mul" or not times.input[1].endswith(INVERSE):
        return scale, zero
    _is_number(file, scale, 1)
    return f"{times.input[1].removesuffix(INVERSE)}.scale", zero


def _linear(file: Contents, product: Any) -> IntegerLayer:
    """`QuantizeLinear(Cast(MatMulInteger(x, Wᵀ, zero) + bias) * (scale * scales / result scale), 1, result zero)`."""
    turn = file.makers.get(product.input[1])
    if turn is None or turn.op_type != "Transpose" or len(product.input) != 3:
        raise VerificationError(f"{file.path}: multiplies integers otherwise than a static layer.")
    weight = _constant(file, turn.input[0])
    told = VerificationError(f"{file.path}: the sums of {weight} are not scaled and rounded as a static layer's.")

    def only(name: str, kind: str) -> Any:
        readers = file.readers.get(name, [])
        if len(readers) != 1 or readers[0].op_type != kind:
            raise told
        return readers[0]

    sums = product.output[0]
    if file.readers.get(sums) and file.readers[sums][0].op_type == "Add":
        sums = only(sums, "Add").output[0]
    cast = only(sums, "Cast")
    scaled = only(cast.output[0], "Mul")
    rounded = only(scaled.output[0], "QuantizeLinear")
    divided = file.makers.get(scaled.input[1])
    times = None if divided is None else file.makers.get(divided.input[0])
    if attributes(cast) != {"to": FLOAT} or divided is None or times is None:
        raise told
    if (scaled.input[0], divided.op_type, times.op_type) != (cast.output[0], "Div", "Mul"):
        raise told
    _is_number(file, rounded.input[1], 1)
    source, result = (times.input[0], product.input[2]), (divided.input[1], rounded.input[2])
    return IntegerLayer(product.input[0], source, weight, times.input[1], rounded.output[0], result)


def _constant(file: Contents, name: str) -> str:
    """The constant that a value is, or is the int8 form of."""
    cast = file.makers.get(name)
    return (
        str(cast.input[0]) if cast is not None and cast.op_type == "Cast" and attributes(cast)["to"] == INT8 else name
    )


def _is_number(file: Contents, name: str, wanted: int) -> None:
    found = file.array(name)
    if found.size != 1 or found.item() != wanted:
        raise VerificationError(f"{file.path}: {name} is not the number {wanted}.")
