"""Run a decoder's file as it is and remember what it answers, for its proof with layers shown.

Where activations are float, LiteRT keeps float32 copies of all weights for each entry point: 2.3 GB of SmolLM2-135M. So
the file, and the one whose layers are shown, are loaded one after the other, and asked the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from edgedistill.errors import VerificationError
from edgedistill.exporters.tflite.generating import Text
from edgedistill.exporters.tflite.proving_values import same_bits
from edgedistill.exporters.tflite.running import TfliteRunner
from edgedistill.students import Signature

Values = dict[str, NDArray[Any]]


class Heard(NamedTuple):
    """One call: at which position it was asked for which tokens, and what it wrote: its slots of the caches, and all
    other outputs.
    """

    signature: str
    position: int
    tokens: list[int]
    written: Values

    @classmethod
    def of(cls, signature: str, feeds: Mapping[str, NDArray[Any]], answered: Values) -> Heard:
        """A call with these inputs."""
        return cls(signature, int(feeds["input_pos"][0]), feeds["tokens"][0].tolist(), answered)

    def same_question(self, other: Heard) -> bool:
        """Whether both were asked the same."""
        return self[:3] == other[:3]


class Rehearsal:
    """A decoder's file as a runner of calls and of texts; `heard` are its calls so far."""

    def __init__(self, runner: TfliteRunner) -> None:
        self._runner = runner
        self.heard: list[Heard] = []

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The file's entry points."""
        return self._runner.signatures

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> Values:
        """One call of the file.

        Raises:
            VerificationError: if it changes a slot of a cache that the call does not write.
            StageError: if the runtime fails.
        """
        found = self._runner.run(signature, feeds)
        kept = {name: value.copy() for name, value in written(signature, feeds, found).items()}
        self.heard.append(Heard.of(signature, feeds, kept))
        return found

    def read(self, ids: Sequence[int], prompt: int) -> None:
        """Read a text, its first `prompt` tokens in pieces and the others one by one.

        Raises:
            DataError: if they do not fit the file's caches.
            VerificationError, StageError: as `run`.
        """
        state = Text(self)
        state.read(ids[:prompt])
        for token in ids[prompt:]:
            state.step(token)

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` most likely tokens behind a prompt.

        Raises:
            DataError, VerificationError, StageError: as `read`.
        """
        return Text(self).continued(prompt, count)


def written(signature: str, feeds: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> Values:
    """What a call answered: of a cache the slots that it writes, and every other output.

    Raises:
        VerificationError: if another slot of a cache is not the one that it was given, bit for bit.
    """
    start, count = int(feeds["input_pos"][0]), feeds["tokens"].shape[1]
    out: Values = {}
    for name, value in found.items():
        if name not in feeds:
            out[name] = value
            continue
        for kept in (slice(start), slice(start + count, None)):
            if not same_bits(value[:, :, kept], feeds[name][:, :, kept]):
                raise differs(signature, feeds, f"{name}: a slot that is not written came back changed")
        out[name] = value[:, :, start : start + count]
    return out


def differs(signature: str, feeds: Mapping[str, NDArray[Any]], told: str) -> VerificationError:
    """The error of a call that computes something else."""
    return VerificationError(
        f"TFLite: signature {signature} does not compute the student at position {feeds['input_pos'][0]}. It first "
        f"differs at {told}."
    )
