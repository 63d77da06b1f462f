"""Fake quantization: a float student that computes, in training, what the exported file will compute.

`prepare` swaps every `nn.Linear`, `nn.Conv2d`, `nn.Embedding` and `Point` for a subclass that shares the same float
parameters, so optimizers and state-dict names stay valid. Weight scales follow the current weights at every step, or
are held by the layer (`edgedistill.quant.scales`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.quant.activations import DynamicLinear, Range, StaticLinear, StaticPoint, range_of
from edgedistill.quant.grid import INT8, ScaleDtype, fake_quantize
from edgedistill.quant.scales import FittedScales, LearnedScales, ScaleRule, holder_of
from edgedistill.specs.quant import QuantScheme, WeightGrid
from edgedistill.students import StoredTensor
from edgedistill.students._points import Point


class OnGrid(nn.Module):
    """What every layer with a quantized weight knows: the grid of its codes, and where its scales come from."""

    weight: Tensor
    grid: WeightGrid = INT8
    scale_dtype: ScaleDtype = "fp16"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_scales: FittedScales | LearnedScales | None
        self.register_module("weight_scales", None)

    def scales(self) -> Float[Tensor, " channels *groups"] | None:
        """The scales that the layer holds; None: they follow the weight's absmax."""
        holder = self.weight_scales
        return None if holder is None else holder(self.weight)

    def _on_grid(self) -> Tensor:
        return fake_quantize(self.weight, self.grid, self.scale_dtype, self.scales())


class _Observer:
    """A minimum and maximum followed while its owner trains and observes, then fixed (`freeze_observers`).

    A moving average over batches, kept in rows of the buffer `ranges`; not-a-number before any batch.
    """

    MOMENTUM = 0.05
    ranges: Tensor
    observing: bool
    training: bool

    def _range(self, which: int, seen: Tensor) -> Range:
        if self.training and self.observing:
            with torch.no_grad():
                now = torch.stack(torch.aminmax(seen.detach()))
                before = self.ranges[which]
                # The first batch sets the range; also after a batch that was not finite, which must not stick.
                moved = now if not bool(before.isfinite().all()) else before + self.MOMENTUM * (now - before)
                self.ranges[which] = moved
                low, high = moved.tolist()
            return range_of(low, high)
        return self.grids()[which]

    def grids(self) -> tuple[Range, ...]:
        """The activation grids, one for each row of `ranges`.

        Raises:
            StageError: if the layer has never seen a training batch.
        """
        if not bool(self.ranges.isfinite().all()):
            raise StageError(
                "A static_int8 layer has no activation ranges: run training batches through the model before it is "
                "evaluated or frozen."
            )
        return tuple(range_of(low, high) for low, high in self.ranges.tolist())


class WeightQuantLinear(OnGrid, nn.Linear):
    """A linear layer whose weight is on its grid and whose activations stay float."""

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows channels"]:
        """Same shapes as `nn.Linear`."""
        return nn.functional.linear(input, self._on_grid(), self.bias)


class DynamicQuantLinear(OnGrid, nn.Linear):
    """A linear layer whose weight is on its grid and whose input rows are quantized as LiteRT does at run time."""

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows channels"]:
        """Same shapes as `nn.Linear`."""
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        rows = input.reshape(-1, self.in_features)
        arguments = rows, self.weight, bias, self.grid, self.scale_dtype, self.scales()
        out: Tensor = DynamicLinear.apply(*arguments)  # type: ignore[no-untyped-call]
        return out.view(*input.shape[:-1], self.out_features)


