"""Fake quantization: a float student that computes, in training, what the exported file will compute.

`prepare` swaps every `nn.Linear` and `nn.Embedding` for a subclass that shares the same float parameters, so optimizers
and state-dict names stay valid. Weight scales follow the current weights at every step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.quant.activations import DynamicLinear, Range, StaticLinear, range_of
from edgedistill.quant.grid import fake_quantize
from edgedistill.specs.quant import QuantScheme


class DynamicQuantLinear(nn.Linear):
    """A linear layer whose weight is on the int8 grid and whose input rows are quantized as LiteRT does at run time."""

    def forward(self, input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows channels"]:
        """Same shapes as `nn.Linear`."""
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        rows = input.reshape(-1, self.in_features)
        out: Tensor = DynamicLinear.apply(rows, self.weight, bias)  # type: ignore[no-untyped-call]
        return out.view(*input.shape[:-1], self.out_features)


class StaticQuantLinear(nn.Linear):
    """A linear layer with int8 input and output on ranges observed in training.

    Buffer `ranges` holds [[input low, input high], [output low, output high]]: a moving average of the batch's minimum
    and maximum while the layer trains and observes, then fixed (`freeze_observers`). Not-a-number before any batch.
    """

    MOMENTUM = 0.05
    ranges: Tensor

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
        out: Tensor = StaticLinear.apply(*arguments)  # type: ignore[no-untyped-call]
        return out.view(*input.shape[:-1], self.out_features)

    def grids(self) -> tuple[Range, Range]:
        """The activation grids of input and output.

        Raises:
            StageError: if the layer has never seen a training batch.
        """
        if not bool(self.ranges.isfinite().all()):
            raise StageError(
                "A static_int8 layer has no activation ranges: run training batches through the model before it is "
                "evaluated or frozen."
            )
        (low, high), (out_low, out_high) = self.ranges.tolist()
        return range_of(low, high), range_of(out_low, out_high)

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


class QuantEmbedding(nn.Embedding):
    """An embedding whose rows are on the int8 grid; the output is float, as in the file."""

    def forward(self, input: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """Same shapes as `nn.Embedding`."""
        if input.numel() >= self.num_embeddings:
            return nn.functional.embedding(input, fake_quantize(self.weight), self.padding_idx)
        # The grid is per row, so quantizing only the rows that were looked up gives the same values for less work.
        rows = nn.functional.embedding(input, self.weight, self.padding_idx)
        return fake_quantize(rows.reshape(-1, self.embedding_dim)).view(rows.shape)


def prepare(model: nn.Module, scheme: QuantScheme) -> nn.Module:
    """Make `model` fake-quantized in place, and return it.

    Parameters stay the same objects under the same names; a static scheme adds a `ranges` buffer to each linear layer.
    A model that is prepared already is left as it is.
    """
    linear = DynamicQuantLinear if scheme.activations == "dynamic_int8" else StaticQuantLinear
    swapped: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in (nn.Linear, nn.Embedding) and child not in swapped:
                swapped[child] = _like(child, linear)
            if child in swapped:
                setattr(parent, name, swapped[child])
    return model


def freeze_observers(model: nn.Module) -> None:
    """Fix the activation ranges of every static layer, for the rest of training and for freezing."""
    for module in model.modules():
        if isinstance(module, StaticQuantLinear):
            module.observing = False


def _like(child: nn.Module, linear: type[DynamicQuantLinear | StaticQuantLinear]) -> nn.Module:
    """The quantized twin of a layer, around the same parameters."""
    new: nn.Linear | nn.Embedding
    if isinstance(child, nn.Linear):
        new = linear(child.in_features, child.out_features, child.bias is not None, device="meta")
        new.bias = child.bias
    elif isinstance(child, nn.Embedding):
        new = QuantEmbedding(child.num_embeddings, child.embedding_dim, child.padding_idx, device="meta")
    else:
        raise TypeError(f"{type(child).__name__} has no quantized twin")
    new.weight = child.weight
    return new.train(child.training)
