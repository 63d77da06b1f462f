"""Checks on a model folder that comes from outside: what is there, what is refused, and its hash."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgedistill.errors import TeacherError
from edgedistill.specs import TeacherSource

PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
CONVERT = (
    "Pickled weights can run code when they are opened, so they are refused. Convert them once where you trust them: "
    "`AutoModelForSequenceClassification.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True)`."
)
HEADER_LIMIT = 100_000_000  # bytes; the safetensors format's own limit


@dataclass(frozen=True)
class Located:
    """A teacher's files. `folder` holds config and tokenizer, `weights` is one safetensors or ONNX file."""

    source: TeacherSource
    folder: Path
    weights: Path
    sha256: str
    config: dict[str, object]

    @property
    def files_sha256(self) -> dict[str, str]:
        """Hashes of config, tokenizer and vocabulary: with the weights, everything that shapes the teacher."""
        names = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
        found = (self.folder / name for name in (*names, "vocab.json", "merges.txt", "spiece.model"))
        return {path.name: weights_hash(path, None) for path in found if path.is_file()}

    @property
    def is_classifier(self) -> bool:
        """True when the model has a head of its own that was trained on labels."""
        names = self.config.get("architectures") or []
        return isinstance(names, list) and any(str(n).endswith("ForSequenceClassification") for n in names)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classifier's label names in the order of its outputs; empty for another model.

        Raises:
            TeacherError: if the config numbers them with what is not a number.
        """
        # transformers leaves the two names it would give itself out of the file
        id2label = self.config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
        if not self.is_classifier:
            return ()
        if not isinstance(id2label, dict) or not all(key.isdecimal() for key in id2label):
            raise TeacherError(f"{self.folder / 'config.json'}: `id2label` must map output numbers to label names.")
        return tuple(str(id2label[key]) for key in sorted(id2label, key=int))

    @property
    def parameters(self) -> int | None:
        """Number of weights: from the file's header, or of a BERT from its config; None where neither says."""
        found = count_parameters(self.weights)
        return bert_parameters(self.config) if found is None else found


def bert_parameters(config: Mapping[str, object]) -> int | None:
    """Number of weights of a BERT encoder with pooler (Devlin et al. 2019) from its config.json; None for another."""
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "max_position_embeddings")
    sizes = [config.get(name) for name in names]
    if config.get("model_type") != "bert" or not all(isinstance(size, int) and size > 0 for size in sizes):
        return None
    width, layers, ffn, vocabulary, positions = (int(str(size)) for size in sizes)
    kinds = config.get("type_vocab_size", 2)
    tables = (vocabulary + positions + (kinds if isinstance(kinds, int) else 2) + 2) * width  # 2: the norm's
    layer = 4 * (width**2 + width) + 2 * width * ffn + ffn + width + 4 * width
    return tables + layers * layer + width**2 + width


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        TeacherError: if it is missing or is not a JSON object with a `model_type`.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise TeacherError(
            f"{path}: not found. A teacher folder holds config.json, model.safetensors and a tokenizer."
        ) from None
    except (ValueError, RecursionError) as error:
        raise TeacherError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise TeacherError(f"{path}: has no `model_type`, so the architecture is unknown.")
    return config


def find_weights(folder: Path) -> Path:
    """The folder's safetensors file.

    Raises:
        TeacherError: no weights, pickled weights only, or weights split over several files.
    """
    path = folder / "model.safetensors"
    if path.is_file():
        return path
    if (folder / "model.safetensors.index.json").is_file():
        raise TeacherError(
            f"{folder}: the weights are split over several files. Save them as one: "
            "`model.save_pretrained(NEW, max_shard_size='100GB')`."
        )
    pickled = sorted(item.name for pattern in PICKLED for item in folder.glob(pattern))
    if pickled:
        raise TeacherError(f"{folder}: only pickled weights ({', '.join(pickled)}). {CONVERT}")
    raise TeacherError(f"{folder}: no weights. Expected {path.name}.")


def weights_hash(path: Path, pinned: str | None) -> str:
    """The sha256 of the weights file.

    Raises:
        TeacherError: if it is not the pinned one.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if pinned and found != pinned:
        raise TeacherError(
            f"{path}: sha256 is {found}, but the profile pins {pinned}. "
            "The file is not the one that was tested: reinstall it, or change `sha256` if you trust it."
        )
    return found


def count_parameters(path: Path) -> int | None:
    """The number of values in a safetensors file, from its header; None for another format or a broken header."""
    if path.suffix != ".safetensors":
        return None
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if length > HEADER_LIMIT:
            return None
        try:
            header = json.loads(file.read(length))
            return sum(int(prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def locate_folder(source: TeacherSource, folder: Path) -> Located:
    """The teacher in `folder`, in Hugging Face format.

    Raises:
        TeacherError: if config or weights are missing, pickled or not the pinned ones.
    """
    config = read_config(folder)
    weights = find_weights(folder)
    return Located(source, folder, weights, weights_hash(weights, source.sha256), config)
