"""Rewrite a converted model: what the converter left out, and every byte that is not needed to compute the same.

Works on the object API of the flatbuffer (`ModelT`); nothing here changes a value that the model computes.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.exporters.tflite.numbering import renumber
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.quant.frozen import FrozenStudent

METADATA = "edgedistill.tensors"
_MIN_PREFIX_BYTES = 1024  # below this a SLICE operator costs more than the constant it saves


def shrink(raw: bytearray, frozen: FrozenStudent) -> bytes:
    """The final file: int8 embeddings, float32 logits, shared constants, a map from names to buffers, no debug data."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(raw, 0))
    edit = _Edit(schema, model)
    edit.quantize_embeddings(frozen)
    edit.dequantize_outputs()
    edit.share_prefixes()
    edit.strip()
    edit.compact_buffers()
    renumber(model, last={schema.BuiltinOperator.SLICE}, private_types={schema.TensorType.INT32})
    edit.name_weights(frozen)
    return Packer().pack(model)


class _Edit:
    """A model being rewritten; `schema` is the generated flatbuffer code, imported late because it is heavy."""

    def __init__(self, schema: Any, model: Any) -> None:
        self.schema, self.model = schema, model

    def quantize_embeddings(self, frozen: FrozenStudent) -> None:
        """Static mode leaves embedding tables float: store those that are a frozen tensor's values as its codes."""
        tables = {(t.codes * t.scales[:, None]).tobytes(): t for t in frozen.quantized.values()}
        lookup = self._builtin("EMBEDDING_LOOKUP")
        for subgraph in self.model.subgraphs:
            for operator in subgraph.operators:
                if self._code(operator) != lookup:
                    continue
                tensor = subgraph.tensors[operator.inputs[1]]
                found = tables.get(self._bytes(tensor))
                if tensor.type == self.schema.TensorType.FLOAT32 and found is not None:
                    tensor.type = self.schema.TensorType.INT8
                    tensor.buffer = self._add_buffer(found.codes)
                    tensor.quantization = self.schema.QuantizationParametersT(
                        scale=found.scales, zeroPoint=np.zeros(len(found.scales), np.int64), quantizedDimension=0
                    )
                    operator.opcodeIndex = self._opcode("EMBEDDING_LOOKUP", 4)

    def dequantize_outputs(self) -> None:
        """Static mode ends in an int8 output: append a DEQUANTIZE, so that every file answers float32 logits."""
        for subgraph, signature in zip(self.model.subgraphs, self._signatures(), strict=True):
            for place, index in enumerate(subgraph.outputs):
                tensor = subgraph.tensors[index]
                if tensor.type != self.schema.TensorType.INT8:
                    continue
                new = self._add_tensor(subgraph, tensor.shape, self.schema.TensorType.FLOAT32, 0)
                subgraph.operators.append(self._operator("DEQUANTIZE", 2, [int(index)], [new]))
                subgraph.outputs[place] = new
                for entry in signature.outputs:
                    entry.tensorIndex = new if entry.tensorIndex == index else entry.tensorIndex

    def share_prefixes(self) -> None:
        """A constant that is the beginning of a longer one (a position table cut for a bucket) becomes its SLICE."""
        longest: dict[tuple[int, int], Any] = {}
        constants = [t for s in self.model.subgraphs for t in s.tensors if self._is_table(t)]
        for tensor in constants:
            for other in constants:
                if self._is_prefix(tensor, other):
                    best = longest.get((id(tensor), 0))
                    if best is None or len(self._bytes(other)) > len(self._bytes(best)):
                        longest[id(tensor), 0] = other
        for subgraph in self.model.subgraphs:
            for index, tensor in enumerate(list(subgraph.tensors)):
                whole = longest.get((id(tensor), 0))
                if whole is not None:
                    self._slice(subgraph, index, whole)

    def strip(self) -> None:
        """Drop names, descriptions and metadata, and the ranges that quantization parameters carry for debugging."""
        keep = [entry for entry in self.model.metadata or [] if _text(entry.name) == "min_runtime_version"]
        self.model.metadata, self.model.metadataBuffer, self.model.description = keep, None, None
        for subgraph in self.model.subgraphs:
            subgraph.name = None
            for tensor in subgraph.tensors:
                tensor.name = None
                if tensor.quantization is not None:
                    tensor.quantization.min = tensor.quantization.max = None
                    if tensor.quantization.scale is None or not len(tensor.quantization.scale):
                        tensor.quantization = None
            for operator in subgraph.operators:
                operator.debugMetadataIndex = -1
                # XNNPACK quantizes rows asymmetrically whatever this says; LiteRT's own kernel, used where XNNPACK is
                # switched off, does so only if told to.
                if self._code(operator) == self._builtin("FULLY_CONNECTED"):
                    hybrid = subgraph.tensors[operator.inputs[0]].type == self.schema.TensorType.FLOAT32
                    operator.builtinOptions.asymmetricQuantizeInputs = hybrid

    def compact_buffers(self) -> None:
        """Keep one buffer per content, and only those in use. Buffer 0 is the empty one, by the format's rule."""
        buffers, places = [self.schema.BufferT()], {b"": 0}
        owners = [t for s in self.model.subgraphs for t in s.tensors] + self.model.metadata
        for owner in owners:
            data = self._bytes(owner)
            if data not in places:
                places[data] = len(buffers)
                buffers.append(self.schema.BufferT(data=np.frombuffer(data, np.uint8)))
            owner.buffer = places[data]
        self.model.buffers = buffers

    def name_weights(self, frozen: FrozenStudent) -> None:
        """Record, inside the file, the buffer and the scales' tensor of each frozen weight, found by content."""
        buffers: dict[str, int] = {}
        for subgraph in self.model.subgraphs:
            for tensor in subgraph.tensors:
                if tensor.type != self.schema.TensorType.INT8 or tensor.buffer == 0:
                    continue
                for name, weight in frozen.quantized.items():
                    if self._bytes(tensor) == weight.codes.tobytes() and _same(
                        tensor.quantization.scale, weight.scales
                    ):
                        buffers[name] = tensor.buffer
        text = json.dumps({"family": frozen.family, "buffers": buffers}, sort_keys=True, separators=(",", ":"))
        self.model.metadata.append(
            self.schema.MetadataT(name=METADATA, buffer=self._add_buffer(np.frombuffer(text.encode(), np.uint8)))
        )

    def _is_table(self, tensor: Any) -> bool:
        return (
            tensor.type == self.schema.TensorType.FLOAT32
            and len(self._bytes(tensor)) >= _MIN_PREFIX_BYTES
            and tensor.shape is not None
        )

    def _is_prefix(self, tensor: Any, other: Any) -> bool:
        """Same shape but for the first dimension that is not 1, which is shorter, and equal bytes so far."""
        short, long = list(tensor.shape), list(other.shape)
        if len(short) != len(long) or short == long:
            return False
        differ = [axis for axis in range(len(short)) if short[axis] != long[axis]]
        leading = all(size == 1 for size in long[: differ[0]])
        return len(differ) == 1 and leading and self._bytes(other).startswith(self._bytes(tensor))

    def _slice(self, subgraph: Any, index: int, whole: Any) -> None:
        tensor = subgraph.tensors[index]
        shape = np.asarray(tensor.shape, np.int32)
        int32 = self.schema.TensorType.INT32
        rank = [len(shape)]
        source = self._add_tensor(subgraph, whole.shape, whole.type, whole.buffer)
        begin = self._add_tensor(subgraph, rank, int32, self._add_buffer(np.zeros_like(shape)))
        size = self._add_tensor(subgraph, rank, int32, self._add_buffer(shape))
        subgraph.operators.insert(0, self._operator("SLICE", 1, [source, begin, size], [index]))
        tensor.buffer = 0

    def _operator(self, name: str, version: int, inputs: list[int], outputs: list[int]) -> Any:
        return self.schema.OperatorT(
            opcodeIndex=self._opcode(name, version),
            inputs=np.asarray(inputs, np.int32),
            outputs=np.asarray(outputs, np.int32),
        )

    def _opcode(self, name: str, version: int) -> int:
        """Index of the operator code, added if the model has none."""
        code = self._builtin(name)
        for index, known in enumerate(self.model.operatorCodes):
            if known.builtinCode == code and known.version == version:
                return index
        self.model.operatorCodes.append(
            self.schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=version)
        )
        return len(self.model.operatorCodes) - 1

    def _add_tensor(self, subgraph: Any, shape: Any, kind: int, buffer: int) -> int:
        subgraph.tensors.append(
            self.schema.TensorT(shape=np.asarray(shape, np.int32), type=kind, buffer=buffer, hasRank=True)
        )
        return len(subgraph.tensors) - 1

    def _add_buffer(self, values: NDArray[Any]) -> int:
        data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(self.schema.BufferT(data=data))
        return len(self.model.buffers) - 1

    def _bytes(self, owner: Any) -> bytes:
        data = self.model.buffers[owner.buffer].data
        return b"" if data is None else bytes(np.asarray(data, np.uint8))

    def _builtin(self, name: str) -> int:
        return int(getattr(self.schema.BuiltinOperator, name))

    def _code(self, operator: Any) -> int:
        return int(self.model.operatorCodes[operator.opcodeIndex].builtinCode)

    def _signatures(self) -> list[Any]:
        return sorted(self.model.signatureDefs, key=lambda signature: int(signature.subgraphIndex))


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _same(a: NDArray[Any] | None, b: NDArray[Any]) -> bool:
    return a is not None and np.array_equal(a, b)
