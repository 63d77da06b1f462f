"""Every scheme that a plan allows, for every family and format: each code and scale of the file is the student's.

Here, a few schemes in which every two choices meet, together with those of `test_contract.py`; the whole product is a
slow test, and so are decoders that LiteRT runs.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from contract_schemes import GRIDS, KINDS, Case, apart, covering, kinds_of, pairs, planned, quick
from contract_students import BUCKETS, differences, student, task
from shared_conversions import Shared

from edgedistill import catalog
from edgedistill.errors import EdgedistillError, SpecError, StageError
from edgedistill.exporters import tflite
from edgedistill.plan import make_plan
from edgedistill.plan.check import check
from edgedistill.plan.nearest import DTYPES
from edgedistill.quant import FrozenStudent
from edgedistill.specs import PerChannel, QuantScheme

pytestmark = pytest.mark.usefixtures("shared")
PAIRS = [(family, format_name) for family in catalog.plugins("students")
         for format_name in catalog.load_plugin("students", family).FORMATS]  # fmt: skip
PLANNED = {pair: planned(*pair) for pair in PAIRS}
MEETING = {pair: covering(cases, quick(*pair)) for pair, cases in PLANNED.items()}


def written(case: Case, out: Path, scheme: QuantScheme | None = None) -> tuple[FrozenStudent, Path]:
    """The student and the file of a case, or of another scheme of that kind.

    What shares few conversions is smaller: static graphs have one length, and decoders in ONNX and Core ML one layer.
    """
    small = case.family == "llama" and case.format_name in ("coreml", "onnx")
    changes = case.changes | ({"layers": 1} if small else {})
    frozen = student(case.family, scheme or case.scheme, task(case.format_name), **changes)
    exporter = catalog.load_plugin("exporters", case.format_name)
    path = out / f"student{exporter.SUFFIX}"
    exporter.export(frozen, BUCKETS[-1:] if case.scheme.activations == "static_int8" else BUCKETS, path)
    return frozen, path


# A decoder's conversion takes seconds, and `test_contract.py` has one of each kind.
LONG = [("llama", "litertlm"), ("llama", "tflite")]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id="-".join((*pair, case.label)), marks=[pytest.mark.slow] if pair in LONG else [])
        for pair, cases in MEETING.items()
        for case in cases
    ],
)
def test_every_two_choices_of_a_scheme_meet_in_a_file(tmp_path: Path, case: Case) -> None:
    assert differences(case.format_name, *written(case, tmp_path)) == []


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_no_two_choices_are_left_out(pair: tuple[str, str]) -> None:
    met = set().union(*(pairs(case) for case in [*quick(*pair), *MEETING[pair]]))
    assert met == set().union(*(pairs(case) for case in PLANNED[pair]))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_scheme_that_the_plan_allows_is_held(tmp_path: Path, pair: tuple[str, str], kind: str) -> None:
    """The whole product, 2 316 files."""
    odd = {}
    for case in PLANNED[pair]:
        if case.scheme.activations == kind:
            try:
                odd[case.label] = differences(case.format_name, *written(case, tmp_path))
            except EdgedistillError as error:  # all of them are told
                odd[case.label] = [str(error)]
    assert {label: told for label, told in odd.items() if told} == {}


@pytest.mark.parametrize(
    ("pair", "seed"),
    [
        pytest.param(pair, seed, marks=() if seed == 0 and pair[0] in ("bert", "cnn") else pytest.mark.slow)
        for pair in PAIRS
        for seed in range(8)
    ],
)
def test_any_grid_of_any_tensor_is_held(tmp_path: Path, pair: tuple[str, str], seed: int) -> None:
    """Mixed precision: every tensor has a grid of its own, drawn from those that the plan allows for it."""
    case = PLANNED[pair][np.random.default_rng(seed).integers(len(PLANNED[pair]))]
    assert differences(case.format_name, *written(case, tmp_path, apart(case, seed))) == []


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_plan_takes_these_schemes_and_no_other(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgedistill.plan.storable.nearest", lambda *_: "")  # what it advises is tested elsewhere
    family, format_name = pair
    target, profile = catalog.load_target("host"), catalog.load_profile("tiny")
    target = target.model_copy(update={"formats": (format_name,)})
    of_family = profile.student.model_copy(update={"family": family})
    taken = {case.scheme.model_dump_json() for case in PLANNED[pair]}
    tables = GRIDS if "embedding" in kinds_of(family) else GRIDS[:1]
    for weights, table, head, kind, dtype in itertools.product(GRIDS, tables, GRIDS, KINDS, DTYPES):
        if kind == "static_int8" and not all(isinstance(grid.granularity, PerChannel) for grid in (weights, head)):
            continue  # is no scheme
        scheme = QuantScheme(weights=weights, embeddings=table, head=head, activations=kind, scale_dtype=dtype)
        export = profile.export.model_copy(update={"scheme": scheme})
        asked = profile.model_copy(update={"student": of_family, "export": export})
        if scheme.model_dump_json() in taken:
            check(target, asked)
        else:
            with pytest.raises(SpecError):
                check(target, asked)


@pytest.mark.parametrize(
    ("family", "format_name"),
    [
        pytest.param(*pair, marks=() if pair[0] == "vit" else pytest.mark.slow)
        for pair in PAIRS
        if pair[1] in ("litertlm", "onnx", "tflite")
    ],
)
def test_a_shared_conversion_changes_no_byte(tmp_path: Path, shared: Shared, family: str, format_name: str) -> None:
    """Of two schemes whose graphs are alike the second shares the first one's."""
    first, second = (
        next(case for case in PLANNED[family, format_name] if case.scheme.activations == "float" and case.tied == tied
             and case.scheme.weights.bits == bits and case.scheme.head == case.scheme.weights)
        for bits, tied in ((8, family == "llama"), (4, family == "llama"))
    )  # fmt: skip
    written(first, tmp_path)
    hits = shared.hits
    frozen, path = written(second, tmp_path)
    assert shared.hits > hits or family == "cnn"
    exporter, alone = catalog.load_plugin("exporters", format_name), tmp_path / f"alone{path.suffix}"
    with pytest.MonkeyPatch.context() as patch:
        shared.remove(patch)
        exporter.export(frozen, BUCKETS, alone)
    assert alone.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["dynamic_int8", "float"])
@pytest.mark.parametrize("narrow", ["weights", "embeddings", "head"])
def test_rows_of_an_odd_number_of_int4_codes_are_refused_by_the_plan_where_the_file_cannot_have_them(
    tmp_path: Path, narrow: str, kind: str
) -> None:
    scheme = QuantScheme.decode({narrow: {"bits": 4}, "activations": kind}, "a scheme")
    profile = catalog.load_profile("tiny")
    odd = profile.student.model_copy(update={"candidates": ({"layers": 1, "width": 9, "heads": 1, "ffn": 32},)})
    export = profile.export.model_copy(update={"scheme": scheme})
    asked = profile.model_copy(update={"student": odd, "export": export})
    target = catalog.load_target("host")
    if kind == "float" and narrow != "embeddings":  # a layer takes what was dequantized before
        assert make_plan(target, asked).formats == ("tflite",)
        tflite.export(student("bert", scheme, width=9, heads=1, ffn=32), (8,), tmp_path / "odd.tflite")
        return
    with pytest.raises(SpecError, match=r"rows of 9, which have to be a multiple of 2"):
        make_plan(target, asked)
    with pytest.raises(StageError, match="rows of 9 int4 codes"):
        tflite.export(student("bert", scheme, width=9, heads=1, ffn=32), (8,), tmp_path / "odd.tflite")
