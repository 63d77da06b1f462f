"""Names to files: the folder is the registry, and the file name is the name that users write."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import platformdirs
from pydantic import Field

from edgedistill.errors import SpecError, did_you_mean
from edgedistill.specs import Profile, Spec, Target

FileKind = Literal["targets", "profiles"]
PluginKind = Literal["exporters", "losses", "runners", "students", "tasks", "teachers"]
SpecT = TypeVar("SpecT", Target, Profile)
CONFIG = "EDGEDISTILL_CONFIG"  # the variable that names the user's own file, in place of the usual one


class Config(Spec):
    """What a user says once about this machine; the file may be missing."""

    adb: str = Field(default="", description="path of the adb program")


_PACKAGE = Path(__file__).parent


def data_folder(kind: FileKind) -> Path:
    """Where shipped TOML files are: inside an installed package, else at the top of the checkout."""
    shipped = _PACKAGE / "_data" / kind
    return shipped if shipped.is_dir() else _PACKAGE.parent / kind


def target_names() -> list[str]:
    """Every device that `--target` knows by name, sorted."""
    return _file_names("targets")


def profile_names() -> list[str]:
    """Every build that `--profile` knows by name, sorted."""
    return _file_names("profiles")


def config() -> Config:
    """The user's config.toml: in the folder for settings (on Linux ~/.config/edgedistill), or `$EDGEDISTILL_CONFIG`.

    Raises:
        SpecError: it is damaged, has an unknown key, or the variable names a file that is not there.
    """
    named = os.environ.get(CONFIG)
    path = Path(named) if named else platformdirs.user_config_path("edgedistill") / "config.toml"
    return Config.read_toml(path) if named or path.exists() else Config()


def load_target(name_or_path: str) -> Target:
    """A device by name (`pixel8`), or the user's own file (`./my_board.toml`).

    Raises:
        SpecError: if the name is unknown or the file is wrong.
    """
    return _load("targets", Target, name_or_path)


def load_profile(name_or_path: str) -> Profile:
    """A build by name (`default`), or the user's own file (`./my_build.toml`).

    Raises:
        SpecError: if the name is unknown or the file is wrong.
    """
    return _load("profiles", Profile, name_or_path)


def plugins(kind: PluginKind) -> list[str]:
    """The plug-ins of a folder, sorted: each module or package in it whose name does not start with `_`."""
    found = {path.stem for path in (_PACKAGE / kind).glob("*.py")}
    found |= {path.parent.name for path in (_PACKAGE / kind).glob("*/__init__.py")}
    return sorted(name for name in found if not name.startswith("_"))


def load_plugin(kind: PluginKind, name: str) -> ModuleType:
    """Import one plug-in.

    Raises:
        SpecError: if the folder holds no such plug-in.
    """
    _plugin_file(kind, name)
    return importlib.import_module(f"edgedistill.{kind}.{name}")


def constants(kind: PluginKind, name: str) -> dict[str, Any]:
    """The literal constants at the top level of a plug-in, read without importing it.

    So a plan can check `PARAMS` of a loss or `HOLDS` of an exporter before torch is loaded. A value that is computed is
    left out.

    Raises:
        SpecError: if the folder holds no such plug-in.
    """
    return dict(_literals(_plugin_file(kind, name)))


@cache
def _literals(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in ast.parse(file.read_text(encoding="utf-8"), filename=str(file)).body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        with contextlib.suppress(ValueError):
            literal = ast.literal_eval(value)
            found |= {target.id: literal for target in targets if isinstance(target, ast.Name)}
    return found


def _file_names(kind: FileKind) -> list[str]:
    return sorted(path.stem for path in data_folder(kind).glob("*.toml"))


def _load(kind: FileKind, spec: type[SpecT], name_or_path: str) -> SpecT:
    if name_or_path.endswith(".toml") or "/" in name_or_path or "\\" in name_or_path:
        return spec.read_toml(Path(name_or_path))
    names = _file_names(kind)
    if name_or_path not in names:  # compared with the listing, so no name can lead out of the folder
        raise SpecError(
            f"unknown {kind.removesuffix('s')} {name_or_path!r}{did_you_mean(name_or_path, names)}"
            " A file of your own is given by its path, such as ./mine.toml."
        )
    path = data_folder(kind) / f"{name_or_path}.toml"
    value = spec.read_toml(path)
    if value.name != name_or_path:
        raise SpecError(f"{path}: name = {value.name!r} differs from the file's name; write name = {name_or_path!r}.")
    return value


def _plugin_file(kind: PluginKind, name: str) -> Path:
    return _find(_PACKAGE, kind, name)


@cache
def _find(package: Path, kind: PluginKind, name: str) -> Path:
    names = plugins(kind)
    if name not in names:
        raise SpecError(f"unknown name {name!r} in {kind}{did_you_mean(name, names)}")
    module = package / kind / f"{name}.py"
    return module if module.is_file() else package / kind / name / "__init__.py"
