"""Run a decoder's .tflite as its app does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import DataError, StageError
from edgedistill.exporters import Runner
from edgedistill.exporters._proof import Feeds
from edgedistill.exporters.tflite import running
from edgedistill.exporters.tflite.decoding import keeps_caches
from edgedistill.exporters.tflite.running import TfliteRunner
from edgedistill.students import Port, Signature

DECODE, WHOLE = "decode", "any"


class Text:
    """A text that is read in pieces and continued, with its keys and values."""

    def __init__(self, runner: Runner) -> None:
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

    @property
    def entry_points(self) -> Mapping[str, Signature]:
        """The file's own, of which a whole text takes the one for single tokens only."""
        return self.calls.signatures

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
