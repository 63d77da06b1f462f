"""What coremltools 9.0 is taught: torch operators that it lacks or computes wrongly, and a pass that only looks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.exporters.coreml.network import OPERATOR, identifier
from edgedistill.quant.activations import HIGH, LOW

_NAMESPACE = "edgedistill"


def register() -> None:
    """Teach coremltools our operators; it keeps them for the rest of the process."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    register_torch_op(coreml_on_grid, torch_alias=[OPERATOR], override=True)
    register_torch_op(reciprocal, override=True)
    register_torch_op(bitwise_or, torch_alias=["or"], override=True)


def note_floats(pipeline: Any, before: str) -> dict[str, NDArray[np.float32]]:
    """Add to a `PassPipeline` a pass that notes every float32 constant, just before the pass named `before`.

    What is returned is empty until the pipeline has run; names are those that a package will have for them.
    """
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass

    class NoteFloats(AbstractGraphPass):  # type: ignore[misc]
        """Changes nothing."""

        def apply(self, program: Any) -> None:
            for function in program.functions.values():
                for operation in function.operations:
                    value = operation.outputs[0].val if operation.op_type == "const" else None
                    if isinstance(value, np.ndarray | np.generic) and value.dtype == np.float32:
                        name = identifier(operation.outputs[0].name)
                        found[f"var_{name}" if name[0].isdigit() else name] = np.asarray(value)

    found: dict[str, NDArray[np.float32]] = {}
    register_pass(namespace=_NAMESPACE, override=True)(NoteFloats)
    pipeline.insert_pass(pipeline.passes.index(before), f"{_NAMESPACE}::{NoteFloats.__name__}")
    return found


def coreml_on_grid(context: Any, node: Any) -> None:
    """A grid of activations: a quantize and a dequantize, named after the place.

    Zero points 0 and -128 are left out, the latter with unsigned codes: Core ML is faster without one.
    """
    builder, (x, scale, zero_point, place) = _arguments(context, node, 4)
    zero, name = int(zero_point.val), identifier(place.val)
    if not LOW <= zero <= HIGH:
        raise ValueError(f"the grid of {place.val} has zero point {zero}")
    grid: dict[str, Any] = {"scale": np.float32(scale.val)}
    if zero not in (0, LOW):
        grid["zero_point"] = np.int8(zero)
    dtype = "uint8" if zero == LOW else "int8"
    codes = builder.quantize(input=x, output_dtype=dtype, name=f"{name}_quantize", **grid)
    context.add(builder.dequantize(input=codes, name=f"{name}_dequantize", **grid), torch_name=node.name)


def reciprocal(context: Any, node: Any) -> None:
    """1 / x, exactly: coremltools takes its `inverse`, which adds 1e-4 to x first.

    That is a hundredth of a percent of x = 1, and at position 300 of a text it turned rotary positions by 0.03.
    """
    builder, (x,) = _arguments(context, node, 1)
    if x.dtype.__name__.startswith(("int", "uint")):
        x = builder.cast(x=x, dtype="fp32")
    context.add(builder.real_div(x=np.float32(1), y=x, name=node.name))


def bitwise_or(context: Any, node: Any) -> None:
    """`|` of truth values, which coremltools knows only as `logical_or`."""
    builder, (x, y) = _arguments(context, node, 2)
    if any(value.dtype.__name__ != "bool" for value in (x, y)):
        raise NotImplementedError(f"| of {x.dtype.__name__} and {y.dtype.__name__}")
    context.add(builder.logical_or(x=x, y=y, name=node.name))


def _arguments(context: Any, node: Any, count: int) -> tuple[Any, Any]:
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    return Builder, _get_inputs(context, node, expected=count)
