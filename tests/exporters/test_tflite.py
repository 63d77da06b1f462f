"""Real exports of small students, read back from their bytes, executed by LiteRT, and spoiled on purpose."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill.errors import DataError, ForeignFile, StageError, VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters._proof import executes
from edgedistill.exporters.tflite import _LIMITS
from edgedistill.quant.fake import prepare
from edgedistill.quant.frozen import FrozenStudent, freeze
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import bert
from edgedistill.students.bert.module import build
from edgedistill.tasks.text_classification import run_file, signature_for

# Position table of 24 x 64 floats: the two shorter buckets get theirs as a SLICE of it.
MID = bert.Config(layers=1, width=64, heads=2, ffn=600, vocabulary=300, max_length=24, classes=9)
MID_BUCKETS, TINY_BUCKETS = (8, 16, 24), (5, 16)


def student(config: bert.Config, activations: Any = "dynamic_int8") -> FrozenStudent:
    """Weights as large as trained ones, so that logits are of order 1; one dead row each, as a pad embedding has."""
    torch.manual_seed(0)
    scheme = QuantScheme(activations=activations)
    model = build(config)
    for name, parameter in model.named_parameters():
        mean = 1.0 if "norm.weight" in name else 0.0
        nn.init.normal_(parameter, mean=mean, std=0.2 if parameter.dim() == 1 else 0.1)
    with torch.no_grad():
        model.embeddings.word.weight[0] = 0
        model.layers[0].up.weight[3] = 0
        prepare(model, scheme, bert.tensors(config))
        ids = torch.randint(0, config.vocabulary, (32, config.max_length))
        model.train()(ids, torch.ones_like(ids))
    return freeze(model, "bert", config, scheme, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tflite")


def _exported(folder: Path, name: str, frozen: FrozenStudent, buckets: tuple[int, ...]) -> tuple[FrozenStudent, Path]:
    path = folder / f"{name}.tflite"
    tflite.export(frozen, buckets, path)
    return frozen, path


@pytest.fixture(scope="module")
def dynamic(folder: Path) -> tuple[FrozenStudent, Path]:
    return _exported(folder, "dynamic", student(MID), MID_BUCKETS)


@pytest.fixture(scope="module")
def static(folder: Path) -> tuple[FrozenStudent, Path]:
    return _exported(folder, "static", student(MID, "static_int8"), (12, 24))


@pytest.fixture(scope="module")
def tiny(folder: Path) -> tuple[FrozenStudent, Path]:
    return _exported(folder, "tiny", student(bert.TINY), TINY_BUCKETS)


@pytest.fixture(params=["dynamic", "static", "tiny"])
def exported(request: pytest.FixtureRequest) -> tuple[FrozenStudent, Path]:
    found: tuple[FrozenStudent, Path] = request.getfixturevalue(request.param)
    return found


def answers(frozen: FrozenStudent, path: Path, count: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Logits [count, classes] of random texts of every length, by the file and by the frozen student in torch."""
    random = np.random.default_rng(7)
    runner, module = tflite.load(path), frozen.to_module()
    longest = max(signature.inputs[0].shape[1] for signature in runner.signatures.values())
    ours, theirs = [], []
    for _ in range(count):
        ids = random.integers(0, frozen.config["vocabulary"], random.integers(1, longest + 1))
        ours.append(run_file(runner, ids.tolist()))
        with torch.no_grad():
            theirs.append(
                module(torch.from_numpy(ids)[None], torch.ones(1, len(ids), dtype=torch.int64)).logits[0].numpy()
            )
    return np.stack(ours), np.stack(theirs)


