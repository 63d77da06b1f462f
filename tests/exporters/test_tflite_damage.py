"""Hostile .tflite files: refused quickly by the reader and before the interpreter, without a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import fuzzing
import numpy as np
import pytest
import torch

from edgedistill import quant
from edgedistill.errors import ForeignFile, StageError, VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters.tflite.editing import Edit
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.reading import parse
from edgedistill.exporters.tflite.structure import check_offsets
from edgedistill.specs import QuantScheme
from edgedistill.students import bert
from edgedistill.students.bert.module import build

# Read in a process of its own with 6 GB of address space: it must end by itself, whatever the file. It says how often
# the file was refused, and how long the slowest took.
FUZZ = """
import random, resource, sys, time
from pathlib import Path
from fuzzing import damaged
from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters import tflite
tflite.load(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
source, work = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
chance, refused, slowest = random.Random(int(sys.argv[3])), 0, 0.0
for turn in range(300):
    work.write_bytes(damaged(source, chance, turn, chance.randrange(len(source) - 4)))
    started = time.process_time()
    try:
        tflite.read_back(work)
        tflite.load(work)
    except (VerificationError, StageError):
        refused += 1
    slowest = max(slowest, time.process_time() - started)
print(refused, slowest)
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("damage") / "real.tflite"
    tflite.export(quant.freeze(build(bert.TINY), "bert", bert.TINY, QuantScheme(), {}), (8,), path)
    return path


def refused(path: Path, told: str) -> None:
    """By both, and soon."""
    started = time.process_time()
    with pytest.raises(VerificationError, match=told):
        tflite.read_back(path)
    with pytest.raises(StageError, match=told):
        tflite.load(path)
    assert time.process_time() - started < 20


def changed(real: Path, out: Path, change: Callable[[Edit], None]) -> Path:
    schema, model = parse(real)
    change(Edit(schema, model))
    out.write_bytes(Packer().pack(model))
    return out


def test_three_hundred_damaged_files_crash_nothing(real: Path, tmp_path: Path) -> None:
    count, slowest = fuzzing.told(FUZZ, real, tmp_path / "damaged.tflite", 1, timeout_s=300).split()
    assert int(count) > 150
    assert float(slowest) < 10


def test_truncated_foreign_and_random_files_are_refused(real: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "file.tflite", real.read_bytes()
    random = np.random.default_rng(0).bytes(5000)
    for content in (b"", b"TFL3", data[:8], data[: len(data) // 2], data[:-1], random, b"\0\0\0\0TFL3" + random):
        path.write_bytes(content)
        refused(path, "damaged .tflite file")
    with pytest.raises(VerificationError, match="cannot be read"):
        tflite.read_back(tmp_path / "missing.tflite")


def test_absurd_shapes_are_refused(real: Path, tmp_path: Path) -> None:
    for shape in ([2**31 - 1] * 4, [-5, 3], [1, 2**30, 2]):

        def stretch(edit: Edit, shape: list[int] = shape) -> None:
            first = next(t for t in edit.model.subgraphs[0].tensors if not edit.bytes_of(t))
            first.shape = np.asarray(shape, np.int32)

        refused(changed(real, tmp_path / "shape.tflite", stretch), "has the shape")


def test_constants_that_do_not_fill_their_shapes_are_refused(real: Path, tmp_path: Path) -> None:
    def cut(edit: Edit) -> None:
        buffer = max(edit.model.buffers, key=lambda b: 0 if b.data is None else len(b.data))
        buffer.data = buffer.data[:-1]

    refused(changed(real, tmp_path / "cut.tflite", cut), "a constant of shape .* has .* bytes")


def test_indices_out_of_range_are_refused(real: Path, tmp_path: Path) -> None:
    def tensor(edit: Edit) -> None:
        edit.model.subgraphs[0].operators[0].inputs = np.asarray([10**6], np.int32)

    def buffer(edit: Edit) -> None:
        edit.model.subgraphs[0].tensors[0].buffer = 10**6

    def code(edit: Edit) -> None:
        edit.model.subgraphs[0].operators[0].opcodeIndex = 10**6

    def graph(edit: Edit) -> None:
        edit.model.signatureDefs[0].subgraphIndex = 7

    def port(edit: Edit) -> None:
        edit.model.signatureDefs[0].inputs[0].tensorIndex = 10**6

    for change in (tensor, buffer, code, graph, port):
        refused(changed(real, tmp_path / "index.tflite", change), "names an? ")


def test_an_operator_without_one_of_its_numbers_is_refused(real: Path, tmp_path: Path) -> None:
    """LiteRT 2.3.0 ends the process on a sum of one number; only a bias may be left out."""

    def without(edit: Edit) -> None:
        adds = [o for o in edit.model.subgraphs[0].operators if edit.code(o) == edit.builtin("ADD")]
        adds[0].inputs = np.asarray([adds[0].inputs[0], -1], np.int32)

    refused(changed(real, tmp_path / "one.tflite", without), "an operator lacks one of its inputs")


def _inputs(edit: Edit, name: str, count: int) -> None:
    found = [o for o in edit.model.subgraphs[0].operators if edit.code(o) == edit.builtin(name)]
    found[0].inputs = np.asarray(found[0].inputs[:count], np.int32)


def _number(edit: Edit, number: int, older: int) -> None:
    code = edit.model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode = number, older


def _entry(edit: Edit) -> Any:
    return edit.model.signatureDefs[0].inputs[0]


LIES: dict[str, tuple[Callable[[Edit], None], str]] = {
    "an unknown operator": (lambda edit: _number(edit, 5000, 127), "names an operator 5000"),
    "an operator by two numbers": (lambda edit: _number(edit, 0, 32), "names an operator 0, or 32"),
    "a layer without weights": (lambda edit: _inputs(edit, "FULLY_CONNECTED", 1), "FULLY_CONNECTED has 1 inputs"),
    "a product of one": (lambda edit: _inputs(edit, "BATCH_MATMUL", 1), "BATCH_MATMUL has 1 inputs"),
    "a sum of nothing": (lambda edit: _inputs(edit, "ADD", 0), "ADD has 0 inputs"),
    "no name": (lambda edit: setattr(edit.model.signatureDefs[0], "signatureKey", None), "has no name"),
    "an input without a name": (lambda edit: setattr(_entry(edit), "name", None), "has no name"),
    "a name that is no text": (lambda edit: setattr(_entry(edit), "name", b"\xff\xfe"), "not UTF-8"),
    "a tensor's that is no text": (lambda edit: setattr(edit.model.subgraphs[0].tensors[0], "name", b"\xff"), "UTF-8"),
}  # fmt: skip


def test_an_operator_whose_older_number_is_not_set_is_the_newer_one() -> None:
    """As ai-edge-quantizer wrote it."""
    path = Path(__file__).parents[1] / "devices" / "tiny_static.tflite"
    _, model = parse(path)
    assert {(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes} >= {(114, 0)}


@pytest.mark.parametrize("lie", LIES)
def test_what_only_looks_like_a_graph_is_refused_by_all_that_read_it(real: Path, tmp_path: Path, lie: str) -> None:
    change, told = LIES[lie]
    path = changed(real, tmp_path / "lie.tflite", change)
    refused(path, told)
    with pytest.raises(ForeignFile, match=told):
        tflite.audit(path)


def test_a_file_that_says_of_no_version_that_it_needs_it_is_audited(real: Path, tmp_path: Path) -> None:
    def empty(edit: Edit) -> None:
        (entry,) = [entry for entry in edit.model.metadata if entry.name == b"min_runtime_version"]
        edit.model.buffers[entry.buffer].data = None

    assert tflite.audit(changed(real, tmp_path / "empty.tflite", empty)).runtime_min == "TensorFlow Lite unknown"


class Once:
    """A table that is written once and referred to from then on."""

    def __init__(self, table: Any) -> None:
        self.table, self.place = table, 0

    def Pack(self, builder: Any) -> int:
        self.place = self.place or self.table.Pack(builder)
        return self.place


def test_a_small_file_that_describes_a_huge_graph_is_refused(real: Path, tmp_path: Path) -> None:
    """Equal tables may be written once: 100 000 references to one graph take 400 kB, and unpacked would take 10 GB."""
    model, builder = parse(real)[1], flatbuffers.Builder(1 << 20)
    model.subgraphs = [Once(model.subgraphs[0])] * 100_000
    for buffer in model.buffers:
        buffer.data = None
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path = tmp_path / "huge.tflite"
    path.write_bytes(bytes(builder.Output()))
    assert path.stat().st_size < 1_000_000
    refused(path, "describes a graph of more than")


def test_a_vector_longer_than_the_file_is_refused(real: Path) -> None:
    data = bytearray(real.read_bytes())
    largest = np.asarray(parse(real)[1].buffers[1].data).tobytes()
    at = data.find(largest) - 4
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(ValueError, match="longer than the file"):
        check_offsets(data)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"[]",
        b"null",
        b'{"buffers": 3}',
        json.dumps({"buffers": {"a": "b"}}).encode(),
        json.dumps({"buffers": {"a": 10**9}}).encode(),
        json.dumps({"buffers": {"a": True}}).encode(),
        json.dumps({"buffers": {"a": 1, "b": 1}}).encode(),
        json.dumps({"buffers": {"a": 1}, "layouts": {"a": "XYZW"}}).encode(),
        json.dumps({"buffers": {"a": 1}, "layouts": {"a": []}}).encode(),
        json.dumps({"buffers": {"a": 1}, "layouts": 5}).encode(),
        b"\xff\xfe",
    ],
)
def test_damaged_metadata_is_refused(real: Path, tmp_path: Path, text: bytes) -> None:
    def write(edit: Edit) -> None:
        entry = edit.model.metadata[-1]
        edit.model.buffers[entry.buffer].data = np.frombuffer(text, np.uint8)

    with pytest.raises(VerificationError, match="metadata is damaged"):
        tflite.read_back(changed(real, tmp_path / "metadata.tflite", write))


def test_a_weight_in_another_form_is_refused(real: Path, tmp_path: Path) -> None:
    """Asymmetric, of another type, or along another axis: each would be computed, and none is ours."""

    def zero_point(edit: Edit) -> None:
        weights(edit)[0].quantization.zeroPoint = np.ones(len(weights(edit)[0].quantization.scale), np.int64)

    def kind(edit: Edit) -> None:
        weights(edit)[0].type = edit.schema.TensorType.UINT8

    def axis(edit: Edit) -> None:
        square = next(t for t in weights(edit) if t.shape[0] == t.shape[1])
        square.quantization.quantizedDimension = 1

    def weights(edit: Edit) -> list[object]:
        tensors = edit.model.subgraphs[0].tensors
        return [t for t in tensors if t.type == edit.schema.TensorType.INT8 and edit.bytes_of(t)]

    for change, told in ((zero_point, "not symmetric"), (kind, "not an int8 or int4"), (axis, "not symmetric")):
        with pytest.raises(VerificationError, match=told):
            tflite.read_back(changed(real, tmp_path / "form.tflite", change))
