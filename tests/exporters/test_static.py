"""Static int8: files compute the integers of the frozen student, and the tests that hold formats to it can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill import catalog, coreml, quant
from edgedistill.coreml import Evaluator
from edgedistill.errors import VerificationError
from edgedistill.exporters import coreml as core_ml
from edgedistill.exporters import onnx, tflite
from edgedistill.exporters._proof import STEP, Limits, answer, executes, step_of
from edgedistill.exporters.coreml.convert import Converter
from edgedistill.exporters.coreml.exact import ExactLayer
from edgedistill.exporters.coreml.network import network
from edgedistill.exporters.coreml.proof import answers, unrounded
from edgedistill.exporters.onnx.running import session_of
from edgedistill.exporters.tflite.graph import _Root
from edgedistill.quant import FrozenStudent, kernels
from edgedistill.quant.activations import LOW, Range
from edgedistill.quant.modules import RoundedRoot
from edgedistill.specs import QuantScheme, WeightGrid
from edgedistill.students import bert, cnn, part, vit
from edgedistill.students._points import Convolution

# with sums, odd paddings, and enough values that an arithmetic which is off by little shows
STAGES = [(1, 3, 1, 8, 1), (3, 5, 2, 12, 2), (4, 3, 2, 16, 2)]
CNN = cnn.TINY.model_copy(
    update={
        "image_size": 32,
        "stages": tuple(cnn.Stage(**dict(zip(cnn.Stage.model_fields, row, strict=True))) for row in STAGES),
        "head_width": 48,
        "classes": 10,
    }
)
# widths and heads that are no powers of two: a division by them rounds
TRANSFORMERS = {
    "bert": bert.TINY.model_copy(update={"width": 48, "heads": 2, "ffn": 96, "layers": 2, "classes": 10}),
    "vit": vit.TINY.model_copy(
        update={"image_size": 40, "patch": 8, "width": 48, "heads": 2, "ffn": 96, "layers": 2, "classes": 10}
    ),
}


def student(family: str, config: Any, bits: Any = 8) -> FrozenStudent:
    """Weights as large as trained ones; static ranges observed on random samples."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", family)
    scheme = QuantScheme(weights=WeightGrid(bits=bits), head=WeightGrid(bits=bits), activations="static_int8")
    model = part(family, "module").build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / parameter[0].numel() ** 0.5)
            else:  # as after training: multiplying by 1 and adding 0 would round nothing
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    quant.prepare(model, scheme, plugin.tensors(config)).train()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for signature in [*plugin.signatures(config, (8, 16))] * 12:
            model(*(torch.from_numpy(value) for value in plugin.sample(config, signature, random).values()))
    quant.freeze_observers(model)
    return quant.freeze(model.eval(), family, config, scheme, {})


def steps(frozen: FrozenStudent, *ways: Callable[[str, Any], Any], inputs: int, buckets: Any = (8, 16)) -> np.ndarray:
    """For each input and way to compute it the largest difference of any logit, in steps of their grid."""
    module, random, found = frozen.to_module(), np.random.default_rng(5), []
    signatures = [*frozen.signatures(buckets)]
    for signature in signatures * (inputs // len(signatures)):
        feeds = frozen.sample(signature, random)
        expected = answer(module, feeds)
        found.append([np.abs(run(signature.name, feeds) - expected).max() for run in ways])
    return np.rint(np.array(found) / frozen.ranges["classifier"][1].scale)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[FrozenStudent, Any]]:
    """An image student with weights of 8 and of 4 bits, each with the runner of its .tflite."""
    folder, made = tmp_path_factory.mktemp("static"), {}
    for bits in (8, 4):
        frozen = student("cnn", CNN, bits)
        tflite.export(frozen, (8,), folder / f"{bits}.tflite")
        made[bits] = frozen, tflite.load(folder / f"{bits}.tflite")
    return made


@pytest.mark.parametrize("bits", [8, 4])
def test_litert_computes_the_integers_of_an_image_student(images: Any, bits: int) -> None:
    """All that may differ is a mean that lies half way between two codes."""
    frozen, runner = images[bits]
    found = steps(frozen, lambda name, feeds: runner.run(name, feeds)["logits"], inputs=60)
    assert found.max() <= 1
    assert (found == 0).mean() >= 0.95


