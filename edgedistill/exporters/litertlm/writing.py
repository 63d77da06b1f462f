"""A frozen decoder's .tflite to a bundle, by LiteRT-LM's own builder; the same bytes in every process."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edgedistill.errors import StageError
from edgedistill.exporters._quiet import imported
from edgedistill.exporters.litertlm.parsing import BLOCK, HEADER, HEADER_END, MODEL, sections
from edgedistill.exporters.litertlm.speech import MODELS, Speech
from edgedistill.quant.frozen import FrozenStudent

_PIECE = 2**20  # bytes that are hashed at a time


def toolkit() -> Any:
    """The module `litert_lm_builder`.

    Raises:
        MissingDependency: if it is not installed.
    """
    return imported("litert_lm_builder", "Export to LiteRT-LM needs litert-lm-builder", "'edgedistill[litertlm]'")


def metadata_of(frozen: FrozenStudent, speech: Speech) -> bytes:
    """The LlmMetadata message: start and end tokens, the longest text, the kind of network, the chat template.

    Raises:
        MissingDependency: if litert-lm-builder is not installed.
    """
    toolkit()
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, llm_model_type_pb2

    message = llm_metadata_pb2.LlmMetadata(max_num_tokens=int(frozen.config["max_length"]))
    if speech.start is not None:
        message.start_token.token_ids.ids.append(speech.start)
    for stop in speech.stops:
        message.stop_tokens.add().token_ids.ids.append(stop)
    kind = llm_model_type_pb2.LlmModelType()
    getattr(kind, MODELS[frozen.config["architecture"]]).SetInParent()
    message.llm_model_type.CopyFrom(kind)
    if speech.shipped_template is not None:
        message.jinja_prompt_template = speech.shipped_template
    found: bytes = message.SerializeToString(deterministic=True)
    return found


def write(frozen: FrozenStudent, speech: Speech, model: Path, out: Path) -> None:
    """Put the .tflite `model` and what is said about texts into `out`.

    Raises:
        MissingDependency: if litert-lm-builder is not installed.
        StageError: if it refuses a part.
    """
    tools = toolkit()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "metadata.pb").write_bytes(metadata_of(frozen, speech))
        (folder / "tokenizer.json").write_bytes(speech.tokenizer_bytes)
        try:
            builder = tools.LitertLmFileBuilder()
            builder.add_llm_metadata(str(folder / "metadata.pb"))
            builder.add_hf_tokenizer(str(folder / "tokenizer.json"))
            builder.add_tflite_model(str(model), tools.TfLiteModelType.PREFILL_DECODE)
            with out.open("w+b") as file:
                builder.build(file)
                _seal(file)
        except (ValueError, AssertionError, OSError) as error:
            raise StageError(f"litert-lm-builder cannot make the bundle: {error}.") from error


def header_of(file: BinaryIO, places: Mapping[int, tuple[int, int]]) -> bytes:
    """What a bundle has between byte `HEADER_END` and its first section, as it follows from the sections of `file`,
    whose hash is in it.

    Raises:
        MissingDependency: if litert-lm-builder is not installed.
    """
    import flatbuffers  # type: ignore[import-untyped]

    tools = toolkit()
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    digest = hashlib.sha256()
    for begin, stop in sorted(places.values()):
        file.seek(begin)
        for start in range(begin, stop, _PIECE):
            digest.update(file.read(min(_PIECE, stop - start)))

    def entry(key: str, value: str) -> Any:
        return tools.Metadata(key, value, tools.DType.STRING).to_key_value_pair()

    about = [entry("Authors", "edgedistill"), entry("uuid", str(uuid.UUID(bytes=digest.digest()[:16])))]
    kinds = {MODEL: [entry("model_type", tools.TfLiteModelType.PREFILL_DECODE.value)]}
    objects = [
        schema.SectionObjectT(items=kinds.get(kind, []), dataType=kind, beginOffset=begin, endOffset=stop)
        for kind, (begin, stop) in places.items()
    ]
    header = schema.LiteRTLMMetaDataT(schema.SystemMetadataT(about), schema.SectionMetadataT(objects))
    packer = flatbuffers.Builder(BLOCK)
    packer.Finish(header.Pack(packer))
    found = bytes(packer.Output())
    end = (HEADER + len(found)).to_bytes(HEADER - HEADER_END, "little")
    return end + found.ljust(min(begin for begin, _ in places.values()) - HEADER, b"\0")


def _seal(file: BinaryIO) -> None:
    """Replace the header, which has the time and a random id in it, by one that follows from the sections."""
    size = file.seek(0, 2)
    file.seek(HEADER_END)
    end = int.from_bytes(file.read(HEADER - HEADER_END), "little")
    header = header_of(file, sections(file.read(end - HEADER), end, size))
    file.seek(HEADER_END)
    file.write(header)
