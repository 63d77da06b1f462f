"""Damaged, foreign and malicious packages: a clear refusal, soon, and no memory beyond what the package deserves."""

import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_models import built, convert
from torch import nn

from edgedistill.coreml import Evaluator, lint, load
from edgedistill.coreml.proto import messages
from edgedistill.errors import VerificationError

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
FEEDS = {"x": np.random.default_rng(0).uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 32),
        nn.LayerNorm(32),
    )
    return convert(module, FEEDS, tmp_path_factory.mktemp("sound") / "sound.mlpackage", outputs=["y"])


@pytest.fixture
def package(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy.mlpackage"))


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 20


def edited(package: Path, change: Callable[[Any], None]) -> Path:
    spec = messages().Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    change(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())
    return package


def block(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def stored(spec: Any) -> Any:
    """The first constant in the weight file."""
    return next(
        op.attributes["val"]
        for op in block(spec).operations
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


def operation(spec: Any, kind: str) -> Any:
    return next(op for op in block(spec).operations if op.type == kind)


def constant(spec: Any, name: str) -> Any:
    return next(op for op in block(spec).operations if op.outputs and op.outputs[0].name == name).attributes["val"]


def answer(package: Path, precision: Any = "fp32") -> np.ndarray:
    return Evaluator(load(package), precision).predict(FEEDS)["y"]


def refused(package: Path, match: str) -> None:
    with pytest.raises(VerificationError, match=match):
        answer(package)


def refused_unread(package: Path, match: str) -> None:
    """Refused when the package is opened, before any weight is read."""
    with pytest.raises(VerificationError, match=match):
        load(package)


# ---- files


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.9, 0.999])
def test_a_truncated_model(package: Path, share: float) -> None:
    data = (package / MODEL).read_bytes()
    (package / MODEL).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VerificationError):
        load(package)


@pytest.mark.parametrize("size", [0, 63, 64, 100, 200])
def test_truncated_weights(package: Path, size: int) -> None:
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:size])
    refused_unread(package, "the file ends at|its data ends at")


def test_weights_cut_off_after_opening(package: Path) -> None:
    program = load(package)
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:200])
    with pytest.raises(VerificationError, match="cut off"):
        Evaluator(program, "fp32")


def test_missing_weights(package: Path) -> None:
    (package / WEIGHTS).unlink()
    refused(package, "has no file")


def test_a_version_of_weights_from_the_future(package: Path) -> None:
    data = bytearray((package / WEIGHTS).read_bytes())
    data[4] = 3
    (package / WEIGHTS).write_bytes(data)
    refused(package, "not a Core ML weight file of version 2")


@pytest.mark.parametrize("make", ["nothing", "file", "folder", "no_json", "deep", "list", "no_root", "number"])
def test_not_a_package(package: Path, make: str) -> None:
    manifest = package / "Manifest.json"
    match make:
        case "nothing":
            shutil.rmtree(package)
        case "file":
            package = package / MODEL
        case "folder":
            package = package / "Data"
        case "no_json":
            manifest.write_bytes(b"\xff\xfe not json")
        case "deep":
            manifest.write_text("[" * 200_000)
        case "list":
            manifest.write_text("[1, 2]")
        case "no_root":
            manifest.write_text('{"itemInfoEntries": {}, "rootModelIdentifier": "1"}')
        case "number":
            manifest.write_text('{"itemInfoEntries": {"1": {"path": 7}}, "rootModelIdentifier": "1"}')
    refused(package, "not a .mlpackage|has no file|not the manifest|not text")


@pytest.mark.parametrize("place", ["../../outside.mlmodel", "/etc/hostname", "a\0b", "x" * 5000])
def test_a_manifest_that_points_elsewhere(package: Path, place: str) -> None:
    shutil.copy(package / MODEL, package.parent / "outside.mlmodel")
    content = json.loads((package / "Manifest.json").read_text())
    content["itemInfoEntries"][content["rootModelIdentifier"]]["path"] = place
    (package / "Manifest.json").write_text(json.dumps(content))
    refused(package, "outside the package|cannot be opened|has no file")


