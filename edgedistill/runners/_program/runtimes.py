"""What runs a file: one class per format, each with `inputs`, `feed`, `invoke` and `read`; what makes text has `turn`
and `prompt` as well, or instead (see `texts.py`). Heavy imports are lazy.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any


class JobError(Exception):
    """The job names something that the file does not have."""


class LiteRT:
    """One signature of a .tflite file, with tensors set and invoked directly.

    The public signature runner resizes, allocates and copies outputs on every call: 4 us, 15 % of a 30 us model. Here a
    timed call is the runtime's `Invoke` alone, as in its own benchmark tool. The handle is private to the package.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter

        self.runtime = ("ai-edge-litert", str(getattr(ai_edge_litert, "__version__", "unknown")))
        self._interpreter = Interpreter(model_path=job["model"], num_threads=job["threads"])
        known = sorted(self._interpreter.get_signature_list())
        if job["signature"] not in known:
            raise JobError(f"the file has no signature {job['signature']!r}; it has: {', '.join(known) or 'none'}")
        runner = self._interpreter.get_signature_runner(job["signature"])
        self._handle = self._interpreter._interpreter
        self._subgraph = runner._subgraph_index
        self._details = runner.get_input_details()
        self._outputs = runner.get_output_details()
        self.inputs = {name: (list(map(int, item["shape"])), item["dtype"]) for name, item in self._details.items()}
        self._handle.AllocateTensors(self._subgraph)

    def feed(self, sample: dict[str, Any]) -> None:
        """Copy one sample into the input tensors."""
        for name, value in sample.items():
            self._handle.SetTensor(int(self._details[name]["index"]), value, self._subgraph)

    def invoke(self) -> None:
        """One inference."""
        self._handle.Invoke(self._subgraph)

    def read(self) -> dict[str, Any]:
        """The outputs of the last inference."""
        indices = {name: int(item["index"]) for name, item in self._outputs.items()}
        return {name: self._handle.GetTensor(index, self._subgraph) for name, index in indices.items()}


class Onnx:
    """An .onnx file in ONNX Runtime as an app runs it: all graph optimizations, CPU."""

    def __init__(self, job: dict[str, Any]) -> None:
        import onnxruntime as ort

        self.runtime = ("onnxruntime", str(ort.__version__))
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        types = {"tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(float)": "float32"}
        self.inputs = {
            item.name: ([size if isinstance(size, int) else -1 for size in item.shape], types.get(item.type, item.type))
            for item in self._session.get_inputs()
        }
        self._names = [item.name for item in self._session.get_outputs()]
        self._sample: dict[str, Any] = {}
        self._found: list[Any] = []

    def feed(self, sample: dict[str, Any]) -> None:
        """Keep the sample for the next inference."""
        self._sample = sample

    def invoke(self) -> None:
        """One inference."""
        self._found = self._session.run(self._names, self._sample)

    def read(self) -> dict[str, Any]:
        """The outputs of the last inference."""
        return dict(zip(self._names, self._found, strict=True))