def test_codes_and_scales_of_the_file_are_the_students(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    found = tflite.read_back(path)
    assert found.keys() == frozen.quantized.keys()
    for name, expected in frozen.quantized.items():
        assert np.array_equal(found[name].codes, expected.codes)
        assert np.array_equal(found[name].scales, expected.scales)
    tflite.verify(frozen, path)


def test_the_file_computes_what_the_student_computes(exported: tuple[FrozenStudent, Path]) -> None:
    """Most answers agree to float rounding. In the others a value on the boundary of two codes took the other one."""
    frozen, path = exported
    ours, theirs = answers(frozen, path)
    errors = np.abs(ours - theirs).max(1)
    assert ours.dtype == np.float32
    assert np.median(errors) < 2e-6
    assert (errors < 1e-4).mean() > 0.7
    assert errors.max() < 0.05 * np.abs(theirs).max()
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.98


def test_without_the_activation_emulation_the_file_would_be_off_by_far(dynamic: tuple[FrozenStudent, Path]) -> None:
    """The negative control of the test above: weight-only quantization is not what the runtime computes."""
    frozen, path = dynamic
    runner, weights_only = tflite.load(path), frozen.build()
    ids = np.random.default_rng(1).integers(0, MID.vocabulary, 20)
    with torch.no_grad():
        expected = weights_only(torch.from_numpy(ids)[None], torch.ones(1, 20, dtype=torch.int64)).logits[0].numpy()
    assert np.abs(run_file(runner, ids.tolist()) - expected).max() > 1e-3


def test_the_smallest_bucket_that_fits_runs(dynamic: tuple[FrozenStudent, Path]) -> None:
    runner = tflite.load(dynamic[1])
    names = [f"length_{n}" for n in MID_BUCKETS]
    assert list(runner.signatures) == names
    chosen = [signature_for(runner.signatures, n).name for n in (1, 8, 9, 16, 24)]
    assert chosen == [f"length_{n}" for n in (8, 8, 16, 16, 24)]
    for tokens in (0, 25):
        with pytest.raises(DataError, match="1 to 24"):
            run_file(runner, [1] * tokens)


def test_padding_does_not_change_the_answer(dynamic: tuple[FrozenStudent, Path]) -> None:
    runner = tflite.load(dynamic[1])
    ids = np.random.default_rng(3).integers(1, MID.vocabulary, 7)
    padded, mask = np.zeros((1, 24), np.int32), np.zeros((1, 24), np.int32)
    padded[0, :7], mask[0, :7] = ids, 1
    longer = runner.run("length_24", {"input_ids": padded, "attention_mask": mask})["logits"][0]
    assert np.abs(run_file(runner, ids.tolist()) - longer).max() < 0.05


def test_inputs_that_do_not_fit_are_refused(dynamic: tuple[FrozenStudent, Path]) -> None:
    runner = tflite.load(dynamic[1])
    good = np.ones((1, 8), np.int32)
    for bad in (good[:, :7], good.astype(np.int64), None):
        feeds = {"input_ids": good} | ({} if bad is None else {"attention_mask": bad})
        with pytest.raises(DataError, match=r"takes attention_mask as int32\[1, 8\]"):
            runner.run("length_8", feeds)


def test_signatures_take_and_give_the_documented_tensors(exported: tuple[FrozenStudent, Path]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    frozen, path = exported
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    for name, io in interpreter.get_signature_list().items():
        assert sorted(io["inputs"]) == ["attention_mask", "input_ids"]
        assert io["outputs"] == ["logits"]
        runner = interpreter.get_signature_runner(name)
        for detail in runner.get_input_details().values():
            assert detail["dtype"] is np.int32
            assert detail["shape"].tolist() == [1, int(name.removeprefix("length_"))]
        detail = runner.get_output_details()["logits"]
        assert detail["dtype"] is np.float32
        assert detail["shape"].tolist() == [1, frozen.config["classes"]]


def test_the_file_is_not_much_larger_than_its_parameters(dynamic: tuple[FrozenStudent, Path]) -> None:
    frozen, path = dynamic
    # TFLite demands an int64 zero point for every scale; vectors of equal length are shared.
    zero_points = sum(8 * length for length in {len(tensor.scales) for tensor in frozen.quantized.values()})
    graph = 9_000 + 1_600 * len(MID_BUCKETS)  # operators, tensors and their tables; what a signature adds
    assert path.stat().st_size < frozen.parameter_bytes + zero_points + graph


def test_a_flipped_code_is_found(exported: tuple[FrozenStudent, Path], tmp_path: Path) -> None:
    frozen, path = exported
    data = bytearray(path.read_bytes())
    for name, weight in frozen.quantized.items():
        at = data.find(weight.codes.tobytes())
        assert at > 0, name
        data[at + 5] ^= 1
        (tmp_path / "spoiled.tflite").write_bytes(data)
        with pytest.raises(VerificationError, match=rf"1 of \d+ codes of {name}"):
            tflite.verify(frozen, tmp_path / "spoiled.tflite")
        data[at + 5] ^= 1


def test_a_wrong_scale_and_a_wrong_bias_are_found(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    name = "layers.0.up.weight"
    scales = frozen.quantized[name].scales.copy()
    scales[2] *= 2
    wrong = dataclasses.replace(
        frozen, quantized=frozen.quantized | {name: frozen.quantized[name]._replace(scales=scales)}
    )
    with pytest.raises(VerificationError, match=rf"1 of {len(scales)} scales of {name}"):
        tflite.verify(wrong, path)
    bias = frozen.floats["classifier.bias"].copy()
    bias[0] += 0.125
    wrong = dataclasses.replace(frozen, floats=frozen.floats | {"classifier.bias": bias})
    with pytest.raises(VerificationError, match=r"classifier\.bias"):
        tflite.verify(wrong, path)


def test_swapped_weights_of_equal_shape_are_found(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    swapped = dict(frozen.quantized)
    a, b = "layers.0.query.weight", "layers.0.key.weight"
    swapped[a], swapped[b] = swapped[b], swapped[a]
    with pytest.raises(VerificationError, match="codes of layers"):
        tflite.verify(dataclasses.replace(frozen, quantized=swapped), path)


def test_a_file_that_computes_something_else_is_found(exported: tuple[FrozenStudent, Path]) -> None:
    frozen, path = exported
    floats = copy.deepcopy(frozen.floats)
    floats["layers.0.ffn_norm.weight"][::2] *= -1
    limits = _LIMITS[frozen.scheme.activations]
    executes(frozen, tflite.load(path), limits)
    with pytest.raises(VerificationError, match="does not compute what was trained"):
        executes(dataclasses.replace(frozen, floats=floats), tflite.load(path), limits)


def test_a_damaged_or_foreign_file_is_refused(tiny: tuple[FrozenStudent, Path], tmp_path: Path) -> None:
    path = tmp_path / "file.tflite"
    for data in (b"", b"\0\0\0\0TFL3", b"not a flatbuffer at all", tiny[1].read_bytes()[:3000]):
        path.write_bytes(data)
        with pytest.raises(VerificationError):
            tflite.read_back(path)
    path.write_bytes(b"not a flatbuffer at all")
    with pytest.raises(ForeignFile, match=r"not a \.tflite file"):
        tflite.load(path)


@pytest.mark.parametrize("buckets", [[], [0], [-4, 8], [8, 17]])
def test_impossible_buckets_are_refused_before_anything_slow(buckets: list[int], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="max_length = 16"):
        tflite.export(student(bert.TINY), buckets, tmp_path / "no.tflite")
    assert not list(tmp_path.iterdir())


def test_a_student_with_one_attention_head_is_exact_too(folder: Path) -> None:
    config = bert.TINY.model_copy(update={"heads": 1})
    frozen, path = _exported(folder, "one_head", student(config), (8,))
    ours, theirs = answers(frozen, path, 40)
    assert float(np.abs(ours - theirs).max()) < 0.05 * float(np.abs(theirs).max())
