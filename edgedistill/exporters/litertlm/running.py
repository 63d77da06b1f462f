"""Run a bundle: its model with LiteRT, which shows logits, and the whole with LiteRT-LM, as an app does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgedistill.errors import ForeignFile, StageError
from edgedistill.exporters import tflite
from edgedistill.exporters._quiet import imported, silenced
from edgedistill.exporters.litertlm.chat import Message
from edgedistill.exporters.litertlm.reading import audit, model_of
from edgedistill.exporters.litertlm.soundness import sound
from edgedistill.students import Signature


class Engine:
    """LiteRT-LM with a bundle loaded."""

    def __init__(self, library: Any, engine: Any) -> None:
        self._library, self._engine = library, engine

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, without the token that the runtime puts before it.

        Raises:
            StageError: if the runtime fails.
        """
        with _refusals("tokenize"), silenced():
            return [int(token) for token in self._engine.tokenize(text)]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included.

        Raises:
            StageError: if the runtime fails.
        """
        with _refusals("detokenize"), silenced():
            return str(self._engine.detokenize(list(ids)))

    def continued(self, prompt: str, count: int) -> str:
        """The text of the `count` most likely tokens behind a prompt, or of fewer where one of them ends the answer.

        Raises:
            StageError: if the runtime fails.
        """
        greedy = self._library.SamplerConfig(top_k=1, temperature=0.0, seed=0)
        with _refusals("continue a text"), silenced():
            session = self._engine.create_session(
                apply_prompt_template=False, sampler_config=greedy, max_output_tokens=count
            )
            try:
                session.run_prefill([prompt])
                return str(session.run_decode().texts[0])
            finally:
                session.close()

    def scored(self, prompt: str, text: str) -> list[float]:
        """The log-likelihood of each token of a text behind a prompt's tokens without the last but one.

        LiteRT-LM 0.18.1 takes the last token of a prompt in again before it scores, one slot too early.

        Raises:
            StageError: if the runtime fails.
        """
        with _refusals("score a text"), silenced():
            session = self._engine.create_session(apply_prompt_template=False)
            try:
                session.run_prefill([prompt])
                return [float(score) for score in session.run_text_scoring([text]).token_scores[0]]
            finally:
                session.close()

    def rendered(self, chat: Sequence[Message]) -> str:
        """The prompt that the runtime makes of a chat, without the token that it puts before it; empty if it fails.

        Raises:
            StageError: if the runtime fails otherwise.
        """
        with _refusals("render a chat"), silenced():
            conversation = self._engine.create_conversation(messages=[dict(message) for message in chat[:-1]])
            try:
                return str(conversation.render_message_to_string(dict(chat[-1])))
            finally:
                conversation.close()


class BundleRunner:
    """A loaded bundle: a runner of whole texts by LiteRT, and LiteRT-LM itself."""

    def __init__(self, path: Path, model: tflite.DecoderRunner, threads: int) -> None:
        self.model, self._path, self._threads = model, path, threads

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """One entry point, `any`: the ids of a text to the logits behind each of them."""
        return self.model.signatures

    @property
    def entry_points(self) -> Mapping[str, Signature]:
        """Those of the model inside."""
        return self.model.entry_points

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The logits of a whole text, computed by LiteRT.

        Raises:
            DataError: if the ids are missing, not int32 [1, N], or more than the file's caches hold.
            StageError: if the runtime fails.
        """
        return self.model.run(signature, feeds)

    def engine(self) -> contextlib.AbstractContextManager[Engine]:
        """As `engine`, of this bundle."""
        return engine(self._path, self._threads)


@contextlib.contextmanager
def engine(path: Path, threads: int = 1) -> Iterator[Engine]:
    """LiteRT-LM on the CPU with a bundle, for as long as the context lasts; it writes no cache beside the file.

    It lives in this process, which a damaged bundle would end: it is given none that is not sound.

    Raises:
        ForeignFile: if the file is no bundle of this package, or damaged.
        MissingDependency: if litert-lm-api or litert-lm-builder is not installed.
        StageError: if it refuses the bundle.
    """
    litert_lm = imported("litert_lm", "Running .litertlm needs litert-lm-api", "'edgedistill[litertlm]'")
    audit(path)
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.SILENT)
    with _refusals("load the bundle"), silenced():
        backend = litert_lm.Backend.CPU(thread_count=threads)
        opened = litert_lm.Engine(str(path), backend=backend, cache_dir=":nocache")
    try:
        yield Engine(litert_lm, opened)
    finally:
        with silenced():
            opened.close()


def load(path: Path, threads: int = 1) -> BundleRunner:
    """Open a bundle for execution on `threads` CPU threads.

    Raises:
        MissingDependency: if ai-edge-litert or litert-lm-builder is not installed.
        ForeignFile: if the file is no bundle of this package, or damaged.
        StageError: if LiteRT refuses its model.
    """
    with model_of(path, sound(path)) as copy:
        model = tflite.load(copy, threads)
    if not isinstance(model, tflite.DecoderRunner):
        raise ForeignFile(f"{path}: the model in it is no decoder. Export it again.")
    return BundleRunner(path, model, threads)


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise StageError(f"LiteRT-LM cannot {what}: {str(error).splitlines()[0]}.") from error
