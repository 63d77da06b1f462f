"""Real exports of small students: read back from their bytes, and executed by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_students import BUCKETS, CASES, FLOAT, STATIC, Made, at_buckets, errors_of
from planted_onnx import constant, reader

from edgedistill.errors import DataError, MissingDependency, StageError, VerificationError
from edgedistill.exporters import onnx as exporter
from edgedistill.exporters._proof import Limits, answer, executes
from edgedistill.exporters.onnx.codes import OPSET
from edgedistill.exporters.onnx.packing import pack_int4, unpack_int4
from edgedistill.students._points import Sum
from edgedistill.tasks.text_classification import run_file

LAYERS = {"static": 7, "static cnn": 11}  # linear ones and convolutions


@pytest.mark.parametrize("name", CASES)
def test_codes_and_scales_of_the_file_are_the_students(made: Made, name: str) -> None:
    frozen, path = made(name)
    found = exporter.read_back(path)
    assert found.keys() == frozen.quantized.keys()
    for tensor, expected in frozen.quantized.items():
        assert (found[tensor].codes.dtype, found[tensor].scales.dtype) == (np.int8, np.float32)
        assert np.array_equal(found[tensor].codes, expected.codes)
        assert np.array_equal(found[tensor].scales, expected.scales)
    exporter.verify(frozen, path)
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize("name", FLOAT)
def test_weights_alone_compute_what_torch_computes_at_every_length(made: Made, name: str) -> None:
    errors, largest = errors_of(*made(name))
    assert largest > 0.1
    assert errors.max() <= 1e-5 * largest


@pytest.mark.parametrize("name", STATIC)
def test_static_activations_differ_by_a_step_at_most(made: Made, name: str) -> None:
    """Layers are integers in both, and what is between them leaves no choice."""
    frozen, path = made(name)
    errors, largest = errors_of(frozen, path, 10)
    step = frozen.ranges["classifier"][1].scale
    assert largest > 20 * step
    assert errors.max() <= 1.001 * step


@pytest.mark.parametrize("name", CASES)
def test_an_app_that_keeps_the_runtimes_default_optimization_can_run_the_file(made: Made, name: str) -> None:
    """ONNX Runtime then chooses kernels of its own: near the student, and a static one's codes are the same."""
    import onnxruntime

    frozen, path = made(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    module = frozen.to_module(exporter.COMPUTES[frozen.scheme.activations])  # type: ignore[arg-type]
    random, errors, largest = np.random.default_rng(2), [], 0.0
    for signature in [*frozen.signatures(BUCKETS)] * 8:
        feeds = frozen.sample(signature, random)
        expected = answer(module, feeds)
        errors.append(float(np.abs(session.run(None, feeds)[0] - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    assert max(errors) < 0.05 * largest
    if name in STATIC:
        step = frozen.ranges["classifier"][1].scale
        assert max(errors) <= 1.001 * step


@pytest.mark.parametrize("name", STATIC)
def test_a_runtime_that_reads_qdq_multiplies_the_codes_of_every_layer(made: Made, name: str, tmp_path: Path) -> None:
    """Seen in the graph that ONNX Runtime makes of the file: no product of floats is left of any layer."""
    import onnxruntime

    frozen, path = made(name)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QGemm") + kinds.count("QLinearConv") == LAYERS[name]
    assert not {"Gemm", "Conv"} & {*kinds}
    assert kinds.count("QLinearAdd") == sum(isinstance(module, Sum) for module in frozen.build().modules())


@pytest.mark.parametrize("name", STATIC)
def test_products_are_groups_of_codes_that_are_rounded_on_both_sides(made: Made, name: str) -> None:
    """What a provider that reads QDQ looks for, in the file itself: all operands from codes, the result to codes."""
    model = onnx.load(made(name)[1])
    makers = {output: node for node in model.graph.node for output in node.output}
    numbers = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("Gemm", "Conv")]
    assert len(products) == LAYERS[name]
    for product in products:
        values, weight, bias = (makers[name] for name in product.input)
        assert [node.op_type for node in (values, weight, bias)] == ["DequantizeLinear"] * 3
        assert reader(model, product.output[0]).op_type == "QuantizeLinear"
        before = makers[values.input[0]]
        assert (before.op_type, list(before.input[1:])) == ("QuantizeLinear", list(values.input[1:]))
        assert numbers[bias.input[0]].data_type == onnx.TensorProto.INT32


def test_the_audit_counts_operators_and_names_risks(made: Made) -> None:
    plain, grouped, static = (exporter.audit(made(name)[1]) for name in ("int8", "int4 groups", "static"))
    assert (plain.runtime_min, grouped.runtime_min) == ("ONNX Runtime 1.18", "ONNX Runtime 1.19")
    assert (plain.operators["Gelu"], plain.operators["DequantizeLinear"]) == (1, 8)
    assert plain.operators.get("QuantizeLinear", 0) == 0
    assert static.operators["QuantizeLinear"] == 19
    assert [len(found.risks) for found in (plain, grouped, static)] == [1, 3, 2]
    assert static.risks[0].startswith("7 of 7 linear layers and convolutions are QDQ groups")
    assert "4-bit" in grouped.risks[1]
    assert "ORT_ENABLE_BASIC" in plain.risks[0]
    assert "overflow 16 bits" in static.risks[1]


def test_static_grids_are_in_the_file_and_matter(made: Made) -> None:
    frozen, path = made("static")
    executes(frozen, at_buckets(frozen, path), Limits(0.0, 0.05))
    with pytest.raises(VerificationError, match="does not compute what was trained"):
        executes(frozen, at_buckets(frozen, path), Limits(0.0, 0.05), "float")


def test_several_lengths_are_one_graph_and_one_length_keeps_its_name(made: Made, tmp_path: Path) -> None:
    frozen, path = made("int8")
    (entry,) = exporter.load(path).signatures.values()
    assert entry.name == "any"
    assert [tuple(port) for port in (*entry.inputs, *entry.outputs)] == [
        ("input_ids", (1, -1), "int32"),
        ("attention_mask", (1, -1), "int32"),
        ("logits", (1, 5), "float32"),
    ]
    exporter.export(frozen, (6,), tmp_path / "one.onnx")
    assert tuple(exporter.load(tmp_path / "one.onnx").signatures.values()) == frozen.signatures((6,))
    exporter.verify(frozen, tmp_path / "one.onnx")
    (image,) = exporter.load(made("cnn")[1]).signatures.values()
    assert (image,) == made("cnn")[0].signatures(())
    (decoder,) = exporter.load(made("tied")[1]).signatures.values()
    assert decoder.outputs[0].shape == (1, -1, 96)


def test_texts_run_through_the_task_as_in_any_format(made: Made) -> None:
    frozen, path = made("int8")
    ids = np.array([[3, 1, 60, 2]])
    with torch.no_grad():
        expected = frozen.build()(torch.from_numpy(ids), torch.ones(1, 4, dtype=torch.int64)).logits[0].numpy()
    assert np.allclose(run_file(exporter.load(path, threads=2), ids[0].tolist()), expected, atol=1e-5)


def test_codes_of_four_bits_take_four_bits() -> None:
    codes = np.array([-8, 7, 0, -1, 5], np.int8)
    assert pack_int4(codes) == bytes([0x78, 0xF0, 0x05])
    assert unpack_int4(pack_int4(codes), 5).tolist() == codes.tolist()
    every = np.array([[a, b] for a in range(-8, 8) for b in range(-8, 8)], np.int8)
    assert np.array_equal(unpack_int4(pack_int4(every), every.size), every.reshape(-1))
    same = onnx.helper.make_tensor("x", onnx.TensorProto.INT4, (5,), codes.tolist())
    assert onnx.numpy_helper.to_array(same).astype(np.int8).tolist() == codes.tolist()
    stored = onnx.helper.make_tensor("x", onnx.TensorProto.INT4, (5,), pack_int4(codes), raw=True)
    assert onnx.numpy_helper.to_array(stored).astype(np.int8).tolist() == codes.tolist()


@pytest.mark.parametrize("name", CASES)
def test_each_weight_has_its_own_bits_and_the_file_little_else(made: Made, name: str) -> None:
    frozen, path = made(name)
    model = onnx.load(path)
    for tensor, grid in frozen.grids().items():
        stored = constant(model, f"{tensor}.codes")
        assert len(stored.raw_data) == -(-frozen.quantized[tensor].codes.size * grid.bits // 8)
        assert stored.data_type == (onnx.TensorProto.INT4 if grid.bits == 4 else onnx.TensorProto.INT8)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    tensors, grids = len(frozen.quantized) + len(frozen.floats), 2 * len(frozen.ranges) + len(frozen.points)
    biases = sum(frozen.floats[f"{layer}.bias"].nbytes for layer in frozen.ranges)  # as many scales beside the codes
    assert path.stat().st_size < frozen.parameter_bytes + 1200 + 600 * tensors + 400 * grids + biases


def test_an_embedding_of_bytes_is_looked_up_before_it_is_dequantized(made: Made) -> None:
    """So that a vocabulary is never a table of floats in memory; ONNX Runtime cannot look up 4-bit codes."""
    for name, operator in (("int8", "Gather"), ("mixed", "Gather"), ("int4 groups", "DequantizeLinear")):
        assert reader(onnx.load(made(name)[1]), "embeddings.word.weight.codes").op_type == operator


def test_a_tied_weight_is_stored_once_and_used_twice(made: Made) -> None:
    for name in ("tied", "tied int4"):
        frozen, path = made(name)
        model = onnx.load(path)
        assert frozen.config["tied"]
        assert not any("head" in tensor.name for tensor in model.graph.initializer)
        size = frozen.quantized["embedding.weight"].codes.size
        assert sum(list(t.dims) == [96, 32] for t in model.graph.initializer) == 1
        assert path.stat().st_size < frozen.parameter_bytes + 15_000
        assert size == 96 * 32


def test_the_file_tells_nothing_of_the_machine_that_made_it(made: Made) -> None:
    for name in ("int8", "static cnn"):
        model = onnx.load(made(name)[1])
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
        for word in (b"/", b".py", b"torch", b"forward", b"stack"):
            assert word not in model.SerializeToString(), word
        assert (model.producer_name, model.producer_version, len(model.metadata_props)) == ("edgedistill", "", 0)
        assert not any(node.name or node.doc_string or node.metadata_props for node in model.graph.node)
        assert not model.graph.value_info


def test_two_processes_write_the_same_bytes(made: Made, tmp_path: Path) -> None:
    frozen, path = made("mixed")
    frozen.save(tmp_path)
    again = tmp_path / "again.onnx"
    code = (
        "import sys; from pathlib import Path; from edgedistill.exporters import onnx\n"
        "from edgedistill.quant.frozen import FrozenStudent\n"
        f"onnx.export(FrozenStudent.load(Path(sys.argv[1])), {BUCKETS}, Path(sys.argv[2]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(again)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert again.read_bytes() == path.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_inputs_that_do_not_fit_are_refused(made: Made) -> None:
    runner = exporter.load(made("int8")[1])
    good = np.ones((1, 8), np.int32)
    for bad in (good[:, :1], good.astype(np.int64), good[0], np.ones((2, 8), np.int32), None):
        feeds = {"input_ids": good} | ({} if bad is None else {"attention_mask": bad})
        with pytest.raises(DataError, match=r"takes attention_mask as int32\[1, length\], got"):
            runner.run("any", feeds)
    long = np.ones((1, 17), np.int32)
    with pytest.raises(StageError, match="ONNX Runtime failed in signature any"):
        runner.run("any", {"input_ids": long, "attention_mask": long})
    image = exporter.load(made("cnn")[1])
    with pytest.raises(DataError, match=r"takes pixels as float32\[1, 24, 24, 3\], got float32\[1, 24, 24, 1\]"):
        image.run("image", {"pixels": np.ones((1, 24, 24, 1), np.float32)})


@pytest.mark.parametrize("buckets", [[], [0], [-4, 8], [8, 17]])
def test_impossible_buckets_are_refused_before_anything_slow(made: Made, buckets: list[int], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="max_length = 16"):
        exporter.export(made("int8")[0], buckets, tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


def test_what_the_format_holds() -> None:
    for _, scheme in CASES.values():
        assert scheme.misfit(exporter.HOLDS) is None


def test_what_has_no_form_in_onnx_is_refused(made: Made, tmp_path: Path) -> None:
    frozen, _ = made("static")
    lost = {name: pair for name, pair in frozen.ranges.items() if name != "layers.0.up"}
    with pytest.raises(StageError, match=r"layers\.0\.up has no activation ranges"):
        exporter.export(dataclasses.replace(frozen, ranges=lost), BUCKETS, tmp_path / "no.onnx")
    points = {"nowhere": frozen.ranges["layers.0.up"][0]}
    with pytest.raises(StageError, match="no point nowhere"):
        exporter.export(dataclasses.replace(frozen, points=points), BUCKETS, tmp_path / "no.onnx")
    large = frozen.floats | {"layers.0.up.bias": np.full(64, 1e9, np.float32)}
    with pytest.raises(StageError, match="no int32 codes"):
        exporter.export(dataclasses.replace(frozen, floats=large), BUCKETS, tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    frozen, _ = made("int8")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=r"pip install 'edgedistill\[onnx\]'"):
        exporter.export(frozen, BUCKETS, tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_torch_cannot_convert_is_named(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    frozen, _ = made("int8")
    bert = importlib.import_module("edgedistill.students.bert.module")

    def forward(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.classifier(torch.zeros(1, int(input_ids.sum().item()), 32).mean(1))

    monkeypatch.setattr(bert.BertClassifier, "forward", forward)
    with pytest.raises(StageError, match="cannot convert the bert student to ONNX"):
        exporter.export(frozen, BUCKETS, tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())
