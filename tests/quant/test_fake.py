"""Fake quantization of real students: what changes, what must not, and where gradients go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgedistill.errors import StageError
from edgedistill.quant.activations import DynamicLinear, dynamic_linear
from edgedistill.quant.fake import QuantEmbedding, StaticQuantLinear, freeze_observers, prepare
from edgedistill.quant.grid import fake_quantize, quantize, scales_of
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import bert
from edgedistill.students.bert.module import BertClassifier, build

DYNAMIC, STATIC = QuantScheme(), QuantScheme(activations="static_int8")

TENSORS = bert.tensors(bert.TINY)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, bert.TINY.vocabulary, (6, bert.TINY.max_length), generator=generator)
    return ids, (torch.arange(bert.TINY.max_length) < torch.tensor([[16], [3], [9], [1], [12], [16]])).long()


def student(scheme: QuantScheme | None) -> BertClassifier:
    torch.manual_seed(0)
    model = build(bert.TINY)
    if scheme is not None:
        assert prepare(model, scheme, TENSORS) is model
    return model


@pytest.mark.parametrize("scheme", [DYNAMIC, STATIC])
def test_prepare_keeps_parameters_and_their_names(scheme: QuantScheme) -> None:
    model = student(None)
    before = dict(model.named_parameters())
    prepare(prepare(model, scheme, TENSORS), scheme, TENSORS)
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    extra = model.state_dict().keys() - before.keys()
    assert all(name.endswith(".ranges") for name in extra)
    assert not any(type(module) in (nn.Linear, nn.Embedding) for module in model.modules())


@pytest.mark.parametrize("scheme", [DYNAMIC, STATIC])
def test_every_parameter_gets_a_gradient_and_training_reduces_the_loss(scheme: QuantScheme) -> None:
    model = student(scheme).train()
    ids, mask = batch()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(80):  # static ranges follow growing logits with a lag
        loss = nn.functional.cross_entropy(model(ids, mask).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert losses[-1] < 0.5 * losses[0]


def test_the_fake_student_is_close_to_the_float_one_and_not_equal() -> None:
    ids, mask = batch()
    with torch.no_grad():
        plain, fake = student(None)(ids, mask).logits, student(DYNAMIC)(ids, mask).logits
    assert 0 < float((plain - fake).abs().max()) < 0.05 * float(plain.abs().max())


def test_dynamic_linear_is_the_product_of_the_quantized_operands() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((9, 40), (7, 40), (7,)))
    scales = scales_of(weight)
    out = dynamic_linear(x, quantize(weight, scales), scales, bias)
    assert float((out - nn.functional.linear(x, weight, bias)).abs().max()) < 0.2
    assert torch.equal(out, DynamicLinear.apply(x, weight, bias))


def test_gradient_of_a_dynamic_linear_is_that_of_a_linear_at_the_quantized_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((9, 40), (7, 40), (7,)))
    DynamicLinear.apply(x, weight, bias).sum().backward()
    ones = torch.ones(9, 7)
    assert x.grad is not None
    assert weight.grad is not None
    assert torch.allclose(x.grad, ones @ fake_quantize(weight.detach()), rtol=1e-4, atol=1e-5)
    assert torch.allclose(weight.grad, ones.t() @ x.detach(), atol=0.05 * 9)  # inputs rounded to steps of 1/50
    assert torch.equal(bias.grad, torch.full((7,), 9.0))


def test_an_embedding_gives_the_same_rows_whether_it_quantizes_all_or_only_those_looked_up() -> None:
    table = QuantEmbedding(50, 8)
    few, many = torch.tensor([[3, 3, 49]]), torch.arange(50).repeat(2)
    assert torch.equal(table(few)[0, 0], table(many)[3])
    table(few).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad[3].tolist() == [2.0] * 8
    assert float(table.weight.grad.sum()) == 24.0


def test_static_ranges_follow_training_batches_only_until_frozen() -> None:
    layer = StaticQuantLinear(4, 2)
    with pytest.raises(StageError, match="no activation ranges"):
        layer.eval()(torch.ones(1, 4))
    layer.train()
    layer(torch.tensor([[-1.0, 0.0, 0.0, 3.0]]))
    assert layer.ranges[0].tolist() == [-1.0, 3.0]
    layer(torch.tensor([[-3.0, 0.0, 0.0, 3.0]]))
    moved = layer.ranges.clone()
    assert moved[0].tolist() == pytest.approx([-1.0 - 0.05 * 2, 3.0])
    layer.eval()(torch.full((1, 4), 100.0))
    freeze_observers(layer)
    layer.train()(torch.full((1, 4), 100.0))
    assert torch.equal(layer.ranges, moved)


def test_static_values_outside_the_range_get_no_gradient() -> None:
    layer = StaticQuantLinear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.01]]))
        layer.bias.zero_()
    layer.train()(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    freeze_observers(layer)
    x = torch.tensor([[0.3, 0.3], [0.3, 5.0]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert float(x.grad[0, 1]) > 0
    assert float(x.grad[1, 1]) == 0