@pytest.mark.parametrize("inner", [MODEL, WEIGHTS, Path("Manifest.json"), Path("Data")])
def test_a_link_that_leads_out_of_the_package(package: Path, inner: Path) -> None:
    outside = package.parent / "outside"
    shutil.move(package / inner, outside)
    (package / inner).symlink_to(outside)
    refused(package, "outside the package")


def test_a_link_to_itself(package: Path) -> None:
    (package / WEIGHTS).unlink()
    (package / WEIGHTS).symlink_to(WEIGHTS.name)
    refused(package, "cannot be opened|has no file")


def test_a_pipe_that_nobody_writes_to(package: Path) -> None:
    (package / WEIGHTS).unlink()
    os.mkfifo(package / WEIGHTS)
    refused(package, "has no file")


@pytest.mark.parametrize(
    "name", ["@model_path/../../../outside.bin", "/etc/hostname", "weights/weight.bin", "", "@model_path/weights"]
)
def test_weights_named_outside_the_package(package: Path, name: str) -> None:
    shutil.copy(package / WEIGHTS, package.parent / "outside.bin")

    def change(spec: Any) -> None:
        stored(spec).blobFileValue.fileName = name

    refused(edited(package, change), "only a file of the package|has no file")


# ---- records of the weight file


@pytest.mark.parametrize(
    ("at", "pattern", "value", "match"),
    [
        (0, "<I", 0xDEADBEE0, "no record is there"),
        (4, "<I", 1, "holds fp16; the model says fp32"),
        (4, "<I", 99, "holds 99; the model says fp32"),
        (8, "<Q", 4, "take another number"),
        (8, "<Q", 2**63, "take another number"),
        (16, "<Q", 2**62, "the file ends at"),
        (16, "<Q", 2**64 - 64, "the file ends at"),
    ],
)
def test_a_record_that_lies(package: Path, at: int, pattern: str, value: int, match: str) -> None:
    spec = messages().Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    data = bytearray((package / WEIGHTS).read_bytes())
    struct.pack_into(pattern, data, stored(spec).blobFileValue.offset + at, value)
    (package / WEIGHTS).write_bytes(data)
    refused_unread(package, match)


@pytest.mark.parametrize("offset", [1, 128, 2**20, 2**63, 2**64 - 1])
def test_an_offset_where_no_record_is(package: Path, offset: int) -> None:
    def change(spec: Any) -> None:
        stored(spec).blobFileValue.offset = offset

    refused_unread(edited(package, change), "no record is there|the file ends at")


# ---- the program


def test_a_shape_of_terabytes(package: Path) -> None:
    def change(spec: Any) -> None:
        stored(spec).type.tensorType.dimensions[0].constant.size = 2**42

    refused_unread(edited(package, change), "take another number")


def test_an_inline_shape_of_terabytes(package: Path) -> None:
    def change(spec: Any) -> None:
        strides = constant(spec, operation(spec, "conv").inputs["strides"].arguments[0].name)
        strides.type.tensorType.dimensions[0].constant.size = 2**62

    refused_unread(edited(package, change), "has 2 values; its shape")


def test_too_many_dimensions(package: Path) -> None:
    def change(spec: Any) -> None:
        kind = stored(spec).type.tensorType
        for _ in range(100):
            kind.dimensions.add().constant.size = 1
        kind.rank = len(kind.dimensions)

    refused(edited(package, change), "says rank 104")


def test_a_model_that_is_no_program(package: Path) -> None:
    def change(spec: Any) -> None:
        spec.neuralNetwork.SetInParent()

    refused(edited(package, change), "neuralNetwork; only an ML Program")


