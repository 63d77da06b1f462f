"""Fake quantization: a float student that computes, in training, what the exported file will compute.

`prepare` swaps every `nn.Linear`, `nn.Conv2d`, `nn.Embedding` and `Point` for a subclass that shares the same float
parameters, so optimizers and state-dict names stay valid. Weight scales follow the current weights at every step, or
are held by the layer (`edgedistill.quant.scales`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgedistill.errors import StageError
from edgedistill.quant.layers import (
    DynamicQuantLinear,
    OnGrid,
    QuantEmbedding,
    StaticQuantAddend,
    StaticQuantConvolution,
    StaticQuantLinear,
    StaticQuantPoint,
    StaticQuantShare,
    StaticQuantSum,
    WeightQuantConv2d,
    WeightQuantLinear,
)
from edgedistill.quant.modules import RoundedRoot
from edgedistill.quant.observers import Observer, RangeRule
from edgedistill.quant.scales import FittedScales, LearnedScales, ScaleRule, holder_of
from edgedistill.specs.quant import QuantScheme, WeightGrid
from edgedistill.students import StoredTensor
from edgedistill.students._points import Addend, Convolution, Point, Share, Sum
from edgedistill.students._transformer import AfterGelu, Factor, Root, spell_out


def prepare(
    model: nn.Module,
    scheme: QuantScheme,
    tensors: Sequence[StoredTensor],
    rule: ScaleRule = "absmax",
    ranges: RangeRule = "min_max",
) -> nn.Module:
    """Make `model` fake-quantized in place, and return it.

    `tensors` are the family's, so that each weight gets the grid that freezing will give it; a weight that they do not
    name gets the grid of its kind of layer. `rule` says how scales are chosen (`edgedistill.quant.scales`), and
    `ranges` how those of static activations are observed (`edgedistill.quant.observers`). Parameters stay the same
    objects under the same names; a static scheme adds a `ranges` buffer to each linear layer and each point, and a rule
    other than absmax a `weight_scales` module to each layer. A model that is prepared already is left as it is.

    Raises:
        StageError: `rule` is not absmax, and a weight does not fit its grid.
    """
    known = {tensor.name.removesuffix(".weight"): tensor.grid(scheme) for tensor in tensors}
    by_weight = {id(module.weight): known.get(name) for name, module in model.named_modules() if name in known}
    named = dict(model.named_modules())
    swapped: dict[nn.Module, nn.Module] = {}
    holders: dict[int, FittedScales | LearnedScales | None] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in _KINDS and child not in swapped:
                # a head that is tied to an embedding is the same weight, and has one grid
                swapped[child] = twin = _twin(child, scheme, by_weight.get(id(getattr(child, "weight", None))))
                if isinstance(twin, OnGrid):
                    if id(twin.weight) not in holders:
                        holders[id(twin.weight)] = _holder(name, twin, rule)
                    twin.weight_scales = holders[id(twin.weight)]
                if isinstance(twin, Observer) and not isinstance(twin, StaticQuantAddend):
                    # what is added up is never clipped: the largest values of a row are most of its variance
                    twin.rule = ranges
            if child in swapped:
                setattr(parent, name, swapped[child])
    for name, layer in named.items():
        if isinstance(layer, AfterGelu) and isinstance(after := swapped.get(layer), StaticQuantLinear):
            before = model.get_submodule(".".join([*name.split(".")[:-1], layer.before]))
            assert isinstance(before, StaticQuantLinear)
            after.before = (before,)
    for child, twin in swapped.items():
        if isinstance(twin, StaticQuantSum) and isinstance(child, Sum):
            twin.points = _points(model, child.sources)
            for point in twin.points:
                point.summand = True
        elif isinstance(twin, StaticQuantConvolution) and isinstance(child, Convolution):
            twin.points, twin.relu6 = _points(model, (child.source, child.result)), child.relu6
    if scheme.activations == "static_int8":
        spell_out(model)
    return model


def _points(model: nn.Module, names: tuple[str, str]) -> tuple[StaticQuantPoint, StaticQuantPoint]:
    """The prepared points of these names."""
    first, second = (model.get_submodule(name) for name in names)
    assert isinstance(first, StaticQuantPoint)
    assert isinstance(second, StaticQuantPoint)
    return first, second


def freeze_observers(model: nn.Module) -> None:
    """Fix every activation range and every fitted scale, for the rest of training and for freezing."""
    for module in model.modules():
        if isinstance(module, Observer | FittedScales):
            module.observing = False


def _holder(name: str, layer: OnGrid, rule: ScaleRule) -> FittedScales | LearnedScales | None:
    try:
        return holder_of(layer.weight, layer.grid, layer.scale_dtype, rule)
    except ValueError as error:
        raise StageError(f"The weight of {name} does not fit its grid: {error}.") from None


_KINDS = (nn.Linear, Factor, AfterGelu, nn.Conv2d, Convolution, nn.Embedding, Point, Addend, Share, Sum, Root)
_POINTS = {Point: StaticQuantPoint, Addend: StaticQuantAddend, Share: StaticQuantShare, Sum: StaticQuantSum}
LINEAR = {"dynamic_int8": DynamicQuantLinear, "static_int8": StaticQuantLinear, "float": WeightQuantLinear}


def _twin(child: nn.Module, scheme: QuantScheme, grid: WeightGrid | None) -> nn.Module:
    """The quantized twin of a layer, around the same parameters."""
    new: DynamicQuantLinear | StaticQuantLinear | WeightQuantLinear | WeightQuantConv2d | QuantEmbedding
    static = scheme.activations == "static_int8"
    if isinstance(child, Root):
        return RoundedRoot() if static else child
    if isinstance(child, Point):
        return _POINTS[type(child)]().train(child.training) if static else child
    if isinstance(child, nn.Linear):
        new = LINEAR[scheme.activations](child.in_features, child.out_features, child.bias is not None, device="meta")
        new.bias = child.bias
        if isinstance(new, StaticQuantLinear) and isinstance(child, Factor):
            new.most = child.most
    elif isinstance(child, nn.Conv2d):
        kind = StaticQuantConvolution if static and isinstance(child, Convolution) else WeightQuantConv2d
        new = _convolution(child, kind)
        grid = grid or WeightGrid(bits=scheme.weights.bits)
    elif isinstance(child, nn.Embedding):
        new = QuantEmbedding(child.num_embeddings, child.embedding_dim, child.padding_idx, device="meta")
        grid = grid or scheme.embeddings
    else:
        raise TypeError(f"{type(child).__name__} has no quantized twin")
    new.weight = child.weight
    new.grid, new.scale_dtype = grid or scheme.weights, scheme.scale_dtype
    return new.train(child.training)


def _convolution(child: nn.Conv2d, kind: type[WeightQuantConv2d]) -> WeightQuantConv2d:
    new = kind(
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
