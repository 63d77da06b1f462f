"""Is a .tflite what its own offsets and lengths claim? Asked before any library follows them.

flatbuffers has no verifier for Python. This one follows every offset of the tables that a TFLite file consists of, as
the schema lists them, and refuses whatever leaves the file, and what the files of LiteRT's converters never hold. Equal
tables may be written once (`pack`), so a small file can describe a large graph: what unpacking would make is counted.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

# Fields of each table by number: bytes of a number, "string", a vector of numbers ("*4"), a table, or a vector of
# tables ("*Tensor"). Fields that are not listed must be absent. `options` is one of many tables of numbers.
TABLES: dict[str, dict[int, int | str]] = {
    "Model": {
        0: 4, 1: "*OperatorCode", 2: "*SubGraph", 3: "string", 4: "*Buffer", 5: "*4", 6: "*Metadata", 7: "*SignatureDef"
    },
    "OperatorCode": {0: 1, 1: "string", 2: 4, 3: 4},
    "SubGraph": {0: "*Tensor", 1: "*4", 2: "*4", 3: "*Operator", 4: "string", 5: 4},
    "Tensor": {0: "*4", 1: 1, 2: 4, 3: "string", 4: "Quantization", 5: 1, 7: "*4", 8: 1},
    "Quantization": {0: "*4", 1: "*4", 2: "*4", 3: "*8", 4: 1, 5: "details", 6: 4},
    "details": {0: 4, 1: 4, 2: 4, 3: "*4"},
    "Operator": {
        0: 4, 1: "*4", 2: "*4", 3: 1, 4: "options", 5: "*1", 6: 1, 7: "*1", 8: "*4", 11: 1, 12: "options", 13: 4
    },
    "Buffer": {0: "*1"},
    "Metadata": {0: "string", 1: 4},
    "SignatureDef": {0: "*TensorMap", 1: "*TensorMap", 2: "string", 4: 4},
    "TensorMap": {0: "string", 1: 4},
}  # fmt: skip
MOST_WORK = 2_000_000
# What a number in these tables' vectors costs, where that is not nothing: indices and shapes are looked at one by one,
# scales as a whole.
_PER_ELEMENT = {"SubGraph": 1.0, "Operator": 1.0, "Tensor": 1.0, "Quantization": 0.01}
MOST_ACTIVATION_BYTES = 2**30
BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "BFLOAT16": 16, "FLOAT64": 64, "BOOL": 8, "INT2": 2, "INT4": 4, "UINT4": 4,
    "INT8": 8, "UINT8": 8, "INT16": 16, "UINT16": 16, "INT32": 32, "UINT32": 32, "INT64": 64, "UINT64": 64,
}  # fmt: skip
_BLOCKWISE = 2
_OLD_CODES = 127
# How many inputs LiteRT reads unasked, of operators that read more than one.
INPUTS = dict.fromkeys(
    ("ADD", "SUB", "MUL", "DIV", "POW", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "FLOOR_DIV", "FLOOR_MOD",
     "EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "LOGICAL_AND", "LOGICAL_OR",
     "FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL", "EMBEDDING_LOOKUP", "GATHER", "GATHER_ND",
     "MEAN", "SUM", "REDUCE_MAX", "TRANSPOSE", "PAD", "EXPAND_DIMS", "BROADCAST_TO", "TILE", "ARG_MAX", "PRELU"), 2
) | {"SELECT": 3, "SELECT_V2": 3, "SLICE": 3, "STRIDED_SLICE": 4, "DYNAMIC_UPDATE_SLICE": 3, "RANGE": 3, "PADV2": 3,
     "TRANSPOSE_CONV": 3, "VAR_HANDLE": 0, "CALL_ONCE": 0, "HASHTABLE": 0}  # fmt: skip
SILENT = frozenset(("ASSIGN_VARIABLE", "CALL_ONCE", "CUSTOM", "HASHTABLE_IMPORT"))  # may have no output


_U16, _I32, _U32 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I")


class _Walk:
    """A file whose offsets are being followed; remembers what it has seen, so that it reads each table once.

    It is asked for each of ten thousand tables of a file, several times for each export: a table costs one call here.
    Places only grow along unsigned offsets, so what `struct` finds beyond the end is all that can be wrong with them.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.costs: dict[tuple[str, int], float] = {}
        self.layouts: dict[int, tuple[dict[int, int], int]] = {}

    def table(self, kind: str, at: int) -> float:
        """The work of unpacking this table: the number of objects that it makes, and of numbers that are looked at."""
        if (kind, at) in self.costs:
            return self.costs[kind, at]
        data, known, each = self.data, TABLES.get(kind), _PER_ELEMENT.get(kind, 0.0)
        vtable = at - _I32.unpack_from(data, at)[0]
        fields, size = self.layouts.get(vtable) or self.layout(vtable)
        if at + size > len(data):
            raise ValueError("a table is not one")
        cost = 1.0
        for number, offset in fields.items():
            what = 1 if known is None else known.get(number)
            if what is None:
                raise ValueError(f"a {kind} has field {number}, which files for phones do not use")
            if offset + (what if isinstance(what, int) else 4) > size:
                raise ValueError(f"a {kind} is shorter than its fields")
            if isinstance(what, int):
                continue
            if what == "details" and data[at + fields.get(4, 0)] != _BLOCKWISE:
                raise ValueError("a tensor is quantized in a way that files for phones do not use")
            target = at + offset + _U32.unpack_from(data, at + offset)[0]
            if what in TABLES or what == "options":
                cost += self.table(what, target)
                continue
            (count,), element = _U32.unpack_from(data, target), what.removeprefix("*")
            width = 4 if element in TABLES else 1 if what == "string" else int(element)
            if target + 4 + count * width > len(data):
                raise ValueError("a vector is longer than the file")
            if element in TABLES:
                offsets = struct.unpack_from(f"<{count}I", data, target + 4)
                cost += 1.0 + sum(self.table(element, target + 4 + 4 * n + step) for n, step in enumerate(offsets))
            else:
                cost += 1 + count * each
        self.costs[kind, at] = cost
        return cost

    def layout(self, vtable: int) -> tuple[dict[int, int], int]:
        """Where tables with this vtable have each field that is present, and how long they are."""
        if vtable < 0:
            raise ValueError("an offset leaves the file")
        (length,), (size,) = _U16.unpack_from(self.data, vtable), _U16.unpack_from(self.data, vtable + 2)
        if length < 4 or length % 2 or size < 4 or vtable + length > len(self.data):
            raise ValueError("a table is not one")
        offsets = struct.unpack_from(f"<{length // 2 - 2}H", self.data, vtable + 4)
        present = {n: offset for n, offset in enumerate(offsets) if offset}
        if any(not 4 <= offset < size for offset in present.values()):
            raise ValueError("a table is shorter than its fields")
        self.layouts[vtable] = present, size
        return present, size


