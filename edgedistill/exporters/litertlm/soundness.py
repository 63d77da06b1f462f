"""Whether all of a bundle is sound, asked before LiteRT-LM is given it.

LiteRT-LM believes a header and a tokenizer: what is wrong there ends the process that loads it, with no word.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from edgedistill.data.tokenizer import parse_tokenizer
from edgedistill.errors import ForeignFile
from edgedistill.exporters.litertlm.parsing import Bundle, parse
from edgedistill.exporters.litertlm.writing import header_of, toolkit


def sound(path: Path) -> Bundle:
    """Read everything but the model, whose bytes are hashed: header, tokenizer and metadata are as a bundle has them.

    Raises:
        ForeignFile: if the file is no bundle of this package, or damaged.
        MissingDependency: if litert-lm-builder, whose message classes are needed, is not installed.
    """
    bundle = parse(path)
    check_header(path, bundle)
    try:
        _check_metadata(bundle.metadata, _words(bundle.tokenizer))
    except ValueError as error:
        raise ForeignFile(f"{path}: not a bundle of this package, or damaged: {error}. Export it again.") from None
    return bundle


def check_header(path: Path, bundle: Bundle) -> None:
    """The header is the one that goes with the sections, byte for byte: it has their hash.

    Raises:
        ForeignFile: if it is not.
        MissingDependency: if litert-lm-builder is not installed.
    """
    with path.open("rb") as file:
        expected = header_of(file, bundle.places)
    if bundle.header != expected:
        raise ForeignFile(
            f"{path}: not a bundle of this package, or damaged: its header, which has a hash of all that follows, is "
            "not the one of its content. Export it again."
        )


def _words(data: bytes) -> Any:
    """The tokenizer; raises ValueError, saying what is wrong."""
    try:
        return parse_tokenizer(data.decode("utf-8"))
    except ValueError as error:  # text that is not UTF-8 is one too
        raise ValueError(f"a tokenizer that cannot be read ({error})") from None


def _check_metadata(data: bytes, words: Any) -> None:
    """Raises ValueError, saying what is wrong."""
    toolkit()
    from google.protobuf.message import DecodeError
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    message: Any = llm_metadata_pb2.LlmMetadata()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"metadata that cannot be read ({error})") from None
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != data:
        raise ValueError("metadata in another form than this package writes")
    ends = [list(stop.token_ids.ids) for stop in message.stop_tokens]
    if message.max_num_tokens < 1 or not ends or not message.HasField("llm_model_type"):
        raise ValueError("metadata without the longest text, a token that ends an answer, or the kind of network")
    for token in (*itertools.chain(*ends), *message.start_token.token_ids.ids):
        if words.id_to_token(token) is None:
            raise ValueError(f"metadata that names a token {token}, which the tokenizer does not have")
