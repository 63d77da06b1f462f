"""A .tflite spoiled in every form that a weight can have there: found, and the layer named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tflite_forms import LENGTH, Made, bytes_in_file, edited

from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters.tflite.carriers import LAYOUTS
from edgedistill.exporters.tflite.editing import Edit
from edgedistill.exporters.tflite.reading import names, uses


def test_a_flipped_code_is_found_and_its_layer_named(form: Made, tmp_path: Path) -> None:
    frozen, path = form
    data, spoiled = bytearray(path.read_bytes()), tmp_path / "spoiled.tflite"
    for name in frozen.quantized:
        at = data.find(bytes_in_file(frozen, path, name))
        data[at + 5] ^= 1
        spoiled.write_bytes(data)
        with pytest.raises(VerificationError, match=rf"1 of \d+ codes of {name}"):
            tflite.verify(frozen, spoiled)
        data[at + 5] ^= 1


def test_the_first_layer_that_computes_something_else_is_named(form: Made, tmp_path: Path) -> None:
    """A code changed by half the grid in one layer after another; the classifier's answers change from all of them."""
    frozen, path = form
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


def test_a_wrong_norm_is_named_by_the_layer_behind_it(forms: Callable[[str], Made]) -> None:
    frozen, path = forms("mixed")
    floats = dict(frozen.floats)
    floats["layers.0.attention_norm.weight"] = floats["layers.0.attention_norm.weight"] * 1.01
    wrong = dataclasses.replace(frozen, floats=floats)
    told = tflite.first_divergence(
        wrong, path, frozen.sample(frozen.signatures((LENGTH,))[0], np.random.default_rng(0))
    )
    assert told is not None
    assert told.startswith("the input of layers.0.up: ")


def test_inputs_without_a_signature_cannot_be_compared(forms: Callable[[str], Made]) -> None:
    frozen, path = forms("mixed")
    with pytest.raises(StageError, match=r"no signature for input_ids\[1, 3\]"):
        tflite.first_divergence(frozen, path, {"input_ids": np.ones((1, 3), np.int32)})


def test_a_wrong_scale_and_a_wrong_bias_are_found(form: Made) -> None:
    frozen, path = form
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


def test_float_weights_where_integers_were_promised_are_found(form: Made, tmp_path: Path) -> None:
    frozen, path = form
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


def test_weight_only_that_would_quantize_activations_is_found(forms: Callable[[str], Made], tmp_path: Path) -> None:
    frozen, path = forms("weight-only int8")

    def shortcut(edit: Edit) -> None:
        stored = names(edit.model, path)
        for subgraph in edit.model.subgraphs:
            index = next(i for i, t in enumerate(subgraph.tensors) if t.buffer == stored["layers.0.up.weight"].buffer)
            for use in uses(edit.schema, edit.model, subgraph, stored):
                if use.name == "layers.0.up.weight":
                    use.operator.inputs = np.asarray([use.operator.inputs[0], index, use.operator.inputs[2]], np.int32)

    with pytest.raises(VerificationError, match="does not compute with float activations"):
        tflite.verify(frozen, edited(path, tmp_path / "shortcut.tflite", shortcut))


def test_another_grid_of_an_activation_is_found(forms: Callable[[str], Made], tmp_path: Path) -> None:
    for form in ("images int8", "patches int4"):
        frozen, path = forms(form)

        def stretch(edit: Edit) -> None:
            for subgraph in edit.model.subgraphs:
                found = [t for t in subgraph.tensors if t.quantization is not None and edit.grid(t) is not None]
                found[1].quantization.scale = found[1].quantization.scale * np.float32(2)

        with pytest.raises(VerificationError, match=r"grid"):
            tflite.verify(frozen, edited(path, tmp_path / "stretched.tflite", stretch))


def test_another_float_constant_is_found(forms: Callable[[str], Made], tmp_path: Path) -> None:
    frozen, path = forms("patches")

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


def test_a_missing_bias_is_found(forms: Callable[[str], Made], tmp_path: Path) -> None:
    for form in ("patches", "images int8", "groups"):
        frozen, path = forms(form)
        name = list(frozen.quantized)[-1]

        def drop(edit: Edit, name: str = name, path: Path = path) -> None:
            stored = names(edit.model, path)
            for subgraph in edit.model.subgraphs:
                for use in uses(edit.schema, edit.model, subgraph, stored):
                    if use.name == name:
                        use.operator.inputs = np.asarray([*use.operator.inputs[:2], -1], np.int32)

        with pytest.raises(VerificationError, match=r"classifier\.bias is not in the file"):
            tflite.verify(frozen, edited(path, tmp_path / "dropped.tflite", drop))
