"""Feeds and states that do not fit; and what a file says is what is computed."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_models import built
from coreml_packages import FEEDS, MODEL, WEIGHTS, answer, constant, edited, operation, stored

from edgedistill.coreml import Evaluator, load
from edgedistill.coreml.proto import messages
from edgedistill.errors import VerificationError

pytestmark = pytest.mark.usefixtures("in_time")


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
