"""Bits by measured sensitivity, through the front door: measured, chosen, trained on, and held by every file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill.catalog import load_plugin
from edgedistill.errors import SpecError
from edgedistill.plan.mixed import MARGIN, mixed_scheme, planned_scheme
from edgedistill.plan.size import largest
from edgedistill.specs import ExportSpec, MixedSpec, QuantScheme, WeightGrid
from edgedistill.students import bert

TINY = Path(__file__).parents[2] / "profiles" / "tiny.toml"
# the same scheme as tiny's, so that the stages before it are those of the bundle that tests share
MIXED = "\n[export.mixed]\nnarrow = { bits = 4 }\n"
INT4 = WeightGrid(bits=4)
CONFIG = bert.Config(layers=2, width=64, heads=2, ffn=128, vocabulary=500, max_length=16, classes=5)


def profile(folder: Path, extra: str) -> Path:
    path = folder / "mixed.toml"
    path.write_text(TINY.read_text().replace('name = "tiny"', 'name = "mixed"') + extra)
    return path


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_store: Path, cli: Callable[..., Any]
) -> tuple[Path, dict[str, Any]]:
    """The bundle, and what the build said."""
    folder = tmp_path_factory.mktemp("mixed")
    given = profile(folder, f"{MIXED}share = 0.9\n")
    done = cli("build", "--target", "pixel8", "--profile", given, "--store", tiny_store, "--out", folder / "out",
               "--format", "onnx,gguf", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "out", json.loads(done.stdout)


def test_the_least_sensitive_tensors_per_byte_are_narrow_in_every_file(built: tuple[Path, dict[str, Any]]) -> None:
    folder, told = built
    manifest = json.loads((folder / "manifest.json").read_text())
    found = manifest["sensitivity"]
    narrow = {name for name, item in found["tensors"].items() if item["narrow"]}
    assert 0 < len(narrow) < len(found["tensors"])
    size = sum(item["bytes_narrow" if name in narrow else "bytes_wide"] for name, item in found["tensors"].items())
    wide = sum(item["bytes_wide"] for item in found["tensors"].values())
    assert size <= 0.9 * wide

    def price(name: str) -> float:
        item = found["tensors"][name]
        return float(max(0.0, item["kl_increase"]) / (item["bytes_wide"] - item["bytes_narrow"]))

    assert max(map(price, narrow)) <= max(map(price, found["tensors"].keys() - narrow))
    assert found["rows"] == manifest["data"]["rows"]["validation"]
    for artifact in manifest["artifacts"]:
        assert artifact["scheme"]["layers"].keys() == narrow
        parity = manifest["parity"][artifact["format"]]
        assert (parity["codes_max_difference"], parity["scales_max_difference"]) == (0, 0)
    assert manifest["profile"]["export"]["mixed"]["share"] == 0.9
    stages = {line["name"]: line for line in told["stages"]}
    assert stages["distil:distil"]["cached"], "the float stages do not depend on the bits"
    assert f"{len(narrow)} of {len(found['tensors'])} tensors to int4 per channel" in stages["sensitivity"]["note"]
    assert list(stages).index("sensitivity") == list(stages).index("distil:quantize") - 1


def test_the_measurement_is_a_stage_that_is_kept_and_verify_holds(
    built: tuple[Path, dict[str, Any]], tiny_store: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder, _ = built
    assert cli("verify", folder, "--quiet").returncode == 0
    options = ("--target", "pixel8", "--profile", profile(tmp_path, f"{MIXED}share = 0.9\n"), "--store", tiny_store)
    shown = cli("build", *options, "--format", "onnx,gguf", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if line.strip().startswith(("sensit", "distil:q"))]
    assert ["already done" in line for line in lines[-2:]] == [True, True]
    other = profile(tmp_path, f"{MIXED}share = 0.85\n")
    shown = cli("build", "--target", "pixel8", "--profile", other, "--store", tiny_store, "--dry-run")
    assert "sensitivity" in shown.stdout
    assert "distil:quantize" not in shown.stdout, "its key depends on what will be measured"


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (f"{MIXED}share = 0.4\n", r"export.mixed.share = 0.4: with every weight that can be in int4 per channel"),
        (f"{MIXED}size_mb = 0.01\n", r"export.mixed.size_mb = 0.01: with every weight"),
        (MIXED, "give size_mb"),
        (f"{MIXED}share = 0.9\nsize_mb = 1\n", "give size_mb"),
        ("\n[export.mixed]\nshare = 0.9\n", 'choose scale_dtype = "bf16"'),
        ('\n[export]\nscheme = { activations = "static_int8" }\n[export.mixed]\nshare = 0.9\n', "static"),
    ],
)
def test_what_can_never_fit_is_refused_before_anything_slow(
    extra: str, told: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    done = cli("plan", "--target", "pixel8", "--profile", profile(tmp_path, extra), "--store", tmp_path / "store")
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())


def test_files_fit_the_size_that_was_asked_for_and_no_tensor_is_narrowed_in_vain() -> None:
    tensors, formats, buckets = bert.tensors(CONFIG), ("tflite", "onnx"), (8, 16)
    wide = largest(formats, tensors, QuantScheme(), buckets, CONFIG).total_mb
    increases = {tensor.name: float(n) for n, tensor in enumerate(tensors)}
    for share in (1.03, 0.9, 0.8):
        export = ExportSpec(mixed=MixedSpec(narrow=INT4, size_mb=share * wide))
        scheme = mixed_scheme(export, tensors, formats, buckets, CONFIG, increases)
        assert (1 + MARGIN) * largest(formats, tensors, scheme, buckets, CONFIG).total_mb <= share * wide
        for name in scheme.layers:
            less = scheme.model_copy(update={"layers": {k: v for k, v in scheme.layers.items() if k != name}})
            assert (1 + MARGIN) * largest(formats, tensors, less, buckets, CONFIG).total_mb > share * wide, name
        assert bool(scheme.layers) == (share < 1 + MARGIN)
    assert planned_scheme(ExportSpec(), tensors, formats, buckets, CONFIG) == QuantScheme()
    tight = ExportSpec(mixed=MixedSpec(narrow=INT4, size_mb=0.01))
    with pytest.raises(SpecError, match="take a smaller student"):
        mixed_scheme(tight, tensors, formats, buckets, CONFIG)
    assert len(planned_scheme(tight, tensors, formats, buckets, CONFIG).layers) == sum(
        t.kind != "float" for t in tensors
    )
    assert load_plugin("students", "bert").tensors(CONFIG) == tensors
