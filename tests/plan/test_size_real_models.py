"""Sizes of published models, far from what any graph was measured with, against the files that `bench/` recorded.

`bench/real_models.py` exports them with their own weights: up to 30 layers, 576 wide, with 49 152 pieces.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgedistill import catalog
from edgedistill.plan.size import file_size
from edgedistill.students import bert, cnn, llama

sys.path.append(str(Path(__file__).parents[2] / "bench"))
from real_models import BUCKETS, FAMILIES, RESULTS, SCHEMES, WANTED, formats_of

CONFIGS = {
    "minilm": bert.Config(
        layers=6, width=384, heads=12, ffn=1536, vocabulary=30522, max_length=max(BUCKETS["minilm"]), classes=77
    ),
    "efficientnet_lite0": cnn.EFFICIENTNET_LITE0,
    "smollm2_135m": llama.Config(
        layers=30, width=576, heads=9, kv_heads=3, head_width=64, ffn=1536, vocabulary=49152, max_length=2048,
        rope_theta=1e5,
    ),
}  # fmt: skip
RECORDED: dict[str, Any] = json.loads((RESULTS / "real_models.json").read_text(encoding="utf-8"))["cases"]


def test_every_model_was_recorded_in_every_format() -> None:
    wanted = {(model, name) for model in WANTED for name in formats_of(model)}
    assert wanted == {tuple(key.split(":")[:2]) for key in RECORDED}


# what an exporter refused has no file
@pytest.mark.parametrize("key", [key for key, case in RECORDED.items() if "refused" not in case])
def test_a_published_model_is_predicted_within_a_thousandth(key: str) -> None:
    model, name, label = key.split(":")
    config, scheme = CONFIGS[model], SCHEMES[label]
    tensors = catalog.load_plugin("students", FAMILIES[model]).tensors(config)
    # an image has no lengths; only bundles have a tokenizer
    spent = RECORDED[key].get("tokenizer_bytes", 0)
    found = file_size(name, tensors, scheme, BUCKETS[model] or (1,), config, tokenizer_bytes=spent)
    assert found.total_mb == pytest.approx(RECORDED[key]["size_mb"], rel=0.001)