def test_an_operation_nobody_knows(package: Path) -> None:
    def change(spec: Any) -> None:
        operation(spec, "relu").type = "hyper_relu"

    refused(edited(package, change), r"hyper_relu \(.+\) is not known to the reference evaluator")


def test_an_operation_with_blocks(package: Path) -> None:
    def change(spec: Any) -> None:
        operation(spec, "relu").blocks.add()

    refused(edited(package, change), "is not known to the reference evaluator")


def test_a_value_nobody_defines(package: Path) -> None:
    def change(spec: Any) -> None:
        operation(spec, "relu").inputs["x"].arguments[0].name = "ghost"

    refused(edited(package, change), "reads ghost, which no earlier operation defines")


def test_a_value_defined_twice(package: Path) -> None:
    def change(spec: Any) -> None:
        operation(spec, "relu").outputs[0].name = operation(spec, "conv").outputs[0].name

    refused(edited(package, change), "a second time")


def test_operations_out_of_order(package: Path) -> None:
    def change(spec: Any) -> None:
        operations = block(spec).operations
        operations.insert(0, operations.pop())

    refused(edited(package, change), "which no earlier operation defines")


def test_a_type_nobody_knows(package: Path) -> None:
    def change(spec: Any) -> None:
        operation(spec, "relu").outputs[0].type.tensorType.dataType = 13  # bfloat16

    refused(edited(package, change), "data type 13")


def test_a_declared_shape_that_is_not_the_result(package: Path) -> None:
    def change(spec: Any) -> None:
        operation(spec, "conv").outputs[0].type.tensorType.dimensions[3].constant.size = 5

    refused(edited(package, change), r"conv .+ gives shape \[1, 4, 4, 4\]; the program says \[1, 4, 4, 5\]")


def test_a_declared_type_that_is_not_the_result(package: Path) -> None:
    def change(spec: Any) -> None:
        operation(spec, "relu").outputs[0].type.tensorType.dataType = 23

    refused(edited(package, change), "typed int32")


@pytest.mark.parametrize("argument", ["weight", "strides", "pad_type"])
def test_an_argument_of_another_kind(package: Path, argument: str) -> None:
    def change(spec: Any) -> None:
        conv = operation(spec, "conv")
        conv.inputs[argument].arguments[0].name = {"weight": conv.inputs["pad_type"].arguments[0].name}.get(
            argument, "x"
        )

    refused(edited(package, change), "conv")


def test_a_missing_argument(package: Path) -> None:
    def change(spec: Any) -> None:
        del operation(spec, "conv").inputs["weight"]

    refused(edited(package, change), "argument weight is missing")


def test_a_description_of_another_program(package: Path) -> None:
    def change(spec: Any) -> None:
        spec.description.input[0].name = "z"

    refused(edited(package, change), "its description says")


def test_an_output_nobody_defines(package: Path) -> None:
    def change(spec: Any) -> None:
        block(spec).outputs[0] = "ghost"

    refused(edited(package, change), "ghost, defined nowhere")


