"""The arithmetic of static students before any file: grids that leave no doubt, and functions spelled out for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgedistill import catalog, quant
from edgedistill.quant.activations import HIGH, LOW, factor_range_of, gelu_range_of, range_of
from edgedistill.specs import QuantScheme
from edgedistill.students import part
from edgedistill.students._transformer import Attention, Mean, Norm, score_factor, spell_out, value_factor


@pytest.mark.parametrize("scale", [0.03125, 0.0371, 0.0222, 0.1])
def test_a_gelu_of_codes_is_never_half_way_between_two(scale: float) -> None:
    """By 1e-3 of a step, ten times what runtimes are off; with the grid of `range_of` it may be."""
    source = range_of(-117 * scale, 138 * scale)
    inputs = (torch.arange(LOW, HIGH + 1, dtype=torch.float64) - source.zero_point) * source.scale
    high = float(inputs.max())
    grids = gelu_range_of(-0.17, high, source), range_of(-0.17, high)
    steps = [nn.functional.gelu(inputs) / grid.scale for grid in grids]
    away = [float((step - step.floor() - 0.5).abs().min()) for step in steps]
    assert away[0] >= 1e-3
    assert grids[0].scale / grids[1].scale - 1 < 0.02
    assert min(away) == away[1] or away[1] >= 1e-3


@pytest.mark.parametrize(("head_width", "length"), [(1, 1), (16, 64), (24, 100), (64, 512), (128, 500)])
def test_sums_of_attention_are_integers_that_float32_holds(head_width: int, length: int) -> None:
    for high in (0.011, 0.9, 1.0, 37.3):
        score = factor_range_of(-high, high / 2, score_factor(head_width))
        value = factor_range_of(-high, high, value_factor(length))
        for grid, most in ((score, score_factor(head_width)), (value, value_factor(length))):
            numerator, _ = grid.scale.as_integer_ratio()
            assert numerator // (numerator & -numerator) <= most
            assert grid.zero_point == 0
            assert high / 128 <= grid.scale <= 2 * high / 127 * 1.001
    assert 128**2 * score_factor(head_width) ** 2 * head_width <= 2**24
    assert 128 * 255 * value_factor(length) * length <= 2**24


def test_the_exact_spelling_is_the_function_that_networks_are_trained_with() -> None:
    """Without grids: layer norms and means to rounding, shares of attention to a quarter of a percent."""
    torch.manual_seed(0)
    x, bias = 2 * torch.randn(3, 7, 24) + 1, torch.zeros(3, 1, 1, 7)
    bias[1, ..., 4:] = -1e4
    norm, mean, attention = Norm(24, eps=1e-6), Mean(7), Attention(2, 12)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        plain = norm(x), mean(x), attention(x, x.flip(1), torch.ones_like(x), bias), attention(x, -x, x, bias)
        for part_of in (norm, mean, attention):
            spell_out(part_of)
        exact = norm(x), mean(x), attention(x, x.flip(1), torch.ones_like(x), bias), attention(x, -x, x, bias)
    assert torch.allclose(plain[0], exact[0], atol=1e-4)
    assert torch.allclose(plain[1], exact[1], atol=1e-6)
    assert torch.allclose(exact[2], torch.ones_like(x), atol=1e-6), "shares are of 1"
    assert float((plain[3] - exact[3]).abs().max()) < 0.0025 * float(x.abs().max()) * 2


def test_ranges_of_texts_do_not_see_padding() -> None:
    """The same tokens with padding behind them, whatever is in it, give the same ranges."""
    plugin, ranges = catalog.load_plugin("students", "bert"), []
    ids = torch.randint(1, plugin.TINY.vocabulary, (4, 6), generator=torch.Generator().manual_seed(0))
    for padding in (0, 7):
        torch.manual_seed(0)
        model = part("bert", "module").build(plugin.TINY)
        with torch.no_grad():
            model.embeddings.word.weight[0] = 30 * torch.randn(plugin.TINY.width)
            model.embeddings.position[6:] = 30 * torch.randn(plugin.TINY.max_length - 6, plugin.TINY.width)
        scheme = QuantScheme(activations="static_int8")
        quant.prepare(model, scheme, plugin.tensors(plugin.TINY)).train()
        model(nn.functional.pad(ids, (0, padding)), nn.functional.pad(torch.ones_like(ids), (0, padding)))
        ranges.append(torch.cat([value for name, value in model.state_dict().items() if name.endswith(".ranges")]))
    assert torch.allclose(ranges[0], ranges[1], rtol=1e-4, atol=1e-5)
