"""What must never ship, put into real files of every format: each fault is found, and the place is named.

A fault is found by its numbers (`verify` reads them back) or, where every number is still there under its own name, by
its answers, with the first layer that differs. Faults that belong to one format or to a whole bundle have their tests
elsewhere, in `ELSEWHERE`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill import catalog, quant
from edgedistill.coreml import load as parse_coreml
from edgedistill.coreml.proto import messages
from edgedistill.errors import VerificationError
from edgedistill.exporters._proof import Limits, executes
from edgedistill.exporters.coreml.card import card_of
from edgedistill.exporters.gguf.parsing import F32, Stored
from edgedistill.exporters.gguf.parsing import parse as parse_gguf
from edgedistill.exporters.gguf.writing import _add
from edgedistill.exporters.tflite.carriers import LAYOUTS
from edgedistill.exporters.tflite.editing import Edit
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.reading import names, uses
from edgedistill.exporters.tflite.reading import parse as parse_tflite
from edgedistill.quant import FrozenStudent
from edgedistill.specs import QuantScheme
from edgedistill.students import part

onnx = pytest.importorskip("onnx")
TESTS = Path(__file__).parents[1]
SIZES = {"bert": {"layers": 1, "width": 32, "heads": 2, "ffn": 64, "vocabulary": 70, "classes": 5}, "cnn": {}}
LENGTH = 8
UP, QUERY, KEY = ("layers.0.up.weight", "layers.0.query.weight", "layers.0.key.weight")
KERNEL, EVEN = "blocks.1.depthwise.conv.weight", "blocks.0.depthwise.conv.weight"
ELSEWHERE = {
    "the miscompiled reshape of coremltools": "exporters/coreml/test_coreml_toolkit.py::test_the_miscompiled_reshape",
    "another tokenizer in a .gguf": "exporters/gguf/test_gguf_tokens.py::test_a_changed_tokenizer_is_found",
    # its model is a .tflite, byte for byte, which its own reader takes out
    "any number of a .litertlm": "exporters/litertlm/test_litertlm_damage.py::test_every_lie_is_one_clear_error",
    "another tokenizer in a bundle": "pipeline/test_verify.py::test_a_changed_tokenizer_file_is_found",
}
Change = Callable[[FrozenStudent, Path], None]


def student(family: str) -> FrozenStudent:
    """Weights as large as trained ones, so that outputs are of order 1; no bias is zero and no gain is one."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", family)
    config = plugin.TINY.model_copy(update=SIZES[family])
    model = part(family, "module").build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.2 * torch.randn_like(parameter)
            else:
                nn.init.normal_(parameter, std=0.2 if parameter.dim() == 1 else 1.2 / parameter[0].numel() ** 0.5)
    return quant.freeze(model.eval(), family, config, QuantScheme(activations="float"), {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[FrozenStudent, Path]]:
    folder, known = tmp_path_factory.mktemp("faults"), {}

    def make(family: str, format_name: str) -> tuple[FrozenStudent, Path]:
        if (family, format_name) not in known:
            exporter = catalog.load_plugin("exporters", format_name)
            frozen, path = student(family), folder / f"{family}{exporter.SUFFIX}"
            exporter.export(frozen, (LENGTH,), path)
            known[family, format_name] = frozen, path
        return known[family, format_name]

    return make


def found(format_name: str, frozen: FrozenStudent, path: Path) -> str:
    """What is said of a file: "numbers: …" or "answers: …"; empty if it is taken for the student."""
    exporter = catalog.load_plugin("exporters", format_name)
    try:
        exporter.verify(frozen, path)
    except VerificationError as error:
        return f"numbers: {error}"
    limits = Limits(2 * exporter.PARITY, 10 * exporter.PARITY)
    try:
        executes(
            frozen, exporter.load(path), limits, "float", explain=lambda f: exporter.first_divergence(frozen, path, f)
        )
    except VerificationError as error:
        return f"answers: {error}"
    return ""


# ------------------------------------------------------------------------------------------------------------- .tflite


def replaced(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def tflite_code(frozen: FrozenStudent, path: Path) -> None:
    codes = frozen.quantized[UP].codes.tobytes()
    replaced(path, codes, flipped(codes, 5))


def tflite_scale(frozen: FrozenStudent, path: Path) -> None:
    scales = frozen.quantized[UP].scales.tobytes()
    replaced(path, scales, flipped(scales, 8))


def tflite_graph(path: Path, change: Callable[[Edit, dict[str, Any]], None]) -> None:
    """`change` gets the editor and the operators with a weight, by its name; of the only signature."""
    schema, model = parse_tflite(path)
    (graph,) = model.subgraphs
    change(Edit(schema, model), {use.name: use.operator for use in uses(schema, model, graph, names(model, path))})
    path.write_bytes(Packer().pack(model))


def tflite_swapped(frozen: FrozenStudent, path: Path) -> None:
    def change(edit: Edit, layers: dict[str, Any]) -> None:
        query, key = layers[QUERY], layers[KEY]
        kept = query.inputs
        query.inputs = np.asarray([kept[0], *key.inputs[1:]], np.int32)
        key.inputs = np.asarray([key.inputs[0], *kept[1:]], np.int32)
        # every weight is dequantized before the first layer
        graph, kind = edit.model.subgraphs[0], edit.schema.BuiltinOperator.DEQUANTIZE
        codes = [code.builtinCode for code in edit.model.operatorCodes]
        graph.operators.sort(key=lambda operator: codes[operator.opcodeIndex] != kind)

    tflite_graph(path, change)


def tflite_transposed(frozen: FrozenStudent, path: Path) -> None:
    layout = LAYOUTS[names(parse_tflite(path)[1], path)[KERNEL].layout]
    stored = frozen.quantized[KERNEL].codes.transpose(layout)
    height = layout.index(2)
    replaced(path, stored.tobytes(), stored.swapaxes(height, layout.index(3)).tobytes())


def tflite_without_bias(frozen: FrozenStudent, path: Path) -> None:
    def change(_: Edit, layers: dict[str, Any]) -> None:
        layers[QUERY].inputs = np.asarray([*layers[QUERY].inputs[:2], -1], np.int32)

    tflite_graph(path, change)


def tflite_float(frozen: FrozenStudent, path: Path) -> None:
    def change(edit: Edit, layers: dict[str, Any]) -> None:
        values = frozen.quantized[UP].values()
        graph = edit.model.subgraphs[0]
        index = edit.add_tensor(graph, values.shape, edit.schema.TensorType.FLOAT32, edit.add_buffer(values))
        layers[UP].inputs = np.asarray([layers[UP].inputs[0], index, layers[UP].inputs[2]], np.int32)

    tflite_graph(path, change)


def tflite_padded(frozen: FrozenStudent, path: Path) -> None:
    """Padded by hand with the odd zero first, where the runtime, as the student, has it last."""

    def change(edit: Edit, layers: dict[str, Any]) -> None:
        graph, layer, types = edit.model.subgraphs[0], layers[KERNEL], edit.schema.TensorType
        shape = graph.tensors[layer.inputs[0]].shape
        height = int(shape[1])
        kernel = frozen.quantized[KERNEL].codes.shape[2]
        missing = (-(-height // 2) - 1) * 2 + kernel - height
        sides = np.array([[0, 0], *[[missing - missing // 2, missing // 2]] * 2, [0, 0]], np.int32)
        assert missing % 2, "an even padding has no odd zero"
        constant = edit.add_tensor(graph, [4, 2], types.INT32, edit.add_buffer(sides))
        wide = [1, height + missing, height + missing, int(shape[3])]
        padded = edit.add_tensor(graph, wide, types.FLOAT32)
        pad = edit.operator("PAD", 1, [int(layer.inputs[0]), constant], [padded])
        graph.operators.insert(graph.operators.index(layer), pad)
        layer.inputs = np.asarray([padded, *layer.inputs[1:]], np.int32)
        layer.builtinOptions.padding = edit.schema.Padding.VALID

    tflite_graph(path, change)


# --------------------------------------------------------------------------------------------------------------- .onnx


def onnx_file(change: Callable[[FrozenStudent, Any], None]) -> Change:
    def edit(frozen: FrozenStudent, path: Path) -> None:
        model = onnx.load(path)
        change(frozen, model)
        path.write_bytes(model.SerializeToString())

    return edit


def constant(model: Any, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def reader(model: Any, name: str) -> Any:
    return next(node for node in model.graph.node if name in node.input)


def onnx_bit(name: str, at: int) -> Change:
    def change(_: FrozenStudent, model: Any) -> None:
        constant(model, name).raw_data = flipped(constant(model, name).raw_data, at)

    return onnx_file(change)


def exchange(model: Any, one: str, other: str) -> None:
    first, second = reader(model, one), reader(model, other)
    a, b = list(first.input).index(one), list(second.input).index(other)
    first.input[a], second.input[b] = other, one


@onnx_file
def onnx_swapped(_: FrozenStudent, model: Any) -> None:
    for suffix in ("weight.codes", "weight.scales", "bias"):
        exchange(model, f"layers.0.query.{suffix}", f"layers.0.key.{suffix}")


@onnx_file
def onnx_transposed(frozen: FrozenStudent, model: Any) -> None:
    constant(model, f"{KERNEL}.codes").raw_data = frozen.quantized[KERNEL].codes.swapaxes(2, 3).tobytes()


@onnx_file
def onnx_without_bias(_: FrozenStudent, model: Any) -> None:
    """The number stays in the file, read by something that does nothing."""
    add = reader(model, "layers.0.query.bias")
    before = next(name for name in add.input if name != "layers.0.query.bias")
    for node in model.graph.node:
        node.input[:] = [before if name == add.output[0] else name for name in node.input]


@onnx_file
def onnx_float(frozen: FrozenStudent, model: Any) -> None:
    node = reader(model, f"{UP}.codes")
    model.graph.initializer.append(onnx.numpy_helper.from_array(frozen.quantized[UP].values(), node.output[0]))
    model.graph.node.remove(node)
    for suffix in ("codes", "scales"):
        model.graph.initializer.remove(constant(model, f"{UP}.{suffix}"))


@onnx_file
def onnx_padded(_: FrozenStudent, model: Any) -> None:
    node = reader(model, reader(model, f"{EVEN}.codes").output[0])
    pads = next(attribute for attribute in node.attribute if attribute.name == "pads")
    pads.ints[:] = [pads.ints[0] + 1, pads.ints[1] + 1, pads.ints[2] - 1, pads.ints[3] - 1]


# ---------------------------------------------------------------------------------------------------------- .mlpackage


def coreml_number(name: str, arguments: Sequence[str], change: Callable[[FrozenStudent, bytes], bytes]) -> Change:
    """Other bytes for the codes or scales of a weight."""

    def edit(frozen: FrozenStudent, path: Path) -> None:
        program = parse_coreml(path)
        operation = next(o for o in program.main.operations if o.name == card_of(program).weights[name].operation)
        (bound,) = next(operation.inputs[argument] for argument in arguments if argument in operation.inputs)
        record = bound.record
        blob = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
        data = blob.read_bytes()
        new = change(frozen, data[record.offset : record.offset + record.size_bytes])
        blob.write_bytes(data[: record.offset] + new + data[record.offset + len(new) :])

    return edit


CODES, SCALES = ("quantized_data", "data"), ("scale",)


def coreml_graph(change: Callable[[FrozenStudent, list[Any], dict[str, Any]], None]) -> Change:
    """`change` gets the operations of the program, and those that read a weight, by its name."""

    def edit(frozen: FrozenStudent, path: Path) -> None:
        file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
        model = messages().Model.FromString(file.read_bytes())
        (function,) = model.mlProgram.functions.values()
        (block,) = function.block_specializations.values()
        by_operation = {item.operation: name for name, item in card_of(parse_coreml(path)).weights.items()}
        layers = {}
        for operation in block.operations:
            bound = [a.name for argument in operation.inputs.values() for a in argument.arguments]
            layers |= {by_operation[name]: operation for name in bound if name in by_operation}
        operations = list(block.operations)
        change(frozen, operations, layers)
        # constants first, so that any operation can read any of them
        operations.sort(key=lambda operation: not operation.type.startswith("const"))
        copies = [type(operation).FromString(operation.SerializeToString()) for operation in operations]
        del block.operations[:]
        block.operations.extend(copies)
        file.write_bytes(model.SerializeToString(deterministic=True))

    return edit


@coreml_graph
def coreml_swapped(_: FrozenStudent, operations: list[Any], layers: dict[str, Any]) -> None:
    query, key = layers[QUERY], layers[KEY]
    for argument in ("weight", "bias"):
        a, b = query.inputs[argument].arguments[0], key.inputs[argument].arguments[0]
        a.name, b.name = b.name, a.name


@coreml_graph
def coreml_without_bias(_: FrozenStudent, operations: list[Any], layers: dict[str, Any]) -> None:
    del layers[QUERY].inputs["bias"]


@coreml_graph
def coreml_float(frozen: FrozenStudent, operations: list[Any], layers: dict[str, Any]) -> None:
    stored = layers[UP].inputs["weight"].arguments[0].name
    operation = next(o for o in operations if o.outputs[0].name == stored)
    kind = operation.outputs[0].type
    name = operation.attributes["name"]
    copied = type(name)()
    copied.CopyFrom(name)
    for field in ("inputs", "attributes"):
        operation.ClearField(field)
    operation.type = "const"
    operation.attributes["name"].CopyFrom(copied)
    operation.attributes["val"].type.CopyFrom(kind)
    held = frozen.quantized[UP].values().astype(np.float16).tobytes()
    operation.attributes["val"].immediateValue.tensor.bytes.values = held


@coreml_graph
def coreml_padded(_: FrozenStudent, operations: list[Any], layers: dict[str, Any]) -> None:
    pad = layers[EVEN].inputs["pad"].arguments[0]
    operation = next((o for o in operations if o.outputs[0].name == pad.name), None)
    value = pad.value if operation is None else operation.attributes["val"]
    ints = value.immediateValue.tensor.ints.values  # top, bottom, left, right
    ints[:] = [ints[0] + 1, ints[1] - 1, ints[2] + 1, ints[3] - 1]


# --------------------------------------------------------------------------------------------------------------- .gguf


def gguf_file(change: Callable[[FrozenStudent, dict[str, Stored]], None]) -> Change:
    """The same metadata with other tensors."""

    def edit(frozen: FrozenStudent, path: Path) -> None:
        import gguf

        parsed = parse_gguf(path)
        metadata, tensors = dict(parsed.metadata), dict(parsed.tensors)
        change(frozen, tensors)
        writer = gguf.GGUFWriter(None, str(metadata.pop("general.architecture")))
        for key, value in metadata.items():
            _add(gguf, writer, key, value)
        for name, tensor in tensors.items():
            kind, data = gguf.GGMLQuantizationType(tensor.kind), np.frombuffer(tensor.data.tobytes(), np.uint8)
            shaped = data.view(np.float32).reshape(tensor.shape) if tensor.kind == F32 else None
            writer.add_tensor(name, data.reshape(*tensor.shape[:-1], -1) if shaped is None else shaped, raw_dtype=kind)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return edit


def gguf_bit(name: str, at: int) -> Change:
    def change(_: FrozenStudent, tensors: dict[str, Stored]) -> None:
        data = np.frombuffer(flipped(tensors[name].data.tobytes(), at), np.uint8)
        tensors[name] = tensors[name]._replace(data=data)

    return gguf_file(change)


@gguf_file
def gguf_swapped(_: FrozenStudent, tensors: dict[str, Stored]) -> None:
    for suffix in ("weight", "bias"):
        one, other = f"blk.0.attn_q.{suffix}", f"blk.0.attn_k.{suffix}"
        tensors[one], tensors[other] = tensors[other], tensors[one]


@gguf_file
def gguf_transposed(frozen: FrozenStudent, tensors: dict[str, Stored]) -> None:
    stored = tensors["blk.0.attn_q.weight"]
    blocks = stored.data.reshape(32, 34).copy()  # of Q8_0: a scale, then the codes of a row
    blocks[:, 2:] = blocks[:, 2:].T.copy()
    tensors["blk.0.attn_q.weight"] = stored._replace(data=blocks.reshape(-1))


@gguf_file
def gguf_without_bias(_: FrozenStudent, tensors: dict[str, Stored]) -> None:
    del tensors["blk.0.attn_q.bias"]


@gguf_file
def gguf_float(frozen: FrozenStudent, tensors: dict[str, Stored]) -> None:
    values = frozen.quantized[UP].values()
    tensors["blk.0.ffn_up.weight"] = Stored(values.shape, F32, values.view(np.uint8).reshape(-1))


# --------------------------------------------------------------------------------------------------------------- table

BEHIND = r"answers: .* first differs at the input of layers\.0\.output: max abs .*, expected <= "
NO_BIAS = (
    r"layers\.0\.query\.bias|missing or unknown: blk\.0\.attn_q\.bias|answers: .* first differs at layers\.0\.query: "
)
HERE = r"answers: .* first differs at (the input of )?blocks\.[01]\.depthwise\.conv: max abs"
TRANSPOSED = rf"numbers: .* codes of ({re.escape(KERNEL)}|layers\.0\.query\.weight) are not"
FLOATS = rf"numbers: .*({re.escape(UP)}|blk\.0\.ffn_up\.weight has type 0|without its integer weight|layers_0_up)"
# fault: family, what is said, and how it gets into a file of each format
TABLE: dict[str, tuple[str, str, dict[str, Change]]] = {
    "one code": (
        "bert",
        rf"numbers: .* 1 of \d+ codes of {re.escape(UP)} ",
        {
            "tflite": tflite_code,
            "onnx": onnx_bit(f"{UP}.codes", 5),
            "coreml": coreml_number(UP, CODES, lambda _, data: flipped(data, 5)),
            "gguf": gguf_bit("blk.0.ffn_up.weight", 34 + 7),
        },
    ),
    "a scale off by one unit in the last place": (
        "bert",
        rf"numbers: .* 1 of \d+ scales of {re.escape(UP)} |numbers: .*{re.escape(UP)} has channels whose blocks",
        {
            "tflite": tflite_scale,
            "onnx": onnx_bit(f"{UP}.scales", 8),
            "coreml": coreml_number(UP, SCALES, lambda _, data: flipped(data, 4)),
            "gguf": gguf_bit("blk.0.ffn_up.weight", 34),
        },
    ),
    "two layers swapped": (
        "bert",
        rf"{BEHIND}|numbers: .* codes of layers\.0\.query\.weight",
        {"tflite": tflite_swapped, "onnx": onnx_swapped, "coreml": coreml_swapped, "gguf": gguf_swapped},
    ),
    "a transposed kernel": (
        "cnn",
        TRANSPOSED,
        {
            "tflite": tflite_transposed,
            "onnx": onnx_transposed,
            "coreml": coreml_number(
                KERNEL, CODES, lambda frozen, _: frozen.quantized[KERNEL].codes.swapaxes(2, 3).tobytes()
            ),
        },
    ),
    "a transposed matrix": ("bert", TRANSPOSED, {"gguf": gguf_transposed}),
    "a dropped bias": (
        "bert",
        NO_BIAS,
        {
            "tflite": tflite_without_bias,
            "onnx": onnx_without_bias,
            "coreml": coreml_without_bias,
            "gguf": gguf_without_bias,
        },
    ),
    "floats where int8 was promised": (
        "bert",
        FLOATS,
        {"tflite": tflite_float, "onnx": onnx_float, "coreml": coreml_float, "gguf": gguf_float},
    ),
    # llama.cpp has no convolutions
    "a wrong pad mode": ("cnn", HERE, {"tflite": tflite_padded, "onnx": onnx_padded, "coreml": coreml_padded}),
}
CASES = [(fault, format_name) for fault, (_, _, edits) in TABLE.items() for format_name in edits]


def test_every_format_meets_every_fault_that_it_can_have() -> None:
    for fault in TABLE:
        pair = ("a transposed kernel", "a transposed matrix")
        formats = {name for f, name in CASES if f == fault or {f, fault} == set(pair)}
        convolutions = {"gguf"} if fault == "a wrong pad mode" else set()
        assert formats | convolutions == set(catalog.plugins("exporters")) - {"litertlm"}, fault
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}" in (TESTS / file).read_text(), place


@pytest.mark.parametrize(("fault", "format_name"), CASES)
def test_a_fault_in_a_file_is_found_and_its_place_named(
    made: Any, tmp_path: Path, fault: str, format_name: str
) -> None:
    family, told, edits = TABLE[fault]
    frozen, sound = made(family, format_name)
    path = tmp_path / sound.name
    shutil.copytree(sound, path) if sound.is_dir() else shutil.copy(sound, path)
    assert found(format_name, frozen, path) == ""
    edits[format_name](frozen, path)
    assert re.search(told, found(format_name, frozen, path)), found(format_name, frozen, path)
