"""The frozen student: integer codes, fp16-representable scales and the float rest. Every export starts from it.

A folder holds `student.safetensors` (the numbers) and `student.json` (what they mean). Both are written with the same
bytes for the same student, and are read as untrusted input.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import nn

from edgedistill.errors import SpecError, StageError
from edgedistill.quant.activations import HIGH, LOW, Range
from edgedistill.quant.fake import StaticQuantLinear
from edgedistill.quant.grid import CODE_MAX, channel_scales, codes_of
from edgedistill.quant.modules import FrozenEmbedding, FrozenLinear
from edgedistill.specs.base import Spec
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import StoredTensor

SCHEMA = 1
TENSORS, DESCRIPTION = "student.safetensors", "student.json"
_KEYS = {"schema", "family", "config", "scheme", "ranges", "task", "tensors_sha256"}


class QuantizedTensor(NamedTuple):
    """`weight = codes * scales`, one scale per index along `axis` (always 0)."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int = 0


@dataclass(frozen=True, eq=False)
class FrozenStudent:
    """A trained student lowered to the numbers that files store.

    `quantized` and `floats` together hold every tensor that the family's `tensors(config)` names. `ranges` holds the
    input and output grid of each linear layer by layer name (`layers.0.query`); it is empty for a dynamic scheme.
    `task` is JSON of the caller: labels, preprocessing.
    """

    family: str
    config: dict[str, Any]
    scheme: QuantScheme
    quantized: dict[str, QuantizedTensor]
    floats: dict[str, NDArray[np.float32]]
    ranges: dict[str, tuple[Range, Range]]
    task: dict[str, Any]

    @property
    def parameter_bytes(self) -> int:
        """Bytes of codes, float32 scales and float32 rest: the floor of any file that holds this student."""
        coded = sum(tensor.codes.nbytes + tensor.scales.nbytes for tensor in self.quantized.values())
        return coded + sum(tensor.nbytes for tensor in self.floats.values())

    def to_module(self) -> nn.Module:
        """The student in eval mode, computing what an exported file computes, activation quantization included."""
        model = self.build()
        for name, tensor in self.quantized.items():
            owner = name.removesuffix(".weight")
            codes, scales = torch.from_numpy(tensor.codes.copy()), torch.from_numpy(tensor.scales.copy())
            if isinstance(model.get_submodule(owner), nn.Embedding):
                model.set_submodule(owner, FrozenEmbedding(codes, scales))
            else:
                bias = self.floats.get(f"{owner}.bias", np.zeros(len(scales), np.float32))
                frozen = FrozenLinear(codes, scales, torch.from_numpy(bias.copy()), self.ranges.get(owner))
                model.set_submodule(owner, frozen)
        return model.eval()

    def build(self) -> nn.Module:
        """The family's plain float network, weights dequantized, in eval mode: what an exporter rewrites."""
        model: nn.Module = importlib.import_module(f"edgedistill.students.{self.family}.module").build(
            _decode_config(self.family, self.config, "config")
        )
        state = {name: torch.from_numpy(t.codes * t.scales[:, None]) for name, t in self.quantized.items()}
        state |= {name: torch.from_numpy(values.copy()) for name, values in self.floats.items()}
        model.load_state_dict(state)
        return model.eval()

    def save(self, folder: Path) -> None:
        """Write `student.safetensors` and `student.json` into an existing folder, byte for byte reproducibly."""
        arrays: dict[str, NDArray[Any]] = dict(self.floats)
        for name, tensor in self.quantized.items():
            arrays[f"{name}.codes"], arrays[f"{name}.scales"] = tensor.codes, tensor.scales
        payload = safetensors.numpy.save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
        description = {
            "schema": SCHEMA,
            "family": self.family,
            "config": self.config,
            "scheme": self.scheme.model_dump(mode="json"),
            "ranges": {name: [list(grid) for grid in pair] for name, pair in self.ranges.items()},
            "task": self.task,
            "tensors_sha256": hashlib.sha256(payload).hexdigest(),
        }
        (folder / TENSORS).write_bytes(payload)
        text = json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> FrozenStudent:
        """Read a folder that `save` wrote, as untrusted input.

        Raises:
            SpecError: if a file is missing or damaged, or its names, shapes, types or values are not a student's.
        """
        where = str(folder / DESCRIPTION)
        try:
            payload = (folder / TENSORS).read_bytes()
            values = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        except OSError as error:
            raise SpecError(f"{folder}: not a frozen student: {error.filename}: {error.strerror}.") from None
        except ValueError as error:
            raise SpecError(f"{where}: not UTF-8 JSON: {error}.") from None
        if not isinstance(values, dict) or values.keys() != _KEYS or values["schema"] != SCHEMA:
            raise SpecError(f"{where}: not a frozen student of schema {SCHEMA} (keys {', '.join(sorted(_KEYS))}).")
        if hashlib.sha256(payload).hexdigest() != values["tensors_sha256"]:
            raise SpecError(
                f"{folder / TENSORS}: its sha256 is not the one in {DESCRIPTION}; freeze the student again."
            )
        try:
            arrays = safetensors.numpy.load(payload)
        except safetensors.SafetensorError as error:
            raise SpecError(f"{folder / TENSORS}: not a safetensors file: {error}.") from None
        if not all(isinstance(values[key], dict) for key in ("config", "scheme", "ranges", "task")):
            raise SpecError(f"{where}: config, scheme, ranges and task must be JSON objects.")
        scheme = QuantScheme.decode(values["scheme"], where)
        family = str(values["family"])
        config = _decode_config(family, values["config"], where)
        quantized, floats = _split(_stored(family, config), arrays, str(folder / TENSORS))
        ranges = _decode_ranges(values["ranges"], scheme, quantized, where)
        return cls(family, config.model_dump(mode="json"), scheme, quantized, floats, ranges, values["task"])


