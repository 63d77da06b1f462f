"""What a .tflite of ours is made of: its tensors as lines of graphs.toml, and the same file with fewer entry points."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.shrink import METADATA
from edgedistill.plan.size.activations import evaluate, sizes_of
from edgedistill.specs import Spec

KINDS = {schema.TensorType.FLOAT32: "float", schema.TensorType.INT32: "int32", schema.TensorType.BOOL: "bool"}
# In this order: of two names of one size, the first is written.
NAMES = (
    "length", "width", "heads", "head_width", "patch", "ffn", "vocabulary", "classes", "kv_heads", "groups",
    "max_length", "window", "image_size", "grid", "head_width/2", "heads*head_width", "kv_heads*head_width",
    "groups*length", "max_length+length", "grid*grid", "3*patch", "3*patch*patch",
)  # fmt: skip


def model_of(data: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(data), 0))


def signatures(model: Any) -> list[str]:
    """The entry points, by the number of their subgraph."""
    found = {int(one.subgraphIndex): one.signatureKey for one in model.signatureDefs}
    return [name.decode() if isinstance(name, bytes) else name for _, name in sorted(found.items())]


def length_of(name: str) -> int:
    """Tokens that an entry point takes; 1 for `decode` and for images."""
    last = name.rpartition("_")[2]
    return int(last) if last.isdigit() else 1


def with_entries(data: bytes, keep: Iterable[int]) -> bytes:
    """The file with some of its entry points, as if there had never been others."""
    model, kept = model_of(data), list(keep)
    of = {int(one.subgraphIndex): one for one in model.signatureDefs}
    model.signatureDefs = [of[number] for number in kept]
    for place, one in enumerate(model.signatureDefs):
        one.subgraphIndex = place
    model.subgraphs = [model.subgraphs[number] for number in kept]
    places, buffers = {0: 0}, [model.buffers[0]]
    for owner in [tensor for one in model.subgraphs for tensor in one.tensors] + model.metadata:
        if owner.buffer not in places:
            places[owner.buffer] = len(buffers)
            buffers.append(model.buffers[owner.buffer])
        owner.buffer = places[owner.buffer]
    model.buffers = buffers
    used = sorted({int(one.opcodeIndex) for graph in model.subgraphs for one in graph.operators})
    for graph in model.subgraphs:
        for one in graph.operators:
            one.opcodeIndex = used.index(int(one.opcodeIndex))
    model.operatorCodes = [model.operatorCodes[number] for number in used]
    about = next(buffers[one.buffer] for one in model.metadata if _text(one.name) == METADATA)
    known = json.loads(bytes(about.data))
    known["buffers"] = {name: places[place] for name, place in known["buffers"].items() if place in places}
    about.data = np.frombuffer(json.dumps(known, sort_keys=True, separators=(",", ":")).encode(), np.uint8)
    return Packer().pack(model)


def lines_of(data: bytes, number: int, config: Spec, derived: Iterable[bytes]) -> list[str]:
    """The tensors of one entry point that are no numbers of the student, as lines. `derived`: tables that are none.

    Single numbers are left out: every file has them.

    Raises:
        ValueError: for a size that follows from none of the config's: choose it so that all of them differ.
    """
    model = model_of(data)
    names: dict[int, str] = {}
    sizes = sizes_of(config, length_of(signatures(model)[number]))
    for name in NAMES:
        if all(term in sizes or term.isdigit() for term in name.replace("+", "*").replace("/", "*").split("*")):
            names.setdefault(evaluate(name, sizes), name)

    def said(values: Iterable[Any]) -> str:
        found = []
        for value in map(int, values):
            if value > 4 and value not in names:
                raise ValueError(f"{value} is no size of {config}")
            found.append(str(value) if value < 3 else names.get(value, str(value)))
        return " ".join(found)

    weights = _weights(model)
    found = set()
    for tensor in model.subgraphs[number].tensors:
        content = model.buffers[tensor.buffer].data
        kind, shape = KINDS.get(tensor.type), said([] if tensor.shape is None else tensor.shape)
        if kind is None or tensor.buffer in weights or tensor.quantization is not None:
            # what else is said of it belongs to its weight or its grid
            found.add(f"{'bias' if kind == 'int32' and not np.any(content) else 'shape'} {shape}")
            continue
        line = f"{kind} {shape}".strip()
        if content is None:
            found.add(line)
        elif kind == "int32":
            values = np.frombuffer(bytes(content), np.int32)
            if len(values) > 6:
                if not np.array_equal(values, np.arange(len(values))):
                    raise ValueError(f"a constant that is no range: {values}")
                found.add(f"{line} @")
            elif len(values) and any(values):
                found.add(f"{line} = {said(values)}")
        elif bytes(content) in derived:
            found.add(f"{line} #")
        elif shape and len(content) == 4 * max(tensor.shape):  # a vector of the student's
            found.add(f"shape {shape}")
    return sorted(found)


def _weights(model: Any) -> set[int]:
    about = next(model.buffers[one.buffer] for one in model.metadata if _text(one.name) == METADATA)
    return set(json.loads(bytes(about.data))["buffers"].values())


def _text(name: Any) -> str:
    return str(name.decode() if isinstance(name, bytes) else name)