class Llama:
    """A .gguf file in llama.cpp: a classifier's logits, or the prefill of a decoder. Padding is not computed."""

    def __init__(self, job: dict[str, Any]) -> None:
        import ctypes

        import llama_cpp
        import numpy as np

        self._library, self._np = llama_cpp, np
        self.runtime = ("llama-cpp-python", str(llama_cpp.__version__))
        quiet = llama_cpp.llama_log_callback(lambda level, text, _: None)
        self._quiet = quiet  # llama.cpp keeps the pointer
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        wanted = llama_cpp.llama_model_default_params()
        wanted.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(job["model"].encode(), wanted)
        if not self._model:
            raise RuntimeError("llama.cpp cannot load the file")
        self._classes = int(llama_cpp.llama_model_n_cls_out(self._model))
        self._vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        self.pooled = "attention_mask" in job["inputs"]
        self.inputs = {name: ([1, -1], "int32") for name in (("input_ids", "attention_mask")[: 1 + self.pooled])}
        rows = job["inputs"].get("input_ids", [[0] * max(1, job["prompt_tokens"])])
        longest = max(np.asarray(row).size for row in rows) + job["decode_tokens"]
        known = int(llama_cpp.llama_model_n_ctx_train(self._model))
        if job["decode_tokens"] and not self.pooled and longest > known:
            raise JobError(f"a text of {longest} tokens, prompt and answer, where the file was made for {known}")
        room = llama_cpp.llama_context_default_params()
        room.n_ctx = room.n_batch = room.n_ubatch = longest
        room.n_threads = room.n_threads_batch = job["threads"]
        room.embeddings = self.pooled
        self._context = llama_cpp.llama_init_from_model(self._model, room)
        self._batch = llama_cpp.llama_batch_init(longest, 0, 1)
        self.made: list[int] = []

    def feed(self, sample: dict[str, Any]) -> None:
        """Fill the batch with the ids that the mask does not hide, and forget what was decoded."""
        ids = sample["input_ids"].reshape(-1)
        self._fill((ids[: int(sample["attention_mask"].sum())] if self.pooled else ids).tolist(), 0)
        if not self.pooled:
            self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def _fill(self, ids: list[int], start: int) -> None:
        if not ids or min(ids) < 0 or max(ids) >= self._vocabulary:
            raise JobError(f"input 'input_ids': a sample needs ids from 0 to {self._vocabulary - 1}")
        self._batch.n_tokens = len(ids)
        for n, token in enumerate(ids):
            self._batch.token[n], self._batch.pos[n] = token, start + n
            self._batch.logits[n] = 1 if self.pooled or n == len(ids) - 1 else 0
            self._batch.n_seq_id[n], self._batch.seq_id[n][0] = 1, 0

    def invoke(self) -> None:
        """One inference on all tokens of the batch."""
        call = self._library.llama_encode if self.pooled else self._library.llama_decode
        if call(self._context, self._batch) != 0:
            raise RuntimeError("llama.cpp failed on the batch")

    def read(self) -> dict[str, Any]:
        """The class logits, or those of the last token."""
        if self.pooled:
            found, size = self._library.llama_get_embeddings_seq(self._context, 0), self._classes
        else:
            found, size = self._library.llama_get_logits_ith(self._context, -1), self._vocabulary
        return {"logits": self._np.ctypeslib.as_array(found, shape=(size,)).copy()}

    def prompt(self, count: int) -> dict[str, Any]:
        """A prompt of `count` tokens; what they are does not matter to the speed."""
        ids = self._np.arange(count, dtype=self._np.int32) * 7919 % self._vocabulary
        return {"input_ids": ids[None]}

    def turn(self, sample: dict[str, Any], count: int) -> dict[str, int]:
        """Read the sample's tokens and choose `count` more behind the first, greedily; see `texts.py`."""
        self.feed(sample)
        length = int(self._batch.n_tokens)
        start = perf_counter_ns()
        self.invoke()
        token = int(self.read()["logits"].argmax())
        middle = perf_counter_ns()
        self.made = [token]
        for n in range(count):
            self._fill([token], length + n)
            self.invoke()
            token = int(self.read()["logits"].argmax())
            self.made.append(token)
        read_ns, decode_ns = middle - start, perf_counter_ns() - middle
        return {"prompt": length, "decoded": count, "read_ns": read_ns, "first_ns": read_ns, "decode_ns": decode_ns}


RUNTIMES = {"tflite": LiteRT, "onnx": Onnx, "gguf": Llama}
PACKAGES = {
    "tflite": ("numpy", "ai_edge_litert.interpreter"),
    "onnx": ("numpy", "onnxruntime"),
    "gguf": ("numpy", "llama_cpp"),
    "litertlm": ("litert_lm",),
}
