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


class _Walk:
    """A file whose offsets are being followed; remembers what it has seen, so that it reads each table once."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.costs: dict[tuple[str, int], float] = {}

    def number(self, code: str, at: int) -> int:
        if not 0 <= at <= len(self.data) - struct.calcsize(code):
            raise ValueError("an offset leaves the file")
        return int(struct.unpack_from(code, self.data, at)[0])

    def table(self, kind: str, at: int) -> float:
        """The work of unpacking this table: the number of objects that it makes, and of numbers that are looked at."""
        key = kind, at
        if key in self.costs:
            return self.costs[key]
        fields, size = self.fields(at)
        cost = 1.0
        for number, offset in fields.items():
            what = TABLES[kind].get(number) if kind != "options" else 1
            if what is None:
                raise ValueError(f"a {kind} has field {number}, which files for phones do not use")
            if isinstance(what, int):
                if offset + what > size:
                    raise ValueError(f"a {kind} is shorter than its fields")
                continue
            if offset + 4 > size:
                raise ValueError(f"a {kind} is shorter than its fields")
            if what == "details" and self.number("<B", at + fields.get(4, 0)) != _BLOCKWISE:
                raise ValueError("a tensor is quantized in a way that files for phones do not use")
            cost += self.follow(what, at + offset, _PER_ELEMENT.get(kind, 0.0))
        self.costs[key] = cost
        return cost

    def fields(self, at: int) -> tuple[dict[int, int], int]:
        """Where in the table at `at` each present field is, and how long the table is."""
        vtable = at - self.number("<i", at)
        length, size = self.number("<H", vtable), self.number("<H", vtable + 2)
        if length < 4 or length % 2 or size < 4 or vtable + length > len(self.data) or at + size > len(self.data):
            raise ValueError("a table is not one")
        offsets = {n: self.number("<H", vtable + 4 + 2 * n) for n in range((length - 4) // 2)}
        present = {n: offset for n, offset in offsets.items() if offset}
        if any(not 4 <= offset < size for offset in present.values()):
            raise ValueError("a table is shorter than its fields")
        return present, size

    def follow(self, what: str, at: int, each: float) -> float:
        """The work behind the offset at `at`, where a number costs `each`."""
        target = at + self.number("<I", at)
        if what in TABLES or what == "options":
            return self.table(what, target)
        count, element = self.number("<I", target), what.removeprefix("*")
        if element in TABLES:
            self.inside(target, count, 4)
            return 1.0 + sum(self.table(element, n + self.number("<I", n)) for n in _places(target, count))
        self.inside(target, count, 1 if what == "string" else int(element))
        return 1 + count * each

    def inside(self, target: int, count: int, size: int) -> None:
        if target + 4 + count * size > len(self.data):
            raise ValueError("a vector is longer than the file")


def _places(target: int, count: int) -> range:
    return range(target + 4, target + 4 + 4 * count, 4)


def check_offsets(data: bytes | bytearray) -> None:
    """Follow every offset.

    Raises:
        ValueError: saying what is wrong.
    """
    if len(data) < 8 or data[4:8] != b"TFL3":
        raise ValueError("not a .tflite file")
    walk = _Walk(data)
    if walk.table("Model", walk.number("<I", 0)) > MOST_WORK:
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
            _inside("an operator code", operator.opcodeIndex, model.operatorCodes)
            uses += [operator.inputs, operator.outputs]
        for indices in uses:
            if indices is None:
                raise ValueError("an operator or a graph has no inputs or outputs")
            for index in indices:
                _inside("a tensor", index, tensors, lowest=-1)
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
            _inside("an operator code", operator.opcodeIndex, model.operatorCodes)
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
    _inside("a buffer", tensor.buffer, buffers)
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


def _inside(what: str, index: Any, owner: list[Any], lowest: int = 0) -> None:
    if not lowest <= int(index) < len(owner):
        raise ValueError(f"names {what} {int(index)} of {len(owner)}")
