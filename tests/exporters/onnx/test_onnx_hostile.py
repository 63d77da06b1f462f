"""Files made to do harm, cut short, or of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx_students import Made, spoiled
from planted_onnx import constant

from edgedistill.errors import ForeignFile, StageError, VerificationError
from edgedistill.exporters import onnx as exporter


def nest(model: Any) -> None:
    graph = onnx.helper.make_graph([], "inner", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["v0"], ["w"], then_branch=graph, else_branch=graph))


def outside(place: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        tensor = constant(model, "layers.0.up.weight.codes")
        if place == "attribute":
            model.graph.node.append(onnx.helper.make_node("Constant", [], ["w"], value=onnx.TensorProto()))
            tensor = model.graph.node[-1].attribute[0].t
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")

    return edit


def dims(*shape: int) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        constant(model, "layers.0.up.weight.codes").dims[:] = shape

    return edit


def huge_constant(model: Any) -> None:
    model.graph.initializer.add(name="v_huge", dims=[2**40, 2**20], data_type=1)
    model.graph.node.add(op_type="Identity", input=["v_huge"], output=["w"])


def of_nothing(model: Any) -> None:
    model.graph.initializer.add(name="v_none", dims=[0, 2**62], data_type=1)
    model.graph.node.add(op_type="Identity", input=["v_none"], output=["w"])


def many_axes(model: Any) -> None:
    model.graph.initializer.add(name="v_deep", dims=[1] * 70, data_type=1, raw_data=bytes(4))
    model.graph.node.add(op_type="Identity", input=["v_deep"], output=["w"])


def empty_codes(model: Any) -> None:
    for kind in ("codes", "scales"):
        tensor = constant(model, f"layers.0.up.weight.{kind}")
        tensor.dims[:], tensor.raw_data = [0, 0], b""


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another producer": (lambda model: setattr(model, "producer_name", "pytorch"), "not an .onnx file of this"),
    "numbers outside": (outside("initializer"), "in another file"),
    "numbers of an attribute outside": (outside("attribute"), "in another file"),
    "a huge shape": (dims(2**40, 2**22), r"has 2048 bytes"),
    "a huge shape of nothing": (huge_constant, r"has 0 bytes"),
    "nothing, beyond all memory": (of_nothing, r"v_none .* has 0 bytes"),
    "more axes than arrays have": (many_axes, r"v_deep .* has 4 bytes"),
    "a negative shape": (dims(-64, -32), r"has 2048 bytes"),
    "another shape": (dims(32, 64), r"has scales"),
    "no shape": (dims(), r"has 2048 bytes"),
    "no codes": (empty_codes, "has scales"),
    "an inner graph": (nest, "inner graphs"),
    "a function": (lambda model: model.functions.add(name="f", domain="d"), "holds functions"),
    "an operator of others": (
        lambda model: setattr(next(n for n in model.graph.node if n.op_type == "Gelu"), "domain", "com.microsoft"),
        r"com\.microsoft\.Gelu",
    ),
    "two of a name": (lambda model: model.graph.initializer.append(model.graph.initializer[0]), "the same name"),
    "an input that replaces codes": (
        lambda model: model.graph.input.add(name="layers.0.up.weight.codes"),
        "the same name",
    ),
    "no opset": (lambda model: model.ClearField("opset_import"), "version"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_file_is_refused_before_it_is_believed(made: Made, tmp_path: Path, fault: str) -> None:
    edit, message = HOSTILE[fault]
    frozen, path = made("int8")
    wrong = spoiled(path, tmp_path, edit)
    with pytest.raises(VerificationError, match=message):
        exporter.verify(frozen, wrong)
    if "outside" in fault:
        with pytest.raises(VerificationError, match=message):
            exporter.load(wrong)


def test_a_truncated_or_foreign_file_is_refused(made: Made, tmp_path: Path) -> None:
    frozen, path = made("int8")
    whole = path.read_bytes()
    cut = tmp_path / "cut.onnx"
    for length in (*range(0, 200, 7), *range(200, len(whole), 997), len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(VerificationError):
            exporter.verify(frozen, cut)
    for data in (b"not a protobuf at all", b"\xff" * 300, whole[::-1]):
        cut.write_bytes(data)
        with pytest.raises(VerificationError):
            exporter.read_back(cut)
        with pytest.raises(StageError):
            exporter.load(cut)
    with pytest.raises(VerificationError, match="cannot be read"):
        exporter.read_back(tmp_path / "absent.onnx")
    cut.write_bytes(onnx.ModelProto(ir_version=10, producer_name="edgedistill").SerializeToString())
    with pytest.raises(StageError, match="cannot load"):
        exporter.load(cut)


@pytest.mark.parametrize("name", [b"layers.0.up.weight.codes", b"MatMul", b"edgedistill"])
def test_names_that_are_not_utf8_are_refused(made: Made, tmp_path: Path, name: bytes) -> None:
    """The parser hands such names out as bytes, which no code here expects."""
    frozen, path = made("int8")
    whole = path.read_bytes()
    assert name in whole
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(whole.replace(name, name[:-1] + b"\xff"))
    with pytest.raises(ForeignFile, match="not UTF-8"):
        exporter.verify(frozen, damaged)
