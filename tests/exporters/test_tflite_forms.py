"""Every form a weight can have in a .tflite: int4, groups, behind a DEQUANTIZE, kernels of images; each spoiled."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill import catalog, quant
from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters._proof import answer
from edgedistill.exporters.tflite.carriers import LAYOUTS, stored_as
from edgedistill.exporters.tflite.editing import Edit
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.reading import names, parse, uses
from edgedistill.exporters.tflite.weights import packed
from edgedistill.quant import FrozenStudent
from edgedistill.quant.activations import Range
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import part

INT8, INT4 = WeightGrid(), WeightGrid(bits=4)
GROUPS = WeightGrid(bits=4, granularity=PerGroup())
WIDER = {"bert": {"width": 32, "ffn": 64}, "vit": {"width": 32, "ffn": 64, "image_size": 24}, "cnn": {}}
LENGTH = 16


class Form(NamedTuple):
    family: str
    scheme: QuantScheme
    buckets: tuple[int, ...] = (LENGTH,)


FORMS = {
    "int8": Form("bert", QuantScheme()),
    "weight-only int8": Form("bert", QuantScheme(activations="float")),
    "weight-only int4": Form("bert", QuantScheme(weights=INT4, head=INT4, embeddings=INT4, activations="float")),
    "mixed": Form("bert", QuantScheme(weights=INT4, layers={"layers.0.up.weight": INT8})),
    "groups": Form("bert", QuantScheme(weights=GROUPS, head=GROUPS, embeddings=GROUPS, scale_dtype="bf16"), (8, 16)),
    "images int8": Form("cnn", QuantScheme(activations="static_int8")),
    "images weight-only": Form(
        "cnn", QuantScheme(activations="float", weights=INT4, layers={"stem.conv.weight": INT8})
    ),
    "patches": Form("vit", QuantScheme()),
    "patches int4": Form("vit", QuantScheme(weights=INT4, head=INT4, activations="static_int8")),
}


def student(family: str, scheme: QuantScheme) -> FrozenStudent:
    """Biases and norms as large as trained ones; activation ranges seen on random samples; int4 codes down to -8."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", family)
    config = plugin.TINY.model_copy(update=WIDER[family])
    model = part(family, "module").build(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.2)
        elif family == "bert":
            nn.init.normal_(parameter, std=0.2)
    quant.prepare(model, scheme, plugin.tensors(config)).train()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for _ in range(16):
            signature = plugin.signatures(config, (LENGTH,))[0]
            feeds = [plugin.sample(config, signature, random) for _ in range(4)]
            model(*(torch.from_numpy(np.concatenate([feed[p.name] for feed in feeds])) for p in signature.inputs))
    quant.freeze_observers(model)
    frozen = quant.freeze(model.eval(), family, config, scheme, {})
    clipped = {
        name: weight._replace(codes=np.where(weight.codes == -7, np.int8(-8), weight.codes))
        for name, weight in frozen.quantized.items()
        if frozen.grids()[name].bits == 4
    }
    return dataclasses.replace(frozen, quantized=frozen.quantized | clipped)


