"""Decoders that read a prompt and continue it, as a class each with `prompt` and `turn`. Heavy imports are lazy.

`prompt(count)` is a sample of about so many tokens. `turn(sample, count)` reads it, chooses `count` tokens behind the
first greedily, and tells `prompt` and `decoded`, numbers of tokens; `read_ns`, for the prompt; `first_ns`, until the
first token was known; and `decode_ns`, for the `decoded` ones. Where the runtime shows tokens, `made` has the last
turn's, the first one included.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

from .runtimes import JobError, Llama

WORDS = "the quick brown fox jumps over the lazy dog while seven more of them wait for rain at the old stone bridge. "


class LiteRTDecoder:
    """A decoder's .tflite: entry points `prefill_N`, which read N tokens, and `decode`, with keys and values as inputs
    and outputs.

    A timed call is the runtime's `Invoke` alone. The caller hands keys and values on between calls, which LiteRT-LM
    does by sharing memory; here they are copied, and that is not timed.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import ai_edge_litert
        import numpy as np
        from ai_edge_litert.interpreter import Interpreter

        self._np = np
        self.runtime = ("ai-edge-litert", str(getattr(ai_edge_litert, "__version__", "unknown")))
        self._interpreter = Interpreter(model_path=job["model"], num_threads=job["threads"])
        self._handle = self._interpreter._interpreter
        known = sorted(self._interpreter.get_signature_list())
        if "decode" not in known or not any(name.startswith("prefill") for name in known):
            raise JobError(f"it makes no text: it has {', '.join(known) or 'no signature'}, and not decode and prefill")
        self._calls = {name: self._entry(name) for name in known if name == "decode" or name.startswith("prefill")}
        self._sizes = {entry["size"]: name for name, entry in self._calls.items() if name != "decode"}
        self._empty = {
            name: np.zeros(item["shape"], item["dtype"])
            for name, item in self._calls["decode"]["inputs"].items()
            if name not in ("tokens", "input_pos")
        }
        self._slots = int(next(iter(self._empty.values())).shape[2])
        self._vocabulary = int(self._calls["decode"]["outputs"]["logits"]["shape"][-1])
        self._room = job["prompt_tokens"] + job["decode_tokens"]
        if self._room > self._slots:
            raise JobError(f"a text of {self._room} tokens, prompt and answer, where the file keeps {self._slots}")
        self._caches: dict[str, Any] = {}
        self._position = 0
        self.made: list[int] = []

    def _entry(self, name: str) -> dict[str, Any]:
        runner = self._interpreter.get_signature_runner(name)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        caches = {key for key in inputs if key.startswith("kv_cache_")}
        if set(inputs) - caches != {"tokens", "input_pos"} or not caches or not caches <= set(outputs):
            raise JobError(f"signature {name} has inputs {sorted(inputs)[:6]}: no decoder of a kind known here")
        self._handle.AllocateTensors(runner._subgraph_index)
        return {"inputs": inputs, "outputs": outputs, "subgraph": runner._subgraph_index,
                "size": int(inputs["tokens"]["shape"][1])}  # fmt: skip

    def _call(self, name: str, tokens: list[int], count: int) -> int:
        """Nanoseconds of one call that takes `count` tokens in; the rest are filling."""
        entry, np = self._calls[name], self._np
        given = {"tokens": np.array([tokens], np.int32),
                 "input_pos": np.arange(self._position, self._position + len(tokens), dtype=np.int32)}  # fmt: skip
        for key, value in {**given, **self._caches}.items():
            self._handle.SetTensor(int(entry["inputs"][key]["index"]), value, entry["subgraph"])
        start = perf_counter_ns()
        self._handle.Invoke(entry["subgraph"])
        spent = perf_counter_ns() - start
        get = self._handle.GetTensor
        self._caches = {key: get(int(entry["outputs"][key]["index"]), entry["subgraph"]) for key in self._caches}
        self._position += count
        return spent

    def _next(self) -> tuple[int, int]:
        """The most likely token after the last `decode`, and the nanoseconds that choosing took."""
        entry = self._calls["decode"]
        logits = self._handle.GetTensor(int(entry["outputs"]["logits"]["index"]), entry["subgraph"])
        start = perf_counter_ns()
        return int(logits.argmax()), perf_counter_ns() - start

    def prompt(self, count: int) -> dict[str, Any]:
        """Tokens from all over the vocabulary."""
        return {"input_ids": [n * 7919 % self._vocabulary for n in range(count)]}

    def turn(self, sample: dict[str, Any], count: int) -> dict[str, int]:
        """As the module says; the largest entry points that it fills read a prompt, `decode` its last token."""
        self._caches, self._position = dict(self._empty), 0
        *rest, last = sample["input_ids"]
        read_ns = 0
        while rest:
            size = max((n for n in self._sizes if n <= len(rest)), default=min(self._sizes))
            piece, rest = rest[:size], rest[size:]
            read_ns += self._call(self._sizes[size], [*piece, *[0] * (size - len(piece))], len(piece))
        read_ns += self._call("decode", [last], 1)
        token, chosen_ns = self._next()
        read_ns, decode_ns = read_ns + chosen_ns, 0
        self.made = [token]
        for _ in range(count):
            decode_ns += self._call("decode", [token], 1)
            token, chosen_ns = self._next()
            decode_ns += chosen_ns
            self.made.append(token)
        length = len(sample["input_ids"])
        return {"prompt": length, "decoded": count, "read_ns": read_ns, "first_ns": read_ns, "decode_ns": decode_ns}


