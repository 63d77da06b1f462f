"""Ask whether a decoder's .tflite that reads a text in parts computes the student's whole text.

The student reads the text at once, without caches, and each of its layers is compared with what the file's layer was
given and answered for the same tokens, in whatever calls. A slot that holds another token's keys and values, or none,
a position that is off by one, or the cache of another layer is a wrong input of the layer behind the attention that
reads it. The limit is that of one layer, whatever the activations are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.errors import VerificationError
from edgedistill.exporters._divergence import Call, Mismatch, follow, shaped
from edgedistill.exporters.tflite.proving_values import ROUNDING, Expected, near, near_whole, roundings, same_bits
from edgedistill.students import Signature

if TYPE_CHECKING:
    from edgedistill.exporters.tflite.proving import Proof


class TextProof:
    """A runner of the calls of one text (`generating.Text`), which keeps what each layer was given and answered.

    The first `prompt` tokens are read in pieces, of which the last may be filled up, the others one by one.
    """

    def __init__(self, proof: Proof, prompt: int) -> None:
        self._proof, self._prompt = proof, prompt
        self.tokens: list[int] = []
        self._rows: dict[str, list[tuple[Tensor, Tensor]]] = {place: [] for place in proof.places}
        self._logits: list[Tensor] = []  # of the tokens that were read by an entry point that answers some
        self._caches: dict[str, NDArray[Any]] = {}

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The file's entry points."""
        return self._proof.signatures

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One call of the file.

        Raises:
            VerificationError: if a cache is not the one that the last call answered, or as `Proof.answered`.
            StageError: if the runtime fails.
        """
        for name, kept in self._caches.items():
            if not same_bits(kept, feeds[name]):
                raise VerificationError(f"TFLite: {name} is not handed on as the last call of the text answered it.")
        found, values = self._proof.answered(signature, feeds)
        self._caches = {name: value for name, value in found.items() if name in feeds}
        given = feeds["tokens"][0]
        count = min(len(given), max(self._prompt - len(self.tokens), 1))
        self.tokens += given[:count].tolist()
        for place, *shown in self._proof.layers[signature]:
            source, result = (torch.from_numpy(values[name].reshape(len(given), -1)[:count]) for name in shown)
            self._rows[place].append((source, result))
        if "logits" in found:
            self._logits.append(torch.from_numpy(found["logits"][0]))
        return found

    def check(self) -> WholeText:
        """Compare each layer with that of the student that reads the whole text.

        Raises:
            VerificationError: naming the first layer that differs.
        """
        calls: dict[str, list[Call]] = {place: [] for place in self._rows}
        for place, rows in self._rows.items():
            if rows:
                given, answered = (torch.cat(parts) for parts in zip(*rows, strict=True))
                calls[place] = [Call(given, answered)]
        text = WholeText(self.tokens, self._prompt, torch.cat(self._logits))
        ids, found = np.array([self.tokens], np.int32), text.logits
        told = follow(self._proof.module, calls, {"input_ids": ids}, _ask, found, ROUNDING, partial(_last, len(found)))
        if told is not None:
            raise text.differs(told)
        return text


class WholeText(NamedTuple):
    """A text that was read in parts, its first `prompt` tokens in pieces; the file's logits [n, vocabulary] behind the
    last ones.
    """

    tokens: list[int]
    prompt: int
    logits: Tensor

    def as_answered(self) -> Expected:
        """The file's own logits, to a layer's rounding."""
        return Expected(self.logits.double(), ROUNDING * float(self.logits.abs().max()))

    def near(self, module: nn.Module, exact: nn.Module) -> Expected:
        """Compare them, from end to end, with those of the student in float64, `exact`; `module` is it in float32.

        Raises:
            VerificationError: if they are not near.
        """
        ids = torch.tensor([self.tokens], dtype=torch.int32)
        with torch.no_grad():
            logits = exact(ids).logits[0]
        try:
            return near_whole(logits, self.logits, partial(roundings, module, ids))
        except Mismatch as error:
            raise self.differs(str(error)) from None

    def differs(self, told: str) -> VerificationError:
        """The error of a text that is not the student's."""
        return VerificationError(
            f"TFLite: a text of {len(self.tokens)} tokens, read in parts ({self.prompt} first), is not the student's: "
            f"the file computes something else, or does not keep its keys and values. It first differs at {told}."
        )


def _ask(place: str, layer: nn.Module, ours: Tensor, output: Tensor, call: Call) -> Tensor:
    """As `proving._ask`, for the last tokens: those before may have been read by an entry point that lacks the layer,
    which is then one of the last, behind which tokens do not see each other.
    """
    count = len(call.answered)
    before, behind = output[:, : output.shape[1] - count], output[:, output.shape[1] - count :]
    ours = ours[:, ours.shape[1] - count :]
    given = shaped(call.given, ours, f"the input of {place}")
    near(ours, given, f"the input of {place}")
    answered = shaped(call.answered, behind, place)
    # `forward`, as a call would come back here through the hook
    near(layer.forward(given), answered, place)
    return torch.cat((before, answered.to(output.dtype)), 1)


def _last(count: int, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The student's logits behind the last `count` tokens."""
    logits: Tensor = module(inputs["input_ids"]).logits[0, -count:]
    return logits
