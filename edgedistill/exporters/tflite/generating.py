"""Run a decoder's .tflite as its app does, and ask whether it computes the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.errors import DataError, StageError, VerificationError
from edgedistill.exporters._proof import Explain, Feeds, Limits, where
from edgedistill.exporters.tflite import running
from edgedistill.exporters.tflite.decoding import keeps_caches, step
from edgedistill.exporters.tflite.running import TfliteRunner
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import Port, Signature

DECODE, WHOLE = "decode", "any"
# Tokens of a text, and how many calls follow each way to begin it; single calls are tried at every position.
_LONGEST_PROOF, _CONTINUED = 48, 8
_SEEN, _PIECE = 512, 64  # tokens of which the caches of single calls are made, and how many of them at a time
_TRIED = 2  # inputs of which it is asked which layer differs first
# A file may be this many times as far from the student as the student's own rounding takes it, by its activations: both
# sides round to float32 in each layer; codes of int8 that a rounding moves move less than all of them cost.
_ROUNDINGS = {"float": 4, "dynamic_int8": 1}


class Text:
    """A text that is read in pieces and continued, with its keys and values."""

    def __init__(self, runner: TfliteRunner) -> None:
        self._runner = runner
        ports = runner.signatures[DECODE].inputs
        self._caches = {p.name: np.zeros(p.shape, np.float32) for p in ports if p.name.startswith("kv_cache_")}
        self._slots = next(iter(self._caches.values())).shape[2]
        self.position = 0

    def read(self, ids: Sequence[int]) -> None:
        """Take tokens in, through the largest entry points that they fill and one that they do not.

        Raises:
            DataError: if they do not fit behind the tokens before.
            StageError: if the runtime fails.
        """
        self._fits(len(ids))
        sizes = {s.inputs[0].shape[1]: name for name, s in self._runner.signatures.items() if name != DECODE}
        rest = list(ids)
        while rest:
            size = max((n for n in sizes if n <= len(rest)), default=min(sizes))
            piece, rest = rest[:size], rest[size:]
            self._call(sizes[size], [*piece, *[0] * (size - len(piece))], len(piece))

    def step(self, token: int) -> NDArray[np.float32]:
        """Take one token in; the logits [vocabulary] of the next.

        Raises:
            DataError: if the text is as long as the file's caches.
            StageError: if the runtime fails.
        """
        self._fits(1)
        logits: NDArray[np.float32] = self._call(DECODE, [token], 1)["logits"]
        last: NDArray[np.float32] = logits[0, 0]
        return last

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        """Read a prompt, and answer the `count` most likely tokens behind it, one after the other."""
        self.read(prompt[:-1])
        found = [int(self.step(prompt[-1]).argmax())]
        while len(found) < count:
            found.append(int(self.step(found[-1]).argmax()))
        return found

    def feeds(self, tokens: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The inputs of a call that takes these tokens in."""
        positions = np.arange(self.position, self.position + len(tokens), dtype=np.int32)
        return {"tokens": np.array([tokens], np.int32), "input_pos": positions, **self._caches}

    def _fits(self, count: int) -> None:
        if self.position + count > self._slots:
            raise DataError(f"{self.position} tokens and {count} more do not fit the {self._slots} of the file.")

    def _call(self, name: str, tokens: Sequence[int], count: int) -> dict[str, NDArray[Any]]:
        found = self._runner.run(name, self.feeds(tokens))
        self._caches = {key: found[key] for key in self._caches}
        self.position += count
        return found


