"""What every format promises, for every family and kind of scheme; a new file is tested by being there.

That it is so for every scheme that a plan allows is shown in `test_contract_schemes.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract_schemes import CASES, QUICK, allows, schemes
from contract_students import BUCKETS, differences, student, task
from shared_conversions import Shared

from edgedistill import catalog
from edgedistill.errors import EdgedistillError, VerificationError
from edgedistill.exporters import Runner
from edgedistill.exporters._proof import answer
from edgedistill.plan.size import COUNTED_AS, file_size
from edgedistill.plan.size.graphs import formats
from edgedistill.quant import FrozenStudent
from edgedistill.store import digest_of, files_in

sys.path.append(str(Path(__file__).parents[2] / "bench"))
from _size_fit import zero_points

# Of these another default test writes one student's file in two processes, with other hash seeds: tflite by
# pipeline/test_build.py (`test_a_killed_build_continues_to_the_same_bytes`), the others by the test of this name in
# gguf/test_gguf.py, onnx/test_onnx.py and, of the bundle around format tflite's file, litertlm/test_litertlm.py.
TWICE = ("gguf", "litertlm", "onnx", "tflite")
# what computes in fp16; its fp32 twin is held to a step of the output in `test_static.py`
FP16 = ("coreml",)
# what computes a static student with its own integers: every answer is the student's
INTEGERS = ("onnx", "tflite")


def marked(cases: list[tuple[str, str, str]]) -> list[Any]:
    return [pytest.param(*case, marks=() if case[2] in QUICK else pytest.mark.slow) for case in cases]


def first(**wanted: str) -> tuple[str, str, str]:
    """The first quick case of a family or a format."""
    for case in CASES:
        about = dict(zip(("family", "format_name", "scheme"), case, strict=True))
        if case[2] in QUICK and wanted.items() <= about.items():
            return case
    raise AssertionError(f"no case of {wanted}")


@pytest.fixture(scope="module")
def made(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`made(family, format, scheme)`: the student and its file, exported once."""
    folder, known = tmp_path_factory.mktemp("contract"), {}

    def make(family: str, format_name: str, scheme: str) -> tuple[FrozenStudent, Path]:
        key = family, format_name, scheme
        if key not in known:
            frozen = student(family, schemes()[scheme], task(format_name))
            exporter = catalog.load_plugin("exporters", format_name)
            out = folder / ("-".join(key).replace(" ", "_") + exporter.SUFFIX)
            exporter.export(frozen, BUCKETS, out)
            known[key] = frozen, out
        return known[key]

    return make


def test_there_are_cases_for_every_family_and_format() -> None:
    assert {family for family, _, _ in CASES} == set(catalog.plugins("students"))
    assert {name for _, name, _ in CASES} == set(catalog.plugins("exporters"))


@pytest.mark.parametrize(("family", "format_name", "scheme"), marked(CASES))
def test_every_code_and_scale_of_the_file_is_the_students(
    made: Any, family: str, format_name: str, scheme: str
) -> None:
    frozen, path = made(family, format_name, scheme)
    assert differences(format_name, frozen, path) == []
    catalog.load_plugin("exporters", format_name).verify(frozen, path)


@pytest.mark.parametrize(("family", "format_name", "scheme"), marked(CASES))
def test_the_file_computes_the_student(made: Any, family: str, format_name: str, scheme: str) -> None:
    """Float activations to rounding; static ones to a step of the output; dynamic ones to what boundary values do."""
    frozen, path = made(family, format_name, scheme)
    about = catalog.constants("exporters", format_name)
    runner = catalog.load_plugin("exporters", format_name).load(path)
    assert isinstance(runner, Runner)
    kind = about["COMPUTES"][frozen.scheme.activations]
    module = frozen.to_module(kind)
    random, errors, agree, largest = np.random.default_rng(5), [], [], 0.0
    for signature in itertools.islice(itertools.cycle(frozen.signatures(BUCKETS)), 12):
        feeds = frozen.sample(signature, random)
        expected = answer(module, feeds)
        name = signature.name if signature.name in runner.signatures else next(iter(runner.signatures))
        found = runner.run(name, feeds)["logits"]
        assert found.shape == expected.shape
        errors.append(float(np.abs(found - expected).max()))
        agree.append(float((found.argmax(-1) == expected.argmax(-1)).mean()))
        largest = max(largest, float(np.abs(expected).max()))
    if frozen.scheme.activations == "static_int8" and format_name not in FP16:
        assert max(errors) <= 1.001 * frozen.ranges["classifier"][1].scale
        assert format_name not in INTEGERS or not any(errors)
    exact = kind == "float" or frozen.scheme.activations == "float"
    limit = about["PARITY"] if exact else 0.1
    assert np.median(errors) <= limit * largest
    assert np.mean(agree) >= (0.95 if limit < 1e-3 else 0.8)


