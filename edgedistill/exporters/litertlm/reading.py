"""Read a bundle back from its own bytes, and hold it against a student."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgedistill.errors import ForeignFile, StageError, VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters.litertlm.parsing import BLOCK, Bundle, parse
from edgedistill.exporters.litertlm.soundness import check_header, sound
from edgedistill.exporters.litertlm.speech import speech_of
from edgedistill.exporters.litertlm.writing import metadata_of
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.specs import Audit

CACHE = "DYNAMIC_UPDATE_SLICE"  # how a decoder's .tflite keeps keys and values (`tflite.decoding.WriteSlots`)


@contextlib.contextmanager
def model_of(path: Path, bundle: Bundle) -> Iterator[Path]:
    """The .tflite of a bundle, in a file of its own for as long as the context lasts.

    Raises:
        StageError, VerificationError: instead of one that names the copy, one that names the bundle.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.tflite"
        begin, end = bundle.model
        with path.open("rb") as source, copy.open("wb") as target:
            source.seek(begin)
            shutil.copyfileobj(source, target, BLOCK)
            target.truncate(end - begin)
        try:
            yield copy
        except StageError as error:
            raise type(error)(str(error).replace(str(copy), f"{path}, the model in it")) from None


def read_back(path: Path) -> dict[str, QuantizedTensor]:
    """Codes and scales of every weight, by name.

    Raises:
        VerificationError: if the file is no bundle of this package, or damaged, or its model is not one of ours.
    """
    with model_of(path, parse(path)) as model:
        return tflite.read_back(model)


def verify(frozen: FrozenStudent, path: Path) -> None:
    """Check that the bundle holds exactly the frozen student: codes, scales, float tensors, tokenizer, what it says.

    Raises:
        VerificationError: naming what differs.
        MissingDependency: if litert-lm-builder, whose message classes are needed, is not installed.
        StageError: if the student can have no bundle.
    """
    bundle, speech = parse(path), speech_of(frozen)
    with model_of(path, bundle) as model:
        tflite.verify(frozen, model)
    check_header(path, bundle)
    if bundle.tokenizer != speech.tokenizer_bytes:
        raise VerificationError(f"{path}: its tokenizer is not the student's.")
    if bundle.metadata != metadata_of(frozen, speech):
        raise VerificationError(
            f"{path}: what it says about start and end tokens, the longest text or the chat template is not the "
            "student's."
        )


def audit(path: Path) -> Audit:
    """The oldest runtime that loads the model inside, its operators, and the risks they carry.

    Raises:
        ForeignFile: if the file is no bundle of this package, or damaged.
        VerificationError: if the model in it is none of ours.
        MissingDependency: if litert-lm-builder, whose message classes are needed, is not installed.
    """
    with model_of(path, sound(path)) as model:
        found = tflite.audit(model)
    if CACHE not in found.operators:
        raise ForeignFile(f"{path}: the model in it is no decoder: it has no {CACHE}. Export it again.")
    untried = "LiteRT-LM's CPU backend is the one that such bundles are tried with; they have no attention mask input"
    return found.model_copy(
        update={"runtime_min": f"LiteRT-LM with {found.runtime_min}", "risks": (*found.risks, untried)}
    )


def first_divergence(frozen: FrozenStudent, path: Path, feeds: Mapping[str, NDArray[Any]]) -> str | None:
    """Which layer of the model inside first differs from the student's; see `exporters.Exporter`.

    Raises:
        VerificationError: if the file is no bundle of this package, or damaged.
        MissingDependency, StageError: as `tflite.first_divergence`.
    """
    with model_of(path, sound(path)) as model:
        return tflite.first_divergence(frozen, model, feeds)


def largest_value(path: Path, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, str]:
    """The largest float that the model inside computes for these inputs, and where.

    Raises:
        VerificationError: if the file is no bundle of this package, or damaged.
        MissingDependency, StageError: as `tflite.largest_value`.
    """
    with model_of(path, sound(path)) as model:
        return tflite.largest_value(model, feeds)
