"""Execute an exported file with llama.cpp on the CPU, as an app does.

llama.cpp rounds what enters a layer with Q4_0 or Q8_0 weights to Q8_0 (one scale for 32 neighbours) by itself, and
keeps keys and values of a decoder in fp16; an `exact` runner keeps those in fp32 and is for files with float weights.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import DataError, MissingDependency, StageError
from edgedistill.exporters.gguf.parsing import Parsed, parse
from edgedistill.exporters.gguf.reading import describe
from edgedistill.students import Port, Signature

_ERROR = 4  # enum ggml_log_level


class GgufRunner:
    """A loaded file; `close` frees it, as does the end of its last reference."""

    def __init__(
        self, model: Any, signatures: Mapping[str, Signature], threads: int, exact: bool, watch: Any = None
    ) -> None:
        self._model, self._signatures, self._threads, self._exact = model, signatures, threads, exact
        self._watch = watch  # llama.cpp keeps only its address
        self._library = _library()
        self._longest = int(self._library.llama_model_n_ctx_train(model))
        self._room = 0
        self._contexts: list[Any] = []  # none, or the one in use
        self._free = weakref.finalize(self, _free, self._library, model, self._contexts)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The entry points that the file names, shortest first; of a foreign file one, `tokens`, for any length."""
        return self._signatures

    def close(self) -> None:
        """Free the model; the runner runs no more."""
        self._free()

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs of one call, by name.

        Raises:
            DataError: if an input is missing or has another shape or dtype than the file's, ids are not of the
                vocabulary, or a mask has a gap.
            StageError: if the runtime fails, or the runner is closed.
        """
        called = self._signatures[signature]
        for port in called.inputs:
            _fits(signature, port, feeds.get(port.name))
        ids = feeds["input_ids"][0]
        pooled = len(called.inputs) == 2
        if pooled:
            tokens = int(feeds["attention_mask"][0].sum())
            if tokens < 1 or not (feeds["attention_mask"][0] == (np.arange(len(ids)) < tokens)).all():
                raise DataError(f"Signature {signature} takes an attention_mask of ones, then zeros.")
            ids = ids[:tokens]
        vocabulary = int(self._library.llama_vocab_n_tokens(self._vocabulary()))
        if not 1 <= len(ids) <= self._longest or ids.min() < 0 or ids.max() >= vocabulary:
            raise DataError(f"Signature {signature} takes 1 to {self._longest} ids from 0 to {vocabulary - 1}.")
        with _listening(self._library) as heard:
            answer = self._compute(ids, pooled, called.outputs[0].shape[-1])
        if answer is None:
            raise StageError(f"llama.cpp failed in signature {signature}: {_reason(heard)}.")
        return {"logits": answer}

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, special tokens included, by llama.cpp's own tokenizer.

        Raises:
            StageError: if the file has no tokenizer, or the runner is closed.
        """
        raw = text.encode("utf-8")
        room = (self._library.llama_token * (len(raw) + 8))()
        vocabulary = self._vocabulary()
        if not int(self._library.llama_vocab_type(vocabulary)):
            raise StageError("The file has no tokenizer: it takes ids.")
        with _listening(self._library):
            count = self._library.llama_tokenize(vocabulary, raw, len(raw), room, len(room), True, True)
        if count < 0:
            raise StageError(f"llama.cpp needs {-count} tokens for a text of {len(raw)} bytes.")
        return [int(token) for token in room[:count]]

    def _vocabulary(self) -> Any:
        if not self._free.alive:  # its memory is gone, and llama.cpp would read it all the same
            raise StageError("The runner is closed: load the file again.")
        return self._library.llama_model_get_vocab(self._model)

    def _compute(self, ids: NDArray[Any], pooled: bool, classes: int) -> NDArray[np.float32] | None:
        library, context = self._library, self._context_for(len(ids), pooled)
        if context is None:
            return None
        batch = library.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for n, token in enumerate(ids.tolist()):
                batch.token[n], batch.pos[n], batch.logits[n] = token, n, 1
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, 0
            if pooled:
                if library.llama_encode(context, batch) != 0:
                    return None
                found = library.llama_get_embeddings_seq(context, 0)
            else:
                library.llama_memory_clear(library.llama_get_memory(context), True)
                if library.llama_decode(context, batch) != 0:
                    return None
                found = library.llama_get_logits(context)
            if not found:
                return None
            shape = (1, classes) if pooled else (1, len(ids), classes)
            out: NDArray[np.float32] = np.ctypeslib.as_array(found, shape=shape).astype(np.float32)
            return out
        finally:
            library.llama_batch_free(batch)

    def _context_for(self, length: int, pooled: bool) -> Any:
        """A context with room for `length` tokens in one batch: the one there is, or a larger one in its place."""
        library, contexts = self._library, self._contexts
        if length > self._room:
            while contexts:
                library.llama_free(contexts.pop())
            parameters = library.llama_context_default_params()
            parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
            parameters.n_threads = parameters.n_threads_batch = self._threads
            parameters.embeddings = pooled
            if self._exact:
                parameters.type_k = parameters.type_v = library.GGML_TYPE_F32
                parameters.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
            if self._watch is not None:
                parameters.cb_eval = self._watch
            made = library.llama_init_from_model(self._model, parameters)
            contexts += [made] if made else []
            self._room = length if made else 0
        return contexts[0] if contexts else None