@pytest.mark.parametrize(("family", "format_name"), sorted({case[:2] for case in CASES}))
def test_a_changed_code_a_changed_scale_and_swapped_layers_are_found(made: Any, family: str, format_name: str) -> None:
    """Compared with another student, the file is not that student's: each difference alone is enough."""
    frozen, path = made(*first(family=family, format_name=format_name))
    exporter = catalog.load_plugin("exporters", format_name)
    for name, weight in frozen.quantized.items():
        codes, scales = weight.codes.copy(), weight.scales.copy()
        codes.flat[codes.size // 2] ^= 1
        scales.flat[-1] = np.nextafter(scales.flat[-1], np.float32(np.inf))
        for changed in (weight._replace(codes=codes), weight._replace(scales=scales)):
            wrong = dataclasses.replace(frozen, quantized=frozen.quantized | {name: changed})
            with pytest.raises(VerificationError, match=name.replace(".", r"\.")):
                exporter.verify(wrong, path)
    for name, values in frozen.floats.items():
        dropped = dataclasses.replace(frozen, floats=frozen.floats | {name: np.zeros_like(values) + 3})
        with pytest.raises(VerificationError):
            exporter.verify(dropped, path)


@pytest.mark.parametrize(
    "format_name",
    [pytest.param(name, marks=pytest.mark.slow if name in TWICE else ()) for name in sorted({c[1] for c in CASES})],
)
def test_two_processes_write_the_same_bytes(tmp_path: Path, format_name: str) -> None:
    """Neither is this one: the shape checks of the test run wrap functions, and converters look at function names."""
    family, _, scheme = first(format_name=format_name)
    student(family, schemes()[scheme], task(format_name)).save(tmp_path)
    suffix = catalog.constants("exporters", format_name)["SUFFIX"]
    code = (
        "import sys; from pathlib import Path; from edgedistill import catalog; from edgedistill.quant import *\n"
        f"exporter = catalog.load_plugin('exporters', {format_name!r})\n"
        f"exporter.export(FrozenStudent.load(Path(sys.argv[1])), {BUCKETS}, Path(sys.argv[2]))"
    )
    outs = [tmp_path / f"{seed}{suffix}" for seed in (1, 321)]
    for out in outs:
        environment = os.environ | {"PYTHONHASHSEED": out.stem, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(out)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
    assert digest_of(outs[0]) == digest_of(outs[1])
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("format_name", sorted({case[1] for case in CASES}))
def test_a_truncated_or_foreign_file_is_refused(made: Any, tmp_path: Path, format_name: str) -> None:
    _, path = made(*first(format_name=format_name))
    exporter = catalog.load_plugin("exporters", format_name)
    whole = path.read_bytes() if path.is_file() else max(files_in(path), key=lambda p: p.stat().st_size).read_bytes()
    spoiled = tmp_path / path.name
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:-7], b"PK\3\4 nothing of ours" * 50):
        spoiled.write_bytes(content)
        with pytest.raises(EdgedistillError):
            exporter.read_back(spoiled)
    with pytest.raises(EdgedistillError):
        exporter.read_back(tmp_path / "absent")


@pytest.mark.parametrize("format_name", catalog.plugins("exporters"))
def test_a_scheme_that_a_format_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, format_name: str
) -> None:
    family = next(family for family, name, _ in CASES if name == format_name)
    kinds = getattr(catalog.load_plugin("students", family), "ACTIVATIONS", ("dynamic_int8", "static_int8", "float"))
    for scheme in schemes().values():
        if allows(format_name, scheme) or scheme.activations not in kinds:
            continue
        frozen = student(family, scheme, task(format_name))
        with pytest.raises(EdgedistillError, match=r"scheme|group|bf16"):
            catalog.load_plugin("exporters", format_name).export(frozen, BUCKETS, tmp_path / "no")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format_name", catalog.plugins("exporters"))
def test_the_planner_reads_what_it_needs_without_importing_the_exporter(format_name: str) -> None:
    about = catalog.constants("exporters", format_name)
    assert {"SUFFIX", "REQUIRES", "EXTRA", "HOLDS", "COMPUTES", "PARITY"} <= about.keys()
    assert COUNTED_AS.get(format_name, format_name) in formats()
    assert set(about["COMPUTES"]) == set(about["HOLDS"]["activations"])
    assert set(about["COMPUTES"].values()) <= {"as_trained", "float"}


@pytest.mark.parametrize(("family", "format_name", "scheme"), marked(CASES))
def test_the_size_was_known_before(made: Any, family: str, format_name: str, scheme: str) -> None:
    """Of the smallest students there are: of a real one, the graph is a far smaller share."""
    if format_name not in formats():
        pytest.skip(f"the bytes of {format_name} are told by terms of its own, not by parts")
    frozen, path = made(family, format_name, scheme)
    plugin = catalog.load_plugin("students", family)
    config = plugin.Config.decode(frozen.config, "config")
    found = file_size(format_name, plugin.tensors(config), frozen.scheme, BUCKETS, config=config, tokenizer_bytes=0)
    real = sum(item.stat().st_size for item in (path, *path.rglob("*")) if item.is_file())
    if format_name == "coreml":  # a zero point of 0 is left out; which ones will happen to be 0 is not known before
        real -= formats()["coreml"]["static"].grids["zero point 0"] * zero_points(frozen)
    told = f"a graph that changed is measured anew by: python bench/size.py --fit {format_name}"
    assert found.total_mb * 1e6 == pytest.approx(real, rel=0.01), told
