"""Numbers or wiring that are not the student's: each is found."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_students import BUCKETS, Made, at_buckets, rewire, spoiled
from planted_onnx import change, constant, reader

from edgedistill.errors import VerificationError
from edgedistill.exporters import onnx as exporter
from edgedistill.exporters._proof import executes
from edgedistill.exporters.onnx.packing import unpack_int4


@pytest.mark.parametrize("name", ["int8", "int4 groups", "static", "cnn"])
def test_a_changed_code_and_a_scale_off_by_one_ulp_are_found(made: Made, tmp_path: Path, name: str) -> None:
    frozen, path = made(name)
    for tensor in frozen.quantized:
        for part_name, index in (("code", 5), ("scale", 4)):
            wrong = spoiled(path, tmp_path, change(f"{tensor}.{part_name}s", index))
            with pytest.raises(VerificationError, match=rf"1 of \d+ {part_name}s of {tensor}"):
                exporter.verify(frozen, wrong)


@pytest.mark.parametrize("name", ["int8", "static", "static cnn", "tied"])
def test_every_other_number_of_the_file_is_compared_too(made: Made, tmp_path: Path, name: str) -> None:
    frozen, path = made(name)
    mine = {f"{tensor}.{kind}" for tensor in frozen.quantized for kind in ("codes", "scales")}
    names = [t.name for t in onnx.load(path).graph.initializer if "." in t.name and t.name not in mine]
    assert len(names) >= len(frozen.floats)
    for tensor in names:
        told = "with other scales than its own" if tensor.startswith("zero_points.") else tensor
        with pytest.raises(VerificationError, match=told):
            exporter.verify(frozen, spoiled(path, tmp_path, change(tensor)))


def test_a_dropped_bias_is_found(made: Made, tmp_path: Path) -> None:
    def drop(model: Any) -> None:
        add = reader(model, "layers.0.up.bias")
        rewire(model, add.output[0], add.input[0])
        model.graph.node.remove(add)

    def forget(model: Any) -> None:
        drop(model)
        model.graph.initializer.remove(constant(model, "layers.0.up.bias"))

    frozen, path = made("int8")
    with pytest.raises(VerificationError, match=r"layers\.0\.up\.bias is in the file, but nothing uses it"):
        exporter.verify(frozen, spoiled(path, tmp_path, drop))
    with pytest.raises(VerificationError, match=r"layers\.0\.up\.bias is missing"):
        exporter.verify(frozen, spoiled(path, tmp_path, forget))
    executes(frozen, at_buckets(frozen, path), exporter._ROUNDING, "float")
    with pytest.raises(VerificationError, match="does not compute"):
        executes(frozen, at_buckets(frozen, spoiled(path, tmp_path, drop)), exporter._ROUNDING, "float")


def swap_layers(model: Any) -> None:
    for kind in ("codes", "scales"):
        a, b = f"layers.0.query.weight.{kind}", f"layers.0.key.weight.{kind}"
        for node in model.graph.node:
            node.input[:] = [{a: b, b: a}.get(name, name) for name in node.input]


def transpose_kernel(model: Any) -> None:
    weight = reader(model, "layers.0.query.weight.codes").output[0]
    reader(model, weight).attribute[0].ints[:] = [0, 1]


def other_gelu(model: Any) -> None:
    next(node for node in model.graph.node if node.op_type == "Gelu").attribute[0].s = b"tanh"


def other_norm(model: Any) -> None:
    first, second = (f"layers.0.{kind}_norm.bias" for kind in ("ffn", "attention"))
    one, two = reader(model, first), reader(model, second)
    for node, old, new in ((one, first, second), (two, second, first)):
        node.input[list(node.input).index(old)] = new


WIRING = [swap_layers, transpose_kernel, other_norm, other_gelu]
# another GELU differs by less than a step of a static student
WRONG = [(name, edit) for name in ("int8", "int4 groups") for edit in WIRING]
WRONG += [("static", swap_layers), ("static", other_norm)]


@pytest.mark.parametrize(("name", "edit"), WRONG)
def test_a_file_that_holds_the_numbers_but_computes_something_else_is_found(
    made: Made, tmp_path: Path, name: str, edit: Callable[[Any], Any]
) -> None:
    frozen, path = made(name)
    wrong = spoiled(path, tmp_path, edit)
    exporter.verify(frozen, wrong)
    kind = exporter.COMPUTES[frozen.scheme.activations]
    executes(frozen, at_buckets(frozen, path), exporter._ROUNDING, kind)  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="does not compute what was trained"):
        executes(frozen, at_buckets(frozen, wrong), exporter._ROUNDING, kind)  # type: ignore[arg-type]


def test_swapped_or_transposed_numbers_are_found(made: Made, tmp_path: Path) -> None:
    def swap(model: Any) -> None:
        a, b = (constant(model, f"layers.0.{part_name}.weight.codes") for part_name in ("query", "key"))
        a.raw_data, b.raw_data = b.raw_data, a.raw_data

    def transpose(model: Any) -> None:
        kernel = constant(model, "blocks.0.depthwise.conv.weight.codes")
        kernel.raw_data = made("cnn")[0].quantized[kernel.name[:-6]].codes.swapaxes(2, 3).tobytes()

    for name, edit in (("int8", swap), ("cnn", transpose)):
        frozen, path = made(name)
        with pytest.raises(VerificationError, match=r"codes of \S+weight are not the student's"):
            exporter.verify(frozen, spoiled(path, tmp_path, edit))


def test_floats_left_where_integers_were_promised_are_found(made: Made, tmp_path: Path) -> None:
    def unquantize(keep: bool) -> Callable[[Any], None]:
        def edit(model: Any) -> None:
            name = "layers.0.up.weight"
            node = reader(model, f"{name}.codes")
            values = made("int8")[0].quantized[name].values()
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
            model.graph.node.remove(node)
            if not keep:
                for kind in ("codes", "scales"):
                    model.graph.initializer.remove(constant(model, f"{name}.{kind}"))

        return edit

    def as_bytes(model: Any) -> None:
        tensor = constant(model, "layers.0.up.weight.codes")
        tensor.raw_data, tensor.data_type = unpack_int4(tensor.raw_data, 64 * 32).tobytes(), onnx.TensorProto.INT8

    def inline(model: Any) -> None:
        values = onnx.numpy_helper.from_array(np.ones((8, 32), np.float32), "hidden")
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["hidden"], value=values))

    frozen, path = made("int8")
    with pytest.raises(VerificationError, match=r"numbers .* that are no student's|nothing uses it"):
        exporter.verify(frozen, spoiled(path, tmp_path, unquantize(keep=True)))
    with pytest.raises(VerificationError, match=r"differ: layers\.0\.up\.weight"):
        exporter.verify(frozen, spoiled(path, tmp_path, unquantize(keep=False)))
    with pytest.raises(VerificationError, match="Constant holds numbers"):
        exporter.verify(frozen, spoiled(path, tmp_path, inline))
    with pytest.raises(VerificationError, match=r"layers\.0\.up\.weight is not stored with 4 bits"):
        exporter.verify(made("int4 groups")[0], spoiled(made("int4 groups")[1], tmp_path, as_bytes))


def test_codes_used_with_other_scales_or_along_another_axis_are_found(made: Made, tmp_path: Path) -> None:
    def axis(model: Any) -> None:
        reader(model, "layers.0.query.weight.codes").attribute[0].i = 1

    def scales(model: Any) -> None:
        reader(model, "layers.0.query.weight.codes").input[1] = "layers.0.key.weight.scales"

    def table(model: Any) -> None:
        reader(model, "embeddings.word.weight.scales").input[1] = "attention_mask"

    def zero_point(model: Any) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(32, np.int8), "shift"))
        reader(model, "layers.0.query.weight.codes").input.append("shift")

    for edit in (axis, scales, table, zero_point):
        with pytest.raises(VerificationError, match="with other scales than its own"):
            exporter.read_back(spoiled(made("int8")[1], tmp_path, edit))


def test_a_static_layer_that_multiplies_scales_or_rounds_otherwise_is_found(made: Made, tmp_path: Path) -> None:
    name = "layers.0.query"

    def matrix(model: Any) -> Any:
        return reader(model, f"{name}.weight.codes")

    def product(model: Any) -> Any:
        return reader(model, matrix(model).output[0])

    def turn(model: Any) -> None:
        product(model).attribute[0].i = 0

    def doubled(model: Any) -> None:
        product(model).attribute.append(onnx.helper.make_attribute("alpha", 2.0))

    def scales(model: Any) -> None:
        matrix(model).input[1] = "layers.0.key.weight.scales"

    def step(model: Any) -> None:
        reader(model, f"{name}.output.zero_point").input[1] = f"{name}.input.scale"

    def clipped(model: Any) -> None:
        rounds = reader(model, product(model).output[0])
        model.graph.node.append(onnx.helper.make_node("Relu", [rounds.input[0]], ["clipped"]))
        rounds.input[0] = "clipped"

    def floats(model: Any) -> None:
        values = reader(model, product(model).input[0])
        values.input[0] = model.graph.node[0].output[0]

    def bias(model: Any) -> None:
        by = next(n for n in model.graph.node if n.op_type == "Mul" and f"{name}.weight.scales" in n.input)
        by.input[0] = "layers.0.up.input.scale"

    def kernel(model: Any) -> None:
        reader(model, "stem.conv.weight.codes.int8").input[1] = "final.conv.weight.scales"

    def narrow(model: Any) -> None:
        weight = reader(model, "stem.conv.weight.codes.int8").output[0]
        values = next(n for n in model.graph.node if reader(model, weight).input[0] in n.output)
        values.input[2] = "stem.point.zero_point"

    other, rounded = "with other scales than its own", "not scaled and rounded"
    for case, edit, told in (
        ("static", turn, rounded), ("static", doubled, rounded), ("static", scales, other), ("static", bias, rounded),
        ("static", step, "rounds values that the student keeps float"), ("static", clipped, rounded),
        ("static", floats, rounded), ("static cnn", kernel, other), ("static cnn", narrow, "read on another one"),
    ):  # fmt: skip
        with pytest.raises(VerificationError, match=told):
            exporter.verify(made(case)[0], spoiled(made(case)[1], tmp_path, edit))


def test_static_grids_that_are_moved_missing_or_too_many_are_found(made: Made, tmp_path: Path) -> None:
    def scaler(model: Any) -> Any:
        return reader(model, "layers.0.up.input.inverse")

    def mover(model: Any) -> Any:
        return reader(model, reader(model, scaler(model).output[0]).output[0])

    def quantizer(model: Any) -> Any:
        return reader(model, mover(model).output[0])

    def bypass(model: Any) -> None:
        scale = "layers.0.up.output.scale"
        back = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[1] == scale)
        rewire(model, back.output[0], "v0")
        model.graph.node.remove(back)

    def cross(model: Any) -> None:
        quantizer(model).input[2] = "layers.0.up.output.zero_point"

    def another(model: Any) -> None:
        place, nodes = "layers.0.down.input", (scaler(model), mover(model), quantizer(model))
        nodes[0].input[1], nodes[1].input[1] = f"{place}.inverse", f"{place}.scale"
        nodes[2].input[1:] = [f"{place}.scale", f"{place}.zero_point"]

    def halfway(model: Any) -> None:
        mover(model).input[1] = "layers.0.down.input.scale"

    def unmoved(model: Any) -> None:
        quantizer(model).input[0] = scaler(model).input[0]

    def too_many(model: Any) -> None:
        values = scaler(model).input[0]
        grid = ["layers.0.up.input.scale", "layers.0.up.output.zero_point"]
        model.graph.node.append(onnx.helper.make_node("QuantizeLinear", [values, *grid], ["extra"]))

    frozen, path = made("static")
    for edit, message in (
        (bypass, "on another one"), (cross, "rounds values"), (another, "nothing uses it"), (too_many, "rounds values"),
        (halfway, "not on its grid already"), (unmoved, "not on its grid already"),
    ):  # fmt: skip
        with pytest.raises(VerificationError, match=message):
            exporter.verify(frozen, spoiled(path, tmp_path, edit))
    plain = dataclasses.replace(
        frozen, ranges={}, scheme=frozen.scheme.model_copy(update={"activations": "float"}), points={}
    )
    with pytest.raises(VerificationError):
        exporter.verify(plain, path)
    moved = {"layers.0.up": (frozen.ranges["layers.0.up"][0]._replace(zero_point=3), frozen.ranges["layers.0.up"][1])}
    with pytest.raises(VerificationError, match=r"layers\.0\.up\.input\.zero_point"):
        exporter.verify(dataclasses.replace(frozen, ranges=frozen.ranges | moved), path)


def test_a_file_that_fails_its_proof_is_not_left_behind(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    frozen, path = made("int8")
    wrong = spoiled(path, tmp_path, other_gelu).read_bytes()
    (tmp_path / "spoiled.onnx").unlink()
    module = importlib.import_module("edgedistill.exporters.onnx")
    monkeypatch.setattr(module, "convert", lambda *_: None)
    monkeypatch.setattr(module, "pack", lambda *_: wrong)
    with pytest.raises(VerificationError, match="does not compute what was trained"):
        exporter.export(frozen, BUCKETS, tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())
