"""Layers of a `bert` encoder cut to a smaller one, by what runs through them on the task's texts.

A smaller ffn: the neurons that move the residual stream most are kept. A smaller width: the stream is read in a basis
of its directions of most variance, every matrix is projected on it, and the heads that move the stream most are kept.
What is constant goes into biases: the mean that lies outside the basis, and the mean of dropped heads and neurons. A
layer norm cannot be projected, as it scales each axis by itself: its gain and bias are set so that each axis gets the
mean and deviation that it has in the teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgedistill.students.bert.module import BertClassifier, Embeddings, Layer


class Moments:
    """Mean and covariance of rows that come in batches; only the variances where `crossed` is false."""

    def __init__(self, *, crossed: bool = True) -> None:
        self.crossed, self.count = crossed, 0
        self.total = self.products = torch.zeros((), dtype=torch.float64)

    def add(self, batch: Float[Tensor, "*rows width"]) -> None:
        """Count these rows in."""
        rows = batch.detach().flatten(0, -2).double()
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.products = self.products + (rows.T @ rows if self.crossed else rows.square().sum(0))

    @property
    def mean(self) -> Float[Tensor, " width"]:
        """Mean of the rows."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance of the rows, [width, width], or the variance of each column, [width]."""
        centre = torch.outer(self.mean, self.mean) if self.crossed else self.mean.square()
        return self.products / self.count - centre


class Seen(NamedTuple):
    """What runs through one layer: its input, mixed heads, input and neurons of the feed-forward half, output."""

    entering: Moments
    mixed: Moments
    between: Moments
    active: Moments
    leaving: Moments


def layers_of(model: BertClassifier) -> list[Layer]:
    """The model's layers by their own type."""
    return cast(list[Layer], list(model.layers))


@torch.no_grad()
def observe(whole: BertClassifier, used: Iterable[int], batches: Iterable[Tensor]) -> list[Seen]:
    """Run the teacher and take the moments of what runs through each layer of `used`."""
    seen, handles = [], []
    for n in used:
        layer = layers_of(whole)[n]
        item = Seen(Moments(), Moments(), Moments(), Moments(crossed=False), Moments())
        inputs = zip((layer, layer.output, layer.up, layer.down), item[:4], strict=True)
        handles += [
            module.register_forward_pre_hook(lambda _, args, moments=moments: moments.add(args[0]))
            for module, moments in inputs
        ]
        handles.append(layer.register_forward_hook(lambda _, __, out, moments=item.leaving: moments.add(out)))
        seen.append(item)
    for ids in batches:
        whole(ids, torch.ones_like(ids))
    for handle in handles:
        handle.remove()
    return seen


def rotated_axes(covariance: Float[Tensor, "wide wide"], width: int) -> Float[Tensor, "wide narrow"]:
    """An orthonormal basis of the `width` directions of most variance; zero columns where there are not so many.

    Its axes are rotated at random: PCA sorts them by variance, and a layer norm over axes of very different size drowns
    the small ones.
    """
    kept = min(width, len(covariance))
    _, vectors = torch.linalg.eigh(covariance)
    rotation, upper = torch.linalg.qr(torch.randn(kept, kept, dtype=torch.float64))
    basis = torch.zeros(len(covariance), width)
    basis[:, :kept] = (vectors[:, -kept:] @ (rotation * upper.diagonal().sign())).float()
    return basis


def pick_heads(source: Layer, basis: Tensor, mixed: Moments, count: int) -> Int[Tensor, " columns"]:
    """The values of the `count` heads whose changes move the stream most, by mean square, in the teacher's order."""
    heads, size = source.heads, source.head_width
    moves = (basis.T @ source.output.weight).double().view(-1, heads, size)
    own = mixed.covariance.view(heads, size, heads, size)
    importance = torch.einsum("whd,hdhe,whe->h", moves, own, moves)
    best = importance.topk(count).indices.sort().values
    return (best[:, None] * size + torch.arange(size)).flatten()


def pick_neurons(source: Layer, basis: Tensor, active: Moments, count: int) -> Int[Tensor, " columns"]:
    """The `count` neurons of the feed-forward half whose changes move the stream most, in the teacher's order."""
    importance = active.covariance * (basis.T @ source.down.weight).double().square().sum(0)
    return importance.topk(count).indices.sort().values


