"""Very long and very short prompts: what was not measured is flagged, and a pass reads the weights at least once."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edgedistill.predict import DeviceSpecs, Forecast, LlmWorkload, predict

PHONES = ["galaxy_s23", "pixel8", "iphone15", DeviceSpecs(memory_bandwidth_gb_per_s=50.0, npu_int8_tops=30.0)]


def told(device: str | DeviceSpecs, quantity: str, tokens: int, **work: str) -> Forecast:
    asked = LlmWorkload(**{"params_b": 1.5, **work}, prompt_tokens=tokens)  # type: ignore[arg-type]
    return predict(device, asked, quantity)


def width(found: Forecast) -> float:
    return found.high / found.low


@pytest.mark.parametrize("device", PHONES, ids=str)
@pytest.mark.parametrize("quantity", ["decode_tokens_per_s", "prefill_tokens_per_s", "first_token_ms"])
def test_a_prompt_longer_than_any_measured_is_flagged_and_wider(device: str | DeviceSpecs, quantity: str) -> None:
    usual, long, huge = (told(device, quantity, tokens) for tokens in (512, 20_000, 1_000_000))
    assert not any(flag.startswith("prompt") for flag in usual.flags)
    for one in (long, huge):
        assert any(flag.startswith("prompt: longer than") for flag in one.flags)
    assert width(usual) < width(long) < width(huge) / 2


def test_a_measured_model_at_a_huge_prompt_is_flagged_too() -> None:
    found = predict("Samsung Galaxy S23", LlmWorkload(model="qwen2.5-1.5b", prompt_tokens=200_000))
    assert found.level == "exact row"
    assert any(flag.startswith("prompt: longer than") for flag in found.flags)


@pytest.mark.parametrize("device", PHONES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "gpu", "npu"])
def test_the_first_token_takes_no_less_than_any_other(device: str | DeviceSpecs, backend: str) -> None:
    """Also where a prompt is read 50 times as fast as tokens are written."""
    waits = [told(device, "first_token_ms", tokens, backend=backend) for tokens in (1, 2, 8, 32, 128, 256, 512)]
    one = told(device, "decode_tokens_per_s", 1, backend=backend)
    usual = told(device, "first_token_ms", 256, backend=backend).median
    assert waits[0].median == pytest.approx(min(1e3 / one.median, usual))
    assert all(less.median <= more.median for less, more in pairwise(waits))
    assert all(each.low <= each.median <= each.high for each in waits)
    assert sum(waits[0].terms.values()) == pytest.approx(waits[0].median)
    assert any(flag.startswith("prompt: so short") for flag in waits[0].flags)
    assert set(waits[-1].terms) == {"prefill_ms"}
