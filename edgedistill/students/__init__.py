"""Student families: one folder each, named as users write it. The folder says what a family can do without torch;
its `module.py` holds the network.

A family defines:

- `FORMATS`: the formats that can hold it;
- `Config`: its sizes, a Spec;
- `TINY`: the config that contract tests build;
- `parameters(config)`, `macs(config, length)`, `cost(config, length)`: known before it is built;
- `tensors(config)`: name, shape and kind of each stored tensor, from which bytes are predicted;
- `signatures(config, buckets)`: the entry points of an exported file, with the shapes that go in and out;
- `sample(config, signature, random)`: random inputs that the network accepts (`random`: a numpy Generator).

A family whose layers are unlike each other also defines `segments(config)`, hashable values of which a student is made
in order, and `segment_tensors(segment, number)` and `segment_cost(segment)`, so that a search counts each only once.

A family that makes text also defines `generation(config, buckets)`: the entry points of a file that reads a prompt in
pieces and then goes on token by token.

Its `module.py` defines `build(config) -> Module` whose forward takes the inputs of a signature, in order, and returns
`Outputs`. A family that can be distilled into also defines `check_layers(config, teacher)` (raises where a student
cannot start from the layers of the teacher's config.json) and a `start.py` with
`start(config, init, limit, tokenizer, body, texts) -> Started`: the student before training. Where that keeps some of
the teacher's pieces, `vocabulary.py` has `pieces(tokenizer, texts, limit) -> int`, how many, without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Literal, NamedTuple, TypeVar

from edgedistill.specs.quant import PerChannel, QuantScheme, WeightGrid

Sizes = TypeVar("Sizes", bound=Hashable)
TensorKind = Literal["linear", "head", "convolution", "embedding", "float"]


class StoredTensor(NamedTuple):
    """One tensor of the exported file, named as in the module's state dict.

    `linear` and `head` [outputs, inputs], `convolution` [outputs, inputs / groups, height, width] and `embedding`
    [rows, width] are quantized by the scheme; `float` stays fp32. `parts` names what else a file has because of this
    tensor, as `plan/size/graphs.toml` calls it: the operators of a layer, or those of the whole graph.
    """

    name: str
    shape: tuple[int, ...]
    kind: TensorKind
    parts: tuple[str, ...] = ()

    def grid(self, scheme: QuantScheme) -> WeightGrid | None:
        """The grid that `scheme` gives this tensor; None for a float one."""
        if self.kind == "float":
            return None
        default = {"head": scheme.head, "embedding": scheme.embeddings}.get(self.kind, scheme.weights)
        grid = scheme.layers.get(self.name, default)
        if self.kind == "convolution" and not isinstance(grid.granularity, PerChannel):
            return WeightGrid(bits=grid.bits)
        return grid


def remembered(tensors: Callable[[Sizes], list[StoredTensor]]) -> Callable[[Sizes], list[StoredTensor]]:
    """A family's `tensors`, which counts those of the last few configs once: parameters, costs and sizes ask again."""

    @lru_cache(maxsize=8)
    def counted(config: Sizes) -> tuple[StoredTensor, ...]:
        return tuple(tensors(config))

    @wraps(tensors)
    def again(config: Sizes) -> list[StoredTensor]:
        return list(counted(config))

    return again


class Cost(NamedTuple):
    """What one inference asks of a device. Elements are numbers of any width.

    Counted as the published features of other networks are (`predict/data/model_features.csv`, traced with torch): a
    layer is a convolution, a linear layer or a norm, which reads its input and writes its output; the products of
    attention count among the MACs only. `peak_elements` is the largest sum of one layer's input and output.
    """

    macs: int
    depthwise_macs: int
    read_elements: int
    written_elements: int
    peak_elements: int
    layers: int
    convolutions: int
    depthwise_layers: int
    weights: int
    """Numbers of the student that one inference reads: of a table of embeddings, a row for each token."""
    attention_elements: int
    """Scores of one layer's attention, all heads; 0 without attention."""
    kv_elements: int = 0
    """Keys and values that one more token adds to a decoder's cache, all layers."""


class Port(NamedTuple):
    """One input or output of a signature: its whole shape, batch axis included."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["int32", "float32"]


class Signature(NamedTuple):
    """One entry point of an exported file."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def part(family: str, name: Literal["module", "start", "vocabulary"]) -> ModuleType:
    """A part of a family beside its folder, imported when it is needed; the catalog checked the family's name."""
    return import_module(f"edgedistill.students.{family}.{name}")


def vocabulary_part(family: str) -> ModuleType | None:
    """The family's `vocabulary.py`; None where it keeps none of its teacher's pieces."""
    found = find_spec(f"edgedistill.students.{family}.vocabulary")
    return part(family, "vocabulary") if found else None
