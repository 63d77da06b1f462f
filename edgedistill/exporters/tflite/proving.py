"""Ask whether a decoder's .tflite computes the student: every layer of every call, on what the file itself gives it.

How far the last answer is from the student's tells little, as a trained decoder amplifies what rounding does. Of
SmolLM2-135M with int8 activations one value between two codes that takes the other one moves the logits of its text and
of all that follows by 5 % of the largest, as much as int8 costs them at all; float32 moves its float logits by up to
3e-5. A limit above that passes faults: an RMS norm's epsilon three times too large, a rotation 0.1 % too fast. So
nothing is handed on: the student's layer is given what the file's layer was given, and the student goes on with what
the file's layer answered. What is left is the rounding of one layer. Of SmolLM2-135M that is, of the token's largest
value, 4.8e-6 before a layer and 5.5e-6 behind a float one; 3.8e-6 before one with int8 activations, and 0 behind it.

The layers' values are read as further outputs of the graph. LiteRT then runs the same kernels, which is checked: the
file itself must answer the same bits. (It does not where LiteRT is told to keep every tensor.)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.errors import VerificationError
from edgedistill.exporters._divergence import Call, Mismatch, follow, shaped, weights_of
from edgedistill.exporters.tflite import running
from edgedistill.exporters.tflite.decoding import step
from edgedistill.exporters.tflite.generating import Text
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.reading import names, parse, uses
from edgedistill.exporters.tflite.running import TfliteRunner
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Signature

# How far a value may be, as a share of its token's largest: what one layer, or what is between two, rounds.
_ROUNDING = 1e-5
_LEAST = 1e-3  # a token whose values are all smaller is compared as if they were this large: nothing there matters
_TRIED, _LONGEST = 8, 48  # calls of each entry point at any position; tokens of the text that is read in parts
_SEEN, _PIECE = 512, 64  # tokens of which the caches of single calls are made, and how many of them at a time
# How far the logits of a text that is read in parts may be from those of the whole, of the largest: what no call shows.
# Wrong slots or positions move them by their own size; what rounding does is in the head of this module.
_PARTS = {"float": 1e-3, "dynamic_int8": 0.3}


def prove(frozen: FrozenStudent, path: Path, runner: TfliteRunner) -> None:
    """Try single calls at any position, with the caches of a random text, and a text that is read in parts.

    `runner` is the file, loaded.

    Raises:
        VerificationError: if the file computes something else; it names the first layer that does.
    """
    asked, random = _Asked(frozen, path, runner), np.random.default_rng(0)
    caches = _caches(frozen, random)
    for signature in asked.signatures.values():
        tokens = signature._replace(inputs=tuple(port for port in signature.inputs if port.name not in caches))
        for _ in range(_TRIED):
            asked.run(signature.name, frozen.sample(tokens, random) | caches)
    text = frozen.sample(frozen.signatures([min(_LONGEST, frozen.config["max_length"])])[0], random)["input_ids"]
    with torch.no_grad():
        logits = asked.module(torch.from_numpy(text)).logits[0].numpy()
    for cut in (1, text.size // 3, text.size - 1):
        state = Text(asked)
        state.read(text[0, :cut].tolist())
        rest = [np.abs(state.step(int(text[0, n])) - logits[n]).max() for n in range(cut, text.size)]
        away = float(max(rest) / np.abs(logits).max())
        if not away <= _PARTS[frozen.scheme.activations]:
            raise VerificationError(
                f"TFLite: a text read in parts ({cut} tokens first) is up to {away:.3g} of the largest logit away from "
                "the student's: the file does not keep its keys and values."
            )


class _Asked:
    """A decoder's file as a runner that compares each layer of each call with the student's."""

    def __init__(self, frozen: FrozenStudent, path: Path, runner: TfliteRunner) -> None:
        self.module, self._runner = frozen.to_module(), runner
        schema, model = parse(path)
        stored, places = names(model, path), weights_of(frozen, frozen.build())
        # of each entry point: a layer's place, and the names of what it is given and what it answers
        self._layers: dict[str, list[tuple[str, str, str]]] = {}
        for signature in model.signatureDefs:
            subgraph = model.subgraphs[signature.subgraphIndex]
            show = partial(_shown, schema, signature, subgraph)
            made = list(uses(schema, model, subgraph, stored))
            self._layers[signature.signatureKey.decode()] = [
                (place, show(operator.inputs[0]), show(operator.outputs[0]))
                for name in frozen.quantized
                for place, operator in zip(
                    (place for place, weight in places.items() if weight == name),
                    (use.operator for use in made if use.name == name),
                    strict=False,  # an entry point without logits lacks the last layers
                )
            ]
        self._places = list(places)
        self._shown = running.load(path, content=Packer().pack(model))

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The file's entry points."""
        return self._runner.signatures

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One call of the file.

        Raises:
            VerificationError: if a layer or an output is not the student's.
            StageError: if the runtime fails.
        """
        found, shown = self._runner.run(signature, feeds), self._shown.run(signature, feeds)
        values = {name: torch.from_numpy(value) for name, value in {**shown, **feeds}.items()}
        calls: dict[str, list[Call]] = {place: [] for place in self._places if "logits" in found}
        for place, given, answered in self._layers[signature]:
            calls[place] = [Call(values[given], values[answered])]
        answers = {name: torch.from_numpy(value) for name, value in shown.items() if name in found}
        last = next(iter(answers))
        told = follow(self.module, calls, feeds, _ask, answers[last], 1.0, partial(_answer, answers, last))
        if told is None:
            unequal = (name for name in found if found[name].tobytes() != shown[name].tobytes())
            told = next((f"{name}, which has other bits where layers are shown" for name in unequal), None)
        if told is not None:
            raise VerificationError(
                f"TFLite: signature {signature} does not compute the student at position {feeds['input_pos'][0]}. It "
                f"first differs at {told}."
            )
        return found


def _shown(schema: Any, signature: Any, subgraph: Any, index: Any) -> str:
    """The name of a tensor as an input or an output of the entry point; it becomes an output if it is none."""
    for entry in (*signature.inputs, *signature.outputs):
        if entry.tensorIndex == index:
            return str(entry.name.decode())
    name = f"shown_{index}"
    subgraph.outputs = np.append(np.asarray(subgraph.outputs, np.int32), np.int32(index))
    signature.outputs.append(schema.TensorMapT(name=name.encode(), tensorIndex=int(index)))
    return name


def _ask(place: str, layer: nn.Module, ours: Tensor, output: Tensor, call: Call) -> Tensor:
    """As `_divergence.alone`, token by token."""
    given = shaped(call.given, ours, f"the input of {place}")
    _near(ours, given, f"the input of {place}")
    answered = shaped(call.answered, output, place)
    # `forward`, as a call would come back here through the hook
    _near(layer.forward(given), answered, place)
    return answered.to(output.dtype)


def _answer(answers: Mapping[str, Tensor], last: str, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Compares every output of a call, and answers one for form's sake."""
    found = step(module, inputs)
    for name, theirs in answers.items():
        _near(found[name], theirs, f"{name}, after the layers")
    return found[last]


def _near(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Compare the values of each token, or of each slot.

    Raises:
        Mismatch: they differ by more than rounding.
    """
    ours, theirs = ours.double(), shaped(theirs, ours, what).double()
    away = (ours - theirs).abs().amax(-1) / ours.abs().amax(-1).clamp(min=_LEAST)
    if not float(away.max()) <= _ROUNDING:  # nan is a difference
        raise Mismatch(
            f"{what}: up to {float(away.max()):.3g} of a token's largest value, expected <= {_ROUNDING:.0e} "
            f"({int((~(away <= _ROUNDING)).sum())} of {away.numel()} tokens)"
        )


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
