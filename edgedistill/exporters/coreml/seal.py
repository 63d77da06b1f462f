"""A raw package of coremltools to the one that ships: described, with a card, and the same bytes in every process.

coremltools draws identifiers at random, notes the date, and leaves maps in the order of a hash. Here identifiers follow
from names, the date and debug files are gone, and protobuf writes maps sorted.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from edgedistill.coreml.proto import messages
from edgedistill.exporters.coreml.card import KEY, Card
from edgedistill.store import version_of
from edgedistill.students import Port, Signature

AUTHOR = "edgedistill"
_FOLDER, _MODEL, _WEIGHTS = "com.apple.CoreML", "model.mlmodel", "weights"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "edgedistill.mlpackage")
_DATE = "com.github.apple.coremltools.conversion_date"
_MEANINGS = {
    "input_ids": "Token ids of one text, padded with the id of [PAD]",
    "attention_mask": "1 at tokens, 0 at padding",
    "pixels": "One image, normalised, rows of pixels, channels last",
    "position": "Number of tokens that the states hold already",
    "logits": "Class scores; softmax makes probabilities of them",
}


def seal(raw: Path, card: Card, signature: Signature, out: Path) -> None:
    """Write the package `out` from the one that coremltools wrote; `out` must not exist."""
    source, place = raw / "Data" / _FOLDER, out / "Data" / _FOLDER
    model = messages().Model()
    model.ParseFromString((source / _MODEL).read_bytes())
    _describe(model, card, signature)
    place.mkdir(parents=True)
    (place / _MODEL).write_bytes(model.SerializeToString(deterministic=True))
    if (source / _WEIGHTS).is_dir():
        shutil.copytree(source / _WEIGHTS, place / _WEIGHTS)
    manifest = json.dumps(_manifest(place), indent=4, sort_keys=True)
    (out / "Manifest.json").write_text(f"{manifest}\n", encoding="utf-8")


def _describe(model: Any, card: Card, signature: Signature) -> None:
    about = model.description.metadata
    about.author = AUTHOR
    about.shortDescription = f"A {card.family} student, {card.scheme.label}. Exported by edgedistill."
    about.versionString = version_of("edgedistill")
    about.license = "See NOTICE.md of the bundle that this model came in."
    about.userDefined.pop(_DATE, None)
    about.userDefined[KEY] = card.text
    told = {port.name: _meaning(port) for port in signature.inputs + signature.outputs}
    for feature in (*model.description.input, *model.description.output):
        feature.shortDescription = told[feature.name]
    for state in model.description.state:
        kind, _, layer = state.name.rpartition("_")
        state.shortDescription = f"The {kind} of each token so far, in layer {layer}"


def _meaning(port: Port) -> str:
    sizes = ", ".join("any" if size < 0 else str(size) for size in port.shape)
    return f"{_MEANINGS.get(port.name, port.name)}: {port.dtype} [{sizes}]"


def _manifest(place: Path) -> dict[str, Any]:
    """The table of contents as Apple's own tools write it, with identifiers made of the names."""
    told = {_MODEL: "CoreML Model Specification", _WEIGHTS: "CoreML Model Weights"}
    entries = {
        str(uuid.uuid5(_NAMESPACE, name)): {
            "author": "com.apple.CoreML",
            "description": text,
            "name": name,
            "path": f"{_FOLDER}/{name}",
        }
        for name, text in told.items()
        if (place / name).exists()
    }
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": str(uuid.uuid5(_NAMESPACE, _MODEL)),
    }
