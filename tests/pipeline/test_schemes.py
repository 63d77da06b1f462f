"""Builds with other schemes than the default's, through the front door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = Path(__file__).parents[2] / "profiles" / "tiny.toml"
FOUR_BITS = """
[export.scheme]
activations = "float"
weights = { bits = 4, granularity = { kind = "per_group", size = 32 } }
"""
AGAIN = """
[[stages]]
name = "again"
epochs = 0.2
learning_rate = 1e-4
fake_quant = true
scales = "learned"
losses = [{ loss = "cross_entropy" }]
"""


@pytest.fixture
def built(tmp_path: Path, cli: Callable[..., Any]) -> Callable[..., tuple[Any, Path]]:
    def build(extra: str, *options: object) -> tuple[Any, Path]:
        profile = tmp_path / "mine.toml"
        own = TINY.read_text().replace('name = "tiny"', 'name = "mine"')
        assert "[export.scheme]" not in own
        profile.write_text(own + extra)
        out = tmp_path / "out"
        arguments = "--target", "host", "--profile", profile, "--store", tmp_path / "store", "--out", out
        return cli("build", *arguments, *options), out

    return build


@pytest.mark.slow  # a build with layers of 4 bits: test_mixed.py
def test_four_bits_in_groups_and_two_quantized_stages_reach_an_exact_file(built: Any) -> None:
    done, out = built(FOUR_BITS + AGAIN, "--format", "onnx", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    parity = manifest["parity"]["onnx"]
    assert (parity["codes_max_difference"], parity["scales_max_difference"]) == (0, 0)
    assert parity["argmax_agreement"] == 1
    assert manifest["artifacts"][0]["scheme"]["weights"]["bits"] == 4


def test_a_scheme_that_the_format_cannot_hold_ends_before_anything_slow(built: Any) -> None:
    done, out = built(FOUR_BITS, "--format", "tflite")
    assert done.returncode == 2
    assert "cannot store exactly" in done.stderr
    assert not out.exists()