class DecoderRunner:
    """A file of `students.llama.generation`, as a runner of whole texts; `calls` are its own entry points."""

    def __init__(self, calls: TfliteRunner) -> None:
        self.calls = calls
        logits = next(port for port in calls.signatures[DECODE].outputs if port.name == "logits")
        answers = Port("logits", (1, -1, logits.shape[-1]), "float32")
        whole = Signature(WHOLE, (Port("input_ids", (1, -1), "int32"),), (answers,))
        self._signatures = {WHOLE: whole}

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """One entry point, `any`: the ids of a text to the logits behind each of them."""
        return self._signatures

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The logits of a whole text, token by token.

        Raises:
            DataError: if the ids are missing, not int32 [1, N], or more than the file's caches hold.
            StageError: if the runtime fails.
        """
        ids = feeds.get(self._signatures[signature].inputs[0].name)
        if ids is None or ids.dtype != np.int32 or ids.ndim != 2 or ids.shape[0] != 1 or not ids.size:
            seen = "nothing" if ids is None else f"{ids.dtype}{list(ids.shape)}"
            raise DataError(f"Signature {signature} takes input_ids as int32[1, N], got {seen}.")
        text = self.text()
        return {"logits": np.stack([text.step(int(token)) for token in ids[0]])[None]}

    def text(self) -> Text:
        """A new text."""
        return Text(self.calls)


def prove(frozen: FrozenStudent, runner: DecoderRunner, limits: Limits, explain: Explain | None = None) -> None:
    """Compare single calls at any position, with the caches of a random text, and a text that is read in parts.

    Caches of random numbers would not do: a trained network is ill-conditioned where no text leads, so that float32
    alone moves its answers by more than a wrong graph may.

    Raises:
        VerificationError: if the file computes something else; with `explain` it names the first layer that does.
    """
    module, random = frozen.to_module(), np.random.default_rng(0)
    caches = _caches(frozen, random)
    for signature in runner.calls.signatures.values():
        errors: dict[str, list[float]] = {port.name: [] for port in signature.outputs}
        given = []
        tokens = signature._replace(inputs=tuple(port for port in signature.inputs if port.name not in caches))
        for _ in range(8):
            feeds = frozen.sample(tokens, random) | caches
            given.append(feeds)
            expected, found = _stepped(module, feeds), runner.calls.run(signature.name, feeds)
            for name, values in found.items():
                wanted = expected[name].numpy()
                errors[name].append(float(np.abs(values - wanted).max() / np.abs(wanted).max()))
        own: dict[str, list[float]] = {}
        for name, seen in errors.items():
            if not _within(seen, limits):
                own = own or _rounding(frozen, module, given)
                median, worst = float(np.median(own[name])), max(own[name])
                allowed = Limits(max(limits.median, median), max(limits.worst, worst))
                _near(seen, allowed, f"{name} of signature {signature.name}", explain, given)
    text = frozen.sample(frozen.signatures([min(_LONGEST_PROOF, frozen.config["max_length"])])[0], random)["input_ids"]
    with torch.no_grad():
        logits = module(torch.from_numpy(text)).logits[0].numpy()
        exact = _unrounded(frozen)(torch.from_numpy(text)).logits[0].numpy()
    largest = np.abs(logits).max()
    own_errors = [_ROUNDINGS[frozen.scheme.activations] * float(e) for e in np.abs(logits - exact).max(1) / largest]
    limits = Limits(max(limits.median, float(np.median(own_errors))), max(limits.worst, max(own_errors)))
    for cut in (1, text.size // 3, text.size - 1):
        state = runner.text()
        state.read(text[0, :cut].tolist())
        rest = [np.abs(state.step(int(text[0, n])) - logits[n]).max() for n in range(cut, text.size)[:_CONTINUED]]
        _near([float(error / largest) for error in rest], limits, f"a text read in parts ({cut} first)")


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


@torch.no_grad()
def _stepped(module: torch.nn.Module, feeds: Feeds, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    given = {name: torch.from_numpy(values) for name, values in feeds.items()}
    return step(module, {name: v.to(dtype) if v.is_floating_point() else v for name, v in given.items()})


def _rounding(frozen: FrozenStudent, module: torch.nn.Module, given: Sequence[Feeds]) -> dict[str, list[float]]:
    """How far its rounding takes each output of the student, of the largest, for each of the inputs, with some room.

    It rounds to float32, which float64 does not, or activations to int8, which the student does not with float ones.
    """
    kind, found = frozen.scheme.activations, dict[str, list[float]]()
    unrounded = _unrounded(frozen)
    for feeds in given:
        wanted = _stepped(unrounded, feeds, torch.float64 if kind == "float" else torch.float32)
        for name, values in _stepped(module, feeds).items():
            error = (values - wanted[name]).abs().max() / wanted[name].abs().max()
            found.setdefault(name, []).append(_ROUNDINGS[kind] * float(error))
    return found


def _unrounded(frozen: FrozenStudent) -> torch.nn.Module:
    """The student in float64 where its activations are floats, and with float ones where they are int8."""
    return frozen.to_module().double() if frozen.scheme.activations == "float" else frozen.to_module("float")


def _within(errors: Sequence[float], limits: Limits) -> bool:
    return bool(np.median(errors) <= limits.median and max(errors) <= limits.worst)


def _near(
    errors: Sequence[float], limits: Limits, what: str, explain: Explain | None = None, given: Sequence[Feeds] = ()
) -> None:
    if not _within(errors, limits):
        raise VerificationError(
            f"TFLite: {what} is up to {max(errors):.3g} of the largest output away from the student's on random inputs "
            f"(median {np.median(errors):.3g}): the runtime does not compute what was trained."
            + where(explain, [given[n] for n in np.argsort(errors)[::-1][:_TRIED]] if given else [])
        )


def load(path: Path, threads: int = 1) -> TfliteRunner | DecoderRunner:
    """Open a file for execution on `threads` CPU threads.

    Raises:
        MissingDependency: if ai-edge-litert is not installed.
        StageError: if the file is damaged, or LiteRT refuses it.
    """
    runner = running.load(path, threads)
    if DECODE not in runner.signatures:
        return runner
    if not all(keeps_caches(signature) for signature in runner.signatures.values()):
        raise StageError(f"{path}: has a signature {DECODE} and others that are no part of a decoder.")
    return DecoderRunner(runner)


def last_call(path: Path, feeds: Feeds) -> Feeds:
    """For a whole text and a decoder's file, the inputs of its last call; any others as they are.

    Raises:
        MissingDependency, StageError, DataError: as `load` and `Text.step`.
    """
    if "input_ids" not in feeds:
        return feeds
    runner = load(path)
    if not isinstance(runner, DecoderRunner):
        return feeds
    text, ids = runner.text(), feeds["input_ids"][0].tolist()
    for token in ids[:-1]:
        text.step(token)
    return text.feeds(ids[-1:])
