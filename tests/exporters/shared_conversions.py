"""Conversions of equal graphs, done once: what converters answer depends on few of a scheme's choices.

litert-torch and torch's ONNX exporter take most of the time of an export, and no codes go through the former where
tensors are opened, nor is any graph of the latter made of codes. Everything else of an export is done for each file,
its proofs included. `test_contract_schemes.py` shows that such files are, byte for byte, those of exports that share
nothing.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._export.utils as torch_export
from torch import nn

from edgedistill.exporters import onnx, tflite
from edgedistill.exporters._entry import Entry
from edgedistill.exporters.onnx.graph import _names
from edgedistill.exporters.onnx.layers import lower
from edgedistill.exporters.tflite.opening import opened_names, opens
from edgedistill.quant import FrozenStudent
from edgedistill.students import Signature

# Where torch's exporter has the name of what lists all operators that it may take apart.
LISTING = ("torch._export.utils", "torch.export.decomp_utils", "torch.export.exported_program")


def list_operators_once(patch: pytest.MonkeyPatch) -> None:
    """torch looks at all 3 000 operators four times for each entry point of a conversion: an eighth of its time."""
    for module in LISTING:
        patch.setattr(f"{module}._collect_all_valid_cia_ops", lambda: set(_listed(len(_names_of_all()))))


_names_of_all = torch._C._dispatch_get_all_op_names
_list = torch_export._collect_all_valid_cia_ops


@functools.cache
def _listed(registered: int) -> frozenset[Any]:
    """Anew when libraries have added operators."""
    return frozenset(_list())


class Shared:
    """The conversions of one run of tests, as files of a folder. `hits`: how often one was there already."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hits = folder, 0
        self._tflite, self._onnx = tflite.convert, onnx.convert
        self._patch: pytest.MonkeyPatch | None = None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Let the exporters convert through this."""
        patch.setattr(tflite, "convert", self.to_tflite)
        patch.setattr(onnx, "convert", self.to_onnx)
        self._patch = patch

    def remove(self, patch: pytest.MonkeyPatch) -> None:
        """Let the exporters convert everything themselves again."""
        patch.setattr(tflite, "convert", self._tflite)
        patch.setattr(onnx, "convert", self._onnx)
        for module in LISTING:
            patch.setattr(f"{module}._collect_all_valid_cia_ops", _list)

    def to_tflite(self, frozen: FrozenStudent, signatures: Sequence[Signature], given: Mapping[str, Any]) -> bytearray:
        """As `tflite.graph.convert`. The key is all that the converter sees."""
        floats = [(name, values.tobytes()) for name, values in sorted(frozen.floats.items())]
        seen: list[Any] = [frozen.family, frozen.config, list(signatures), floats]
        if opens(frozen):
            seen += ["opened", opened_names(frozen)]
        else:
            codes = [(name, c.codes.tobytes(), c.scales.tobytes()) for name, c in given.items()]
            seen += [frozen.scheme.activations, codes, sorted(frozen.ranges.items()), sorted(frozen.points.items())]
        return bytearray(self._found(["tflite", *seen], lambda: bytes(self._tflite(frozen, signatures, given))))

    def to_onnx(self, frozen: FrozenStudent, signatures: Sequence[Signature]) -> Any:
        """As `onnx.graph.convert`: a graph of the same operators with this student's tensors.

        Not where activations are static: what a graph is made of then depends on its grids.
        """
        self._read_operators_once()
        if frozen.scheme.activations == "static_int8":
            return self._onnx(frozen, signatures)
        network = Entry(lower(frozen)).eval()
        seen = ["onnx", frozen.family, frozen.config, list(signatures), _structure(network)]
        before = self._found(seen, lambda: self._onnx(frozen, signatures).SerializeToString())
        import onnx as format

        model = format.ModelProto.FromString(before)
        names = _names(network.model, frozen)
        tensors = dict([*network.named_parameters(remove_duplicate=False), *network.named_buffers()])
        values = {stored: tensors[name].detach().numpy() for name, stored in names.items() if name in tensors}
        for tensor in model.graph.initializer:
            if tensor.name in values:
                assert list(tensor.dims) == list(values[tensor.name].shape), tensor.name
                tensor.raw_data = np.ascontiguousarray(values[tensor.name]).tobytes()
        return model

    def _read_operators_once(self) -> None:
        """torch parses the source of 500 operators for each conversion."""
        if self._patch is not None:
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            once = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
            self._patch.setattr(ONNXRegistry, "from_torchlib", once)
            self._patch = None

    def _found(self, seen: list[Any], convert: Callable[[], bytes]) -> bytes:
        path = self.folder / hashlib.sha256(repr(seen).encode()).hexdigest()
        self.hits += path.exists()
        if not path.exists():
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            partial.write_bytes(convert())
            partial.replace(path)
        return path.read_bytes()


def _structure(network: nn.Module) -> list[Any]:
    """All of a network but the numbers in its tensors."""

    def told(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), str(value.dtype)
        if isinstance(value, Mapping):
            return {name: told(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [told(item) for item in value]
        if isinstance(value, nn.Module):
            return type(value).__name__
        return getattr(value, "__qualname__", None) or repr(value)

    return [(name, type(part).__qualname__, told(vars(part))) for name, part in network.named_modules()]