GROWTH: dict[str, Callable[[Any, Any], Any]] = {
    "fill": lambda mb, x: mb.fill(
        shape=mb.cast(x=mb.mul(x=mb.reduce_max(x=x, axes=[0]), y=np.float32(2**15)), dtype="int32"), value=1.0
    ),
    "tile": lambda mb, x: mb.tile(x=x, reps=[2**15, 2**15]),
    "add": lambda mb, x: mb.add(
        x=mb.reshape(x=mb.tile(x=x, reps=[2**7, 2**8]), shape=[-1, 1]),
        y=mb.reshape(x=mb.tile(x=x, reps=[2**7, 2**8]), shape=[1, -1]),
    ),
    "matmul": lambda mb, x: mb.matmul(
        x=mb.reshape(x=mb.tile(x=x, reps=[2**7, 2**8]), shape=[-1, 1]),
        y=mb.reshape(x=mb.tile(x=x, reps=[2**7, 2**8]), shape=[1, -1]),
    ),
    "pad": lambda mb, x: mb.pad(x=x, pad=[2**20, 2**20, 2**20, 0], mode="constant", constant_val=0.0),
    "one_hot": lambda mb, x: mb.one_hot(indices=mb.cast(x=x, dtype="int32"), one_hot_vector_size=2**30),
    "range_1d": lambda mb, x: mb.range_1d(
        start=np.float32(0), end=mb.reduce_sum(x=mb.mul(x=x, y=np.float32(1e12)), axes=[0, 1]), step=np.float32(1)
    ),
    "upsample": lambda mb, x: mb.upsample_nearest_neighbor(
        x=mb.expand_dims(x=x, axes=[0]), scale_factor_height=2**17, scale_factor_width=2**17
    ),
    "conv": lambda mb, x: mb.conv(
        x=mb.expand_dims(x=x, axes=[0, 1]),
        weight=np.ones((1, 1, 1, 1), np.float32),
        pad_type="custom",
        pad=[2**17, 2**17, 2**17, 2**17],
    ),
    # from 16 elements on coremltools does not compute the values of every concatenation itself
    "doubling": lambda mb, x: doubled(mb, mb.tile(x=x, reps=[2, 1]), 40),
}


def doubled(mb: Any, x: Any, times: int) -> Any:
    for _ in range(times):
        x = mb.concat(values=[x, x], axis=0)
    return x


@pytest.mark.parametrize("name", GROWTH)
def test_a_small_program_that_asks_for_all_memory(name: str, tmp_path: Path) -> None:
    feeds = {"x": np.ones((2, 4), np.float32)}
    path = built(lambda mb, v: GROWTH[name](mb, v["x"]), feeds, tmp_path / "bomb.mlpackage")
    with pytest.raises(VerificationError, match="the limit is"):
        Evaluator(load(path), "fp32").predict(feeds)


