"""Execute an exported file with LiteRT's interpreter and XNNPACK, as an app on a phone does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import DataError, MissingDependency, StageError
from edgedistill.exporters.tflite.graph import silenced


class TfliteRunner:
    """A loaded file. Each text runs in the smallest length bucket that holds it, padded with id 0 and mask 0."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        names = interpreter.get_signature_list()
        self.buckets: tuple[int, ...] = tuple(sorted(int(name.removeprefix("length_")) for name in names))
        self._signatures: dict[str, Any] = {}

    def signature(self, tokens: int) -> str:
        """Name of the signature that runs a text of `tokens` tokens.

        Raises:
            DataError: if the text is empty or longer than the longest bucket.
        """
        for length in self.buckets:
            if 1 <= tokens <= length:
                return f"length_{length}"
        raise DataError(f"A text of {tokens} tokens does not fit: the file takes 1 to {self.buckets[-1]}. Truncate it.")

    def __call__(
        self, input_ids: NDArray[np.integer[Any]], attention_mask: NDArray[np.integer[Any]] | None = None
    ) -> NDArray[np.float32]:
        """Logits [classes] of one text: `input_ids` [tokens], and a mask [tokens] when some of them are padding.

        Raises:
            DataError: if the text does not fit the file.
            StageError: if the runtime fails.
        """
        ids = np.asarray(input_ids)
        mask = np.ones(len(ids), np.int32) if attention_mask is None else np.asarray(attention_mask)
        name = self.signature(len(ids))
        length = int(name.removeprefix("length_"))
        feeds = {"input_ids": _padded(ids, length), "attention_mask": _padded(mask, length)}
        try:
            out: NDArray[np.float32] = self._run(name, feeds)["logits"][0]
        except (RuntimeError, ValueError) as error:
            raise StageError(f"LiteRT failed in signature {name}: {str(error).splitlines()[0]}.") from error
        return out

    def _run(self, name: str, feeds: dict[str, NDArray[np.int32]]) -> dict[str, NDArray[np.float32]]:
        if name not in self._signatures:
            with silenced():  # the first use creates the XNNPACK delegate, which announces itself
                self._signatures[name] = self._interpreter.get_signature_runner(name)
                self._signatures[name](**feeds)
        out: dict[str, NDArray[np.float32]] = self._signatures[name](**feeds)
        return out


def load(path: Path, threads: int = 1) -> TfliteRunner:
    """Open a file for execution on `threads` CPU threads.

    Raises:
        MissingDependency: if ai-edge-litert is not installed.
        StageError: if LiteRT refuses the file.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingDependency(f"Running .tflite needs LiteRT ({error}): pip install ai-edge-litert") from None
    try:
        with silenced():
            return TfliteRunner(Interpreter(model_path=str(path), num_threads=threads))
    except (RuntimeError, ValueError) as error:
        raise StageError(f"LiteRT cannot load {path}: {str(error).splitlines()[0]}. Export it again.") from error


def _padded(values: NDArray[np.integer[Any]], length: int) -> NDArray[np.int32]:
    out = np.zeros((1, length), np.int32)
    out[0, : len(values)] = values
    return out
