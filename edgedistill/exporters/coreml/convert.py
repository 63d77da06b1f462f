"""Frozen student to a raw package, through coremltools; its float constants are noted before they are rounded to fp16.

Two things of coremltools are kept out. Passes of its pipeline that rewrite quantized activations: one moves a reshape
between a dequantize and a quantize onto the integers without asking whether both have the same scale, which silently
changes what is computed (coremltools 9.0, `int_op_canonicalization`); the others merge, drop or shift grids, after
which they are not those that were trained. And input types that it changes in place: each conversion gets its own.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgedistill.errors import StageError
from edgedistill.exporters._entry import Entry
from edgedistill.exporters._quiet import imported, silenced
from edgedistill.exporters.coreml import operators
from edgedistill.exporters.coreml.naming import settle
from edgedistill.exporters.coreml.network import (
    POSITION,
    Arithmetic,
    Generator,
    announce,
    generates,
    identifier,
    network,
    places,
)
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Port, Signature

REMOVED_PASSES = (
    "common::int_op_canonicalization",
    "common::nullify_redundant_quantization_zero_point",
    "common::dequantize_quantize_pair_elimination",
    "common::distributive_quantized_binary_op_scale_normalization",
)
# Not in float32, where each operation rounds as the student's: they make two operations one, or divide by multiplying.
_REWRITING_PASSES = (
    "common::divide_to_multiply",
    "common::fuse_conv_batchnorm",
    "common::fuse_conv_bias",
    "common::fuse_conv_scale",
    "common::fuse_elementwise_to_batchnorm",
    "common::fuse_layernorm_or_instancenorm",
    "common::fuse_linear_bias",
    "common::fuse_matmul_weight_bias",
    "common::fuse_reduce_mean",
)
_ROUNDING_PASS = "common::add_fp16_cast"
_ROUNDED = "_to_fp16"  # its ending of the name of a constant that it rounded
FLEXIBLE = "any"
# Operations that stay fp32 in an fp16 program, with the arithmetic that is done for them alone. In fp16 the angle of
# position 500 is known to a quarter of a radian at best, and the squares of a norm overflow beyond 256.
_WIDE = frozenset({"cos", "sin", "rsqrt", "sqrt"})
_ARITHMETIC = frozenset(
    {"add", "clip", "expand_dims", "maximum", "mul", "pow", "real_div", "reduce_mean", "reduce_sum", "square", "sub"}
)
# What coremltools raises for a model that it cannot convert: its own errors are all of builtin types.
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def toolkit() -> Any:
    """The module `coremltools`, imported without its banner and warnings.

    Raises:
        MissingDependency: if it is not installed.
    """
    # it would import TensorFlow and probe for a Mac's runtime; both only print here
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return imported("coremltools", "Export to Core ML needs coremltools", "'edgedistill[coreml]'")


def whole(signatures: Sequence[Signature]) -> Signature:
    """One entry point for all: a size that differs between them becomes -1, which takes 1 up to the largest of them.

    A single signature stays as it is; the flexible one is named `any`.

    Raises:
        StageError: if the signatures differ in more than sizes.
    """
    first = signatures[0]
    sides = [[(port.name, len(port.shape), port.dtype) for port in s.inputs + s.outputs] for s in signatures]
    if any(side != sides[0] for side in sides):
        raise StageError("Core ML: the signatures of this student differ in more than the sizes of their tensors.")
    if len(signatures) == 1:
        return first

    def merged(ports: Sequence[tuple[Port, ...]]) -> tuple[Port, ...]:
        shapes = [[port.shape for port in same] for same in zip(*ports, strict=True)]
        sizes = [tuple(a[0] if len(set(a)) == 1 else -1 for a in zip(*found, strict=True)) for found in shapes]
        return tuple(port._replace(shape=size) for port, size in zip(ports[0], sizes, strict=True))

    return Signature(FLEXIBLE, merged([s.inputs for s in signatures]), merged([s.outputs for s in signatures]))


class Raw(NamedTuple):
    """A package as coremltools writes it, but for the names of values, and the float32 constants of its program, by the
    name of the operation that holds each, before any was rounded.
    """

    path: Path
    floats: dict[str, NDArray[np.float32]]


class Converter:
    """A student that was traced; `write` converts it, with the entry point `signature`."""

    def __init__(
        self, frozen: FrozenStudent, signatures: Sequence[Signature], precision: Arithmetic = "float16"
    ) -> None:
        """Trace the student at its largest sizes.

        Raises:
            MissingDependency: if coremltools is not installed.
            StageError: if torch cannot trace it, or float32 does not hold its sums.
        """
        self._tools = toolkit()
        self._frozen, self._precision = frozen, precision
        model = network(frozen, exact=precision == "float32")
        announce(model, frozen)
        if generates(model) and precision == "float32":
            raise StageError("Core ML keeps states in fp16 only: a decoder has precision float16.")
        if generates(model):  # a prompt of any length, and the single tokens after it
            signatures = [*signatures, *frozen.signatures([1])]
        self.signature = whole(signatures)
        shapes = [[signature.inputs[n].shape for signature in signatures] for n in range(len(signatures[0].inputs))]
        self._largest = [tuple(max(sizes) for sizes in zip(*found, strict=True)) for found in shapes]
        self._entry: nn.Module = Entry(model)
        if generates(model):
            self._entry = Generator(model, self._largest[0][1])
            self.signature = self.signature._replace(inputs=(*self.signature.inputs, POSITION))
            self._largest.append(POSITION.shape)
        # zeros: an id that every vocabulary has
        inputs = tuple(
            torch.zeros(shape, dtype=getattr(torch, port.dtype))
            for shape, port in zip(self._largest, self.signature.inputs, strict=True)
        )
        try:
            with silenced(), torch.no_grad():
                self._traced = torch.jit.trace(self._entry.eval(), inputs, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        except _FAILURES as error:
            raise self._refused("torch cannot trace", error) from error

    def write(self, folder: Path) -> Raw:
        """Convert into a new package in `folder`.

        Raises:
            StageError: if coremltools refuses the model.
        """
        tools, path = self._tools, folder / "raw.mlpackage"
        whole_floats = self._precision == "float32"
        pipeline = copy.deepcopy(tools.PassPipeline.DEFAULT)
        pipeline.remove_passes({*REMOVED_PASSES, *(_REWRITING_PASSES if whole_floats else ())})
        noted = operators.note_floats(pipeline, before=_ROUNDING_PASS) if not whole_floats else {}
        operators.register()
        try:
            with silenced():
                tools.convert(
                    self._traced,
                    convert_to="mlprogram",
                    inputs=self._inputs(),
                    states=self._states(),
                    outputs=[tools.TensorType(name=port.name, dtype=_numpy(port)) for port in self.signature.outputs],
                    compute_precision=self._arithmetic(),
                    minimum_deployment_target=getattr(tools.target, self._target()),
                    pass_pipeline=pipeline,
                    skip_model_load=True,
                    package_dir=str(path),
                )
        except _FAILURES as error:
            raise self._refused("coremltools cannot convert", error) from error
        names = settle(path, self._known())
        return Raw(
            path, {new: noted[plain] for old, new in names.items() if (plain := old.removesuffix(_ROUNDED)) in noted}
        )

    def _known(self) -> set[str]:
        """Names of the student's tensors and grids as a program may hold them."""
        tensors = {**dict(self._entry.named_parameters(remove_duplicate=False)), **dict(self._entry.named_buffers())}
        grids = [f"{place}.{step}" for place in places(self._frozen) for step in ("quantize", "dequantize")]
        return {identifier(name) for name in (*tensors, *grids)}

    def _inputs(self) -> list[Any]:
        """Types of the inputs; sizes that differ between signatures are one range, which inputs share."""
        tools, ranges = self._tools, {}
        types = []
        for port, largest in zip(self.signature.inputs, self._largest, strict=True):
            shape = []
            for size, most in zip(port.shape, largest, strict=True):
                if size == -1 and most not in ranges:
                    ranges[most] = tools.RangeDim(1, most, default=most)
                shape.append(ranges[most] if size == -1 else size)
            types.append(tools.TensorType(name=port.name, shape=tuple(shape), dtype=_numpy(port)))
        return types

    def _states(self) -> list[Any]:
        """The caches of a decoder; Core ML keeps states in fp16 only."""
        tools = self._tools
        return [
            tools.StateType(name=name, wrapped_type=tools.TensorType(shape=cache.shape, dtype=np.float16))
            for name, cache in self._entry.named_buffers(recurse=False)
        ]

    def _target(self) -> Literal["iOS17", "iOS18"]:
        """The oldest system that has what the student needs: groups, 4 bits and states came with iOS 18."""
        labels = {grid.label for grid in self._frozen.grids().values()}
        return "iOS17" if labels <= {"int8 per channel"} and isinstance(self._entry, Entry) else "iOS18"

    def _arithmetic(self) -> Any:
        if self._precision == "float32":
            return self._tools.precision.FLOAT32
        return self._tools.transform.FP16ComputePrecision(op_selector=lambda operation: not _needs_fp32(operation))

    def _refused(self, what: str, error: Exception) -> StageError:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return StageError(
            f"{what} the {self._frozen.family} student ({type(error).__name__}): {first}. "
            "Use another student family or report the model with this message."
        )


def _needs_fp32(operation: Any) -> bool:
    """Whether an operation is one of `_WIDE`, or arithmetic whose results go nowhere but there."""
    if operation.op_type not in _ARITHMETIC:
        return operation.op_type in _WIDE
    readers = [reader for output in operation.outputs for reader in output.child_ops]
    return bool(readers) and all(_needs_fp32(reader) for reader in readers)


def _numpy(port: Port) -> Any:
    return {"int32": np.int32, "float32": np.float32}[port.dtype]
