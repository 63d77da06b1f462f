"""Operations on values that torch's converter does not write: MIL programs, against closed forms in numpy and torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from coreml_mil import IMAGE, WHOLE, Case, X, assert_closed_form, t
from coreml_models import built
from torch.nn import functional as F

from edgedistill.coreml import Evaluator, load
from edgedistill.errors import VerificationError

ALPHA = np.linspace(0.1, 0.6, 6, dtype=np.float32)
SLOPES = np.linspace(0.1, 0.8, 8, dtype=np.float32)
CASES: dict[str, Case] = {
    "clamped_relu": (
        lambda mb, v: mb.clamped_relu(x=v["x"], alpha=0.3, beta=1.0),
        lambda: np.where(X >= 0, np.minimum(1.0, X), np.minimum(1.0, 0.3 * X)),
    ),
    "inverse": (lambda mb, v: mb.inverse(x=v["x"], epsilon=np.float32(3.0)), lambda: 1 / (X + 3.0)),
    "linear_activation": (lambda mb, v: mb.linear_activation(x=v["x"], alpha=2.0, beta=0.5), lambda: 2 * X + 0.5),
    "mod": (lambda mb, v: mb.mod(x=v["whole"], y=np.int32(4)), lambda: WHOLE % 4),
    "prelu": (
        lambda mb, v: mb.prelu(x=v["image"], alpha=SLOPES),
        lambda: np.where(IMAGE > 0, IMAGE, IMAGE * SLOPES[:, None, None]),
    ),
    "scaled_tanh": (lambda mb, v: mb.scaled_tanh(x=v["x"], alpha=2.0, beta=0.5), lambda: 2 * np.tanh(0.5 * X)),
    "sigmoid_hard": (
        lambda mb, v: mb.sigmoid_hard(x=v["x"], alpha=0.4, beta=0.3),
        lambda: np.clip(0.4 * X + 0.3, 0, 1),
    ),
    "softplus_parametric": (
        lambda mb, v: mb.softplus_parametric(x=v["x"], alpha=ALPHA, beta=ALPHA + 1),
        lambda: ALPHA[:, None] * np.log1p(np.exp(X * (ALPHA[:, None] + 1))),
    ),
    "softsign": (lambda mb, v: mb.softsign(x=v["x"]), lambda: X / (1 + np.abs(X))),
    "threshold": (lambda mb, v: mb.threshold(x=v["x"], alpha=0.2), lambda: np.maximum(X, 0.2)),
    "thresholded_relu": (lambda mb, v: mb.thresholded_relu(x=v["x"], alpha=0.2), lambda: np.where(X >= 0.2, X, 0)),
    "gelu_sigmoid": (
        lambda mb, v: mb.gelu(x=v["x"], mode="SIGMOID_APPROXIMATION"),
        lambda: X / (1 + np.exp(-1.702 * X)),
    ),
    "real_div_whole": (lambda mb, v: mb.real_div(x=mb.mul(x=v["whole"], y=np.int32(3)), y=np.int32(3)), lambda: WHOLE),
    # reductions
    "reduce_l1_norm": (lambda mb, v: mb.reduce_l1_norm(x=v["x"], axes=[1]), lambda: np.abs(X).sum(1)),
    "reduce_log_sum": (lambda mb, v: mb.reduce_log_sum(x=mb.exp(x=v["x"]), axes=[2]), lambda: np.log(np.exp(X).sum(2))),
    "reduce_prod": (lambda mb, v: mb.reduce_prod(x=v["x"], axes=[0, 2]), lambda: X.prod((0, 2))),
    "reduce_sum_square": (lambda mb, v: mb.reduce_sum_square(x=v["x"], axes=[1]), lambda: (X**2).sum(1)),
    "reduce_sum_whole": (lambda mb, v: mb.reduce_sum(x=v["whole"], axes=[-1]), lambda: WHOLE.sum(-1)),
    "cumsum_exclusive": (
        lambda mb, v: mb.cumsum(x=v["x"], axis=1, exclusive=True, reverse=True),
        lambda: np.flip(np.flip(X, 1).cumsum(1), 1) - X,
    ),
    "topk_ascending": (
        lambda mb, v: mb.topk(x=v["x"], k=2, axis=1, ascending=True)[0],
        lambda: np.sort(X, 1)[:, :2],
    ),
    # normalisation and pooling
    "l2_norm": (
        lambda mb, v: mb.l2_norm(x=v["image"], epsilon=0.1),
        lambda: IMAGE / np.sqrt((IMAGE**2).sum((1, 2, 3), keepdims=True) + 0.1),
    ),
    "layer_norm_middle_axis": (
        lambda mb, v: mb.layer_norm(x=v["x"], axes=[1], gamma=ALPHA, beta=ALPHA + 1, epsilon=0.01),
        lambda: (
            (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 0.01) * ALPHA[:, None]
            + ALPHA[:, None]
            + 1
        ),
    ),
    "local_response_norm": (
        lambda mb, v: mb.local_response_norm(x=v["image"], size=3, alpha=0.2, beta=0.6, k=1.5),
        lambda: F.local_response_norm(t(IMAGE), 3, 0.2, 0.6, 1.5).numpy(),
    ),
    "l2_pool": (
        lambda mb, v: mb.l2_pool(x=v["image"], kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
        lambda: F.lp_pool2d(t(IMAGE), 2.0, 2).numpy(),
    ),
    "max_pool_same_lower": (
        lambda mb, v: mb.max_pool(x=v["image"], kernel_sizes=[2, 2], strides=[1, 1], pad_type="same_lower"),
        lambda: F.max_pool2d(F.pad(t(IMAGE), (1, 0, 1, 0), value=-9), 2, 1).numpy(),
    ),
    "conv_same_strided": (
        lambda mb, v: mb.conv(x=v["image"], weight=np.ones((1, 8, 3, 3), np.float32), strides=[2, 2], pad_type="same"),
        # 6 and 4 elements, stride 2: one element of padding in all, behind
        lambda: F.conv2d(F.pad(t(IMAGE), (0, 1, 0, 1)), torch.ones(1, 8, 3, 3), stride=2).numpy(),
    ),
    "conv_transpose_output_shape": (
        lambda mb, v: mb.conv_transpose(
            x=v["image"],
            weight=np.ones((8, 2, 3, 3), np.float32),
            bias=np.ones(2, np.float32),
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            output_shape=[2, 2, 12, 8],
        ),
        lambda: F.conv_transpose2d(t(IMAGE), torch.ones(8, 2, 3, 3), torch.ones(2), 2, 1, output_padding=1).numpy(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_its_closed_form(name: str, tmp_path: Path) -> None:
    assert_closed_form(CASES[name], tmp_path)


def test_integers_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    """Apple does not say how `real_div` rounds them, so no answer is better than one of two."""
    path = built(lambda mb, v: mb.real_div(x=v["whole"], y=np.int32(4)), {"whole": WHOLE}, tmp_path / "d.mlpackage")
    with pytest.raises(VerificationError, match=r"real_div .+ no defined result"):
        Evaluator(load(path), "fp32").predict({"whole": WHOLE})
