"""Programs that lie, that nobody knows, or that ask for all memory: refused, soon."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_models import built
from coreml_packages import FEEDS, MODEL, WEIGHTS, block, constant, edited, operation, refused, refused_unread, stored

from edgedistill.coreml import Evaluator, lint, load
from edgedistill.coreml.blob import decode
from edgedistill.errors import VerificationError

pytestmark = pytest.mark.usefixtures("in_time")


def test_a_shape_of_terabytes(package: Path) -> None:
    def change(spec: Any) -> None:
        stored(spec).type.tensorType.dimensions[0].constant.size = 2**42

    refused_unread(edited(package, change), "take another number")


def test_an_inline_shape_of_terabytes(package: Path) -> None:
    def change(spec: Any) -> None:
        strides = constant(spec, operation(spec, "conv").inputs["strides"].arguments[0].name)
        strides.type.tensorType.dimensions[0].constant.size = 2**62

    refused_unread(edited(package, change), "has 2 values; its shape")


def test_a_shape_of_nothing_beyond_all_memory(package: Path) -> None:
    """It takes no bytes, in the weight file or in the program, and no array has such sizes."""

    def change(spec: Any) -> None:
        strides = constant(spec, operation(spec, "conv").inputs["strides"].arguments[0].name)
        kind = strides.type.tensorType
        kind.dimensions[0].constant.size = 0
        kind.dimensions.add().constant.size = 2**62
        kind.rank = 2
        strides.immediateValue.tensor.ints.ClearField("values")

    refused(edited(package, change), "is a constant of the shape")
    with pytest.raises(VerificationError, match="has the shape"):
        decode(np.zeros(0, np.uint8), "fp16", (0, 2**62))


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