class StaticQuantLinear(OnGrid, _Observer, nn.Linear):
    """A linear layer with int8 input and output on ranges observed in training.

    Buffer `ranges` holds [[input low, input high], [output low, output high]].
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: str | None = None) -> None:
        super().__init__(in_features, out_features, bias, device=device)
        self.observing = True
        self.register_buffer("ranges", torch.full((2, 2), float("nan")))

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows channels"]:
        """Same shapes as `nn.Linear`.

        Raises:
            StageError: in eval mode, if the layer has never seen a training batch.
        """
        rows = input.reshape(-1, self.in_features)
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        source = self._range(0, rows)
        arguments = rows, self.weight, bias, source, lambda result: self._range(1, result)
        on_grid = self.grid, self.scale_dtype, self.scales()
        out: Tensor = StaticLinear.apply(*arguments, *on_grid)  # type: ignore[no-untyped-call]
        return out.view(*input.shape[:-1], self.out_features)


class WeightQuantConv2d(OnGrid, nn.Conv2d):
    """A convolution whose kernel is on its grid, one scale per output channel. Its activations lie on `Point`s."""

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        """Same shapes as `nn.Conv2d`."""
        out: Tensor = self._conv_forward(input, self._on_grid(), self.bias)
        return out


class StaticQuantPoint(_Observer, Point):
    """A place with int8 values on a range observed in training; buffer `ranges` [1, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.observing = True
        self.register_buffer("ranges", torch.full((1, 2), float("nan")))

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The values on the grid.

        Raises:
            StageError: in eval mode, if it has never seen a training batch.
        """
        out: Tensor = StaticPoint.apply(input, self._range(0, input))  # type: ignore[no-untyped-call]
        return out


class QuantEmbedding(OnGrid, nn.Embedding):
    """An embedding whose rows are on their grid; the output is float, as in the file."""

    def forward(self, input: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """Same shapes as `nn.Embedding`."""
        if input.numel() >= self.num_embeddings:
            return nn.functional.embedding(input, self._on_grid(), self.padding_idx)
        # The grid is per row, so quantizing only the rows that were looked up gives the same values for less work.
        rows = nn.functional.embedding(input, self.weight, self.padding_idx)
        flat, scales = rows.reshape(-1, self.embedding_dim), self.scales()
        used = None if scales is None else scales[input.reshape(-1)]
        return fake_quantize(flat, self.grid, self.scale_dtype, used).view(rows.shape)


def prepare(
    model: nn.Module, scheme: QuantScheme, tensors: Sequence[StoredTensor], rule: ScaleRule = "absmax"
) -> nn.Module:
    """Make `model` fake-quantized in place, and return it.

    `tensors` are the family's, so that each weight gets the grid that freezing will give it; a weight that they do not
    name gets the grid of its kind of layer. `rule` says how scales are chosen (`edgedistill.quant.scales`). Parameters
    stay the same objects under the same names; a static scheme adds a `ranges` buffer to each linear layer and each
    point, and a rule other than absmax a `weight_scales` module to each layer. A model that is prepared already is left
    as it is.

    Raises:
        StageError: `rule` is not absmax, and a weight does not fit its grid.
    """
    known = {tensor.name.removesuffix(".weight"): tensor.grid(scheme) for tensor in tensors}
    by_weight = {id(module.weight): known.get(name) for name, module in model.named_modules() if name in known}
    swapped: dict[nn.Module, nn.Module] = {}
    holders: dict[int, FittedScales | LearnedScales | None] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in (nn.Linear, nn.Conv2d, nn.Embedding, Point) and child not in swapped:
                # a head that is tied to an embedding is the same weight, and has one grid
                swapped[child] = twin = _twin(child, scheme, by_weight.get(id(getattr(child, "weight", None))))
                if isinstance(twin, OnGrid):
                    if id(twin.weight) not in holders:
                        holders[id(twin.weight)] = _holder(name, twin, rule)
                    twin.weight_scales = holders[id(twin.weight)]
            if child in swapped:
                setattr(parent, name, swapped[child])
    return model


def freeze_observers(model: nn.Module) -> None:
    """Fix every activation range and every fitted scale, for the rest of training and for freezing."""
    for module in model.modules():
        if isinstance(module, _Observer | FittedScales):
            module.observing = False


def _holder(name: str, layer: OnGrid, rule: ScaleRule) -> FittedScales | LearnedScales | None:
    try:
        return holder_of(layer.weight, layer.grid, layer.scale_dtype, rule)
    except ValueError as error:
        raise StageError(f"The weight of {name} does not fit its grid: {error}.") from None


LINEAR = {"dynamic_int8": DynamicQuantLinear, "static_int8": StaticQuantLinear, "float": WeightQuantLinear}


def _twin(child: nn.Module, scheme: QuantScheme, grid: WeightGrid | None) -> nn.Module:
    """The quantized twin of a layer, around the same parameters."""
    new: DynamicQuantLinear | StaticQuantLinear | WeightQuantLinear | WeightQuantConv2d | QuantEmbedding
    if isinstance(child, Point):
        return StaticQuantPoint().train(child.training) if scheme.activations == "static_int8" else child
    if isinstance(child, nn.Linear):
        new = LINEAR[scheme.activations](child.in_features, child.out_features, child.bias is not None, device="meta")
        new.bias = child.bias
    elif isinstance(child, nn.Conv2d):
        new = _convolution(child)
        grid = grid or WeightGrid(bits=scheme.weights.bits)
    elif isinstance(child, nn.Embedding):
        new = QuantEmbedding(child.num_embeddings, child.embedding_dim, child.padding_idx, device="meta")
        grid = grid or scheme.embeddings
    else:
        raise TypeError(f"{type(child).__name__} has no quantized twin")
    new.weight = child.weight
    new.grid, new.scale_dtype = grid or scheme.weights, scheme.scale_dtype
    return new.train(child.training)


def _convolution(child: nn.Conv2d) -> WeightQuantConv2d:
    new = WeightQuantConv2d(
        child.in_channels,
        child.out_channels,
        child.kernel_size,
        child.stride,
        child.padding,
        child.dilation,
        child.groups,
        child.bias is not None,
        child.padding_mode,
        device="meta",
    )
    new.bias = child.bias
    return new
