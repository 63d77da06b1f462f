"""`verify`, `bench`, `gate` and `report` on a real bundle, and on bundles that somebody changed."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.numpy

from edgedistill.errors import SpecError, VerificationError
from edgedistill.pipeline import benching, recheck, replay


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def rehash(bundle: Path, name: str) -> None:
    """Make the manifest agree with a changed file, as somebody who wants to deceive would."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    for artifact in manifest["artifacts"]:
        if artifact["path"] == name:
            artifact["sha256"] = manifest["files"][name]
    path.write_text(json.dumps(manifest))


def edit_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_code(bundle: Path) -> None:
    """Change one weight in the model by one step of its grid."""
    tensors = safetensors.numpy.load_file(bundle / "frozen" / "student.safetensors")
    codes = tensors["embeddings.word.weight.codes"].tobytes()
    data = bytearray((bundle / "model.tflite").read_bytes())
    at = bytes(data).index(codes)
    data[at] ^= 1
    (bundle / "model.tflite").write_bytes(data)


def snapshot(bundle: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_verify_a_good_bundle_and_change_nothing(cli, tiny_bundle):
    before = snapshot(tiny_bundle)
    done = cli("verify", tiny_bundle, "--json")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["verified"] is True
    assert seen["golden_samples"] == 16
    assert seen["logits_max_difference"] <= 1e-6
    assert snapshot(tiny_bundle) == before


def test_verify_names_a_flipped_byte(cli, bundle):
    flip_a_code(bundle)
    done = cli("verify", bundle)
    assert done.returncode == 1
    assert "model.tflite: changed since it was built" in done.stderr


@pytest.mark.parametrize("command", ["verify", "gate", "bench"])
def test_a_model_that_is_cut_off_is_wrong_input(cli, bundle, command):
    path = bundle / "model.tflite"
    path.write_bytes(path.read_bytes()[:10_000])
    done = cli(command, bundle)
    assert done.returncode == 2
    assert "model.tflite: damaged .tflite file" in " ".join(done.stderr.split())


def test_gate_and_bench_refuse_a_changed_model(bundle):
    flip_a_code(bundle)
    opened = recheck.open_bundle(bundle)
    with pytest.raises(VerificationError, match="changed"):
        recheck.gate_again(opened, {})
    with pytest.raises(VerificationError, match="changed"):
        benching.bench(opened, benching.Run(launches=1))


def test_verify_reads_the_codes_and_not_only_the_hashes(bundle):
    flip_a_code(bundle)
    rehash(bundle, "model.tflite")
    with pytest.raises(VerificationError, match=r"1 of \d+ codes of embeddings\.word\.weight"):
        replay.verify(recheck.open_bundle(bundle))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"logits": lambda values: [values[0] + 0.01, *values[1:]]}, "a logit differs by 0.01"),
        ({"label": lambda _: "nonsense"}, "golden.json says 'nonsense'"),
        ({"text": lambda text: text + " and more"}, "other ids"),
    ],
)
def test_verify_replays_the_golden_samples(bundle, change, told):
    path = bundle / "golden.json"
    samples = json.loads(path.read_text())
    for key, how in change.items():
        place = samples[3] if key in samples[3] else samples[3]["answers"]["tflite"]
        place[key] = how(place[key])
    path.write_text(json.dumps(samples))
    with pytest.raises(VerificationError, match=r"golden\.json: changed"):
        replay.verify(recheck.open_bundle(bundle))
    rehash(bundle, "golden.json")
    with pytest.raises(VerificationError, match=told):
        replay.verify(recheck.open_bundle(bundle))


def test_verify_tolerance_accepts_another_processor(bundle):
    path = bundle / "golden.json"
    samples = json.loads(path.read_text())
    samples[0]["answers"]["tflite"]["logits"][0] += 1e-4
    path.write_text(json.dumps(samples))
    rehash(bundle, "golden.json")
    assert replay.verify(recheck.open_bundle(bundle), tolerance=0.02).logits_max_difference > 9e-5


def test_verify_checks_labels(bundle):
    labels = (bundle / "labels.txt").read_text().splitlines()
    (bundle / "labels.txt").write_text("\n".join(reversed(labels)) + "\n")
    with pytest.raises(VerificationError, match=r"labels\.txt: changed"):
        replay.verify(recheck.open_bundle(bundle))
    rehash(bundle, "labels.txt")
    with pytest.raises(VerificationError, match=r"labels\.txt: differs"):
        replay.verify(recheck.open_bundle(bundle))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "frozen/../../secret", "C:\\x", "", "a\0b"])
def test_a_path_that_leads_out_of_the_bundle_is_refused(bundle, name):
    (bundle.parent / "secret").write_text("secret")
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(bundle, files=files | {name: "0" * 64})
    with pytest.raises(SpecError, match="not a path inside"):
        recheck.open_bundle(bundle)


