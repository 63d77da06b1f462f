"""A frozen student to a GGUF file: exactly as it is, or a float32 twin with the same weights."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import StageError
from edgedistill.exporters._quiet import imported
from edgedistill.exporters.gguf import blocks
from edgedistill.exporters.gguf.layouts import FAMILIES, Layout, described, labels_of, layout, reordered
from edgedistill.exporters.gguf.parsing import BOOL, FLOAT32, STRING, UINT32, Value
from edgedistill.exporters.gguf.tokens import token_metadata
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.specs.base import Spec

# general.file_type: what most weights are; readers show it and compute nothing from it
ALL_F32, MOSTLY = 0, {4: 2, 8: 7}


def config_of(frozen: FrozenStudent) -> Spec:
    """The student's sizes.

    Raises:
        StageError: if there is no GGUF architecture for its family.
    """
    if frozen.family not in FAMILIES:
        raise StageError(f"GGUF has no architecture for {frozen.family!r} students: {', '.join(FAMILIES)} have one.")
    config: Spec = FAMILIES[frozen.family].Config.decode(frozen.config, "config")
    return config


def layout_of(frozen: FrozenStudent) -> Layout:
    """The student's layout.

    Raises:
        StageError: as `layout` does.
    """
    config = config_of(frozen)
    return layout(frozen.family, config, labels_of(frozen.task, config))


def metadata_of(frozen: FrozenStudent, lengths: Sequence[int], exact: bool) -> dict[str, Value]:
    """Every key of the file, in its order.

    Raises:
        StageError: for another family, labels or a tokenizer that llama.cpp does not have.
    """
    found = layout_of(frozen)
    kind = MOSTLY[frozen.scheme.weights.bits] if exact else ALL_F32
    return (
        found.metadata
        | {"general.file_type": np.uint32(kind)}
        | token_metadata(frozen.task, int(frozen.config["vocabulary"]), found.architecture)
        | described(frozen.family, config_of(frozen), frozen.scheme, lengths, exact)
    )


def write(frozen: FrozenStudent, lengths: Sequence[int], out: Path, exact: bool = True) -> None:
    """Write the file: the same bytes in every process. Not `exact`: every weight as float32.

    Raises:
        MissingDependency: if gguf is not installed.
        StageError: if the student cannot be held, naming the tensor.
    """
    gguf = imported("gguf", "Export to GGUF needs gguf", "'edgedistill[gguf]'")
    found = layout_of(frozen)
    writer = gguf.GGUFWriter(None, found.architecture)
    for key, value in metadata_of(frozen, lengths, exact).items():
        if key != "general.architecture":  # the writer begins with it
            _add(gguf, writer, key, value)
    grids = frozen.grids()
    for ours, theirs in found.names.items():
        if ours not in grids:
            writer.add_tensor(theirs, np.ascontiguousarray(frozen.floats[ours]))
            continue
        tensor = frozen.quantized[ours]
        if ours in found.order:
            tensor = reordered(tensor, found.order[ours])
        if exact:
            kind = gguf.GGMLQuantizationType.Q8_0 if grids[ours].bits == 8 else gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(theirs, blocks.pack(ours, tensor, grids[ours].bits), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, tensor.values())
    for theirs, shape in found.zeros.items():
        writer.add_tensor(theirs, np.zeros(shape, np.float32))
    with contextlib.closing(writer):
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _add(gguf: Any, writer: Any, key: str, value: Value) -> None:
    """One key with the width that its value has."""
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        writer.add_key_value(key, value, kinds.ARRAY, kinds(STRING))
    elif isinstance(value, np.ndarray):
        writer.add_key_value(key, value.tolist(), kinds.ARRAY, kinds(_number(value)))
    elif isinstance(value, str):
        writer.add_key_value(key, value, kinds(STRING))
    elif isinstance(value, bool):
        writer.add_key_value(key, value, kinds(BOOL))
    else:
        writer.add_key_value(key, value, kinds(_number(value)))


def _number(value: np.number[Any] | NDArray[Any]) -> int:
    return {"uint32": UINT32, "int32": 5, "float32": FLOAT32}[value.dtype.name]
