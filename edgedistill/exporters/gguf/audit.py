"""What a .gguf says about where it runs, without running it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edgedistill.errors import ForeignFile
from edgedistill.exporters.gguf.parsing import F32, Q4_0, Q8_0, Parsed, parse
from edgedistill.specs import Audit

TYPES = {F32: "F32", Q4_0: "Q4_0", Q8_0: "Q8_0"}
KNOWN = ("bert", "gemma3", "llama", "qwen2", "qwen3")


def audit(path: Path) -> Audit:
    """The runtime that loads the file, its tensors by type, and the risks they carry.

    A GGUF lists no operators: the runtime has the graph. `operators` counts what chooses its kernels, the types.

    Raises:
        ForeignFile: if the file is foreign or damaged.
    """
    file = parse(path)
    architecture = file.metadata.get("general.architecture")
    if architecture not in KNOWN:
        raise ForeignFile(f"{path}: a GGUF of architecture {str(architecture)[:40]!r} is none of this package.")
    counts = Counter(TYPES.get(tensor.kind, f"type {tensor.kind}") for tensor in file.tensors.values())
    needs = f"llama.cpp with the architecture {architecture!r}"
    if architecture == "bert":
        needs = "llama.cpp with classifiers on mean pooling (pull request 18330, 2026)"
    return Audit(
        runtime_min=needs, operators=dict(sorted(counts.items())), risks=tuple(_risks(file, str(architecture)))
    )


def _risks(file: Parsed, architecture: str) -> list[str]:
    found = []
    if any(tensor.kind != F32 for tensor in file.tensors.values()):
        found.append(
            "llama.cpp rounds what enters a quantized layer to 8 bits, one scale for 32 neighbours, which the student "
            "was not trained with; other backends than the CPU round otherwise"
        )
    if architecture == "bert":
        found.append("an older llama.cpp ignores bert.classifier.pooling_type and classifies the first token, silently")
        found.append("llama.cpp computes GELU by its tanh approximation in fp16, up to 5e-4 from the student's")
    if architecture == "gemma3":
        found.append("llama.cpp looks GELU up in a table of fp16 numbers")
    if architecture != "bert":
        found.append("llama.cpp keeps keys and values in fp16 unless told otherwise")
    if file.metadata.get("tokenizer.ggml.model") == "no_vocab":
        found.append("the file has no tokenizer: it takes and gives ids")
    return found