def check_offsets(data: bytes | bytearray) -> None:
    """Follow every offset.

    Raises:
        ValueError: saying what is wrong.
    """
    if len(data) < 8 or data[4:8] != b"TFL3":
        raise ValueError("not a .tflite file")
    try:
        work = _Walk(data).table("Model", _U32.unpack_from(data, 0)[0])
    except struct.error:
        raise ValueError("an offset leaves the file") from None
    if work > MOST_WORK:
        raise ValueError(f"describes a graph of more than {MOST_WORK} parts")


def check_graph(schema: Any, model: Any) -> None:
    """Check that every index names something, that constants fill their shapes, and that no shape is absurd.

    Raises:
        ValueError: saying what is wrong.
    """
    subgraphs, buffers = model.subgraphs or [], model.buffers or []
    if not subgraphs or not model.operatorCodes:
        raise ValueError("holds no graph")
    _check_operators(schema, model)
    _check_names(model)
    types = {value: BITS[name] for name, value in vars(schema.TensorType).items() if name in BITS}
    for subgraph in subgraphs:
        tensors = subgraph.tensors
        if not subgraph.operators or not tensors:
            raise ValueError("holds a graph of nothing")
        for tensor in tensors:
            _check_tensor(tensor, types, buffers, len(tensors))
        uses = [subgraph.inputs, subgraph.outputs]
        for operator in subgraph.operators:
            uses += [operator.inputs, operator.outputs]
        for indices in uses:
            if indices is None:
                raise ValueError("an operator or a graph has no inputs or outputs")
            for index in map(int, indices):
                if not -1 <= index < len(tensors):
                    raise ValueError(f"names a tensor {index} of {len(tensors)}")
        if any(int(index) < 0 for index in (*subgraph.inputs, *subgraph.outputs)):
            raise ValueError("a graph lacks one of its inputs or outputs")
        for operator in subgraph.operators:  # what may be left out is a bias, which comes third
            if any(int(index) < 0 for index in (*operator.inputs[:2], *operator.outputs)):
                raise ValueError("an operator lacks one of its inputs or outputs")
    for entry in model.metadata or []:
        _inside("a buffer", entry.buffer, buffers)
    for signature in model.signatureDefs or []:
        _inside("a graph", signature.subgraphIndex, subgraphs)
        for entry in (*(signature.inputs or []), *(signature.outputs or [])):
            _inside("a tensor", entry.tensorIndex, subgraphs[signature.subgraphIndex].tensors or [])


