"""Every form a weight can have in a .tflite: int4, groups, behind a DEQUANTIZE, kernels of images; each spoiled."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tflite_forms import FORMS, GROUPS, INT4, LENGTH, Made, bytes_in_file, student

from edgedistill import catalog, quant
from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters._proof import answer
from edgedistill.exporters.tflite.reading import parse
from edgedistill.quant.activations import Range
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import part


def test_codes_and_scales_of_the_file_are_the_students(form: Made) -> None:
    frozen, path = form
    found = tflite.read_back(path)
    assert found.keys() == frozen.quantized.keys()
    for name, expected in frozen.quantized.items():
        assert np.array_equal(found[name].codes, expected.codes), name
        assert np.array_equal(found[name].scales, expected.scales), name
        assert bytes_in_file(frozen, path, name) in path.read_bytes(), name


def test_the_file_computes_what_the_student_computes(form: Made) -> None:
    frozen, path = form
    runner, module, random = tflite.load(path), frozen.to_module(), np.random.default_rng(3)
    errors, agree, largest = [], [], 0.0
    for n in range(60):
        signature = list(runner.signatures.values())[n % len(runner.signatures)]
        feeds = frozen.sample(signature, random)
        expected, found = answer(module, feeds), runner.run(signature.name, feeds)["logits"]
        errors.append(float(np.abs(found - expected).max()))
        agree.append(found.argmax() == expected.argmax())
        largest = max(largest, float(np.abs(expected).max()))
    if frozen.scheme.activations == "float":
        assert max(errors) < 1e-5 * largest
    elif frozen.family == "cnn":
        # torch adds the float bias of a convolution where the file has an int32 one: a step at the logits, often
        assert np.median(errors) < 2.5 * frozen.ranges["classifier"][1].scale
        assert max(errors) < 6 * frozen.ranges["classifier"][1].scale
    else:
        assert np.median(errors) < 2e-6
        assert max(errors) < 0.05 * largest
    assert np.mean(agree) > (0.9 if frozen.family == "cnn" and frozen.scheme.activations == "static_int8" else 0.98)


def test_each_packed_weight_is_as_small_as_its_bits(forms: Callable[[str], Made]) -> None:
    int8, int4 = forms("weight-only int8"), forms("weight-only int4")
    saved = int8[0].parameter_bytes - int4[0].parameter_bytes
    assert abs(int8[1].stat().st_size - int4[1].stat().st_size - saved) < 600


@pytest.mark.slow  # the contract does it for one scheme of each format
def test_two_processes_write_the_same_bytes(forms: Callable[[str], Made], tmp_path: Path) -> None:
    names = "int8", "groups", "images int8"
    for form in names:
        (tmp_path / form).mkdir()
        forms(form)[0].save(tmp_path / form)
    buckets = [FORMS[form].buckets for form in names]
    code = (
        "import sys; from pathlib import Path; from edgedistill.exporters import tflite\n"
        "from edgedistill.quant.frozen import FrozenStudent\n"
        f"for folder, buckets in zip(map(Path, sys.argv[1:]), {buckets}):\n"
        "    tflite.export(FrozenStudent.load(folder), buckets, folder / 'again.tflite')"
    )
    folders = [str(tmp_path / form) for form in names]
    environment = os.environ | {"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *folders], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for form in names:
        assert not list((tmp_path / form).glob("*.partial"))
        assert (tmp_path / form / "again.tflite").read_bytes() == forms(form)[1].read_bytes()


def test_images_stay_channels_last_and_int8(forms: Callable[[str], Made]) -> None:
    schema, model = parse(forms("images int8")[1])
    known = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    (subgraph,) = model.subgraphs
    found = [known[model.operatorCodes[o.opcodeIndex].builtinCode] for o in subgraph.operators]
    # a ReLU6 of its own, a TRANSPOSE, or a float operator inside would each cost more than the work they do
    assert found[0] == "QUANTIZE"
    assert found[-1] == "DEQUANTIZE"
    assert set(found[1:-1]) == {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "PAD", "MEAN", "FULLY_CONNECTED"}
    for operator in subgraph.operators[1:-1]:
        assert subgraph.tensors[operator.outputs[0]].type == schema.TensorType.INT8


def test_a_layer_keeps_a_grid_that_the_converter_dropped(forms: Callable[[str], Made], tmp_path: Path) -> None:
    """The pool and the classifier behind it each have a grid; converted, the second is gone."""
    frozen, _ = forms("images int8")
    source, result = frozen.ranges["classifier"]
    other = Range(float(np.float16(source.scale * 1.5)), source.zero_point)
    changed = dataclasses.replace(frozen, ranges={"classifier": (other, result)})
    tflite.export(changed, (), tmp_path / "two.tflite")
    runner, module, random = tflite.load(tmp_path / "two.tflite"), changed.to_module(), np.random.default_rng(3)
    for _ in range(20):
        feeds = frozen.sample(runner.signatures["image"], random)
        away = np.abs(runner.run("image", feeds)["logits"] - answer(module, feeds)).max()
        assert away < 6 * result.scale


def test_weights_with_equal_bytes_keep_their_names(forms: Callable[[str], Made], tmp_path: Path) -> None:
    """Equal codes with other scales, equal codes and scales, and a 1x1 kernel that looks alike in every layout."""
    frozen, _ = forms("mixed")
    given = dict(frozen.quantized)
    query, key, value = (f"layers.0.{name}.weight" for name in ("query", "key", "value"))
    given[key] = given[query]._replace(scales=given[query].scales[::-1].copy())
    given[value] = given[query]
    twins = dataclasses.replace(frozen, quantized=given)
    tflite.export(twins, (8,), tmp_path / "twins.tflite")
    tflite.verify(twins, tmp_path / "twins.tflite")
    with pytest.raises(VerificationError, match=f"scales of {query}|scales of {key}"):
        tflite.verify(
            dataclasses.replace(frozen, quantized=given | {query: given[key], key: given[query]}),
            tmp_path / "twins.tflite",
        )


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (QuantScheme(weights=GROUPS, scale_dtype="bf16", activations="float"), "garbage.* choose int4 per channel"),
        (QuantScheme(head=GROUPS, scale_dtype="bf16", activations="float"), "garbage.* choose int4 per channel"),
        (QuantScheme(weights=GROUPS), 'choose scale_dtype = "bf16"'),
        (QuantScheme(layers={"layers.0.up.weight": GROUPS}), 'choose scale_dtype = "bf16"'),
        (QuantScheme(weights=WeightGrid(granularity=PerGroup())), "it holds 'int8 per channel', 'int4 per channel'"),
    ],
)
def test_what_the_runtime_cannot_compute_is_refused(scheme: QuantScheme, reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        tflite.export(dataclasses.replace(student("bert", QuantScheme()), scheme=scheme), (LENGTH,), Path("never"))


def test_students_that_do_not_fit_are_refused() -> None:
    dynamic = dataclasses.replace(student("cnn", QuantScheme(activations="float")), scheme=QuantScheme())
    with pytest.raises(StageError, match="quantizes the input of a convolution anew for every image"):
        tflite.export(dynamic, (), Path("never"))
    config = catalog.load_plugin("students", "bert").TINY.model_copy(update={"width": 9, "heads": 1})
    model = part("bert", "module").build(config).eval()
    odd = quant.freeze(model, "bert", config, QuantScheme(embeddings=INT4), {})
    with pytest.raises(StageError, match="rows of 9 int4 codes"):
        tflite.export(odd, (LENGTH,), Path("never"))


@pytest.mark.parametrize("family", ["bert", "cnn", "vit"])
def test_every_grid_that_the_plan_allows_is_held(family: str) -> None:
    constants = catalog.constants("exporters", "tflite")
    assert constants["HOLDS"] == tflite.HOLDS
    for form in FORMS.values():
        assert form.scheme.misfit(constants["HOLDS"], constants["EXCLUDES"]) is None


def test_the_file_says_which_runtime_it_needs(forms: Callable[[str], Made]) -> None:
    for form, version in (("weight-only int4", "2.18.0"), ("groups", "2.18.0"), ("images int8", "2.")):
        _, model = parse(forms(form)[1])
        (entry,) = [entry for entry in model.metadata if entry.name == b"min_runtime_version"]
        assert bytes(model.buffers[entry.buffer].data).rstrip(b"\0").decode().startswith(version)