def float_sum(first: Any, second: Any, sources: Any, result: Any) -> Any:
    """What a frozen student added before: no fixed point."""
    low, high = -128 - result.zero_point, 127 - result.zero_point
    return ((first + second) / result.scale).round().clamp(low, high) * result.scale


def truncated(multiply: Any, x: Any, codes: Any, scales: Any, bias: Any, ranges: Any, relu6: bool = False) -> Any:
    """A kernel that forgets the bias's rounding and the order of its factors: off only where a value is on the edge."""
    source, result = ranges
    layer = multiply(kernels.quantize_static(x, source).double(), codes.double())
    shape = (-1, *[1] * (layer.dim() - 2))
    exact = layer * (source.scale * scales.double()).view(shape) + bias.double().view(shape)
    low, high = -128 - result.zero_point, 127 - result.zero_point
    out = (exact.clamp(0, 6) if relu6 else exact) / result.scale
    return out.round().clamp(low, high).float() * result.scale


def test_a_kernel_without_the_rounding_of_its_bias_is_noticed(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, runner = images[8]
    monkeypatch.setattr("edgedistill.quant.modules.static_layer", truncated)
    found = steps(frozen, lambda name, feeds: runner.run(name, feeds)["logits"], inputs=20)
    assert (found == 0).mean() < 0.5


def test_sums_of_image_students_are_undisputed(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A float sum gives the codes of the fixed-point one, as the scales were chosen for that."""
    frozen, runner = images[8]
    monkeypatch.setattr("edgedistill.quant.modules.static_sum", float_sum)
    assert steps(frozen, lambda name, feeds: runner.run(name, feeds)["logits"], inputs=60).max() <= 1


@pytest.mark.parametrize(("family", "bits"), [pytest.param("bert", 8, marks=pytest.mark.slow), ("vit", 4)])
def test_files_of_transformers_compute_the_students_codes(family: str, bits: int, tmp_path: Path) -> None:
    """LiteRT, and ONNX Runtime as apps have it: on this machine no answer is off by any step."""
    frozen = student(family, TRANSFORMERS[family], bits)
    tflite.export(frozen, (16,), tmp_path / "student.tflite")
    onnx.export(frozen, (16,), tmp_path / "student.onnx")
    litert, optimized = tflite.load(tmp_path / "student.tflite"), onnx.load(tmp_path / "student.onnx")
    (entry,) = optimized.signatures
    ways = {
        "litert": lambda name, feeds: litert.run(name, feeds)["logits"],
        "onnx": lambda _, feeds: optimized.run(entry, feeds)["logits"],
    }
    found = steps(frozen, *ways.values(), inputs=100, buckets=(16,))
    assert dict(zip(ways, found.max(0), strict=True)) == dict.fromkeys(ways, 0)
    as_floats(frozen, tmp_path / "student.onnx", 60)


def as_floats(frozen: FrozenStudent, path: Path, inputs: int) -> None:
    """Where ONNX Runtime knows no groups, all that differs is codes of values between two, and what follows of them.

    `ties` has the student go on with the file's codes, and compares every code of every layer and the answer.
    """
    session, module, random = session_of(path, path.read_bytes()), frozen.to_module(), np.random.default_rng(5)
    (signature,) = frozen.signatures((16,))
    every = [frozen.sample(signature, random) for _ in range(inputs)]
    ties = onnx.ties(frozen, path, every)
    equal = [np.array_equal(session.run(None, feeds)[0], answer(module, feeds)) for feeds in every]
    assert all(same for same, seen in zip(equal, ties, strict=True) if not seen)
    distances = [tie.distance for seen in ties for tie in seen]
    assert distances, "nothing shows whether such a code is told from a wrong one"
    assert max(distances) < 1e-4  # of a step, which is float32's for values of 128 steps


def test_a_static_file_that_is_off_by_two_steps_is_not_written() -> None:
    """Whatever fraction of the largest output that is."""
    frozen = student("vit", vit.TINY)
    module, step = frozen.to_module(), step_of(frozen)
    assert step is not None

    class Runner:
        def __init__(self, away: float) -> None:
            self.away, self.signatures = away, {signature.name: signature for signature in frozen.signatures(())}

        def run(self, signature: str, feeds: Any) -> dict[str, Any]:
            return {"logits": answer(module, feeds) + np.float32(self.away * step)}

    executes(frozen, Runner(1), Limits(1e-9, 1e-9))
    with pytest.raises(VerificationError, match="does not compute what was trained"):
        executes(frozen, Runner(2), Limits(1.0, 1.0))
    assert STEP < 1.5


def test_litert_rounds_square_roots_once(tmp_path: Path) -> None:
    """Its own SQRT does not on every processor; the form that a file has does. Nor does torch's, where MKL computes."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    random = torch.Generator().manual_seed(0)
    x = torch.exp(20 * torch.rand(1, 20_000, generator=random) - 12)
    path = str(tmp_path / "root.tflite")
    litert_torch.convert(_Root().eval(), (x,)).export(path)
    (found,) = Interpreter(path, num_threads=1).get_signature_runner()(args_0=x.numpy()).values()
    assert np.array_equal(found, np.sqrt(x.numpy()))
    assert np.array_equal(RoundedRoot()(x).numpy(), np.sqrt(x.numpy()))


def test_a_token_that_is_all_alike_has_a_layer_norm() -> None:
    """Its int8 values have no variance: that of the rounding is taken, not an epsilon that makes it explode."""
    frozen = student("bert", TRANSFORMERS["bert"])
    norm = frozen.to_module().get_submodule("embeddings.norm")
    with torch.no_grad():
        out = norm(torch.full((1, 2, 48), 0.4) + 1e-4 * torch.randn(1, 2, 48))
    assert float(out.abs().max()) < 10


@pytest.mark.parametrize("family", ["bert", "cnn", "vit"])
def test_the_graph_of_a_core_ml_program_is_the_students(family: str, tmp_path: Path) -> None:
    """In float64 every code is that of the student's formulas, and the answers are within a step of the student's.

    What ships rounds to fp16; this is the same program with its float32 constants.
    """
    frozen = student(family, catalog.load_plugin("students", family).TINY)
    raw = Converter(frozen, frozen.signatures((8, 16))).write(tmp_path)
    twin, formulas = Evaluator(unrounded(coreml.load(raw.path), raw.floats), "fp64"), network(frozen)

    def computed(_: str, feeds: Any) -> Any:
        found = next(iter(twin.predict(feeds).values()))
        assert np.abs(found - answers(formulas, [feeds])[0]).max() < 1e-9
        return found

    found = steps(frozen, computed, inputs=24)
    assert found.max() <= 1
    assert (found == 0).mean() >= 0.7


@pytest.mark.parametrize(("family", "bits"), [pytest.param("bert", 8, marks=pytest.mark.slow), ("vit", 4), ("cnn", 8)])
def test_a_core_ml_package_of_float32_computes_the_students_codes(family: str, bits: int, tmp_path: Path) -> None:
    frozen, path = student(family, (TRANSFORMERS | {"cnn": CNN})[family], bits), tmp_path / "student.mlpackage"
    core_ml.export(frozen, (16,), path, precision="float32")
    assert all(
        np.array_equal(frozen.quantized[name].codes, item.codes) for name, item in core_ml.read_back(path).items()
    )
    runner = core_ml.load(path)
    assert steps(frozen, lambda name, feeds: runner.run(name, feeds)["logits"], inputs=60, buckets=(16,)).max() == 0


@pytest.mark.parametrize("kind", [nn.Linear, Convolution])
def test_sums_beyond_float32_are_rounded_once(kind: Any) -> None:
    """A result on the grid of the sums themselves shows each of them."""
    random, wide = torch.Generator().manual_seed(0), 3000
    codes = 127 * (2 * torch.randint(0, 2, (8, wide), generator=random) - 1.0)
    bias = torch.randint(-(2**23), 2**23, (8,), generator=random).float()
    x = torch.randint(0, 2, (20, wide), generator=random) * 255.0 * (codes[0] > 0) + torch.eye(20, wide)
    layer, shape = nn.Linear(wide, 8), (20, wide)
    if kind is Convolution:
        layer, shape = Convolution(wide, 8, 1, source="a", result="b", relu6=False), (20, wide, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(codes.view(layer.weight.shape) / 64)
        layer.bias.copy_(bias / 64)
    exact = ExactLayer(layer, torch.full((8,), 1 / 64), (Range(1.0, LOW), Range(1 / 64, 0)), "layer")
    assert len(exact.parts) > 2
    wanted = (x.double() @ codes.double().T + bias.double()).float() / 64
    assert float(wanted.abs().max()) * 64 > 2**24
    with torch.no_grad():
        assert torch.equal(exact(x.view(shape)).view(20, 8), wanted)