def freeze(model: nn.Module, family: str, config: Spec, scheme: QuantScheme, task: Mapping[str, Any]) -> FrozenStudent:
    """Lower a trained student to codes; `model` may be prepared (`quant.fake.prepare`) or, if dynamic, plain float.

    Raises:
        StageError: if a weight is not finite, or a static layer has no activation ranges.
    """
    state = {name: value.detach() for name, value in model.state_dict().items()}
    quantized, floats = {}, {}
    for tensor in _stored(family, config):
        value = state[tensor.name].float()
        if not bool(value.isfinite().all()):
            raise StageError(f"{tensor.name} holds values that are not finite: training diverged; lower the rate.")
        if tensor.kind == "float":
            floats[tensor.name] = value.numpy().copy()
        else:
            scales = channel_scales(value)
            if not bool(scales.isfinite().all()):
                raise StageError(f"{tensor.name}: |weight| up to {value.abs().max():.3g} needs a scale beyond fp16.")
            quantized[tensor.name] = QuantizedTensor(codes_of(value, scales).numpy(), scales.numpy())
    ranges = {name: layer.grids() for name, layer in model.named_modules() if isinstance(layer, StaticQuantLinear)}
    if scheme.activations == "static_int8" and not ranges:
        raise StageError("A static_int8 student must be prepared and trained before it is frozen: it has no ranges.")
    return FrozenStudent(family, config.model_dump(mode="json"), scheme, quantized, floats, ranges, dict(task))


def _stored(family: str, config: Spec) -> list[StoredTensor]:
    found: list[StoredTensor] = importlib.import_module(f"edgedistill.students.{family}").tensors(config)
    return found


def _decode_config(family: str, values: Mapping[str, Any], where: str) -> Spec:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", family):
        raise SpecError(f"{where}: {family!r} is not the name of a student family.")
    try:
        module = importlib.import_module(f"edgedistill.students.{family}")
    except ModuleNotFoundError:
        raise SpecError(f"{where}: there is no student family {family!r}.") from None
    config: Spec = module.Config.decode(values, where)
    return config


def _split(
    stored: list[StoredTensor], arrays: dict[str, NDArray[Any]], where: str
) -> tuple[dict[str, QuantizedTensor], dict[str, NDArray[np.float32]]]:
    """Sort arrays into quantized and float, checking every name, type, shape and value."""
    wanted: dict[str, tuple[tuple[int, ...], type]] = {}
    for tensor in stored:
        if tensor.kind == "float":
            wanted[tensor.name] = tensor.shape, np.float32
        else:
            wanted[f"{tensor.name}.codes"] = tensor.shape, np.int8
            wanted[f"{tensor.name}.scales"] = tensor.shape[:1], np.float32
    if arrays.keys() != wanted.keys():
        odd = ", ".join(sorted(arrays.keys() ^ wanted.keys())[:3])
        raise SpecError(f"{where}: its tensors are not those of the config: missing or unknown: {odd}.")
    for name, (shape, dtype) in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype != dtype:
            seen = f"{arrays[name].dtype}{list(arrays[name].shape)}"
            raise SpecError(f"{where}: {name} is {seen}, must be {np.dtype(dtype).name}{list(shape)}.")
        if not np.isfinite(arrays[name]).all():
            raise SpecError(f"{where}: {name} holds values that are not finite.")
    quantized, floats = {}, {}
    for tensor in stored:
        if tensor.kind == "float":
            floats[tensor.name] = arrays[tensor.name]
            continue
        codes, scales = arrays[f"{tensor.name}.codes"], arrays[f"{tensor.name}.scales"]
        if codes.min() < -CODE_MAX:
            raise SpecError(f"{where}: {tensor.name} holds code {codes.min()}, the smallest allowed is {-CODE_MAX}.")
        if (scales <= 0).any() or (scales.astype(np.float16).astype(np.float32) != scales).any():
            raise SpecError(f"{where}: {tensor.name} has a scale that is not a positive fp16 number.")
        quantized[tensor.name] = QuantizedTensor(codes, scales)
    return quantized, floats


def _decode_ranges(
    values: dict[str, Any], scheme: QuantScheme, quantized: dict[str, QuantizedTensor], where: str
) -> dict[str, tuple[Range, Range]]:
    static = scheme.activations == "static_int8"
    if bool(values) != static or not all(f"{name}.weight" in quantized for name in values):
        raise SpecError(f"{where}: ranges must name the linear layers of a static_int8 student, and only of one.")
    ranges = {}
    for name, pair in values.items():
        try:
            (a, zero_a), (b, zero_b) = pair
            good = all(isinstance(s, float) and 0 < s < 1e30 for s in (a, b)) and all(
                isinstance(z, int) and LOW <= z <= HIGH for z in (zero_a, zero_b)
            )
        except (TypeError, ValueError):
            good = False
        if not good:
            raise SpecError(f"{where}: ranges of {name} must be two pairs [scale > 0, zero point in -128..127].")
        ranges[name] = Range(a, zero_a), Range(b, zero_b)
    return ranges
