"""What a package of ours says about itself: which of its operations holds which tensor of the student.

The card travels in the model's user-defined metadata, so that a package can be read back by tensor name. Nothing is
believed because the card says it: it only says where to look, and what is found there is compared with the student.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from edgedistill.coreml import Program
from edgedistill.errors import ForeignFile, SpecError
from edgedistill.exporters.coreml.network import Arithmetic
from edgedistill.specs.base import Spec
from edgedistill.specs.quant import QuantScheme

KEY = "edgedistill.card"
Label = Literal["int8 per channel", "int4 per channel", "int8 per group of 32", "int4 per group of 32"]
_LARGEST = 2**24


class Weight(Spec):
    """Where a quantized tensor lies, and the label of its grid."""

    operation: str
    grid: Label


class Card(Spec):
    """Names of operations, by what they hold.

    `tensors`: every tensor of the frozen student, a quantized one with its grid; `places`: the quantize operation of
    each grid of activations; `tables`: float buffers of the network that are no part of the frozen student; `derived`:
    float constants that the network computes from neither, such as the frequencies of rotary positions.
    """

    version: Literal[1] = 1
    family: str
    scheme: QuantScheme
    precision: Arithmetic = "float16"
    signature: str
    tensors: Mapping[str, Weight | str]
    places: Mapping[str, str] = {}
    tables: Mapping[str, str] = {}
    derived: tuple[str, ...] = ()

    @property
    def weights(self) -> dict[str, Weight]:
        """The quantized tensors."""
        return {name: item for name, item in self.tensors.items() if isinstance(item, Weight)}

    @property
    def floats(self) -> dict[str, str]:
        """The operations of float tensors and tables."""
        return {name: item for name, item in self.tensors.items() if isinstance(item, str)} | dict(self.tables)

    @property
    def text(self) -> str:
        """The card as it is stored."""
        told = self.model_dump(mode="json", exclude={"precision"} if self.precision == "float16" else None)
        return json.dumps(told, sort_keys=True, separators=(",", ":"))


def card_of(program: Program) -> Card:
    """The card of a package.

    Raises:
        ForeignFile: if it has none, or one that is damaged.
    """
    text = program.metadata.user.get(KEY)
    if text is None or len(text) > _LARGEST:
        raise ForeignFile(f"{program.path}: has no {KEY} metadata: it was not exported by this package.")
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ForeignFile(f"{program.path}: its {KEY} metadata is no JSON object.")
        return Card.decode(values, f"{program.path}: {KEY}")
    except (ValueError, RecursionError):
        raise ForeignFile(f"{program.path}: its {KEY} metadata is not JSON.") from None
    except SpecError as error:
        raise ForeignFile(str(error)) from None
