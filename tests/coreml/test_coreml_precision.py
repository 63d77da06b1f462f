"""What each precision rounds, what a trace sees, and how the package is opened."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_models import built, convert
from torch import nn

from edgedistill.coreml import Evaluator, Program, load

RNG = np.random.default_rng(9)
X = RNG.uniform(-3, 3, (4, 16)).astype(np.float32)
SCALE = RNG.uniform(0.5, 2, (16,)).astype(np.float16)
SHIFT = RNG.uniform(-1, 1, (16,)).astype(np.float16)


def half(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """float32 in, cast to fp16, times SCALE, plus SHIFT, squared; float32 out."""

    def make(mb: Any, v: dict[str, Any]) -> Any:
        x = mb.cast(x=v["x"], dtype="fp16", name="narrow")
        y = mb.add(x=mb.mul(x=x, y=SCALE, name="scaled"), y=SHIFT, name="shifted")
        return mb.cast(x=mb.square(x=y, name="squared"), dtype="fp32", name="wide")

    return load(built(make, {"x": X}, tmp_path_factory.mktemp("steps") / "steps.mlpackage"))


def test_fp16_rounds_the_result_of_every_operation(steps: Program) -> None:
    wanted = half(half(half(half(X) * SCALE.astype(np.float32)) + SHIFT.astype(np.float32)) ** 2)
    assert np.array_equal(Evaluator(steps, "fp16").predict({"x": X})["wide"], wanted)


def test_fp32_rounds_only_what_the_program_casts(steps: Program) -> None:
    wanted = (half(X) * SCALE.astype(np.float32) + SHIFT.astype(np.float32)) ** 2
    got = Evaluator(steps, "fp32").predict({"x": X})["wide"]
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() < 1e-6
    assert not np.array_equal(got, half(got))


def test_square_roots_are_rounded_once(tmp_path: Path) -> None:
    """One in six of torch's own is not, where MKL computes it."""
    x = np.exp(RNG.uniform(-12, 8, (4, 500))).astype(np.float32)
    program = load(built(lambda mb, v: mb.sqrt(x=v["x"], name="root"), {"x": x}, tmp_path / "root.mlpackage"))
    assert np.array_equal(Evaluator(program, "fp32").predict({"x": x})["root"], np.sqrt(x))


def test_fp64_rounds_nothing(steps: Program) -> None:
    wanted = (X.astype(np.float64) * SCALE + SHIFT) ** 2
    got = Evaluator(steps, "fp64").predict({"x": X})["wide"]
    assert got.dtype == np.float64
    assert np.abs(got - wanted).max() < 1e-14 * np.abs(wanted).max()


def test_fp16_overflows_to_infinity_and_the_others_do_not(steps: Program) -> None:
    large = {"x": np.full((4, 16), 900, np.float32)}
    assert np.isinf(Evaluator(steps, "fp16").predict(large)["wide"]).any()
    assert np.isfinite(Evaluator(steps, "fp32").predict(large)["wide"]).all()
    assert np.isfinite(Evaluator(steps, "fp64").predict(large)["wide"]).all()


def test_a_trace_sees_every_result_in_order(steps: Program) -> None:
    seen: list[tuple[str, str, torch.Tensor]] = []
    Evaluator(steps, "fp16", lambda *entry: seen.append(entry)).predict({"x": X})
    assert [name for name, _, _ in seen] == ["narrow", "scaled", "shifted", "squared", "wide"]
    assert [kind for _, kind, _ in seen] == ["cast", "mul", "add", "square", "cast"]
    assert np.array_equal(seen[1][2].numpy(), half(half(X) * SCALE.astype(np.float32)))


def test_a_trace_finds_the_first_layer_that_differs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())
    first = load(convert(module, {"x": X}, tmp_path / "a.mlpackage", outputs=["y"]))
    with torch.no_grad():
        module[2].weight[3, 4] += 0.01
    second = load(convert(module, {"x": X}, tmp_path / "b.mlpackage", outputs=["y"]))
    sides: list[list[tuple[str, str, torch.Tensor]]] = [[], []]
    for program, side in zip((first, second), sides, strict=True):
        Evaluator(program, "fp64", lambda *entry, side=side: side.append(entry)).predict({"x": X})
    differs = [index for index, (a, b) in enumerate(zip(*sides, strict=True)) if not torch.equal(a[2], b[2])]
    assert [kind for _, kind, _ in sides[0]] == ["linear", "relu", "linear", "tanh"]
    assert differs == [2, 3]


def test_what_a_caller_does_with_an_answer_changes_nothing(steps: Program) -> None:
    evaluator = Evaluator(steps, "fp32")
    first = evaluator.predict({"x": X})["wide"]
    kept = first.copy()
    first[:] = 7
    assert np.array_equal(evaluator.predict({"x": X})["wide"], kept)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("int8", [-3, 3, 2, 44, -128]),
        ("uint8", [253, 3, 2, 44, 128]),
        ("int16", [-3, 3, 2, 300, 128 - 256]),
        ("uint16", [65533, 3, 2, 300, 65536 - 128]),
        ("int32", [-3, 3, 2, 300, -128]),
        ("bool", [1, 1, 1, 1, 1]),
    ],
)
def test_casts_cut_off_towards_zero_and_wrap(dtype: str, wanted: list[int], tmp_path: Path) -> None:
    x = np.array([-3.7, 3.7, 2.0, 300.0, -128.0], np.float32)

    def make(mb: Any, v: dict[str, Any]) -> Any:
        return mb.cast(x=mb.cast(x=v["x"], dtype=dtype), dtype="int32")

    (got,) = Evaluator(load(built(make, {"x": x}, tmp_path / "c.mlpackage")), "fp32").predict({"x": x}).values()
    assert got.tolist() == wanted


def run(steps: Program, code: str) -> None:
    opened = (
        "import sys\nfrom pathlib import Path\nfrom edgedistill.coreml import load\nprogram = load(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", opened + code, str(steps.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_opening_a_package_does_not_import_coremltools(steps: Program) -> None:
    run(steps, "assert not any(m.split('.')[0] == 'coremltools' for m in sys.modules)\n")


@pytest.mark.slow
def test_coremltools_may_be_imported_afterwards(steps: Program) -> None:
    run(
        steps,
        "import logging, warnings\n"
        "logging.disable(logging.CRITICAL)\n"
        "warnings.simplefilter('ignore')\n"
        "import coremltools\n"
        "from edgedistill.coreml.proto import messages\n"
        "spec = coremltools.models.utils.load_spec(str(program.path))\n"
        "assert isinstance(spec, messages().Model)\n"
        "assert load(program.path).main.name == 'main'\n",
    )
