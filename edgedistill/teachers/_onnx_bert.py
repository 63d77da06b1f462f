"""BERT weights out of a weight-only int8 ONNX file: initialisers `NAME_q` (int8) and `NAME_scale`, w = q · scale.

The linear layers are anonymous there (`val_12_q`); their order in the graph is the order of computation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgedistill.errors import TeacherError

LAYER_ORDER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights by their name in transformers' BertModel, de-quantized to fp32.

    Raises:
        TeacherError: if the file does not hold a BERT encoder stored this way.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    try:
        # external data is refused: a file from outside must not name other paths to read
        graph = onnx.load(str(path), load_external_data=False).graph
    except DecodeError:
        raise TeacherError(f"{path}: not a readable ONNX file.") from None
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}

    def dequantized(name: str) -> Tensor:
        return torch.from_numpy(stored[f"{name}_q"].astype(np.float32) * stored[f"{name}_scale"])

    weights: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.startswith("inner.") and name.endswith("_q"):
            weights[name.removeprefix("inner.").removesuffix("_q")] = dequantized(name.removesuffix("_q"))
        elif name.startswith("inner.") and not name.endswith("_scale"):
            weights[name.removeprefix("inner.")] = torch.from_numpy(value.copy())
    anonymous = [node.input[1] for node in graph.node if node.op_type == "MatMul" and f"{node.input[1]}_q" in stored]
    if not anonymous or len(anonymous) % len(LAYER_ORDER):
        raise TeacherError(f"{path}: {len(anonymous)} quantized matrix products are not whole BERT layers of six.")
    for index, name in enumerate(anonymous):
        layer, part = divmod(index, len(LAYER_ORDER))
        weights[f"encoder.layer.{layer}.{LAYER_ORDER[part]}.weight"] = dequantized(name).T.contiguous()
    return weights
