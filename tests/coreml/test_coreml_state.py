"""States: a key-value cache that grows, and what a state keeps between predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_models import built, convert, coremltools
from torch import nn
from torch.nn import functional as F

from edgedistill.coreml import Evaluator, Program, load
from edgedistill.errors import VerificationError

WIDTH, HEADS, CONTEXT = 16, 2, 12


class Cached(nn.Module):
    """One attention layer that writes its keys and values into a cache; the mask's length says how far it is filled."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, 20)
        for name in ("k_cache", "v_cache"):
            self.register_buffer(name, torch.zeros(1, HEADS, CONTEXT, WIDTH // HEADS))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        end = mask.shape[-1]
        begin = end - ids.shape[-1]
        q, k, v = self.qkv(self.embed(ids)).reshape(1, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        self.k_cache[:, :, begin:end, :] = k
        self.v_cache[:, :, begin:end, :] = v
        out = F.scaled_dot_product_attention(q, self.k_cache[:, :, :end], self.v_cache[:, :, :end], attn_mask=mask)
        return self.head(out.transpose(1, 2).flatten(2))


def causal(begin: int, end: int) -> np.ndarray:
    rows, columns = np.arange(begin, end)[:, None], np.arange(end)
    return np.where(columns <= rows, 0.0, -1e4).astype(np.float32)[None, None]


@pytest.fixture(scope="module")
def decoder() -> Cached:
    torch.manual_seed(0)
    return Cached().eval()


@pytest.fixture(scope="module")
def program(decoder: Cached, tmp_path_factory: pytest.TempPathFactory) -> Program:
    ct = coremltools()
    ids, mask = np.zeros((1, 3), np.int32), causal(0, 3)
    length, end = ct.RangeDim(1, CONTEXT, default=3), ct.RangeDim(1, CONTEXT, default=3)
    shape = (1, HEADS, CONTEXT, WIDTH // HEADS)
    path = convert(
        decoder,
        {"ids": ids, "mask": mask},
        tmp_path_factory.mktemp("cache") / "cache.mlpackage",
        target="iOS18",
        outputs=["logits"],
        shapes={"ids": (1, length), "mask": (1, 1, length, end)},
        states=[
            ct.StateType(wrapped_type=ct.TensorType(shape=shape, dtype=np.float16), name=name)
            for name in ("k_cache", "v_cache")
        ],
    )
    return load(path)


def whole(decoder: Cached, ids: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """All positions at once, from an empty cache."""
    with torch.no_grad():
        model = Cached().to(dtype)
        model.load_state_dict({k: torch.zeros_like(v) if "cache" in k else v for k, v in decoder.state_dict().items()})
        return model(torch.from_numpy(ids), torch.from_numpy(causal(0, ids.shape[1])).to(dtype)).numpy()


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    # the cache is fp16 on a device; in fp64 it is not rounded, and agrees with float64 to the rounding of constants
    [("fp64", torch.float64, 1e-9), ("fp32", torch.float32, 2e-3)],
)
def test_step_by_step_gives_what_one_call_gives(
    program: Program, decoder: Cached, precision: Any, dtype: torch.dtype, tolerance: float
) -> None:
    ids = np.random.default_rng(8).integers(0, 20, (1, 9)).astype(np.int32)
    wanted = whole(decoder, ids, dtype)
    evaluator = Evaluator(program, precision)
    state = evaluator.new_state()
    steps = [(0, 4), (4, 5), (5, 6), (6, 9)]
    got = [
        evaluator.predict({"ids": ids[:, begin:end], "mask": causal(begin, end)}, state)["logits"]
        for begin, end in steps
    ]
    error = np.abs(np.concatenate(got, 1) - wanted).max()
    assert error <= tolerance
    if precision == "fp32":
        assert error > 0  # the cache did round
        half = state["k_cache"].value
        assert torch.equal(half, half.half().float())
    assert int(torch.count_nonzero(state["k_cache"].value.abs().sum((0, 1, 3)))) == 9


def test_without_a_state_every_prediction_starts_from_zero(program: Program) -> None:
    evaluator = Evaluator(program, "fp32")
    first = {"ids": np.array([[1, 2]], np.int32), "mask": causal(0, 2)}
    second = {"ids": np.array([[3]], np.int32), "mask": causal(2, 3)}
    alone = evaluator.predict(second)["logits"]
    evaluator.predict(first)
    assert np.array_equal(evaluator.predict(second)["logits"], alone)
    state = evaluator.new_state()
    evaluator.predict(first, state)
    assert not np.array_equal(evaluator.predict(second, state)["logits"], alone)


def test_a_foreign_state_is_refused(program: Program) -> None:
    with pytest.raises(VerificationError, match="k_cache"):
        Evaluator(program, "fp32").predict({"ids": np.zeros((1, 1), np.int32), "mask": causal(0, 1)}, {})


def test_shapes_outside_the_declared_range_are_refused(program: Program) -> None:
    evaluator = Evaluator(program, "fp32")
    with pytest.raises(VerificationError, match="does not take shape"):
        evaluator.predict({"ids": np.zeros((1, CONTEXT + 1), np.int32), "mask": causal(0, CONTEXT + 1)})


def test_a_state_counts(tmp_path: Path) -> None:
    """read_state, coreml_update_state: the smallest program that remembers."""

    def make(mb: Any, v: dict[str, Any]) -> Any:
        total = mb.add(x=mb.read_state(input=v["total"]), y=v["x"])
        return mb.identity(x=mb.coreml_update_state(state=v["total"], value=total))

    x = {"x": np.array([1.5, -2.0], np.float16)}
    path = built(make, x, tmp_path / "sum.mlpackage", states={"total": (2,)})
    kinds = [operation.kind for operation in load(path).main.operations]
    assert "read_state" in kinds
    assert "write_state" in kinds
    evaluator = Evaluator(load(path), "fp16")
    state = evaluator.new_state()
    for count in (1, 2, 3):
        (got,) = evaluator.predict(x, state).values()
        assert np.array_equal(got, count * x["x"].astype(np.float32))


def test_a_state_is_stored_as_fp16_in_all_precisions_but_fp64(tmp_path: Path) -> None:
    def make(mb: Any, v: dict[str, Any]) -> Any:
        total = mb.add(x=mb.read_state(input=v["total"]), y=mb.mul(x=v["x"], y=np.float16(1.001)))
        return mb.identity(x=mb.coreml_update_state(state=v["total"], value=total))

    x = {"x": np.array([1.5, -0.3], np.float16)}
    program = load(built(make, x, tmp_path / "sum.mlpackage", states={"total": (2,)}))
    exact = x["x"].astype(np.float64) * np.float64(np.float16(1.001))
    for precision, wanted in (("fp32", exact.astype(np.float16)), ("fp64", exact)):
        state = Evaluator(program, precision).new_state()
        (got,) = Evaluator(program, precision).predict(x, state).values()
        assert np.array_equal(state["total"].value.numpy(), wanted.astype(got.dtype))
        assert np.array_equal(got, wanted.astype(got.dtype))
    assert not np.array_equal(exact, exact.astype(np.float16))
