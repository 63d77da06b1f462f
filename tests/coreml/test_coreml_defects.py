"""Known defects of coremltools 9.0. The evaluator computes what the file says, so it shows them without a Mac.

A test that fails here after an update of coremltools is good news: the exporter's way around can go.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_models import built, convert, coremltools
from torch import nn

from edgedistill.coreml import Evaluator, load


def answer(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    (got,) = Evaluator(load(path), "fp32").predict(feeds).values()
    return got


def test_a_reciprocal_is_shifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 / x becomes `inverse` with an epsilon of 1e-4: half the value at 1e-4 (apple/coremltools #2773)."""
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as registry

    # the exporter, if it ran in this process, has put its own in the place of coremltools'
    monkeypatch.setitem(registry.name_to_func_mapping, "reciprocal", ops.reciprocal)

    class Reciprocal(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1 / x

    feeds = {"x": np.array([1e-4, 1e-2, 1.0], np.float32)}
    got = answer(convert(Reciprocal(), feeds, tmp_path / "r.mlpackage"), feeds)
    assert np.allclose(got, 1 / (feeds["x"] + np.float32(1e-4)), rtol=1e-6)
    assert got[0] == pytest.approx(5000, rel=1e-3)


@pytest.mark.parametrize("fixed", [False, True])
def test_requantizing_across_a_reshape_is_dropped(fixed: bool, tmp_path: Path) -> None:
    """dequantize, reshape, quantize with another scale: the pass keeps the codes and changes what they mean."""

    def make(mb: Any, v: dict[str, Any]) -> Any:
        def stored(x: Any, scale: float) -> Any:
            codes = mb.quantize(input=x, scale=np.float32(scale), output_dtype="int8")
            return mb.dequantize(input=codes, scale=np.float32(scale))

        return stored(mb.reshape(x=stored(v["x"], 0.01), shape=[4, 3]), 0.05)

    pipeline = coremltools().PassPipeline(["common::int_op_canonicalization"] * (not fixed))
    feeds = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    got = answer(built(make, feeds, tmp_path / "q.mlpackage", target="iOS17", pipeline=pipeline), feeds)
    error = np.abs(got - feeds["x"].reshape(4, 3)).max()
    assert error < 0.03 if fixed else error > 3


def test_rms_norm_inflates_epsilon(tmp_path: Path) -> None:
    """x is divided by its largest value first, and epsilon is not (apple/coremltools #2821)."""
    module = nn.RMSNorm(8, eps=1e-2)
    feeds = {"x": np.array([[16.0, 0, 0, 0, 0, 0, 0, 0.5]], np.float32)}
    got = answer(convert(module, feeds, tmp_path / "n.mlpackage"), feeds)
    x = feeds["x"].astype(np.float64)
    right = x / np.sqrt((x**2).mean() + 1e-2)
    inflated = x / np.sqrt((x**2).mean() + 1e-2 * 16.0**2)
    assert np.abs(got - inflated).max() < 1e-5
    assert np.abs(got - right).max() > 0.05
