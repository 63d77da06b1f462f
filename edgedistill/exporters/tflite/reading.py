"""Read a .tflite of this package back from its own bytes: the codes, the scales, and what must not be in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.errors import VerificationError
from edgedistill.exporters import same_weights
from edgedistill.exporters.tflite.shrink import METADATA
from edgedistill.quant.activations import bias_codes
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.stored import QuantizedTensor


def read_back(path: Path) -> dict[str, QuantizedTensor]:
    """Codes and scales of every weight, by name, as every signature of the file will use them.

    Raises:
        VerificationError: if the file is not a .tflite of this package, a weight is not int8, or signatures disagree.
    """
    schema, model = _parse(path)
    buffers = _names(model, path)
    found: dict[str, QuantizedTensor] = {}
    for name, buffer in buffers.items():
        uses = [[t for t in subgraph.tensors if t.buffer == buffer] for subgraph in model.subgraphs]
        if not all(uses):
            raise VerificationError(f"{path}: {name} is not used by every signature; a weight is stored twice.")
        tensors = [tensor for use in uses for tensor in use]
        first = tensors[0]
        for tensor in tensors:
            if tensor.type != schema.TensorType.INT8 or tensor.quantization is None:
                raise VerificationError(f"{path}: {name} is not an int8 tensor.")
            if np.any(tensor.quantization.zeroPoint) or tensor.quantization.quantizedDimension != 0:
                raise VerificationError(f"{path}: {name} is not symmetric along axis 0.")
            if not np.array_equal(tensor.quantization.scale, first.quantization.scale):
                raise VerificationError(f"{path}: the scales of {name} differ between signatures.")
        codes = np.asarray(model.buffers[buffer].data, np.uint8).view(np.int8).reshape(first.shape)
        found[name] = QuantizedTensor(codes.copy(), np.asarray(first.quantization.scale, np.float32).copy())
    _no_other_weights(schema, model, set(buffers.values()), path)
    return found


def verify(frozen: FrozenStudent, path: Path) -> None:
    """Check that the file holds exactly the frozen student: every code, scale, bias and float tensor, difference 0.

    Raises:
        VerificationError: naming the tensor and the first difference.
    """
    same_weights(path, read_back(path), frozen)
    schema, model = _parse(path)
    _no_foreign_operators(schema, model, path)
    _floats_present(frozen, model, path)


def _parse(path: Path) -> tuple[Any, Any]:
    from ai_edge_litert import schema_py_generated as schema

    data = bytearray(path.read_bytes())
    if data[4:8] != b"TFL3":
        raise VerificationError(f"{path}: not a .tflite file.")
    try:
        return schema, schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    except Exception as error:  # damaged offsets surface as struct, index, unicode or memory errors
        raise VerificationError(f"{path}: damaged .tflite file ({type(error).__name__}). Export it again.") from error


def _names(model: Any, path: Path) -> dict[str, int]:
    for entry in model.metadata or []:
        if entry.name == METADATA.encode():
            buffers: dict[str, int] = json.loads(bytes(model.buffers[entry.buffer].data))["buffers"]
            return buffers
    raise VerificationError(f"{path}: has no {METADATA} metadata: it was not exported by this package.")


def _no_other_weights(schema: Any, model: Any, named: set[int], path: Path) -> None:
    """Every constant int8 tensor has a name, and every layer that should hold codes does."""
    lookups = {schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.EMBEDDING_LOOKUP}
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if tensor.type == schema.TensorType.INT8 and tensor.buffer and tensor.buffer not in named:
                raise VerificationError(f"{path}: holds int8 constants that are not the student's.")
        for operator in subgraph.operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode not in lookups:
                continue
            buffer = subgraph.tensors[operator.inputs[1]].buffer
            # with one attention head, scores are a fully-connected operator of two activations: no constant there
            if model.buffers[buffer].data is not None and buffer not in named:
                raise VerificationError(f"{path}: a layer came out of the converter without its int8 weight.")


def _no_foreign_operators(schema: Any, model: Any, path: Path) -> None:
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    used = {model.operatorCodes[o.opcodeIndex].builtinCode for s in model.subgraphs for o in s.operators}
    foreign = sorted(names[c] for c in used if names[c].startswith("STABLEHLO_") or names[c] in ("CUSTOM", "DELEGATE"))
    if foreign:
        raise VerificationError(f"{path}: holds operators that phones do not run: {', '.join(foreign)}.")


def _floats_present(frozen: FrozenStudent, model: Any, path: Path) -> None:
    """The float rest is in the file bit for bit; a static bias as its int32 codes, a table up to the longest bucket."""
    import torch

    buffers = [bytes(buffer.data) for buffer in model.buffers if buffer.data is not None]
    stored = set(buffers)
    for name, values in frozen.floats.items():
        grid = frozen.ranges.get(name.removesuffix(".bias"))
        data = values.tobytes()
        if grid is not None:
            scales = frozen.quantized[name.removesuffix("bias") + "weight"].scales
            codes = bias_codes(torch.from_numpy(values.copy()), grid[0].scale, torch.from_numpy(scales.copy()))
            data = codes.to(torch.int32).numpy().tobytes()
        row = values[0].nbytes if values.ndim > 1 else len(data)
        if data not in stored and not any(len(b) >= row >= 64 and data.startswith(b) for b in buffers):
            raise VerificationError(f"{path}: {name} is not in the file as the student holds it.")
