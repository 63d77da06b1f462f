"""Small steps of rewriting a model in the object API of the flatbuffer (`ModelT`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The first TensorFlow Lite with an operator's version (tflite/tools/versioning/runtime_version.cc), for those that the
# converter did not write; older versions of the same operators are in every runtime that is still in use.
SINCE = {
    ("CONV_2D", 7): "2.11.0",
    ("DEPTHWISE_CONV_2D", 7): "2.11.0",
    ("FULLY_CONNECTED", 10): "2.11.0",
    ("FULLY_CONNECTED", 12): "2.17.0",
    ("DEQUANTIZE", 5): "2.7.0",
    ("DEQUANTIZE", 6): "2.18.0",
    ("EMBEDDING_LOOKUP", 4): "2.18.0",
}
RUNTIME = b"min_runtime_version"


class Edit:
    """A model being rewritten; `schema` is the generated flatbuffer code, imported late because it is heavy."""

    def __init__(self, schema: Any, model: Any) -> None:
        self.schema, self.model = schema, model
        self.owned: dict[int, str] = {}
        """Buffers that hold a student's codes, by number, with the name of the weight. No other tensor shares them."""

    def operator(self, name: str, version: int, inputs: list[int], outputs: list[int]) -> Any:
        """A new operator without options."""
        return self.schema.OperatorT(
            opcodeIndex=self.opcode(name, version),
            inputs=np.asarray(inputs, np.int32),
            outputs=np.asarray(outputs, np.int32),
        )

    def opcode(self, name: str, version: int) -> int:
        """Index of the operator code, added if the model has none; the file then says which runtime it needs."""
        code = self.builtin(name)
        self._need(SINCE.get((name, version), "0"))
        for index, known in enumerate(self.model.operatorCodes):
            if known.builtinCode == code and known.version == version:
                return index
        self.model.operatorCodes.append(
            self.schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=version)
        )
        return len(self.model.operatorCodes) - 1

    def at_least(self, operator: Any, name: str, version: int) -> None:
        """Demand a runtime that knows this version of an operator."""
        if self.model.operatorCodes[operator.opcodeIndex].version < version:
            operator.opcodeIndex = self.opcode(name, version)

    def add_tensor(self, subgraph: Any, shape: Any, kind: int, buffer: int = 0, quantization: Any = None) -> int:
        """Index of a new tensor; without a buffer it is an activation."""
        subgraph.tensors.append(
            self.schema.TensorT(
                shape=np.asarray(shape, np.int32), type=kind, buffer=buffer, hasRank=True, quantization=quantization
            )
        )
        return len(subgraph.tensors) - 1

    def add_buffer(self, values: NDArray[Any]) -> int:
        """Number of a new buffer with these bytes."""
        data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(self.schema.BufferT(data=data))
        return len(self.model.buffers) - 1

    def bytes_of(self, owner: Any) -> bytes:
        """What a tensor's, or a metadata entry's, buffer holds; nothing for an activation."""
        data = self.model.buffers[owner.buffer].data
        return b"" if data is None else bytes(np.asarray(data, np.uint8))

    def builtin(self, name: str) -> int:
        """The number of an operator."""
        return int(getattr(self.schema.BuiltinOperator, name))

    def code(self, operator: Any) -> int:
        """Which operator this is."""
        return int(self.model.operatorCodes[operator.opcodeIndex].builtinCode)

    def signatures(self) -> list[Any]:
        """The entry points, in the order of their subgraphs."""
        return sorted(self.model.signatureDefs, key=lambda signature: int(signature.subgraphIndex))

    def _need(self, version: str) -> None:
        for entry in self.model.metadata or []:
            buffer = self.model.buffers[entry.buffer]
            if entry.name == RUNTIME and buffer.data is not None:
                said = bytes(buffer.data).rstrip(b"\0").decode("ascii")
                if _numbers(said) < _numbers(version):
                    buffer.data = np.frombuffer(version.encode().ljust(len(buffer.data), b"\0"), np.uint8)

    def grid(self, tensor: Any) -> tuple[float, int] | None:
        """Scale and zero point of an int8 activation; None for any other tensor."""
        found = tensor.quantization
        if tensor.type != self.schema.TensorType.INT8 or found is None or found.scale is None or len(found.scale) != 1:
            return None
        return float(found.scale[0]), int(found.zeroPoint[0])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