def _check_operators(schema: Any, model: Any) -> None:
    """Each is one that is known, by its newer number, and has as many inputs as it reads."""
    known = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    for code in model.operatorCodes:
        # files have each number twice, the older field up to 127 (ai-edge-quantizer leaves it 0 of operators that it
        # adds); runtimes take the larger, and all readers here the newer
        if code.builtinCode not in known or code.deprecatedBuiltinCode > min(code.builtinCode, _OLD_CODES):
            raise ValueError(f"names an operator {code.builtinCode}, or {code.deprecatedBuiltinCode}")
    for subgraph in model.subgraphs:
        for operator in subgraph.operators or []:
            if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
                raise ValueError(f"names an operator code {operator.opcodeIndex} of {len(model.operatorCodes)}")
            name = known[model.operatorCodes[operator.opcodeIndex].builtinCode]
            inputs, outputs = (0 if found is None else len(found) for found in (operator.inputs, operator.outputs))
            if inputs < INPUTS.get(name, 1) or not (outputs or name in SILENT):
                raise ValueError(f"an operator {name} has {inputs} inputs and {outputs} outputs")


def _check_names(model: Any) -> None:
    """All that is called by a name has one, and every name is text."""
    signatures = model.signatureDefs or []
    entries = [entry for one in signatures for entry in (*(one.inputs or []), *(one.outputs or []))]
    needed = [*(one.signatureKey for one in signatures), *(entry.name for entry in entries)]
    tensors = [tensor.name for subgraph in model.subgraphs for tensor in subgraph.tensors or []]
    if any(name is None for name in needed):
        raise ValueError("an entry point, or what it takes or answers, has no name")
    for name in (*needed, *tensors):
        try:
            (name or b"").decode()
        except UnicodeDecodeError:
            raise ValueError("a name is not UTF-8 text") from None


def _check_tensor(tensor: Any, types: dict[int, int], buffers: list[Any], count: int) -> None:
    if not 0 <= tensor.buffer < len(buffers):
        raise ValueError(f"names a buffer {tensor.buffer} of {len(buffers)}")
    if tensor.type not in types:
        raise ValueError(f"a tensor has type {tensor.type}, which files for phones do not use")
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    if any(size < 0 for size in shape):
        raise ValueError(f"a tensor has the shape {shape}")
    size = 1
    for factor in shape:
        size *= factor  # Python's integers do not overflow
    bits, data = size * types[tensor.type], buffers[tensor.buffer].data
    if data is not None and len(data) != -(-bits // 8):
        raise ValueError(f"a constant of shape {shape} has {len(data)} bytes")
    if data is None and bits > 8 * MOST_ACTIVATION_BYTES:
        raise ValueError(f"an activation has the shape {shape}")
    if tensor.quantization is not None:
        _check_scales(tensor.quantization, shape, count)


def _check_scales(found: Any, shape: list[int], count: int) -> None:
    scales = 0 if found.scale is None else len(found.scale)
    if (0 if found.zeroPoint is None else len(found.zeroPoint)) != scales:
        raise ValueError("a tensor has not one zero point for each scale")
    axis = found.quantizedDimension
    if scales > 1 and not (0 <= axis < len(shape) and shape[axis] == scales):
        raise ValueError(f"a tensor of shape {shape} has {scales} scales along axis {axis}")
    if scales and not (np.isfinite(found.scale).all() and (np.asarray(found.scale) > 0).all()):
        raise ValueError("a tensor has a scale that is not a positive number")
    if found.details is not None and not 0 <= found.details.scales < count:
        raise ValueError("a tensor names scales that do not exist")


def _inside(what: str, index: Any, owner: list[Any]) -> None:
    if not 0 <= int(index) < len(owner):
        raise ValueError(f"names {what} {int(index)} of {len(owner)}")
