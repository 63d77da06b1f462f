"""A student trained with torchao's QAT, lowered to our codes: the same where its grid is ours, and said where not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis
from torchao.quantization.granularity import PerGroup as PerGroupOfTorchao
from torchao.quantization.qat import (
    Float8FakeQuantizeConfig,
    Int8DynActInt4WeightQATQuantizer,
    IntxFakeQuantizeConfig,
    QATConfig,
    initialize_fake_quantizers,
)
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

from edgedistill.errors import SpecError, StageError
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.grid import SCALE_MIN
from edgedistill.quant.torchao_checkpoint import Converted, from_module, from_safetensors
from edgedistill.specs.quant import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import bert
from edgedistill.students.bert.module import BertClassifier, build

CONFIG = bert.Config(layers=1, width=64, heads=4, ffn=96, vocabulary=150, max_length=12, classes=5)
CODED = [tensor for tensor in bert.tensors(CONFIG) if tensor.kind != "float"]
GROUPS = WeightGrid(bits=4, granularity=PerGroup())
ROWS = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)


def int4(precision: torch.dtype = torch.float32, **changes: Any) -> IntxFakeQuantizeConfig:
    return IntxFakeQuantizeConfig(torch.int4, group_size=32, scale_precision=precision, **changes)


def int8(precision: torch.dtype = torch.float32) -> IntxFakeQuantizeConfig:
    return IntxFakeQuantizeConfig(torch.int8, "per_channel", scale_precision=precision)


def is_linear(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear)


def is_embedding(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Embedding)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, CONFIG.vocabulary, (8, CONFIG.max_length), generator=generator)
    return ids, torch.ones_like(ids)


def train(model: nn.Module, steps: int = 5, rate: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for step in range(steps):
        ids, mask = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids, mask).logits, ids[:, 0] % CONFIG.classes).backward()
        optimizer.step()


def prepared(
    linear: Any = None,
    embedding: Any = None,
    rows: Any = None,
    steps: int = 5,
    start: Callable[..., None] | None = None,
) -> BertClassifier:
    """A student after a few steps with torchao's fake quantization."""
    torch.manual_seed(0)
    model = build(CONFIG)
    if linear is not None:
        quantize_(model, QATConfig(activation_config=rows, weight_config=linear), filter_fn=is_linear)
    if embedding is not None:
        quantize_(model, QATConfig(weight_config=embedding), filter_fn=is_embedding)
    if start is not None:
        start(model)
    # a learned scale is a small number, which AdamW would move past zero at the rate of the weights
    train(model, steps, rate=1e-2 if start is None else 1e-4)
    return model.eval()


def scheme_of(linear: WeightGrid, embedding: WeightGrid, **changes: Any) -> QuantScheme:
    return QuantScheme(weights=linear, head=linear, embeddings=embedding, **changes)


def lowered(model: nn.Module, scheme: QuantScheme) -> Converted:
    return from_module(model, "bert", CONFIG, scheme, {"labels": ["a"]})


def primitives(weight: Tensor, bits: int, group: int, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes and scales straight from torchao's quantization primitives."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale, zero = choose_qparams_affine(
        weight, MappingType.SYMMETRIC, (1, group), torch.int8, low, high, scale_dtype=precision
    )
    return quantize_affine(weight, (1, group), scale, zero, torch.int8, low, high), scale


