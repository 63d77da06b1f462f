"""Names to files, and every way a name can be wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgedistill import catalog
from edgedistill.errors import SpecError

PLUGIN_KINDS: tuple[catalog.PluginKind, ...] = ("exporters", "losses", "runners", "students", "tasks", "teachers")


def test_a_target_is_found_by_its_name() -> None:
    assert catalog.load_target("pixel8").title == "Google Pixel 8"


def test_every_shipped_profile_decodes() -> None:
    for name in catalog.profile_names():
        assert catalog.load_profile(name).name == name


def test_a_target_of_ones_own_is_a_path(tmp_path: Path) -> None:
    text = (catalog.data_folder("targets") / "rpi5.toml").read_text(encoding="utf-8")
    path = tmp_path / "my_board.toml"
    path.write_text(text.replace('name = "rpi5"', 'name = "another_name"'), encoding="utf-8")
    assert catalog.load_target(str(path)).name == "another_name"


def test_a_near_miss_is_met_with_the_right_name() -> None:
    with pytest.raises(SpecError, match=r"unknown target 'pixle8'; did you mean 'pixel8'\?.*rpi5.*\./mine\.toml"):
        catalog.load_target("pixle8")


@pytest.mark.parametrize("name", ["", ".", "..", "pixel8\0", "PIXEL8", "pixel8 ", "*", "[a-z]*", "~", "pixel8.TOML"])
def test_a_name_is_one_of_the_listing_and_nothing_else(name: str) -> None:
    with pytest.raises(SpecError, match="unknown target"):
        catalog.load_target(name)


@pytest.mark.parametrize("path", ["../targets/nothing.toml", "./nothing", "/", "nothing.toml", "a\\b", "~/nothing"])
def test_a_path_that_cannot_be_read_is_an_error_with_the_path(path: str) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        catalog.load_target(path)


def test_a_shipped_file_must_carry_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (catalog.data_folder("targets") / "rpi5.toml").read_text(encoding="utf-8")
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "rpi6.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(catalog, "data_folder", lambda kind: tmp_path / kind)
    with pytest.raises(SpecError, match=r"rpi6\.toml: name = 'rpi5' differs.*write name = 'rpi6'"):
        catalog.load_target("rpi6")


def test_the_shipped_folder_wins_over_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "edgedistill"
    monkeypatch.setattr(catalog, "_PACKAGE", package)
    assert catalog.data_folder("targets") == tmp_path / "targets"
    (package / "_data" / "targets").mkdir(parents=True)
    assert catalog.data_folder("targets") == package / "_data" / "targets"


@pytest.mark.parametrize("kind", PLUGIN_KINDS)
def test_private_files_are_not_plugins(kind: catalog.PluginKind) -> None:
    assert not [name for name in catalog.plugins(kind) if name.startswith("_")]


def test_a_plugin_may_be_a_file_or_a_folder() -> None:
    assert "bert" in catalog.plugins("students")
    assert "soft_kl" in catalog.plugins("losses")
    assert catalog.load_plugin("students", "bert").FORMATS[0] == "tflite"


@pytest.mark.parametrize("name", ["soft_lk", "", "..", "os", "__init__", "students.bert"])
def test_an_unknown_plugin_is_refused_before_an_import(name: str) -> None:
    with pytest.raises(SpecError, match=r"in losses.*soft_kl"):
        catalog.load_plugin("losses", name)
    with pytest.raises(SpecError, match=r"in losses.*soft_kl"):
        catalog.constants("losses", name)


def test_constants_are_the_literals_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "mine.py").write_text(
        "import torch_that_does_not_exist\n"
        "PARAMS: dict[str, float] = {'temperature': 2.0}\n"
        "A = B = (1, 'x')\n"
        "COMPUTED = PARAMS | {'y': 1}\n"
        "DECLARED: int\n"
        "PARAMS['late'] = 1\n"
        "def f():\n    INNER = 1\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path)
    found = catalog.constants("losses", "mine")
    assert found == {"PARAMS": {"temperature": 2.0}, "A": (1, "x"), "B": (1, "x")}


def test_constants_agree_with_the_imported_plugin() -> None:
    for name in catalog.plugins("losses"):
        assert catalog.constants("losses", name)["PARAMS"] == catalog.load_plugin("losses", name).PARAMS


def test_the_catalog_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from edgedistill import catalog; [catalog.load_target(name) for name in catalog.target_names()];"
        "[catalog.constants('losses', name) for name in catalog.plugins('losses')];"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