def load(path: Path, threads: int = 1) -> GgufRunner:
    """Open a file for execution on `threads` CPU threads, with its own signatures.

    Raises:
        MissingDependency: if llama-cpp-python is not installed.
        StageError: if the file is damaged or llama.cpp refuses it.
    """
    _library()  # so that a missing package is named first
    if parse(path).metadata.get("edgedistill.exact") is True:
        describe(path)
    return open_file(path, threads)


def open_file(
    path: Path, threads: int = 1, exact: bool = False, lengths: Sequence[int] | None = None, watch: Any = None
) -> GgufRunner:
    """Like `load`; `exact` keeps a decoder's keys and values in fp32, `lengths` replace the file's buckets.

    `watch` is a `ggml_backend_sched_eval_callback`, which llama.cpp calls before and after each operation.
    """
    library = _library()
    # llama.cpp aborts the process on some damaged files; what passes here it can refuse in words
    parsed = parse(path)
    signatures = _signatures(path, parsed, lengths)
    with _listening(library) as heard:
        parameters = library.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = library.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise StageError(f"llama.cpp cannot load {path}: {_reason(heard)}. Export it again.")
    return GgufRunner(model, signatures, threads, exact, watch)


def _signatures(path: Path, parsed: Parsed, lengths: Sequence[int] | None) -> dict[str, Signature]:
    metadata = parsed.metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(set(tokens)) != len(tokens):
        raise StageError(f"{path}: two tokens have the same text, on which llama.cpp ends the process.")
    table = parsed.tensors.get("token_embd.weight")
    if table is None:
        raise StageError(f"{path}: holds no token embeddings: it is not a language model.")
    classes = metadata.get("bert.classifier.output_labels")
    pooled = isinstance(classes, list)
    if metadata.get("general.architecture") == "bert" and not pooled:
        raise StageError(f"{path}: an encoder without a classifier; only exported students can be run.")
    buckets = metadata.get("edgedistill.buckets", np.array([-1])) if lengths is None else np.array(lengths)
    if not isinstance(buckets, np.ndarray):
        raise StageError(f"{path}: edgedistill.buckets is no array of lengths.")
    found = {}
    for n in (int(length) for length in buckets):
        name = "tokens" if n < 0 else f"length_{n}"
        inputs = (Port("input_ids", (1, n), "int32"), Port("attention_mask", (1, n), "int32"))
        out = (1, len(classes)) if isinstance(classes, list) else (1, n, table.shape[0])
        found[name] = Signature(name, inputs[: 1 + pooled], (Port("logits", out, "float32"),))
    return found


def _fits(signature: str, port: Port, given: NDArray[Any] | None) -> None:
    fits = given is not None and given.dtype == port.dtype and given.ndim == len(port.shape)
    if not fits or any(size not in (-1, seen) for size, seen in zip(port.shape, given.shape, strict=True)):  # type: ignore[union-attr]
        seen = "nothing" if given is None else f"{given.dtype}{list(given.shape)}"
        raise DataError(f"Signature {signature} takes {port.name} as {port.dtype}{list(port.shape)}, got {seen}.")


@functools.cache
def _library() -> Any:
    """llama.cpp's C functions.

    Raises:
        MissingDependency: if llama-cpp-python is not installed.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # the two latter: its shared library does not load
        raise MissingDependency(
            f"Running .gguf needs llama.cpp ({error}): pip install 'edgedistill[gguf]' (compiles for minutes)"
        ) from None
    with _listening(llama_cpp):
        llama_cpp.llama_backend_init()
    return llama_cpp


@contextlib.contextmanager
def _listening(library: Any) -> Iterator[list[str]]:
    """Collect the errors that llama.cpp logs, and keep the rest from the terminal."""
    heard: list[str] = []

    def hear(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            heard.append(text.decode("utf-8", "replace").strip())

    callback = library.llama_log_callback(hear)
    before, data = library.llama_log_callback(), ctypes.c_void_p()
    library.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    library.llama_log_set(callback, None)
    try:
        yield heard
    finally:
        library.llama_log_set(before, data)


def _reason(heard: Sequence[str]) -> str:
    """The first error: those after it say that something failed."""
    return heard[0].rstrip(".") if heard else "it gives no reason"


def _free(library: Any, model: Any, contexts: list[Any]) -> None:
    with _listening(library):
        while contexts:  # before the model that they compute
            library.llama_free(contexts.pop())
        library.llama_model_free(model)
