"""Names of values in a program: those that a reader knows, and else an operator and its number."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coreml_students import BUCKETS, SCHEMES, Converted, digest, student

from edgedistill.coreml import Program
from edgedistill.coreml import load as parse
from edgedistill.coreml.proto import messages
from edgedistill.errors import StageError
from edgedistill.exporters import coreml
from edgedistill.exporters.coreml.card import card_of
from edgedistill.exporters.coreml.contents import Contents, half
from edgedistill.exporters.coreml.naming import settle
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.students import bert, cnn

MODEL = Path("Data") / "com.apple.CoreML" / "model.mlmodel"


def known(program: Program) -> set[str]:
    card = card_of(program)
    return {*card.floats.values(), *(weight.operation for weight in card.weights.values()), *card.places.values()}


def test_a_value_is_named_after_its_operator_or_what_it_holds(exported: tuple[FrozenStudent, Path]) -> None:
    program = parse(exported[1])
    kept = known(program) | set(program.main.outputs)
    assert all(name.startswith(("model_", "layers_", "embeddings_", "pool", "classifier_")) for name in known(program))
    for operation in program.main.operations:
        if operation.name not in kept and not operation.name.endswith("_dequantize_cast_fp16"):
            assert re.fullmatch(rf"{operation.kind}_\d+(_\d+)?", operation.name), operation


@pytest.mark.parametrize("family", ["bert", "cnn"])
def test_code_that_runs_otherwise_writes_the_same_package(family: str, tmp_path: Path) -> None:
    """Here types are checked at run time, which gives torch's trace other variables; there they are not."""
    config = {"bert": bert.TINY, "cnn": cnn.TINY}[family]
    frozen = student(family, config, SCHEMES["static"])
    frozen.save(tmp_path)
    coreml.export(frozen, (8, 16), tmp_path / "here.mlpackage")
    code = (
        "import sys; from pathlib import Path; from edgedistill.exporters import coreml\n"
        "from edgedistill.quant.frozen import FrozenStudent\n"
        "coreml.export(FrozenStudent.load(Path(sys.argv[1])), (8, 16), Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "there.mlpackage")],
        env=os.environ | {"PYTHONHASHSEED": "123"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "here.mlpackage") == digest(tmp_path / "there.mlpackage")


def test_each_constant_of_fp16_is_known_as_it_was_before_rounding(converted: Converted) -> None:
    """By its new name; a constant that is not known would not be asked for."""
    held = {name: value for name, value in Contents(converted.shipped).floats().items() if value.type.dtype == "fp16"}
    assert held.keys() <= converted.floats.keys()
    for name, value in held.items():
        assert np.array_equal(value.array(), half(converted.floats[name])), name


def test_a_name_that_is_taken_is_left_out(copied: tuple[FrozenStudent, Path]) -> None:
    """No two values have one name, whatever the names before."""
    _, path = copied
    old = [operation for operation in parse(path).main.operations if operation.kind == "linear"]
    taken = {f"linear_{number}" for number in (1, 2)}
    names = settle(path, taken)
    assert len(set(names.values())) == len(names)
    assert {names[operation.name] for operation in old} >= taken
    assert parse(path).main.outputs == ("logits",)


def test_a_program_that_branches_is_refused(copied: tuple[FrozenStudent, Path]) -> None:
    _, path = copied
    model = messages().Model()
    model.ParseFromString((path / MODEL).read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    block.operations[-1].blocks.add()
    (path / MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(StageError, match="which holds others"):
        settle(path, set())


def test_the_answers_are_those_before(copied: tuple[FrozenStudent, Path]) -> None:
    """Named once more, and with nothing known, it is the same program."""
    frozen, path = copied
    feeds = frozen.sample(frozen.signatures(BUCKETS)[0], np.random.default_rng(0))
    before = coreml.load(path).run("any", feeds)["logits"]
    settle(path, set())
    assert np.array_equal(coreml.load(path).run("any", feeds)["logits"], before)
