"""Language models by name and as mixtures of experts: what is read for each token, and what is told of it."""

from __future__ import annotations

import pytest

from edgedistill.errors import SpecError
from edgedistill.predict import LlmWorkload, predict
from edgedistill.predict.llm_features import llm_features


@pytest.mark.parametrize("phase", ["decode_tokens_per_s", "prefill_tokens_per_s"])
@pytest.mark.parametrize("tied", [True, False])
def test_more_experts_that_no_token_reads_do_not_make_a_token_faster(phase: str, tied: bool) -> None:
    rates = [
        predict("galaxy_s23", LlmWorkload(params_b=size, active_params_b=0.6, tied=tied), phase).median
        for size in (0.6, 1.3, 10.0, 80.0)
    ]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("params_b", "active_b", "embedding_b", "layers", "kv_bytes"),
    [
        (30.5, 3.3, 0.311, 48, 98_304),  # Qwen3-30B-A3B
        (6.9, 1.3, 0.103, 16, 131_072),  # OLMoE-1B-7B
        (46.7, 12.9, 0.131, 32, 131_072),  # Mixtral 8x7B
        (41.9, 6.6, 0.131, 32, 131_072),  # Phi-3.5-MoE
        (20.9, 3.6, 0.579, 24, 49_152),  # gpt-oss-20b
    ],
)
def test_a_mixture_is_as_wide_and_deep_as_what_a_token_reads(
    params_b: float, active_b: float, embedding_b: float, layers: int, kv_bytes: int
) -> None:
    """Beside public configurations; a dense model of all the parameters has up to 6 times the keys and values."""
    told = llm_features(LlmWorkload(params_b=params_b, active_params_b=active_b))
    assert 1 / 3 < told.embedding_b / embedding_b < 5  # vocabularies are 32 000 to 200 000
    assert 0.6 < told.layers / layers < 1.65
    assert 0.15 < told.kv_bytes_per_token / kv_bytes < 1.6


@pytest.mark.parametrize(
    ("name", "params_b", "active_b"),
    [
        ("OLMoE-1B-7B-0924", 7.0, 1.0),
        ("granite-3.1-1b-a400m-instruct", 1.0, 0.4),
        ("LFM2-8B-A1B", 8.0, 1.0),
        ("Qwen9-7B-Instruct-1M", 7.0, 7.0),  # a context of 10^6
        ("gemma-3n-E2B-it", 4.46, 4.46),  # as its rows write it without a hyphen
        ("google/gemma3:1b", 1.0, 1.0),
        ("gemma-31b", 31.0, 31.0),
    ],
)
def test_what_a_name_says_of_the_size(name: str, params_b: float, active_b: float) -> None:
    told = llm_features(LlmWorkload(model=name))
    assert told.params_b == pytest.approx(params_b)
    assert told.decode_b == pytest.approx(active_b, rel=0.01)


@pytest.mark.parametrize("name", ["0b", "model-0.0B", "x-99999999999999999999b"])
def test_a_size_that_no_model_has_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"unknown model .* give params_b"):
        predict("galaxy_s23", LlmWorkload(model=name))
