"""Damaged and foreign packages and weight files: a clear refusal, soon, and no memory beyond what they deserve."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from coreml_packages import MODEL, WEIGHTS, edited, refused, refused_unread, stored

from edgedistill.coreml import Evaluator, load
from edgedistill.coreml.proto import messages
from edgedistill.errors import VerificationError

pytestmark = pytest.mark.usefixtures("in_time")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.9, 0.999])
def test_a_truncated_model(package: Path, share: float) -> None:
    data = (package / MODEL).read_bytes()
    (package / MODEL).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VerificationError):
        load(package)


@pytest.mark.parametrize("size", [0, 63, 64, 100, 200])
def test_truncated_weights(package: Path, size: int) -> None:
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:size])
    refused_unread(package, "the file ends at|its data ends at")


def test_weights_cut_off_after_opening(package: Path) -> None:
    program = load(package)
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:200])
    with pytest.raises(VerificationError, match="cut off"):
        Evaluator(program, "fp32")


def test_missing_weights(package: Path) -> None:
    (package / WEIGHTS).unlink()
    refused(package, "has no file")


def test_a_version_of_weights_from_the_future(package: Path) -> None:
    data = bytearray((package / WEIGHTS).read_bytes())
    data[4] = 3
    (package / WEIGHTS).write_bytes(data)
    refused(package, "not a Core ML weight file of version 2")


@pytest.mark.parametrize("make", ["nothing", "file", "folder", "no_json", "deep", "list", "no_root", "number"])
def test_not_a_package(package: Path, make: str) -> None:
    manifest = package / "Manifest.json"
    match make:
        case "nothing":
            shutil.rmtree(package)
        case "file":
            package = package / MODEL
        case "folder":
            package = package / "Data"
        case "no_json":
            manifest.write_bytes(b"\xff\xfe not json")
        case "deep":
            manifest.write_text("[" * 200_000)
        case "list":
            manifest.write_text("[1, 2]")
        case "no_root":
            manifest.write_text('{"itemInfoEntries": {}, "rootModelIdentifier": "1"}')
        case "number":
            manifest.write_text('{"itemInfoEntries": {"1": {"path": 7}}, "rootModelIdentifier": "1"}')
    refused(package, "not a .mlpackage|has no file|not the manifest|not text")


@pytest.mark.parametrize("place", ["../../outside.mlmodel", "/etc/hostname", "a\0b", "x" * 5000])
def test_a_manifest_that_points_elsewhere(package: Path, place: str) -> None:
    shutil.copy(package / MODEL, package.parent / "outside.mlmodel")
    content = json.loads((package / "Manifest.json").read_text())
    content["itemInfoEntries"][content["rootModelIdentifier"]]["path"] = place
    (package / "Manifest.json").write_text(json.dumps(content))
    refused(package, "outside the package|cannot be opened|has no file")


@pytest.mark.parametrize("inner", [MODEL, WEIGHTS, Path("Manifest.json"), Path("Data")])
def test_a_link_that_leads_out_of_the_package(package: Path, inner: Path) -> None:
    outside = package.parent / "outside"
    shutil.move(package / inner, outside)
    (package / inner).symlink_to(outside)
    refused(package, "outside the package")


def test_a_link_to_itself(package: Path) -> None:
    (package / WEIGHTS).unlink()
    (package / WEIGHTS).symlink_to(WEIGHTS.name)
    refused(package, "cannot be opened|has no file")


def test_a_pipe_that_nobody_writes_to(package: Path) -> None:
    (package / WEIGHTS).unlink()
    os.mkfifo(package / WEIGHTS)
    refused(package, "has no file")


@pytest.mark.parametrize(
    "name", ["@model_path/../../../outside.bin", "/etc/hostname", "weights/weight.bin", "", "@model_path/weights"]
)
def test_weights_named_outside_the_package(package: Path, name: str) -> None:
    shutil.copy(package / WEIGHTS, package.parent / "outside.bin")

    def change(spec: Any) -> None:
        stored(spec).blobFileValue.fileName = name

    refused(edited(package, change), "only a file of the package|has no file")


@pytest.mark.parametrize(
    ("at", "pattern", "value", "match"),
    [
        (0, "<I", 0xDEADBEE0, "no record is there"),
        (4, "<I", 1, "holds fp16; the model says fp32"),
        (4, "<I", 99, "holds 99; the model says fp32"),
        (8, "<Q", 4, "take another number"),
        (8, "<Q", 2**63, "take another number"),
        (16, "<Q", 2**62, "the file ends at"),
        (16, "<Q", 2**64 - 64, "the file ends at"),
    ],
)
def test_a_record_that_lies(package: Path, at: int, pattern: str, value: int, match: str) -> None:
    spec = messages().Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    data = bytearray((package / WEIGHTS).read_bytes())
    struct.pack_into(pattern, data, stored(spec).blobFileValue.offset + at, value)
    (package / WEIGHTS).write_bytes(data)
    refused_unread(package, match)


@pytest.mark.parametrize("offset", [1, 128, 2**20, 2**63, 2**64 - 1])
def test_an_offset_where_no_record_is(package: Path, offset: int) -> None:
    def change(spec: Any) -> None:
        stored(spec).blobFileValue.offset = offset

    refused_unread(edited(package, change), "no record is there|the file ends at")