@pytest.mark.parametrize(("precision", "dtype"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_int4_with_scales_that_can_be_stored_is_held_exactly(precision: torch.dtype, dtype: Any) -> None:
    model = prepared(int4(precision), int4(precision), ROWS)
    student, report = lowered(model, scheme_of(GROUPS, GROUPS, scale_dtype=dtype))
    assert [moved.name for moved in report] == [tensor.name for tensor in CODED]
    assert all(moved.exact and str(moved).endswith("held exactly") for moved in report)
    assert min(stored.codes.min() for stored in student.quantized.values()) == -8
    for tensor in CODED:
        layer = model.get_submodule(tensor.name.removesuffix(".weight"))
        codes, scales = primitives(layer.weight.detach(), 4, 32, precision)
        stored = student.quantized[tensor.name]
        assert torch.equal(torch.from_numpy(stored.codes), codes)
        assert torch.equal(torch.from_numpy(stored.scales).flatten(), scales.flatten().float())
        assert torch.equal(torch.from_numpy(stored.values()), layer.weight_fake_quantizer(layer.weight).detach())


def test_the_frozen_student_answers_as_torchaos_did_and_is_one_of_ours(tmp_path: Path) -> None:
    scheme = scheme_of(GROUPS, GROUPS, activations="float")
    model = prepared(int4(torch.float16), int4(torch.float16))
    student, _ = lowered(model, scheme)
    ids, mask = batch(9)
    with torch.no_grad():
        assert torch.allclose(student.to_module()(ids, mask).logits, model(ids, mask).logits, atol=1e-5)
    student.save(tmp_path)
    assert FrozenStudent.load(tmp_path).task == {"labels": ["a"]}


def test_activations_of_int8_are_the_runtimes_and_close_to_torchaos() -> None:
    model = prepared(int4(torch.float16), int4(torch.float16), ROWS)
    student, _ = lowered(model, scheme_of(GROUPS, GROUPS))
    ids, mask = batch(9)
    with torch.no_grad():
        ours, theirs = student.to_module()(ids, mask).logits, model(ids, mask).logits
    assert 0 < float((ours - theirs).abs().max()) < 0.03 * float(theirs.abs().max())


def test_float32_scales_move_to_the_nearest_and_codes_stay() -> None:
    model = prepared(int4(), int4())
    for dtype, most in (("fp16", 2**-11), ("bf16", 2**-8)):
        student, report = lowered(model, scheme_of(GROUPS, GROUPS, scale_dtype=dtype))
        for moved in report:
            assert moved.codes_moved == 0
            assert 0 < moved.scale_change <= most
            assert 0 < moved.weight_change_steps <= 8 * most
            assert "0 codes moved" in str(moved)
        weight = model.layers[0].up.weight.detach()
        codes, _ = primitives(weight, 4, 32, torch.float32)
        assert torch.equal(torch.from_numpy(student.quantized["layers.0.up.weight"].codes), codes)


def test_int8_codes_of_minus_128_move_by_one_and_no_others() -> None:
    model = prepared(int8(torch.float16), int8(torch.float16))
    student, report = lowered(model, scheme_of(WeightGrid(), WeightGrid()))
    for tensor, moved in zip(CODED, report, strict=True):
        weight = model.get_parameter(tensor.name).detach()
        codes, _ = primitives(weight, 8, weight.shape[1], torch.float16)
        stored = torch.from_numpy(student.quantized[tensor.name].codes)
        assert torch.equal(stored, codes.clamp_min(-127))
        assert moved.codes_moved == int((codes == -128).sum())
        assert moved.scale_change == 0
        assert moved.weight_change_steps == (moved.codes_moved > 0)
    assert sum(moved.codes_moved for moved in report) > 0


def test_scales_that_were_learned_are_taken() -> None:
    learning = int4(is_dynamic=False, range_learning=True)
    model = prepared(learning, None, start=lambda model: initialize_fake_quantizers(model, batch(0)))
    student, report = lowered(model, scheme_of(GROUPS, WeightGrid()))
    scales = model.layers[0].up.weight_fake_quantizer.scale.detach()
    stored = student.quantized["layers.0.up.weight"]
    assert torch.equal(torch.from_numpy(stored.scales), scales.half().float())
    assert not torch.equal(primitives(model.layers[0].up.weight.detach(), 4, 32, torch.float32)[1], scales)
    by_name = {moved.name: moved for moved in report}
    assert by_name["layers.0.up.weight"].codes_moved == 0
    embedding = by_name["embeddings.word.weight"]
    assert not embedding.trained
    assert not embedding.exact
    assert embedding.weight_change_steps <= 0.5
    assert "was float in training" in str(embedding)


@pytest.mark.parametrize(
    ("base", "grid"),
    [
        (
            Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroupOfTorchao(32)),
            GROUPS,
        ),
        (IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)), WeightGrid()),
    ],
    ids=["int4", "int8"],
)
def test_before_and_after_torchaos_convert_step_the_codes_are_the_same(base: Any, grid: WeightGrid) -> None:
    torch.manual_seed(0)
    model = build(CONFIG)
    quantize_(model, QATConfig(base, step="prepare"))
    train(model)
    scheme = scheme_of(grid, WeightGrid())
    before, first = lowered(model, scheme)
    quantize_(model, QATConfig(base, step="convert"))
    after, second = lowered(model, scheme)
    assert first == second
    for name, tensor in before.quantized.items():
        assert (tensor.codes == after.quantized[name].codes).all()
        assert (tensor.scales == after.quantized[name].scales).all()


@pytest.mark.filterwarnings("ignore:Deprecation. TorchAODType")  # torchao's own, of its own name for int4
def test_the_older_quantizer_of_torchao_is_read_too() -> None:
    torch.manual_seed(0)
    model = Int8DynActInt4WeightQATQuantizer(groupsize=32, scales_precision=torch.float16).prepare(build(CONFIG))
    train(model)
    _, report = lowered(model, scheme_of(GROUPS, WeightGrid()))
    assert all(moved.exact for moved in report if moved.name != "embeddings.word.weight")


