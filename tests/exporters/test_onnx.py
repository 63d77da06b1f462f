"""Real exports of small students, read back from their bytes, executed by ONNX Runtime, and spoiled on purpose."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill import catalog, quant
from edgedistill.errors import DataError, MissingDependency, StageError, VerificationError
from edgedistill.exporters import onnx as exporter
from edgedistill.exporters._proof import Limits, answer, executes
from edgedistill.exporters.onnx.layers import OPSET
from edgedistill.exporters.onnx.packing import pack_int4, unpack_int4
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.specs.quant import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import part
from edgedistill.tasks.text_classification import run_file

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

INT8, INT4 = WeightGrid(), WeightGrid(bits=4)
INT8_GROUPS, INT4_GROUPS = WeightGrid(granularity=PerGroup()), WeightGrid(bits=4, granularity=PerGroup())
MIXED = {"layers.0.down.weight": INT8, "layers.0.key.weight": INT4, "layers.0.value.weight": INT8_GROUPS}
BERT = {"layers": 1, "width": 32, "heads": 2, "ffn": 64, "vocabulary": 70, "max_length": 16, "classes": 5}
SIZES: dict[str, dict[str, Any]] = {"bert": BERT, "vit": {"patch": 8, "width": 32, "ffn": 64}, "llama": {"layers": 1}}
BUCKETS = (4, 9)


def uniform(grid: WeightGrid, activations: Any = "float", **more: Any) -> QuantScheme:
    return QuantScheme(weights=grid, embeddings=grid, head=grid, activations=activations, **more)


CASES: dict[str, tuple[str, QuantScheme]] = {
    "int8": ("bert", uniform(INT8, "dynamic_int8")),
    "int4 groups": ("bert", uniform(INT4_GROUPS, scale_dtype="bf16")),
    "mixed": ("bert", QuantScheme(weights=INT4_GROUPS, embeddings=INT8_GROUPS, layers=MIXED, activations="float")),
    "static": ("bert", uniform(INT8, "static_int8")),
    "cnn": ("cnn", uniform(INT8)),
    "static cnn": ("cnn", uniform(INT4, "static_int8")),
    "vit": ("vit", uniform(INT4_GROUPS)),
    "tied": ("llama", uniform(INT8)),
    "tied int4": ("llama", uniform(INT4_GROUPS)),
}
FLOAT = [name for name, (_, scheme) in CASES.items() if scheme.activations != "static_int8"]
STATIC = [name for name in CASES if name not in FLOAT]
Made = Callable[[str], tuple[FrozenStudent, Path]]


def student(family: str, scheme: QuantScheme) -> FrozenStudent:
    """Weights as large as trained ones, so that outputs are of order 1, with a dead row; ranges of random inputs."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", family)
    config = plugin.TINY.model_copy(update=SIZES.get(family, {}))
    model = part(family, "module").build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.2 * torch.randn_like(parameter)
            else:
                nn.init.normal_(parameter, std=0.2 if parameter.dim() == 1 else 1.2 / parameter[0].numel() ** 0.5)
        next(p for p in model.parameters() if p.dim() > 1)[0] = 0
    quant.prepare(model, scheme, plugin.tensors(config)).train()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for signature in [*plugin.signatures(config, BUCKETS)] * 6:
            model(*(torch.from_numpy(value) for value in plugin.sample(config, signature, random).values()))
    return quant.freeze(model.eval(), family, config, scheme, {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made("int8")`: the student of a case and its file, exported once."""
    folder, known = tmp_path_factory.mktemp("onnx"), {}

    def make(name: str) -> tuple[FrozenStudent, Path]:
        if name not in known:
            frozen, path = student(*CASES[name]), folder / f"{name.replace(' ', '_')}.onnx"
            exporter.export(frozen, BUCKETS, path)
            known[name] = frozen, path
        return known[name]

    return make


def errors_of(frozen: FrozenStudent, path: Path, rounds: int = 6) -> tuple[np.ndarray, float]:
    """The largest difference from torch for random inputs of every length, and the largest output."""
    runner, random = exporter.load(path), np.random.default_rng(7)
    ((name, entry),) = runner.signatures.items()
    module = frozen.to_module(exporter.COMPUTES[frozen.scheme.activations])  # type: ignore[arg-type]
    lengths = [(n,) for n in range(1, 17)] if -1 in entry.inputs[0].shape else [BUCKETS]
    errors, largest = [], 0.0
    for _ in range(rounds):
        for signature in (signature for length in lengths for signature in frozen.signatures(length)):
            feeds = frozen.sample(signature, random)
            expected, found = answer(module, feeds), runner.run(name, feeds)["logits"]
            assert (found.dtype, found.shape) == (np.float32, signature.outputs[0].shape)
            errors.append(float(np.abs(found - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
    return np.array(errors), largest


def spoiled(path: Path, folder: Path, edit: Callable[[Any], Any]) -> Path:
    """A copy of the file after `edit(model)`, in a folder of its own."""
    model = onnx.load(path)
    edit(model)
    out = folder / "spoiled.onnx"
    out.write_bytes(model.SerializeToString())
    return out


def constant(model: Any, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def reader(model: Any, name: str) -> Any:
    return next(node for node in model.graph.node if name in node.input)


def change(name: str, index: int = 0, by: int = 1) -> Callable[[Any], None]:
    """Flip low bits of one byte of a constant."""

    def edit(model: Any) -> None:
        data = bytearray(constant(model, name).raw_data)
        data[index] ^= by
        constant(model, name).raw_data = bytes(data)

    return edit


def rewire(model: Any, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


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
def test_static_activations_differ_by_a_step_at_most_in_nearly_every_answer(made: Made, name: str) -> None:
    """Products of grids are exact in torch and rounded in ONNX Runtime: a value between two codes may take either."""
    frozen, path = made(name)
    errors, largest = errors_of(frozen, path, 10)
    step = frozen.ranges["classifier"][1].scale
    assert largest > 20 * step
    assert (errors == 0).mean() >= 0.9
    assert (errors <= 1.001 * step).mean() >= 0.97
    assert errors.max() <= 4.001 * step


@pytest.mark.parametrize("name", CASES)
def test_an_app_that_keeps_the_runtimes_default_optimization_can_run_the_file(made: Made, name: str) -> None:
    """ONNX Runtime then chooses its integer kernels: near the student, where this package's runner is exact."""
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


def test_the_audit_counts_operators_and_names_risks(made: Made) -> None:
    plain, grouped, static = (exporter.audit(made(name)[1]) for name in ("int8", "int4 groups", "static"))
    assert (plain.runtime_min, grouped.runtime_min) == ("ONNX Runtime 1.18", "ONNX Runtime 1.19")
    assert (plain.operators["Gelu"], plain.operators["DequantizeLinear"]) == (1, 8)
    assert plain.operators.get("QuantizeLinear", 0) == 0
    assert static.operators["QuantizeLinear"] == 14
    assert [len(found.risks) for found in (plain, grouped, static)] == [1, 3, 1]
    assert "4-bit" in grouped.risks[1]
    assert "ORT_ENABLE_BASIC" in plain.risks[0]
    assert "ORT_ENABLE_BASIC" not in static.risks[0]


def test_static_grids_are_in_the_file_and_matter(made: Made) -> None:
    frozen, path = made("static")
    executes(frozen, at_buckets(frozen, path), Limits(0.0, 0.05))
    with pytest.raises(VerificationError, match="does not compute what was trained"):
        executes(frozen, at_buckets(frozen, path), Limits(0.0, 0.05), "float")


def at_buckets(frozen: FrozenStudent, path: Path) -> Any:
    return exporter._AtBuckets(exporter.load(path), {s.name: s for s in frozen.signatures(BUCKETS)})


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
        with pytest.raises(VerificationError, match=tensor):
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
        first, second = reader(model, a), reader(model, b)
        place = list(first.input).index(a)
        first.input[place], second.input[place] = b, a


def transpose_kernel(model: Any) -> None:
    weight = reader(model, "layers.0.query.weight.codes").output[0]
    reader(model, weight).attribute[0].ints[:] = [0, 1]


def other_gelu(model: Any) -> None:
    next(node for node in model.graph.node if node.op_type == "Gelu").attribute[0].s = b"tanh"


def other_norm(model: Any) -> None:
    first, second = (f"layers.0.{kind}_norm.bias" for kind in ("ffn", "attention"))
    one, two = reader(model, first), reader(model, second)
    one.input[2], two.input[2] = second, first


WIRING = [swap_layers, transpose_kernel, other_norm, other_gelu]
# another GELU differs by less than a step of a static student
WRONG = [(name, edit) for name in ("int8", "int4 groups", "static") for edit in WIRING[: 3 if name == "static" else 4]]


@pytest.mark.parametrize(("name", "edit"), WRONG)
def test_a_file_that_holds_the_numbers_but_computes_something_else_is_found(
    made: Made, tmp_path: Path, name: str, edit: Callable[[Any], Any]
) -> None:
    frozen, path = made(name)
    wrong = spoiled(path, tmp_path, edit)
    exporter.verify(frozen, wrong)
    kind = exporter.COMPUTES[frozen.scheme.activations]
    limits = exporter._LIMITS[frozen.scheme.activations]
    executes(frozen, at_buckets(frozen, path), limits, kind)  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="does not compute what was trained"):
        executes(frozen, at_buckets(frozen, wrong), limits, kind)  # type: ignore[arg-type]


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


def test_static_grids_that_are_moved_missing_or_too_many_are_found(made: Made, tmp_path: Path) -> None:
    def bypass(model: Any) -> None:
        quantize = reader(model, "layers.0.up.input.scale")
        back = reader(model, quantize.output[0])
        rewire(model, back.output[0], quantize.input[0])
        model.graph.node.remove(quantize)
        model.graph.node.remove(back)

    def cross(model: Any) -> None:
        reader(model, "layers.0.up.input.scale").input[1] = "layers.0.up.output.scale"

    def another(model: Any) -> None:
        quantize = reader(model, "layers.0.up.input.scale")
        back = reader(model, quantize.output[0])
        back.input[1] = "layers.0.down.input.scale"

    frozen, path = made("static")
    for edit, message in ((bypass, "nothing uses it"), (cross, "rounds values"), (another, "on another one")):
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
        assert scheme.misfit(exporter.HOLDS, exporter.EXCLUDES) is None
    for grid in (INT4_GROUPS, INT8_GROUPS):
        for field in ("weights", "head"):
            # such a scheme is refused by itself; the exporter refuses it all the same
            scheme = QuantScheme(activations="static_int8").model_copy(update={field: grid})
            assert "one scale per channel" in str(scheme.misfit(exporter.HOLDS, exporter.EXCLUDES))


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
    grouped = frozen.scheme.model_copy(update={"weights": INT4_GROUPS})
    with pytest.raises(StageError, match="one scale per channel"):
        exporter.export(dataclasses.replace(frozen, scheme=grouped), BUCKETS, tmp_path / "no.onnx")
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
