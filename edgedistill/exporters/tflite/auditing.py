"""What the structure of a .tflite says about devices, without one: operators that may leave an accelerator.

The list of operators is the one that LiteRT's GPU delegate documents (ai.google.dev/edge/litert/performance/gpu). A
delegate may refuse an operator on it for its types or shapes, and newer ones take more: a risk, never a promise.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from edgedistill.exporters.tflite.reading import parse
from edgedistill.specs import Audit

# fmt: off
GPU_OPERATORS = frozenset((
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXP", "FULLY_CONNECTED",
    "LOGICAL_AND", "LOGISTIC", "LSTM", "MAX_POOL_2D", "MAXIMUM", "MINIMUM", "MUL", "PAD", "PRELU", "RELU", "RELU6",
    "RESHAPE", "RESIZE_BILINEAR", "SOFTMAX", "STRIDED_SLICE", "SUB", "TRANSPOSE_CONV",
))
# fmt: on
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}")


def audit(path: Path) -> Audit:
    """The oldest runtime that loads the file, its operators, and the risks they carry.

    Raises:
        VerificationError: if the file is not a .tflite.
    """
    schema, model = parse(path)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    counts = Counter(
        names[model.operatorCodes[o.opcodeIndex].builtinCode] for s in model.subgraphs for o in s.operators
    )
    risks = []
    outside = sorted(counts.keys() - GPU_OPERATORS)
    if outside:
        share = sum(counts[name] for name in outside) / sum(counts.values())
        risks.append(
            f"{share:.0%} of the operators are not on the GPU delegate's documented list and may run on the CPU beside "
            f"it: {', '.join(outside)}"
        )
    if _dynamic(schema, model):
        risks.append("int8 weights with float inputs: GPU and NPU delegates may compute them in fp16, or refuse them")
    needs = f"TensorFlow Lite {_runtime(model)}"
    return Audit(runtime_min=needs, operators=dict(sorted(counts.items())), risks=tuple(risks))


def _runtime(model: Any) -> str:
    """The converter writes the oldest version that has every operator of the file; what is none is not repeated."""
    for entry in model.metadata or []:
        if entry.name == b"min_runtime_version":
            data = model.buffers[entry.buffer].data
            held = b"" if data is None else bytes(data)
            told = held.rstrip(b"\0").decode("ascii", "replace")
            return told if _VERSION.fullmatch(told) else "unknown"
    return "unknown"


def _dynamic(schema: Any, model: Any) -> bool:
    """True if a linear layer multiplies float inputs with integer weights."""
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED:
                source, weight = (subgraph.tensors[index].type for index in operator.inputs[:2])
                if source == schema.TensorType.FLOAT32 and weight != schema.TensorType.FLOAT32:
                    return True
    return False
