"""Q4_0 and Q8_0, ggml's blocks of 32 weights of a row: our codes and scales go in and come out bit for bit.

A block is an fp16 `d` and 32 codes, `w = d * q`. Q8_0 stores q as int8. Q4_0 stores q + 8 as a nibble: byte j holds
weight j in its low half and weight j + 16 in its high half (`ggml-common.h`, `block_q4_0` and `block_q8_0`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import StageError, VerificationError
from edgedistill.quant.stored import QuantizedTensor

SIZE = 32
_Q8_0 = np.dtype([("d", "<f2"), ("codes", "i1", SIZE)])
_Q4_0 = np.dtype([("d", "<f2"), ("codes", "u1", SIZE // 2)])
LAYOUTS = {8: _Q8_0, 4: _Q4_0}


def pack(name: str, tensor: QuantizedTensor, bits: int) -> NDArray[np.uint8]:
    """Bytes [rows, bytes of a row]. A scale per channel is repeated in each block of its row.

    Raises:
        StageError: naming the tensor, if its rows are not whole blocks or a scale is no fp16 number.
    """
    rows, width = tensor.codes.shape
    if width % SIZE:
        raise StageError(
            f"GGUF cannot hold {name} [{rows}, {width}]: its rows must be a multiple of {SIZE}. Choose another width."
        )
    blocks = width // SIZE
    scales = np.broadcast_to(tensor.scales.reshape(rows, -1), (rows, blocks))
    held = scales.astype("<f2")
    if not np.array_equal(held.astype(np.float32), scales):
        raise StageError(f"GGUF cannot hold {name}: it has a scale that is no fp16 number.")
    out = np.zeros((rows, blocks), LAYOUTS[bits])
    out["d"] = held
    codes = tensor.codes.reshape(rows, blocks, SIZE)
    if bits == 8:
        out["codes"] = codes
    else:
        shifted = (codes + 8).astype(np.uint8)
        out["codes"] = shifted[..., : SIZE // 2] | shifted[..., SIZE // 2 :] << 4
    return out.view(np.uint8).reshape(rows, -1)


def unpack(name: str, data: NDArray[np.uint8], rows: int, bits: int, per_channel: bool) -> QuantizedTensor:
    """The codes [rows, width], and the scales [rows] or [rows, blocks].

    Raises:
        VerificationError: if a channel should have one scale and its blocks differ.
    """
    stored = np.frombuffer(data, LAYOUTS[bits]).reshape(rows, -1)
    if bits == 8:
        codes = stored["codes"].copy()
    else:
        halves = stored["codes"]
        codes = np.concatenate((halves & 15, halves >> 4), axis=2).astype(np.int8) - np.int8(8)
    held = stored["d"].copy()
    scales = held.astype(np.float32)
    if per_channel:
        # bit patterns, so that a not-a-number counts as itself
        if (held.view(np.uint16) != held.view(np.uint16)[:, :1]).any():
            raise VerificationError(f"{name} has channels whose blocks do not share one scale.")
        scales = scales[:, 0].copy()
    return QuantizedTensor(codes.reshape(rows, -1), scales)
