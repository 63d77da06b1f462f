"""Student families: one folder each, named as users write it. The folder says what a family can do without torch;
its `module.py` holds the network.

A family defines:

- `FORMATS`: the formats that can hold it;
- `Config`: its sizes, a Spec;
- `TINY`: the config that contract tests build;
- `parameters(config)`, `macs(config, length)`: known before it is built;
- `tensors(config)`: name, shape and kind of each stored tensor, from which bytes are predicted;
- `check_layers(config, teacher)`: raises where a student cannot start from the layers of the teacher's config.json.

Its `module.py` defines `build(config) -> Module` whose forward takes the task's batch and returns `Outputs`, and its
`start.py` defines `start(config, init, limit, tokenizer, body, texts) -> Started`: the student before training.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Literal, NamedTuple

TensorKind = Literal["linear", "embedding", "float"]


class StoredTensor(NamedTuple):
    """One tensor of the exported file: `linear` and `embedding` are quantized by the scheme, `float` stays fp32."""

    name: str
    shape: tuple[int, ...]
    kind: TensorKind


def part(family: str, name: Literal["module", "start"]) -> ModuleType:
    """The heavy half of a family, imported when it is needed; the family's name was checked by the catalog."""
    return import_module(f"edgedistill.students.{family}.{name}")
