"""Rewrite a converted model: what the converter left out, and every byte that is not needed to compute the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgedistill.exporters.tflite.biases import separate_biases
from edgedistill.exporters.tflite.carriers import Carrier
from edgedistill.exporters.tflite.channels import keep_channels_last
from edgedistill.exporters.tflite.editing import RUNTIME, Edit
from edgedistill.exporters.tflite.grids import float_ends, restore_ranges
from edgedistill.exporters.tflite.numbering import renumber
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.weights import place
from edgedistill.quant.frozen import FrozenStudent

METADATA = "edgedistill.tensors"
_MIN_PREFIX_BYTES = 1024  # below this a SLICE operator costs more than the constant it saves


def shrink(raw: bytearray, frozen: FrozenStudent, given: Mapping[str, Carrier]) -> bytes:
    """The final file: the student's codes, float ends, shared constants, a map from names to buffers, no debug data.

    `given` is what the converter had in place of the student's codes; none where its tensors were opened.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(raw, 0))
    edit = Edit(schema, model)
    layouts = place(edit, frozen, given)
    if frozen.scheme.activations == "static_int8":
        restore_ranges(edit, frozen)
    separate_biases(edit, frozen)
    float_ends(edit)
    keep_channels_last(edit)
    _share_prefixes(edit)
    _strip(edit, hybrid=frozen.scheme.activations != "float")
    _compact_buffers(edit)
    _compact_codes(model)
    renumber(model, last={schema.BuiltinOperator.SLICE}, private_types={schema.TensorType.INT32})
    _name_weights(edit, frozen.family, layouts)
    return Packer().pack(model)


def _share_prefixes(edit: Edit) -> None:
    """A constant that is the beginning of a longer one (a position table cut for a bucket) becomes its SLICE."""
    longest: dict[int, Any] = {}
    constants = [t for s in edit.model.subgraphs for t in s.tensors if _is_table(edit, t)]
    for tensor in constants:
        for other in constants:
            if _is_prefix(edit, tensor, other):
                best = longest.get(id(tensor))
                if best is None or len(edit.bytes_of(other)) > len(edit.bytes_of(best)):
                    longest[id(tensor)] = other
    for subgraph in edit.model.subgraphs:
        for index, tensor in enumerate(list(subgraph.tensors)):
            whole = longest.get(id(tensor))
            if whole is not None:
                _slice(edit, subgraph, index, whole)


def _is_table(edit: Edit, tensor: Any) -> bool:
    """Not a vector: biases of zeros begin alike too, and a layer needs its own as a constant."""
    return (
        tensor.type == edit.schema.TensorType.FLOAT32
        and len(edit.bytes_of(tensor)) >= _MIN_PREFIX_BYTES
        and tensor.shape is not None
        and len(tensor.shape) > 1
    )


def _is_prefix(edit: Edit, tensor: Any, other: Any) -> bool:
    """Same shape but for the first dimension that is not 1, which is shorter, and equal bytes so far."""
    short, long = list(tensor.shape), list(other.shape)
    if len(short) != len(long) or short == long:
        return False
    differ = [axis for axis in range(len(short)) if short[axis] != long[axis]]
    leading = all(size == 1 for size in long[: differ[0]])
    return len(differ) == 1 and leading and edit.bytes_of(other).startswith(edit.bytes_of(tensor))


def _slice(edit: Edit, subgraph: Any, index: int, whole: Any) -> None:
    tensor = subgraph.tensors[index]
    shape = np.asarray(tensor.shape, np.int32)
    int32 = edit.schema.TensorType.INT32
    rank = [len(shape)]
    source = edit.add_tensor(subgraph, whole.shape, whole.type, whole.buffer)
    begin = edit.add_tensor(subgraph, rank, int32, edit.add_buffer(np.zeros_like(shape)))
    size = edit.add_tensor(subgraph, rank, int32, edit.add_buffer(shape))
    subgraph.operators.insert(0, edit.operator("SLICE", 1, [source, begin, size], [index]))
    tensor.buffer = 0


def _strip(edit: Edit, hybrid: bool) -> None:
    """Drop names, descriptions and metadata, and the ranges that quantization parameters carry for debugging."""
    model = edit.model
    model.metadata = [entry for entry in model.metadata or [] if entry.name == RUNTIME]
    model.metadataBuffer, model.description = None, None
    for subgraph in model.subgraphs:
        subgraph.name = None
        for tensor in subgraph.tensors:
            tensor.name = None
            found = tensor.quantization
            if found is not None:
                found.min = found.max = None
                if found.details is None and (found.scale is None or not len(found.scale)):
                    tensor.quantization = None
        for operator in subgraph.operators:
            operator.debugMetadataIndex = -1
            # XNNPACK quantizes rows asymmetrically whatever this says; LiteRT's own kernel, used where XNNPACK is
            # switched off, does so only if told to.
            if edit.code(operator) == edit.builtin("FULLY_CONNECTED"):
                real = subgraph.tensors[operator.inputs[0]].type == edit.schema.TensorType.FLOAT32
                operator.builtinOptions.asymmetricQuantizeInputs = hybrid and real


def _compact_buffers(edit: Edit) -> None:
    """Keep one buffer per content, and only those in use; a weight shares its buffer with no other tensor.

    Buffer 0 is the empty one, by the format's rule.
    """
    buffers, places = [edit.schema.BufferT()], {("", b""): 0}
    owned: dict[int, str] = {}
    owners = [t for s in edit.model.subgraphs for t in s.tensors] + edit.model.metadata
    for owner in owners:
        name = edit.owned.get(owner.buffer, "")
        key = name, b"" if name else edit.bytes_of(owner)
        if key not in places:
            places[key] = len(buffers)
            buffers.append(edit.schema.BufferT(data=np.frombuffer(edit.bytes_of(owner), np.uint8)))
            if name:
                owned[places[key]] = name
        owner.buffer = places[key]
    edit.model.buffers, edit.owned = buffers, owned


def _compact_codes(model: Any) -> None:
    """Drop the operator codes that no operator has any more."""
    used = sorted({int(operator.opcodeIndex) for subgraph in model.subgraphs for operator in subgraph.operators})
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            operator.opcodeIndex = used.index(int(operator.opcodeIndex))
    model.operatorCodes = [model.operatorCodes[index] for index in used]


def _name_weights(edit: Edit, family: str, layouts: Mapping[str, str]) -> None:
    """Record, inside the file, the buffer of each weight, and how its axes are ordered where they are not ours."""
    about: dict[str, Any] = {"family": family, "buffers": {name: number for number, name in edit.owned.items()}}
    if layouts:
        about["layouts"] = dict(layouts)
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    buffer = edit.add_buffer(np.frombuffer(text.encode(), np.uint8))
    edit.model.metadata.append(edit.schema.MetadataT(name=METADATA, buffer=buffer))