def outside(mean: Tensor, basis: Tensor) -> Float[Tensor, " wide"]:
    """What is left of `mean` when its part in the basis is taken away."""
    return mean - basis @ (basis.T @ mean)


def _read(into: nn.Module, source: nn.Module, kept: Tensor, basis: Tensor, mean: Tensor) -> None:
    """The outputs `kept` of a linear layer that reads the stream; what the mean outside the basis adds is bias."""
    weight, bias = source.get_parameter("weight")[kept], source.get_parameter("bias")[kept]
    into.get_parameter("weight").copy_(weight @ basis)
    into.get_parameter("bias").copy_(bias + weight @ outside(mean.float(), basis))


def _write(into: nn.Linear, source: nn.Linear, kept: Tensor, basis: Tensor, mean: Tensor) -> None:
    """The inputs `kept` of a linear layer that writes to the stream; what the others add on average is bias."""
    dropped = torch.ones(source.in_features, dtype=torch.bool)
    dropped[kept] = False
    into.weight.copy_(basis.T @ source.weight[:, kept])
    into.bias.copy_(basis.T @ (source.bias + source.weight[:, dropped] @ mean.float()[dropped]))


@torch.no_grad()
def reduce_layers(
    student: BertClassifier, sources: Sequence[Layer], embeddings: Embeddings, basis: Tensor, seen: Sequence[Seen]
) -> None:
    """Project embeddings and layers on the basis; at the teacher's own width layer norms are copied."""
    wide, narrow = basis.shape
    for layer, source, item in zip(layers_of(student), sources, seen, strict=True):
        kept = pick_heads(source, basis, item.mixed, layer.heads)
        for name in ("query", "key", "value"):
            _read(layer.get_submodule(name), source.get_submodule(name), kept, basis, item.entering.mean)
        _write(layer.output, source.output, kept, basis, item.mixed.mean)
        kept = pick_neurons(source, basis, item.active, layer.up.out_features)
        _read(layer.up, source.up, kept, basis, item.between.mean)
        _write(layer.down, source.down, kept, basis, item.active.mean)
        if wide == narrow:
            layer.attention_norm.load_state_dict(source.attention_norm.state_dict())
            layer.ffn_norm.load_state_dict(source.ffn_norm.state_dict())
    if wide == narrow:
        student.embeddings.load_state_dict(embeddings.state_dict())
        return
    tables = (embeddings.word.weight, embeddings.position)
    # what the teacher's layer norm does to a sum, but for its division: take away the mean, apply the gain
    word, position = ((t - t.mean(1, keepdim=True)) * embeddings.norm.weight @ basis for t in tables)
    scale = 1.0 / word.std(1).mean()
    student.embeddings.word.weight.copy_(word * scale)
    student.embeddings.position.copy_(position * scale)


@torch.no_grad()
def fit_norms(student: BertClassifier, basis: Tensor, seen: Sequence[Seen], batches: Sequence[Tensor]) -> None:
    """Give each axis of the student's stream the mean and deviation that it has in the teacher, norm after norm.

    Between two layers that is what the next of them has been used to, whatever was left out before it.
    """
    _fit(student.embeddings.norm, student.embeddings, batches, seen[0].entering, basis)
    states = _through(student.embeddings, batches)
    for n, layer in enumerate(layers_of(student)):
        _fit(layer.attention_norm, layer, states, seen[n].between, basis)
        after = seen[n + 1].entering if n + 1 < len(seen) else seen[n].leaving
        _fit(layer.ffn_norm, layer, states, after, basis)
        states = _through(layer, states)


def _fit(
    norm: nn.LayerNorm, module: Embeddings | Layer, states: Sequence[Tensor], wanted: Moments, basis: Tensor
) -> None:
    norm.reset_parameters()
    own = Moments(crossed=False)
    handle = norm.register_forward_hook(lambda _, __, out: own.add(out))
    _through(module, states)
    handle.remove()
    wide = basis.double()
    variance = torch.einsum("wn,wv,vn->n", wide, wanted.covariance, wide)
    gain = (variance / own.covariance.clamp(min=1e-12)).clamp(min=0).sqrt()
    norm.weight.copy_(gain)
    norm.bias.copy_(wide.T @ wanted.mean - gain * own.mean)


def _through(module: Embeddings | Layer, states: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(module, Embeddings):
        return [module(ids) for ids in states]
    return [module(x, torch.zeros(len(x), 1, 1, x.shape[1])) for x in states]
