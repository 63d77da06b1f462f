"""Core ML's protobuf message classes, without the 3 to 6 seconds that importing coremltools takes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from edgedistill.errors import MissingDependency

_ALIAS = "_edgedistill_coreml_proto"


def messages() -> Any:
    """The module `Model_pb2`; its class `Model` is the root message of a `.mlmodel` file.

    `import coremltools.proto` would first run `coremltools/__init__.py`, which imports its converters and torch. The
    generated modules need only protobuf and one another, so the folder is loaded as a package under a name of its own.
    protobuf registers a message by its full name and content, so a later `import coremltools` meets equal definitions.

    Raises:
        MissingDependency: if coremltools is not installed.
    """
    if "coremltools.proto" in sys.modules:
        return importlib.import_module("coremltools.proto.Model_pb2")
    if _ALIAS not in sys.modules:
        _load_alias()
    return importlib.import_module(f"{_ALIAS}.Model_pb2")


def _load_alias() -> None:
    found = importlib.util.find_spec("coremltools")
    folders = list(found.submodule_search_locations or []) if found else []
    folder = next((Path(f) / "proto" for f in folders if (Path(f) / "proto" / "Model_pb2.py").is_file()), None)
    if folder is None:
        raise MissingDependency("Reading a .mlpackage needs coremltools. Run: pip install 'edgedistill[coreml]'")
    spec = importlib.util.spec_from_file_location(
        _ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise MissingDependency(f"coremltools at {folder} has no message classes; reinstall coremltools.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_ALIAS] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[_ALIAS]
        raise MissingDependency(f"coremltools' message classes do not import ({error}); reinstall protobuf.") from None