Made = tuple[FrozenStudent, Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The student and the file of a form, exported once."""
    folder, known = tmp_path_factory.mktemp("forms"), dict[str, Made]()

    def made(form: str) -> Made:
        if form not in known:
            frozen = student(*FORMS[form][:2])
            known[form] = frozen, folder / f"{form.replace(' ', '_')}.tflite"
            tflite.export(frozen, FORMS[form].buckets, known[form][1])
        return known[form]

    return made


@pytest.fixture(params=list(FORMS))
def made(make: Callable[[str], Made], request: pytest.FixtureRequest) -> Made:
    return make(request.param)


def edited(path: Path, out: Path, change: Callable[[Edit], None]) -> Path:
    """A copy of a file with something changed in its graph."""
    schema, model = parse(path)
    edit = Edit(schema, model)
    change(edit)
    out.write_bytes(Packer().pack(model))
    return out


def bytes_in_file(frozen: FrozenStudent, path: Path, name: str) -> bytes:
    codes = stored_as(frozen.quantized[name].codes, names(parse(path)[1], path)[name].layout)
    return (packed(codes) if frozen.grids()[name].bits == 4 else codes).tobytes()


def test_codes_and_scales_of_the_file_are_the_students(made: Made) -> None:
    frozen, path = made
    found = tflite.read_back(path)
    assert found.keys() == frozen.quantized.keys()
    for name, expected in frozen.quantized.items():
        assert np.array_equal(found[name].codes, expected.codes), name
        assert np.array_equal(found[name].scales, expected.scales), name
        assert bytes_in_file(frozen, path, name) in path.read_bytes(), name


def test_the_file_computes_what_the_student_computes(made: Made) -> None:
    frozen, path = made
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


def test_each_packed_weight_is_as_small_as_its_bits(make: Callable[[str], Made]) -> None:
    int8, int4 = make("weight-only int8"), make("weight-only int4")
    saved = int8[0].parameter_bytes - int4[0].parameter_bytes
    assert abs(int8[1].stat().st_size - int4[1].stat().st_size - saved) < 600


def test_a_flipped_code_is_found_and_its_layer_named(made: Made, tmp_path: Path) -> None:
    frozen, path = made
    data, spoiled = bytearray(path.read_bytes()), tmp_path / "spoiled.tflite"
    for name in frozen.quantized:
        at = data.find(bytes_in_file(frozen, path, name))
        data[at + 5] ^= 1
        spoiled.write_bytes(data)
        with pytest.raises(VerificationError, match=rf"1 of \d+ codes of {name}"):
            tflite.verify(frozen, spoiled)
        data[at + 5] ^= 1


def test_the_first_layer_that_computes_something_else_is_named(made: Made, tmp_path: Path) -> None:
    """A code changed by half the grid in one layer after another; the classifier's answers change from all of them."""
    frozen, path = made
    random, spoiled = np.random.default_rng(0), tmp_path / "spoiled.tflite"
    feeds = [frozen.sample(s, random) for s in tflite.load(path).signatures.values() for _ in range(3)]
    assert [tflite.first_divergence(frozen, path, feed) for feed in feeds] == [None] * len(feeds)
    data = bytearray(path.read_bytes())
    layers = [name for name in frozen.quantized if "embeddings.word" not in name]
    for name in layers[1::3]:
        stored = bytes_in_file(frozen, path, name)
        at, middle = data.find(stored), len(stored) // 2
        for place in range(at + middle, at + middle + 8):  # some inputs of a layer are 0 behind a ReLU6
            data[place] ^= 0x44
        spoiled.write_bytes(data)
        told = [tflite.first_divergence(frozen, spoiled, feed) for feed in feeds]
        named = [place for place in told if place is not None]
        assert named, name
        assert {place.split(":")[0] for place in named} == {name.removesuffix(".weight")}
        for place in range(at + middle, at + middle + 8):
            data[place] ^= 0x44


def test_a_wrong_norm_is_named_by_the_layer_behind_it(make: Callable[[str], Made]) -> None:
    frozen, path = make("mixed")
    floats = dict(frozen.floats)
    floats["layers.0.attention_norm.weight"] = floats["layers.0.attention_norm.weight"] * 1.01
    wrong = dataclasses.replace(frozen, floats=floats)
    told = tflite.first_divergence(
        wrong, path, frozen.sample(frozen.signatures((LENGTH,))[0], np.random.default_rng(0))
    )
    assert told is not None
    assert told.startswith("the input of layers.0.up: ")


def test_inputs_without_a_signature_cannot_be_compared(make: Callable[[str], Made]) -> None:
    frozen, path = make("mixed")
    with pytest.raises(StageError, match=r"no signature for input_ids\[1, 3\]"):
        tflite.first_divergence(frozen, path, {"input_ids": np.ones((1, 3), np.int32)})


def test_a_wrong_scale_and_a_wrong_bias_are_found(made: Made) -> None:
    frozen, path = made
    for name in list(frozen.quantized)[1::3]:
        weight = frozen.quantized[name]
        scales = weight.scales.copy()
        scales.flat[1] *= 2
        wrong = dataclasses.replace(frozen, quantized=frozen.quantized | {name: weight._replace(scales=scales)})
        with pytest.raises(VerificationError, match=rf"1 of {scales.size} scales of {name}"):
            tflite.verify(wrong, path)
        bias = f"{name.removesuffix('weight')}bias"
        if bias in frozen.floats:
            values = frozen.floats[bias].copy()
            values[0] += 0.125
            with pytest.raises(VerificationError, match=bias):
                tflite.verify(dataclasses.replace(frozen, floats=frozen.floats | {bias: values}), path)


@pytest.mark.slow  # the contract does it for one scheme of each format
def test_two_processes_write_the_same_bytes(make: Callable[[str], Made], tmp_path: Path) -> None:
    forms = "int8", "groups", "images int8"
    for form in forms:
        (tmp_path / form).mkdir()
        make(form)[0].save(tmp_path / form)
    buckets = [FORMS[form].buckets for form in forms]
    code = (
        "import sys; from pathlib import Path; from edgedistill.exporters import tflite\n"
        "from edgedistill.quant.frozen import FrozenStudent\n"
        f"for folder, buckets in zip(map(Path, sys.argv[1:]), {buckets}):\n"
        "    tflite.export(FrozenStudent.load(folder), buckets, folder / 'again.tflite')"
    )
    folders = [str(tmp_path / form) for form in forms]
    environment = os.environ | {"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *folders], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for form in forms:
        assert not list((tmp_path / form).glob("*.partial"))
        assert (tmp_path / form / "again.tflite").read_bytes() == make(form)[1].read_bytes()


def test_images_stay_channels_last_and_int8(make: Callable[[str], Made]) -> None:
    schema, model = parse(make("images int8")[1])
    known = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    (subgraph,) = model.subgraphs
    found = [known[model.operatorCodes[o.opcodeIndex].builtinCode] for o in subgraph.operators]
    # a ReLU6 of its own, a TRANSPOSE, or a float operator inside would each cost more than the work they do
    assert found[0] == "QUANTIZE"
    assert found[-1] == "DEQUANTIZE"
    assert set(found[1:-1]) == {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "PAD", "MEAN", "FULLY_CONNECTED"}
    for operator in subgraph.operators[1:-1]:
        assert subgraph.tensors[operator.outputs[0]].type == schema.TensorType.INT8


def test_a_layer_keeps_a_grid_that_the_converter_dropped(make: Callable[[str], Made], tmp_path: Path) -> None:
    """The pool and the classifier behind it each have a grid; converted, the second is gone."""
    frozen, _ = make("images int8")
    source, result = frozen.ranges["classifier"]
    other = Range(float(np.float16(source.scale * 1.5)), source.zero_point)
    changed = dataclasses.replace(frozen, ranges={"classifier": (other, result)})
    tflite.export(changed, (), tmp_path / "two.tflite")
    runner, module, random = tflite.load(tmp_path / "two.tflite"), changed.to_module(), np.random.default_rng(3)
    for _ in range(20):
        feeds = frozen.sample(runner.signatures["image"], random)
        away = np.abs(runner.run("image", feeds)["logits"] - answer(module, feeds)).max()
        assert away < 6 * result.scale


def test_weights_with_equal_bytes_keep_their_names(make: Callable[[str], Made], tmp_path: Path) -> None:
    """Equal codes with other scales, equal codes and scales, and a 1x1 kernel that looks alike in every layout."""
    frozen, _ = make("mixed")
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


def test_float_weights_where_integers_were_promised_are_found(made: Made, tmp_path: Path) -> None:
    frozen, path = made
    name = next(n for n in list(frozen.quantized)[2:])

    def melt(edit: Edit) -> None:
        stored = names(edit.model, path)
        for subgraph in edit.model.subgraphs:
            for use in list(uses(edit.schema, edit.model, subgraph, stored)):
                if use.name == name:
                    layout = stored[name].layout
                    weight = frozen.quantized[name].values()
                    weight = weight.transpose(LAYOUTS[layout]) if layout else weight
                    buffer = edit.add_buffer(weight)
                    index = edit.add_tensor(subgraph, weight.shape, edit.schema.TensorType.FLOAT32, buffer)
                    use.operator.inputs = np.asarray(
                        [use.operator.inputs[0], index, *use.operator.inputs[2:]], np.int32
                    )

    with pytest.raises(VerificationError, match="without its integer weight"):
        tflite.verify(frozen, edited(path, tmp_path / "melted.tflite", melt))


def test_weight_only_that_would_quantize_activations_is_found(make: Callable[[str], Made], tmp_path: Path) -> None:
    frozen, path = make("weight-only int8")

    def shortcut(edit: Edit) -> None:
        stored = names(edit.model, path)
        for subgraph in edit.model.subgraphs:
            index = next(i for i, t in enumerate(subgraph.tensors) if t.buffer == stored["layers.0.up.weight"].buffer)
            for use in uses(edit.schema, edit.model, subgraph, stored):
                if use.name == "layers.0.up.weight":
                    use.operator.inputs = np.asarray([use.operator.inputs[0], index, use.operator.inputs[2]], np.int32)

    with pytest.raises(VerificationError, match="does not compute with float activations"):
        tflite.verify(frozen, edited(path, tmp_path / "shortcut.tflite", shortcut))


def test_another_grid_of_an_activation_is_found(make: Callable[[str], Made], tmp_path: Path) -> None:
    for form in ("images int8", "patches int4"):
        frozen, path = make(form)

        def stretch(edit: Edit) -> None:
            for subgraph in edit.model.subgraphs:
                found = [t for t in subgraph.tensors if t.quantization is not None and edit.grid(t) is not None]
                found[1].quantization.scale = found[1].quantization.scale * np.float32(2)

        with pytest.raises(VerificationError, match=r"grid"):
            tflite.verify(frozen, edited(path, tmp_path / "stretched.tflite", stretch))


def test_another_float_constant_is_found(make: Callable[[str], Made], tmp_path: Path) -> None:
    frozen, path = make("patches")

    def nudge(edit: Edit) -> None:
        for subgraph in edit.model.subgraphs:
            for tensor in subgraph.tensors:
                if tensor.type == edit.schema.TensorType.FLOAT32 and len(edit.bytes_of(tensor)) > 4:
                    subgraph.tensors[0].buffer = 0
                    extra = np.frombuffer(edit.bytes_of(tensor), np.float32) + np.float32(1e-3)
                    edit.add_tensor(subgraph, tensor.shape, tensor.type, edit.add_buffer(extra))
                    return

    with pytest.raises(VerificationError, match=r"holds \d+ float constants that are not the student's"):
        tflite.verify(frozen, edited(path, tmp_path / "nudged.tflite", nudge))


def test_a_missing_bias_is_found(make: Callable[[str], Made], tmp_path: Path) -> None:
    for form in ("patches", "images int8", "groups"):
        frozen, path = make(form)
        name = list(frozen.quantized)[-1]

        def drop(edit: Edit, name: str = name, path: Path = path) -> None:
            stored = names(edit.model, path)
            for subgraph in edit.model.subgraphs:
                for use in uses(edit.schema, edit.model, subgraph, stored):
                    if use.name == name:
                        use.operator.inputs = np.asarray([*use.operator.inputs[:2], -1], np.int32)

        with pytest.raises(VerificationError, match=r"classifier\.bias is not in the file"):
            tflite.verify(frozen, edited(path, tmp_path / "dropped.tflite", drop))


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


def test_the_file_says_which_runtime_it_needs(make: Callable[[str], Made]) -> None:
    for form, version in (("weight-only int4", "2.18.0"), ("groups", "2.18.0"), ("images int8", "2.")):
        _, model = parse(make(form)[1])
        (entry,) = [entry for entry in model.metadata if entry.name == b"min_runtime_version"]
        assert bytes(model.buffers[entry.buffer].data).rstrip(b"\0").decode().startswith(version)