def test_a_table_of_vectors_that_asks_for_all_memory(tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import types

    def make(mb: Any, v: dict[str, Any]) -> Any:
        indices = np.zeros((2**13, 2**12), types.np_uint1_dtype)
        table = np.zeros((1, 1, 2, 64), np.float32)
        constant = mb.constexpr_lut_to_dense(indices=indices, lut=table, vector_axis=1)
        return mb.mul(x=v["x"], y=mb.gather(x=constant, indices=np.array([1], np.int32), axis=0))

    feeds = {"x": np.ones((1, 1), np.float32)}
    path = built(make, feeds, tmp_path / "bomb.mlpackage")
    with pytest.raises(VerificationError, match=r"constexpr_lut_to_dense.+the limit is"):
        Evaluator(load(path), "fp32")


def test_an_index_beyond_the_end(tmp_path: Path) -> None:
    feeds = {"x": np.array([1.0, 2.0], np.float32), "at": np.array([1], np.int32)}
    path = built(lambda mb, v: mb.gather(x=v["x"], indices=v["at"], axis=0), feeds, tmp_path / "g.mlpackage")
    evaluator = Evaluator(load(path), "fp32")
    for place in (2, -1):
        with pytest.raises(VerificationError, match=f"index {place} of 2 elements is undefined"):
            evaluator.predict({**feeds, "at": np.array([place], np.int32)})


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_are_refused_or_computed(sound: Path, package: Path, seed: int) -> None:
    """Any byte of the model or of the weight file: a refusal or an answer, no other error."""
    luck = random.Random(seed)
    outcomes = {"refused": 0, "answered": 0}
    for _ in range(120):
        inner = luck.choice([MODEL, MODEL, WEIGHTS])
        data = bytearray((sound / inner).read_bytes())
        for _ in range(luck.randint(1, 3)):
            data[luck.randrange(len(data))] = luck.randrange(256)
        (package / inner).write_bytes(data)
        try:
            program = load(package)
            lint(program)
            Evaluator(program, "fp32").predict(FEEDS)
            outcomes["answered"] += 1
        except VerificationError:
            outcomes["refused"] += 1
        shutil.copy(sound / inner, package / inner)
    assert min(outcomes.values()) > 0


# ---- feeds


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"y": FEEDS["x"]},
        {**FEEDS, "z": FEEDS["x"]},
        {"x": FEEDS["x"][0]},
        {"x": FEEDS["x"].astype(complex)},
        {"x": FEEDS["x"].astype(str)},
        {"x": FEEDS["x"][..., :7]},
    ],
)
def test_wrong_feeds(sound: Path, feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(VerificationError):
        Evaluator(load(sound), "fp32").predict(feeds)


def test_whole_numbers_beyond_the_type(tmp_path: Path) -> None:
    feeds = {"at": np.array([1, 2], np.int32)}
    path = built(lambda mb, v: mb.add(x=v["at"], y=np.int32(1)), feeds, tmp_path / "i.mlpackage")
    evaluator = Evaluator(load(path), "fp32")
    (got,) = evaluator.predict({"at": np.array([True, False])}).values()
    assert got.tolist() == [2, 1]
    for wrong in (np.array([1, 2**31]), np.array([1.0, 2.0])):
        with pytest.raises(VerificationError, match="input at"):
            evaluator.predict({"at": wrong})


def test_a_state_of_terabytes(tmp_path: Path) -> None:
    def make(mb: Any, v: dict[str, Any]) -> Any:
        return mb.add(x=mb.read_state(input=v["s"]), y=v["x"])

    feeds = {"x": np.ones(1, np.float16)}
    path = edited(
        built(make, feeds, tmp_path / "s.mlpackage", states={"s": (4,)}),
        lambda spec: setattr(
            next(i for i in spec.mlProgram.functions["main"].inputs if i.name == "s")
            .type.stateType.wrappedType.tensorType.dimensions[0]
            .constant,
            "size",
            2**40,
        ),
    )
    with pytest.raises(VerificationError, match="state s has 1099511627776 elements"):
        Evaluator(load(path), "fp32").predict(feeds)


def test_wrong_names(sound: Path) -> None:
    with pytest.raises(VerificationError, match="precision 'fp8'"):
        Evaluator(load(sound), "fp8")  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="no function 'other'"):
        Evaluator(load(sound), "fp32", function="other")


# ---- negative controls: what the file says is what is computed


def test_a_changed_weight_changes_the_answer(sound: Path, package: Path) -> None:
    spec = messages().Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    data = bytearray((package / WEIGHTS).read_bytes())
    start = struct.unpack_from("<Q", data, stored(spec).blobFileValue.offset + 16)[0]
    data[start + 2] ^= 0x40
    (package / WEIGHTS).write_bytes(data)
    assert not np.array_equal(answer(package), answer(sound))


def test_a_changed_attribute_changes_the_answer(sound: Path, package: Path) -> None:
    def change(spec: Any) -> None:
        name = operation(spec, "layer_norm").inputs["epsilon"].arguments[0].name
        constant(spec, name).immediateValue.tensor.floats.values[0] = 0.5

    assert not np.array_equal(answer(edited(package, change)), answer(sound))


def test_padding_in_another_order_changes_the_answer(sound: Path, package: Path) -> None:
    """Rows before, rows after, columns before, columns after: the same sizes come out, other values."""
    changed = []
    for values in ((2, 0, 1, 1), (1, 1, 2, 0)):

        def change(spec: Any, values: tuple[int, ...] = values) -> None:
            name = operation(spec, "conv").inputs["pad"].arguments[0].name
            constant(spec, name).immediateValue.tensor.ints.values[:] = values

        changed.append(answer(edited(package, change)))
    assert not np.array_equal(*changed)
    assert not np.array_equal(changed[0], answer(sound))
