"""The frozen student: integer codes, fp16-representable scales and the float rest. Every export starts from it.

A folder holds `student.safetensors` (the numbers) and `student.json` (what they mean). Both are written with the same
bytes for the same student, and are read as untrusted input.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgedistill.errors import SpecError, StageError
from edgedistill.quant.activations import Range
from edgedistill.quant.grid import codes_of, scales_of
from edgedistill.quant.layers import OnGrid, StaticQuantLinear, StaticQuantPoint
from edgedistill.quant.modules import (
    FrozenConvolution,
    FrozenEmbedding,
    FrozenLinear,
    FrozenPoint,
    FrozenSum,
    RoundedRoot,
)
from edgedistill.quant.stored import QuantizedTensor, decode_ranges, split
from edgedistill.specs.base import Spec
from edgedistill.specs.quant import QuantScheme, WeightGrid
from edgedistill.students import Signature, StoredTensor
from edgedistill.students._allocation import stored_bytes
from edgedistill.students._points import Convolution, Point, Sum
from edgedistill.students._transformer import Norm, Root, spell_out

SCHEMA = 2
TENSORS, DESCRIPTION = "student.safetensors", "student.json"
_KEYS = {"schema", "family", "config", "scheme", "ranges", "points", "task", "tensors_sha256"}


@dataclass(frozen=True, eq=False)
class FrozenStudent:
    """A trained student lowered to the numbers that files store.

    `quantized` and `floats` together hold every tensor that the family's `tensors(config)` names. `ranges` holds the
    input and output grid of each linear layer by layer name (`layers.0.query`), `points` the grid of each other place
    that has one; both are empty unless activations are static. `task` is JSON of the caller: labels, preprocessing.
    """

    family: str
    config: dict[str, Any]
    scheme: QuantScheme
    quantized: dict[str, QuantizedTensor]
    floats: dict[str, NDArray[np.float32]]
    ranges: dict[str, tuple[Range, Range]]
    points: dict[str, Range]
    task: dict[str, Any]

    @property
    def tensors(self) -> list[StoredTensor]:
        """The family's list of what is stored, with names, shapes and kinds."""
        return stored_of(self.family, _decode_config(self.family, self.config, "config"))

    def grids(self) -> dict[str, WeightGrid]:
        """The grid of each quantized tensor."""
        found = {tensor.name: tensor.grid(self.scheme) for tensor in self.tensors}
        return {name: grid for name, grid in found.items() if grid is not None}

    def signatures(self, buckets: Sequence[int]) -> tuple[Signature, ...]:
        """The entry points that a file of this student has, one for each bucket where the family has lengths."""
        family = importlib.import_module(f"edgedistill.students.{self.family}")
        out: tuple[Signature, ...] = family.signatures(_decode_config(self.family, self.config, "config"), buckets)
        return out

    def sample(self, signature: Signature, random: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Random inputs that the network accepts, by the signature's names."""
        family = importlib.import_module(f"edgedistill.students.{self.family}")
        config = _decode_config(self.family, self.config, "config")
        out: dict[str, NDArray[Any]] = family.sample(config, signature, random)
        return out

    @property
    def parameter_bytes(self) -> int:
        """Bytes of packed codes, float32 scales and float32 rest: the floor of any file that holds this student."""
        grids = self.grids()
        coded = sum(stored_bytes(tensor.codes.shape, grids[name]) for name, tensor in self.quantized.items())
        return coded + sum(tensor.nbytes for tensor in self.floats.values())

    def to_module(self, activations: Literal["as_trained", "float"] = "as_trained") -> nn.Module:
        """The student in eval mode, computing what an exported file computes, activation quantization included.

        "float": only the weights are on their grids, as a runtime computes that does not quantize activations.
        """
        model = self.build()
        if activations == "float" or self.scheme.activations == "float":
            return model
        self._check_points(model)
        owners, static = _owners(model), self.layer_grids(model)
        for name, tensor in self.quantized.items():
            for owner in owners[name]:
                layer = model.get_submodule(owner)
                codes, scales = torch.from_numpy(tensor.codes.copy()), torch.from_numpy(tensor.scales.copy())
                if isinstance(layer, nn.Embedding):
                    model.set_submodule(owner, FrozenEmbedding(codes, scales))
                    continue
                bias = torch.from_numpy(self.floats.get(f"{owner}.bias", np.zeros(len(scales), np.float32)).copy())
                if isinstance(layer, nn.Linear):
                    model.set_submodule(owner, FrozenLinear(codes, scales, bias, static.get(owner)))
                elif isinstance(layer, Convolution) and owner in static:
                    model.set_submodule(owner, FrozenConvolution(layer, codes, scales, bias, static[owner]))
        for name, grid in self.points.items():
            place = model.get_submodule(name)
            sources = [self.points[source] for source in place.sources] if isinstance(place, Sum) else []
            frozen = FrozenSum((sources[0], sources[1]), grid) if sources else FrozenPoint(grid)
            model.set_submodule(name, frozen)
        for name in [name for name, module in model.named_modules() if isinstance(module, Root)]:
            model.set_submodule(name, RoundedRoot())
        return model.eval()

    def _check_points(self, model: nn.Module) -> None:
        """Every point of a static network has a grid, and no grid is without a point."""
        places = {name for name, module in model.named_modules() if isinstance(module, Point)}
        odd = sorted(self.points.keys() ^ (places if self.scheme.activations == "static_int8" else set()))
        if odd:
            told = "has no point" if odd[0] in self.points else "lacks the grid of its point"
            raise SpecError(f"A {self.family} student {told} {odd[0]}: its description is damaged.")

    def build(self) -> nn.Module:
        """The family's plain float network, weights dequantized, in eval mode: what an exporter rewrites.

        That of a static student is spelled out, and computes with the least variances of its layer norms.
        """
        module = importlib.import_module(f"edgedistill.students.{self.family}.module")
        with _Unfilled():  # drawing numbers for 22 M parameters takes longer than all else here
            model: nn.Module = module.build(_decode_config(self.family, self.config, "config"))
        state = {name: torch.from_numpy(tensor.values()) for name, tensor in self.quantized.items()}
        state |= {name: torch.from_numpy(values.copy()) for name, values in self.floats.items()}
        for names in _owners(model).values():  # a weight that is tied is stored under one of its names
            given = next((state[f"{n}.weight"] for n in names if f"{n}.weight" in state), None)
            state |= {f"{n}.weight": given for n in names if given is not None}
        model.load_state_dict(state)
        if self.scheme.activations == "static_int8":
            spell_out(model)
            for name, module in model.named_modules():
                if isinstance(module, Norm) and f"{name}.point" in self.points:
                    module.step = self.points[f"{name}.point"].scale
        return model.eval()

    def layer_grids(self, model: nn.Module) -> dict[str, tuple[Range, Range]]:
        """The input and output grids of every static layer of `model`, which `build` gave: convolutions too."""
        layers = model.named_modules() if self.points else ()
        found = {name: (layer.source, layer.result) for name, layer in layers if isinstance(layer, Convolution)}
        return self.ranges | {name: (self.points[a], self.points[b]) for name, (a, b) in found.items()}

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
            "points": {name: list(grid) for name, grid in self.points.items()},
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
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{where}: not UTF-8 JSON: {error}.") from None
        if not isinstance(values, dict) or values.keys() != _KEYS or values["schema"] != SCHEMA:
            raise SpecError(f"{where}: not a frozen student of schema {SCHEMA} (keys {', '.join(sorted(_KEYS))}).")
        if hashlib.sha256(payload).hexdigest() != values["tensors_sha256"]:
            raise SpecError(
                f"{folder / TENSORS}: its sha256 is not the one in {DESCRIPTION}; freeze the student again."
            )
        try:
            arrays = safetensors.numpy.load(payload)
        except (safetensors.SafetensorError, KeyError, ValueError) as error:  # the latter: what numpy has not
            raise SpecError(f"{folder / TENSORS}: not a safetensors file of a student: {error}.") from None
        if not all(isinstance(values[key], dict) for key in ("config", "scheme", "ranges", "points", "task")):
            raise SpecError(f"{where}: config, scheme, ranges, points and task must be JSON objects.")
        scheme = QuantScheme.decode(values["scheme"], where)
        family = str(values["family"])
        config = _decode_config(family, values["config"], where)
        quantized, floats = split(stored_of(family, config), scheme, arrays, str(folder / TENSORS))
        ranges, points = decode_ranges(values["ranges"], values["points"], scheme, quantized, where)
        return cls(family, config.model_dump(mode="json"), scheme, quantized, floats, ranges, points, values["task"])


def freeze(model: nn.Module, family: str, config: Spec, scheme: QuantScheme, task: Mapping[str, Any]) -> FrozenStudent:
    """Lower a trained student to codes; `model` may be prepared (`quant.fake.prepare`) or, unless static, plain float.

    A layer that holds scales (rules mse and learned) is stored with those, any other with scales of its absmax.

    Raises:
        StageError: if a weight is not finite, its grid does not fit it or is not the one that its scales were trained
            on, or a static layer has no activation ranges.
    """
    state = {name: value.detach() for name, value in model.state_dict().items()}
    layers = dict(model.named_modules())
    quantized, floats = {}, {}
    for tensor in stored_of(family, config):
        value, grid = state[tensor.name].float(), tensor.grid(scheme)
        if not bool(value.isfinite().all()):
            raise StageError(f"{tensor.name} holds values that are not finite: training diverged; lower the rate.")
        if grid is None:
            floats[tensor.name] = value.numpy().copy()
            continue
        scales = _scales(tensor.name, value, grid, scheme, layers.get(tensor.name.removesuffix(".weight")))
        if not bool(scales.isfinite().all()):
            raise StageError(f"{tensor.name}: |weight| up to {value.abs().max():.3g} needs a scale beyond fp16.")
        quantized[tensor.name] = QuantizedTensor(codes_of(value, scales, grid).numpy(), scales.numpy())
    ranges = {name: layer.grids() for name, layer in model.named_modules() if isinstance(layer, StaticQuantLinear)}
    points = {name: layer.grids()[0] for name, layer in model.named_modules() if isinstance(layer, StaticQuantPoint)}
    if scheme.activations == "static_int8" and not ranges:
        raise StageError("A static_int8 student must be prepared and trained before it is frozen: it has no ranges.")
    pairs = {name: (source, result) for name, (source, result) in ranges.items()}
    return FrozenStudent(family, config.model_dump(mode="json"), scheme, quantized, floats, pairs, points, dict(task))


def _scales(name: str, value: Tensor, grid: WeightGrid, scheme: QuantScheme, layer: nn.Module | None) -> Tensor:
    """The scales that the layer was trained with; absmax where it holds none."""
    if isinstance(layer, OnGrid) and layer.weight_scales is not None:
        if (layer.grid, layer.scale_dtype) != (grid, scheme.scale_dtype):
            raise StageError(
                f"{name} was trained with scales of {layer.grid.label} in {layer.scale_dtype}, and the scheme says "
                f"{grid.label} in {scheme.scale_dtype}: freeze it with the scheme that it was prepared with."
            )
        return layer.weight_scales.stored().detach()
    try:
        return scales_of(value, grid, scheme.scale_dtype)
    except ValueError as error:
        raise StageError(f"{name} does not fit its grid: {error}.") from None


class _Unfilled(TorchFunctionMode):
    """Within it tensors are not filled with random numbers: for networks whose every tensor is set afterwards."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def _owners(model: nn.Module) -> dict[str, list[str]]:
    """For each layer's weight, by its name in the state dict, every layer that uses that very tensor."""
    modules = model.named_modules()
    layers = {name: layer for name, layer in modules if isinstance(getattr(layer, "weight", None), Tensor)}
    users: dict[int, list[str]] = {}
    for name, layer in layers.items():
        users.setdefault(id(layer.weight), []).append(name)
    return {f"{name}.weight": users[id(layer.weight)] for name, layer in layers.items()}


def stored_of(family: str, config: Spec) -> list[StoredTensor]:
    """The family's list of what is stored of a student of this config."""
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
