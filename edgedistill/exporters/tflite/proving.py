"""Ask whether a decoder's .tflite computes the student: every layer of every call, on what the file itself gives it.

How far the last answer is from the student's tells little, as a trained decoder amplifies what rounding does. Of
SmolLM2-135M with int8 activations one value between two codes that takes the other one moves the logits of its text and
of all that follows by 5 % of the largest, as much as int8 costs them at all; float32 moves its float logits by up to
4e-5. A limit above that passes faults: an RMS norm's epsilon three times too large, a rotation 0.1 % too fast. So
nothing is handed on: the student's layer is given what the file's layer was given, and the student goes on with what
the file's layer answered. What is left is the rounding of one layer. Of SmolLM2-135M that is, of the token's largest
value, 4.8e-6 before a layer and 5.5e-6 behind a float one; 3.8e-6 before one with int8 activations, and 0 behind it.
Float logits are held to the student's from end to end as well (`proving_values`).

That is asked of single calls at any position, beside the student's own step with caches, and of texts that the file
reads in parts, beside the student's whole text without caches (`proving_texts`). What needs no tolerance has none: a
slot that a call does not write comes back with the bits that it was given, values are in theirs with the bits that
their layer answered, and a text's next call is given what the last one answered.

The layers' values are read as further outputs of the graph. LiteRT then runs the same kernels, which is checked: the
file itself must answer the same bits (`rehearsing`). (It does not where LiteRT is told to keep every tensor.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.exporters._divergence import Call, Mismatch, follow, shaped, weights_of
from edgedistill.exporters._memory import give_back
from edgedistill.exporters.tflite import running
from edgedistill.exporters.tflite.decoding import step
from edgedistill.exporters.tflite.generating import Text
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.proving_texts import TextProof, WholeText
from edgedistill.exporters.tflite.proving_values import Expected, near, same_bits
from edgedistill.exporters.tflite.reading import names, parse, uses
from edgedistill.exporters.tflite.rehearsing import Heard, Rehearsal, Values, differs, written
from edgedistill.exporters.tflite.running import TfliteRunner
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Signature

_TRIED, _LONGEST = 8, 48  # calls of each entry point at any position; tokens of the text that is read in parts
_SEEN, _PIECE = 512, 64  # tokens of which the caches of single calls are made, and how many of them at a time
_SHOWN = "shown_"  # how the further outputs are named
T = TypeVar("T")


@runtime_checkable
class Reader(Protocol):
    """What a script asks: the file alone (`Rehearsal`), and then with its layers shown (`Proof`)."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The file's entry points."""

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> Values:
        """One call."""

    def read(self, ids: Sequence[int], prompt: int) -> None:
        """A text, its first `prompt` tokens in pieces and the others one by one."""

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` most likely tokens behind a prompt."""


def prove(frozen: FrozenStudent, path: Path) -> None:
    """Try single calls at any position, with the caches of a random text, and a text that is read in parts.

    Raises:
        VerificationError: if the file computes something else; it names the first layer that does.
        StageError: if the runtime fails.
    """
    text = frozen.sample(frozen.signatures([min(_LONGEST, frozen.config["max_length"])])[0], np.random.default_rng(0))
    ids, caches = text["input_ids"][0].tolist(), _caches(frozen, np.random.default_rng(1))

    def script(reader: Reader) -> None:
        ask_calls(reader, frozen, caches)
        for cut in (1, len(ids) // 3, len(ids) - 1):
            reader.read(ids, cut)

    proven(frozen, path, script)


def ask_calls(reader: Reader, frozen: FrozenStudent, caches: Mapping[str, NDArray[Any]]) -> None:
    """Each entry point at random positions, with these caches, the same at every time.

    Raises:
        VerificationError: if the file computes something else; it names the first layer that does.
    """
    random = np.random.default_rng(0)
    for signature in reader.signatures.values():
        tokens = signature._replace(inputs=tuple(port for port in signature.inputs if port.name not in caches))
        for _ in range(_TRIED):
            reader.run(signature.name, {**frozen.sample(tokens, random), **caches})


def proven(frozen: FrozenStudent, path: Path, script: Callable[[Reader], T]) -> tuple[T, list[Expected]]:
    """What `script` makes of the file, every layer of every call compared with the student's; and of each text that it
    read, in turn, the logits that another runtime is held to.

    Raises:
        VerificationError: if the file computes something else; it names the first layer that does.
        DataError: if a text does not fit the file's caches.
        StageError: if the runtime fails.
    """
    rehearsal = Rehearsal(running.load(path))
    script(rehearsal)
    heard = rehearsal.heard
    del rehearsal
    give_back()
    proof = Proof(frozen, path, heard)
    found = script(proof)
    proof.close()
    return found, proof.expected()


class Proof:
    """A decoder's file as a `Reader` that compares each layer of each call with the student's.

    `heard` are the same calls of the file as it is; `module` the student as trained.
    """

    def __init__(self, frozen: FrozenStudent, path: Path, heard: Sequence[Heard]) -> None:
        self.frozen, self.module, self._heard = frozen, frozen.to_module(), iter(heard)
        self._texts: list[WholeText] = []
        schema, model = parse(path)
        stored, places = names(model, path), weights_of(frozen, frozen.build())
        # of each entry point: a layer's place, and the names of what it is given and what it answers
        self.layers: dict[str, list[tuple[str, str, str]]] = {}
        for signature in model.signatureDefs:
            subgraph = model.subgraphs[signature.subgraphIndex]
            show = partial(_shown, schema, signature, subgraph)
            made = list(uses(schema, model, subgraph, stored))
            self.layers[signature.signatureKey.decode()] = [
                (place, show(operator.inputs[0]), show(operator.outputs[0]))
                for name in frozen.quantized
                for place, operator in zip(
                    (place for place, weight in places.items() if weight == name),
                    (use.operator for use in made if use.name == name),
                    strict=False,  # an entry point without logits lacks the last layers
                )
            ]
        self.places = list(places)
        self._shown: TfliteRunner | None = running.load(path, content=Packer().pack(model))
        # as the file itself has them
        self.signatures: Mapping[str, Signature] = {
            name: entry._replace(outputs=tuple(port for port in entry.outputs if not port.name.startswith(_SHOWN)))
            for name, entry in self._shown.signatures.items()
        }

    def text(self, prompt: int) -> TextProof:
        """A text of which the first `prompt` tokens are read in pieces and the others one by one."""
        return TextProof(self, prompt)

    def close(self) -> None:
        """Give LiteRT's memory back; no call can be made any more."""
        self._shown = None
        give_back()

    def read(self, ids: Sequence[int], prompt: int) -> None:
        """Read a text, its first `prompt` tokens in pieces, and compare every layer with the student's.

        Raises:
            VerificationError: if the file computes something else; it names the first layer that does.
            DataError: if they do not fit the file's caches.
            StageError: if the runtime fails.
        """
        reading = self.text(prompt)
        state = Text(reading)
        state.read(ids[:prompt])
        for token in ids[prompt:]:
            state.step(token)
        self._texts.append(reading.check())

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` most likely tokens behind a prompt; every layer that led to them is compared with the student's.

        Raises:
            VerificationError: if the file computes something else; it names the first layer that does.
            DataError: if they do not fit the file's caches.
            StageError: if the runtime fails.
        """
        reading = self.text(len(prompt) - 1)
        tokens = Text(reading).continued(prompt, count)
        self._texts.append(reading.check())
        return tokens

    def expected(self) -> list[Expected]:
        """Of each text that was read, in turn, the logits that another runtime is held to. Float ones are first held
        to the student's own, in float64, which takes as much memory as a loaded file: `close` before.

        Raises:
            VerificationError: if those are not the student's.
        """
        if self.frozen.scheme.activations != "float":
            return [text.as_answered() for text in self._texts]
        exact = self.frozen.to_module().double()
        return [text.near(self.module, exact) for text in self._texts]

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> Values:
        """One call of the file.

        Raises:
            VerificationError: if a layer or an output is not the student's.
            StageError: if the runtime fails.
        """
        found, shown = self.answered(signature, feeds)
        values = {name: torch.from_numpy(value) for name, value in shown.items()}
        calls: dict[str, list[Call]] = {place: [] for place in self.places if "logits" in found}
        for place, given, answered in self.layers[signature]:
            calls[place] = [Call(values[given], values[answered])]
        answers = {name: values[name] for name in found}
        last = next(iter(answers))
        told = follow(self.module, calls, feeds, _ask, answers[last], 1.0, partial(_answer, answers, last))
        if told is not None:
            raise differs(signature, feeds, told)
        return found

    def answered(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> tuple[Values, Values]:
        """What the file answers to a call, and that with all values that its layers are given and answer, the call's
        inputs among them.

        Raises:
            VerificationError: if the file answers other bits where layers are shown, or changes a slot of a cache that
                the call does not write.
            StageError: if the runtime fails.
        """
        assert self._shown is not None
        shown, said = self._shown.run(signature, feeds), next(self._heard, None)
        found = {port.name: shown[port.name] for port in self.signatures[signature].outputs}
        told = Heard.of(signature, feeds, written(signature, feeds, found))
        if said is None or not said.same_question(told):
            raise differs(signature, feeds, "another call than the file was asked for where no layer is shown")
        for name, value in told.written.items():
            if not same_bits(value, said.written[name]):
                raise differs(signature, feeds, f"{name}, which has other bits where layers are shown")
        return found, {**feeds, **shown}


def _shown(schema: Any, signature: Any, subgraph: Any, index: Any) -> str:
    """The name of a tensor as an input or an output of the entry point; it becomes an output if it is none."""
    for entry in (*signature.inputs, *signature.outputs):
        if entry.tensorIndex == index:
            return str(entry.name.decode())
    name = f"{_SHOWN}{index}"
    subgraph.outputs = np.append(np.asarray(subgraph.outputs, np.int32), np.int32(index))
    signature.outputs.append(schema.TensorMapT(name=name.encode(), tensorIndex=int(index)))
    return name


def _ask(place: str, layer: nn.Module, ours: Tensor, output: Tensor, call: Call) -> Tensor:
    """As `_divergence.alone`, token by token."""
    given = shaped(call.given, ours, f"the input of {place}")
    near(ours, given, f"the input of {place}")
    answered = shaped(call.answered, output, place)
    # `forward`, as a call would come back here through the hook
    near(layer.forward(given), answered, place)
    return answered.to(output.dtype)


def _answer(answers: Mapping[str, Tensor], last: str, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Compares every output of a call, and answers one for form's sake."""
    found = step(module, inputs)
    for name, theirs in answers.items():
        near(found[name], theirs, f"{name}, after the layers")
        # nothing is computed between the layer that answers values and their slots
        if name.startswith("kv_cache_v_") and not same_bits(found[name].numpy(), theirs.numpy()):
            raise Mismatch(f"{name}, after the layers: not the values that the layer answered, bit for bit")
    return found[last]


def _caches(frozen: FrozenStudent, random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Every cache of the student filled with the keys and values of a random text, over and over."""
    model, slots = frozen.build(), int(frozen.config["max_length"])
    count = min(slots, _SEEN)
    ids = torch.from_numpy(random.integers(0, frozen.config["vocabulary"], (1, count)))
    with torch.no_grad():
        caches = model.empty_caches(slots=count)  # type: ignore[operator]
        for start in range(0, count, _PIECE):
            piece = ids[:, start : start + _PIECE]
            caches = model.step(piece, torch.tensor([start]), caches)[1]  # type: ignore[operator]
    repeats = 1, 1, -(-slots // count), 1
    return {
        f"kv_cache_{part}_{n}": np.ascontiguousarray(np.tile(value.numpy(), repeats)[:, :, :slots])
        for n, pair in enumerate(caches)
        for part, value in zip("kv", pair, strict=True)
    }