def test_links_are_refused(cli, bundle):
    secret = bundle.parent / "secret"
    secret.write_bytes((bundle / "golden.json").read_bytes())
    (bundle / "golden.json").unlink()
    (bundle / "golden.json").symlink_to(secret)
    done = cli("verify", bundle)
    assert done.returncode == 2
    assert "symbolic link" in done.stderr


def test_report_does_not_write_through_a_link(bundle):
    victim = bundle.parent / "victim"
    victim.write_text("mine")
    (bundle / "report.html").unlink()
    (bundle / "report.html").symlink_to(victim)
    with pytest.raises(SpecError, match="symbolic link"):
        recheck.render(recheck.open_bundle(bundle))
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 99}', b'{"schema_version": 1}'],
)
def test_a_damaged_manifest_is_a_spec_error(bundle, content):
    path = bundle / "manifest.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=r"manifest\.json"):
        recheck.open_bundle(bundle)


def test_not_a_bundle(cli, tmp_path):
    for command in ("verify", "gate", "report", "bench"):
        done = cli(command, tmp_path / "none")
        assert done.returncode == 2
        assert "no such folder" in done.stderr


def test_a_manifest_that_leaves_out_a_needed_file_vouches_for_nothing(bundle):
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    del files["golden.json"]
    edit_manifest(bundle, files=files)
    with pytest.raises(SpecError, match=r"lists no golden\.json"):
        recheck.open_bundle(bundle)


@pytest.mark.parametrize("format_name", ["nothing", "../tflite"])
def test_a_format_that_is_unknown_is_a_spec_error(bundle, format_name):
    artifacts = json.loads((bundle / "manifest.json").read_text())["artifacts"]
    edit_manifest(bundle, artifacts=[artifacts[0] | {"format": format_name}])
    with pytest.raises(SpecError):
        replay.verify(recheck.open_bundle(bundle))


def test_gate_is_strict_and_writes_nothing(cli, tiny_bundle):
    before = snapshot(tiny_bundle)
    done = cli("gate", tiny_bundle, "--json")
    assert done.returncode == 4
    document = json.loads(done.stdout)
    stored = json.loads((tiny_bundle / "gate.json").read_text())
    assert document["checks"] == stored["checks"]
    assert document["verdict"] == "UNMEASURED"
    assert snapshot(tiny_bundle) == before


def test_gate_with_another_budget(cli, tiny_bundle):
    done = cli("gate", tiny_bundle, "--budget", "size_mb=0.001")
    assert done.returncode == 3
    assert "FAIL" in done.stdout
    assert "size_mb" in done.stderr
    assert cli("gate", tiny_bundle, "--budget", "size=1").returncode == 2
    quiet = cli("gate", tiny_bundle, "--quiet")
    assert quiet.stdout == ""
    assert "not decided" in quiet.stderr


def test_report_is_written_again(cli, bundle):
    before = (bundle / "report.md").read_text()
    (bundle / "report.html").unlink()
    (bundle / "report.md").write_text("stale")
    done = cli("report", bundle)
    assert done.returncode == 0, done.stderr
    assert (bundle / "report.md").read_text() == before
    assert (bundle / "report.html").stat().st_size > 10_000


def test_report_of_another_build_is_refused(bundle):
    path = bundle / "report.json"
    data = json.loads(path.read_text())
    data["manifest"]["edgedistill_version"] = "9"
    path.write_text(json.dumps(data))
    with pytest.raises(SpecError, match="another build"):
        recheck.render(recheck.open_bundle(bundle))


def test_bench(cli, tiny_bundle, tmp_path):
    before, out = snapshot(tiny_bundle), tmp_path / "deep" / "bench.json"
    done = cli("bench", tiny_bundle, "--launches", "1", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"length_8", "length_16"}
    assert document == json.loads(out.read_text())
    seen = document["length_16"]
    assert 0 < seen["latency_p50_ms"] <= seen["latency_p95_ms"]
    assert seen["measurement"]["provenance"] == "measured"
    assert snapshot(tiny_bundle) == before


def test_bench_says_what_it_cannot_do(cli, tiny_bundle):
    for on, message in (("adbb:1", "no such runner; did you mean 'adb'?"), ("ssh:", "--on ssh:USER@HOST")):
        done = cli("bench", tiny_bundle, "--on", on)
        assert done.returncode == 2
        assert message in done.stderr
    lost = cli("bench", tiny_bundle, "--on", "ssh:nobody@127.0.0.1:9", "--json")
    assert lost.returncode == 5
    assert json.loads(lost.stdout)["error"]["type"] == "InfrastructureError"
    assert "no ssh server listens there" in lost.stderr
    elsewhere = cli("bench", tiny_bundle, "--on", "ios")
    assert elsewhere.returncode == 2
    assert "--on ios runs coreml files only" in elsewhere.stderr
    assert cli("bench", tiny_bundle, "--launches", "0").returncode == 2
