"""Quantized weights as ONNX stores them: codes in buffers, dequantized by an operator of the graph.

The operators are `torch.onnx.ops.symbolic`: torch's exporter writes them as they stand here, and called outside of it
they compute nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.quant.stored import QuantizedTensor

OPSET = 21  # the first with 4-bit integers and with groups in DequantizeLinear


def axes_of(tensor: QuantizedTensor) -> dict[str, int]:
    """The attributes of `DequantizeLinear` that say which codes a scale is for."""
    if tensor.scales.ndim == 1:
        return {"axis": 0}
    return {"axis": 1, "block_size": tensor.codes.shape[1] // tensor.scales.shape[1]}


class Zeros(nn.Module):
    """The zero points of all weights with so many channels."""

    int8: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("int8", torch.zeros(channels, dtype=torch.int8))


class Codes(nn.Module):
    """One quantized weight: codes [channels, …] and scales [channels] or [channels, groups].

    Codes are int8 here; those of 4 bits become INT4 when the file is packed.
    """

    codes: Tensor
    scales: Tensor
    # what a network may ask of any weight, to make tensors like it
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, tensor: QuantizedTensor) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(tensor.codes.copy()))
        self.register_buffer("scales", torch.from_numpy(tensor.scales.copy()))
        self.axes = axes_of(tensor)
        self.zeros: tuple[Zeros, ...] = ()  # in a tuple: they are parts of the network, not of this

    def forward(self) -> Tensor:
        """The whole weight."""
        inputs = self.codes, self.scales, *(zeros.int8 for zeros in self.zeros)
        return operator("DequantizeLinear", inputs, self.axes, self.codes.shape)

    def rows(self, ids: Tensor, bits: int) -> Tensor:
        """The rows that `ids` name, and only these dequantized, where ONNX Runtime can look codes up: not INT4 ones."""
        shape = (*ids.shape, self.codes.shape[1])
        if bits == 4:
            return operator("Gather", (self(), ids), {"axis": 0}, shape)
        flat = ids.reshape(-1)  # so that the rows are a matrix, dequantized as the weight is
        count = flat.shape[0]
        codes = operator("Gather", (self.codes, flat), {"axis": 0}, (count, shape[-1]), torch.int8)
        scales = operator("Gather", (self.scales, flat), {"axis": 0}, (count, *self.scales.shape[1:]))
        return operator("DequantizeLinear", (codes, scales), self.axes, codes.shape).view(shape)


def operator(
    kind: str,
    inputs: tuple[Tensor, ...],
    attributes: dict[str, Any],
    shape: torch.Size | tuple[Any, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One operator of ONNX with one output of `shape` and `dtype`."""
    out: Tensor = torch.onnx.ops.symbolic(kind, inputs, attributes, dtype=dtype, shape=shape, version=OPSET)
    return out
