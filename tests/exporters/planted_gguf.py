"""Faults for .gguf files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from planting import UP, Change, flipped

from edgedistill.exporters.gguf.parsing import F32, Stored
from edgedistill.exporters.gguf.parsing import parse as parse_gguf
from edgedistill.exporters.gguf.writing import _add
from edgedistill.quant import FrozenStudent


def gguf_file(change: Callable[[FrozenStudent, dict[str, Stored]], None]) -> Change:
    """The same metadata with other tensors."""

    def edit(frozen: FrozenStudent, path: Path) -> None:
        import gguf

        parsed = parse_gguf(path)
        metadata, tensors = dict(parsed.metadata), dict(parsed.tensors)
        change(frozen, tensors)
        writer = gguf.GGUFWriter(None, str(metadata.pop("general.architecture")))
        for key, value in metadata.items():
            _add(gguf, writer, key, value)
        for name, tensor in tensors.items():
            kind, data = gguf.GGMLQuantizationType(tensor.kind), np.frombuffer(tensor.data.tobytes(), np.uint8)
            shaped = data.view(np.float32).reshape(tensor.shape) if tensor.kind == F32 else None
            writer.add_tensor(name, data.reshape(*tensor.shape[:-1], -1) if shaped is None else shaped, raw_dtype=kind)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return edit


def gguf_bit(name: str, at: int) -> Change:
    def change(_: FrozenStudent, tensors: dict[str, Stored]) -> None:
        data = np.frombuffer(flipped(tensors[name].data.tobytes(), at), np.uint8)
        tensors[name] = tensors[name]._replace(data=data)

    return gguf_file(change)


@gguf_file
def gguf_swapped(_: FrozenStudent, tensors: dict[str, Stored]) -> None:
    for suffix in ("weight", "bias"):
        one, other = f"blk.0.attn_q.{suffix}", f"blk.0.attn_k.{suffix}"
        tensors[one], tensors[other] = tensors[other], tensors[one]


@gguf_file
def gguf_transposed(frozen: FrozenStudent, tensors: dict[str, Stored]) -> None:
    stored = tensors["blk.0.attn_q.weight"]
    blocks = stored.data.reshape(32, 34).copy()  # of Q8_0: a scale, then the codes of a row
    blocks[:, 2:] = blocks[:, 2:].T.copy()
    tensors["blk.0.attn_q.weight"] = stored._replace(data=blocks.reshape(-1))


@gguf_file
def gguf_without_bias(_: FrozenStudent, tensors: dict[str, Stored]) -> None:
    del tensors["blk.0.attn_q.bias"]


@gguf_file
def gguf_float(frozen: FrozenStudent, tensors: dict[str, Stored]) -> None:
    values = frozen.quantized[UP].values()
    tensors["blk.0.ffn_up.weight"] = Stored(values.shape, F32, values.view(np.uint8).reshape(-1))