@pytest.mark.parametrize("learn", [False, True], ids=["absmax", "learned"])
def test_a_file_gives_the_same_student_as_the_live_module(tmp_path: Path, learn: bool) -> None:
    linear = int4(is_dynamic=False, range_learning=True) if learn else int4(torch.float16)
    start = (lambda model: initialize_fake_quantizers(model, batch(0))) if learn else None
    model = prepared(linear, int8(torch.float16), start=start)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    scheme = scheme_of(GROUPS, WeightGrid())
    live = lowered(model, scheme)
    trained = {"linear": linear, "head": linear, "embedding": int8(torch.float16)}
    read = from_safetensors(tmp_path / "model.safetensors", "bert", CONFIG, scheme, {"labels": ["a"]}, trained)
    assert read.report == live.report
    for name, student in (("live", live.student), ("read", read.student)):
        (tmp_path / name).mkdir()
        student.save(tmp_path / name)
    for name in ("student.safetensors", "student.json"):
        assert (tmp_path / "live" / name).read_bytes() == (tmp_path / "read" / name).read_bytes()


def test_rows_of_zeros_and_of_next_to_nothing_get_the_least_scale() -> None:
    model = prepared(int4(), int4(), steps=0)
    with torch.no_grad():
        model.embeddings.word.weight[0] = 0
        model.embeddings.word.weight[1] = SCALE_MIN * 3.3
        model.embeddings.word.weight[2] = SCALE_MIN / 100
    student, report = lowered(model, scheme_of(GROUPS, GROUPS))
    stored = student.quantized["embeddings.word.weight"]
    assert (stored.scales[:3] == SCALE_MIN).all()
    assert stored.codes[:3, 0].tolist() == [0, 3, 0]
    (moved,) = (moved for moved in report if moved.name == "embeddings.word.weight")
    assert moved.codes_moved == 2 * CONFIG.width


REFUSED = {
    "asymmetric": (
        IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=False),
        "trained with .*Only symmetric int8 and int4",
    ),
    "groups of 16": (IntxFakeQuantizeConfig(torch.int4, group_size=16), "trained with .*Only symmetric int8 and int4"),
    "3 bits": (IntxFakeQuantizeConfig(torch.int3, group_size=32), "trained with .*Only symmetric int8 and int4"),
    "float8": (Float8FakeQuantizeConfig(), "trained with .*Only symmetric int8 and int4"),
    "other bits": (int8(), "trained in int8 per channel, and the scheme says int4 per group of 32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_grid_is_refused_with_the_reason(case: str) -> None:
    linear, reason = REFUSED[case]
    with pytest.raises(SpecError, match=rf"layers\.0\.query\.weight was {reason}"):
        lowered(prepared(linear, steps=0), scheme_of(GROUPS, WeightGrid()))


def test_a_converted_weight_of_another_grid_is_refused() -> None:
    base = IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerGroupOfTorchao(32))
    torch.manual_seed(0)
    model = build(CONFIG)
    quantize_(model, QATConfig(base, step="prepare"))
    quantize_(model, QATConfig(base, step="convert"))
    with pytest.raises(SpecError, match=r"converted to torch\.int3 in blocks of 32 of 64"):
        lowered(model, scheme_of(GROUPS, WeightGrid()))


def test_what_a_checkpoint_cannot_give_is_refused() -> None:
    model = prepared(int4(), int4(), steps=0)
    with pytest.raises(SpecError, match="no ranges of activations"):
        lowered(model, QuantScheme(activations="static_int8"))
    other = CONFIG.model_copy(update={"ffn": 128})
    with pytest.raises(SpecError, match=r"layers\.0\.up\.weight is \[96, 64\] in the checkpoint, must be \[128, 64\]"):
        from_module(model, "bert", other, scheme_of(GROUPS, GROUPS), {})
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(StageError, match=r"classifier\.weight holds values that are not finite"):
        lowered(model, scheme_of(GROUPS, GROUPS))


def test_a_learned_scale_that_is_no_scale_is_refused() -> None:
    learning = int4(is_dynamic=False, range_learning=True)
    model = prepared(learning, steps=0, start=lambda model: initialize_fake_quantizers(model, batch(0)))
    with torch.no_grad():
        model.classifier.weight_fake_quantizer.scale[0, 0] = -1.0
    with pytest.raises(StageError, match=r"classifier\.weight has a scale of -1"):
        lowered(model, scheme_of(GROUPS, WeightGrid()))


@pytest.mark.parametrize("damage", ["no file", "no safetensors", "missing", "unknown", "fixed"])
def test_a_file_that_is_not_such_a_state_dict_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(prepared(int4(), steps=0).state_dict(), path)
    linear = int4()
    if damage == "no file":
        path.unlink()
    elif damage == "no safetensors":
        path.write_bytes(b"x" * 40)
    elif damage == "fixed":
        linear = int4(is_dynamic=False)
    else:
        state = load_file(path)
        state["classifier.extra"] = torch.zeros(1)
        if damage == "missing":
            del state["classifier.extra"], state["classifier.bias"]
        save_file(state, path)
    reason = {
        "missing": r"missing or unknown: classifier\.bias",
        "unknown": r"missing or unknown: classifier\.extra",
        "fixed": "saves no scales with is_dynamic = False",
    }.get(damage, "not a safetensors file")
    with pytest.raises(SpecError, match=reason):
        from_safetensors(path, "bert", CONFIG, scheme_of(GROUPS, WeightGrid()), {}, {"linear": linear})
