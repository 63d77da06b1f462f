"""Bytes of a file before it exists, from the shapes of the student's tensors.

The numbers of a student are counted to the byte (`numbers.py`); the graph around them was measured (`graphs.py`). For a
search, `Sizer` cuts a file into pieces whose bytes are counted once: the tensors outside of layers, and one layer.

>>> sizer = Sizer("tflite", scheme, buckets, config)
>>> outside, layer = sizer.piece(tensors_outside), sizer.piece(tensors_of_layer_0)
>>> sizer.total(outside, [(layer, 12)])
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan.size import bundle
from edgedistill.plan.size.graphs import formats
from edgedistill.plan.size.sizer import COUNTED_AS, Piece, Sizer, Stack, scheme_text
from edgedistill.specs import QuantScheme, SizeEstimate, Spec
from edgedistill.students import StoredTensor

__all__ = [
    "COUNTED_AS",
    "Piece",
    "Sizer",
    "Stack",
    "file_size",
    "graph_bytes",
    "largest",
    "said_bytes",
    "scheme_text",
    "split",
    "tflite_size",
]

# A tokenizer's pieces in a GGUF, where none was given: 20 bytes each for WordPiece, 36 for the BPE of SmolLM2 with its
# merges.
PIECE_BYTES = {"bert": 20}
BPE_PIECE_BYTES = 36


def split(tensors: Sequence[StoredTensor]) -> tuple[list[StoredTensor], list[list[StoredTensor]]]:
    """The tensors outside of layers, and those of each layer, numbered as they are."""
    outside: list[StoredTensor] = []
    layers: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        parts = tensor.name.split(".", 2)
        if len(parts) > 1 and parts[1].isdigit():
            layers.setdefault(parts[1], []).append(tensor)
        else:
            outside.append(tensor)
    return outside, list(layers.values())


def file_size(
    format_name: str,
    tensors: Sequence[StoredTensor],
    scheme: QuantScheme,
    buckets: Sequence[int],
    config: Spec,
    *,
    tokenizer_bytes: int | None = None,
    labels: Sequence[str] | None = None,
) -> SizeEstimate:
    """The size of one file.

    A GGUF also holds the student's `labels` and its tokenizer; `tokenizer_bytes` is what the latter adds to the
    header, 0 if there is none. Of a LiteRT-LM bundle it is `bundle.tokenizer_bytes`. What is not given is told from
    the shapes.

    Raises:
        SpecError: for an unknown format.
    """
    if format_name not in (*formats(), "litertlm"):
        catalog.constants("exporters", format_name)  # which refuses a name that is none
        raise SpecError(f"format {format_name!r} has no sizes in plan/size, so its files cannot be planned.")
    sizer = Sizer(format_name, scheme, buckets, config)
    about = said_bytes(format_name, tensors, sizer.file.buckets, config, tokenizer_bytes, labels)
    return sizer.estimate(sizer.piece(tensors), about=about)


def graph_bytes(
    format_name: str, scheme: QuantScheme, tensors: Sequence[StoredTensor], buckets: Sequence[int], config: Spec
) -> tuple[float, int]:
    """Bytes of a file that depend on more than the shapes of the student's tensors, as on the number of its heads.

    Those of each of its combinations of parts, once, and of the tensors that the graph has beside the weights.

    Raises:
        SpecError: if no such file was measured.
    """
    return Sizer(format_name, scheme, buckets, config).graph_of({tensor.parts for tensor in tensors if tensor.parts})


def said_bytes(
    format_name: str,
    tensors: Sequence[StoredTensor],
    buckets: Sequence[int],
    config: Spec,
    tokenizer_bytes: int | None = None,
    labels: Sequence[str] | None = None,
) -> int:
    """Bytes of what a file says about the student beside its tensors."""
    if format_name == "litertlm":
        return bundle.bytes_around(tensors[0].shape[0], tokenizer_bytes)
    return student_text(tensors, buckets, config, tokenizer_bytes, labels) if format_name == "gguf" else 0


def student_text(
    tensors: Sequence[StoredTensor],
    buckets: Sequence[int],
    config: Spec,
    tokenizer_bytes: int | None = None,
    labels: Sequence[str] | None = None,
) -> int:
    """Bytes of what a GGUF says about a student: its sizes, buckets, labels and tokenizer."""
    rows, classes = tensors[0].shape[0], 0
    head = next((tensor for tensor in tensors if tensor.kind == "head"), None)
    encoder = "bert" in tensors[0].parts
    if encoder and head is not None:
        classes = head.shape[0]
    total = 4 * len(buckets)
    total += len(json.dumps(config.model_dump(mode="json"), sort_keys=True))
    total += sum(8 + len(label.encode()) for label in (labels or [str(n) for n in range(classes)]))
    if tokenizer_bytes is None:
        tokenizer_bytes = rows * (PIECE_BYTES["bert"] if encoder else BPE_PIECE_BYTES)
    return total + tokenizer_bytes


def tflite_size(
    tensors: Sequence[StoredTensor], scheme: QuantScheme, buckets: Sequence[int], config: Spec
) -> SizeEstimate:
    """Size of the .tflite with one signature for each bucket."""
    return file_size("tflite", tensors, scheme, buckets, config)


def largest(
    names: Sequence[str], tensors: Sequence[StoredTensor], scheme: QuantScheme, buckets: Sequence[int], config: Spec
) -> SizeEstimate:
    """The size of the largest of the files that will be written: each of them has to meet the budget.

    Raises:
        SpecError: for an unknown format.
    """
    sizes = [file_size(name, tensors, scheme, buckets, config) for name in names]
    return max(sizes, key=lambda size: size.total_mb)