class LiteRTLM:
    """A .litertlm bundle in LiteRT-LM on the CPU, as an app calls it: text in, text out, tokenizer included.

    How many tokens it read and made is what the runtime itself counted. Its first token comes out of the first step of
    decoding, so `first_ns` is the prompt and one step, as its own benchmark has it.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        from importlib.metadata import version

        import litert_lm

        litert_lm.set_min_log_severity(litert_lm.LogSeverity.SILENT)
        self._library = litert_lm
        self.runtime = ("litert-lm-api", version("litert-lm-api"))
        backend = litert_lm.Backend.CPU(thread_count=job["threads"])
        self._engine = litert_lm.Engine(job["model"], backend=backend, cache_dir=":nocache", enable_benchmark=True)
        self._greedy = litert_lm.SamplerConfig(top_k=1, temperature=0.0, seed=0)

    def prompt(self, count: int) -> dict[str, Any]:
        """Words that its tokenizer splits into about `count` tokens, the start token included."""
        start = self._engine.bos_token_id is not None
        wanted, text = max(1, count - start), WORDS
        while len(ids := self._engine.tokenize(text)) < wanted:
            text += WORDS
        return {"text": self._engine.detokenize(ids[:wanted])}

    def turn(self, sample: dict[str, Any], count: int) -> dict[str, int]:
        """As the module says; an answer that ends earlier counts as far as it goes."""
        session = self._engine.create_session(
            apply_prompt_template=False, sampler_config=self._greedy, max_output_tokens=count
        )
        try:
            start = perf_counter_ns()
            try:
                session.run_prefill([sample["text"]])
            except RuntimeError as error:  # its message does not say why
                raise RuntimeError(f"{error}: does the bundle keep a prompt this long and {count} tokens?") from error
            middle = perf_counter_ns()
            session.run_decode()
            decode_ns, read_ns = perf_counter_ns() - middle, middle - start
            told = session.get_benchmark_info()
        finally:
            session.close()
        decoded = int(told.last_decode_token_count)
        if not decoded:
            raise JobError("the model ends its answer at once, so no token is timed: choose another --prompt-tokens")
        first_ns = read_ns + decode_ns // decoded
        return {"prompt": int(told.last_prefill_token_count), "decoded": decoded,
                "read_ns": read_ns, "first_ns": first_ns, "decode_ns": decode_ns}  # fmt: skip


TEXTS = {"tflite": LiteRTDecoder, "gguf": Llama, "litertlm": LiteRTLM}
