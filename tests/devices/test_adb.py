"""A phone behind Google's own adb program: what is measured, and how every fault ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from adb_phones import bench, empty_battery, faulty, hot, saver
from fake_adbd import FakeAdbd
from phones import BATTERY, QUICK, left_over, put

from edgedistill.errors import EdgedistillError, InfrastructureError, MissingDependency, SpecError, StageError
from edgedistill.runners import How, Job, _session, _transport, adb
from edgedistill.specs import Provenance


def test_a_phone_is_measured_and_left_clean(phone: FakeAdbd, job: Job) -> None:
    seen = bench(phone, job, launches=2, unfit="mark")
    assert seen.provenance is Provenance.MEASURED
    assert (seen.context["reconnections"], seen.context["waited_s"]) == (0, 0)
    assert all(0 <= (launch.others_share or 0) <= 1 for launch in seen.launches)
    assert len(seen.launches) == len(seen.samples_ns) == 2
    assert all(len(launch) >= QUICK.runs_min for launch in seen.samples_ns)
    assert seen.outputs is not None
    assert (seen.outputs.samples, seen.outputs.labels_agree, seen.outputs.max_abs_difference) == (16, 16, 0.0)
    assert seen.fingerprint is not None
    assert (seen.fingerprint.runner, seen.fingerprint.model) == ("adb", "Google Pixel 8")
    assert seen.fingerprint.os_build.startswith("google/shiba")
    assert "3B0FAKE" not in seen.model_dump_json()
    before = seen.launches[0].before
    assert (before.charging, before.battery_percent, before.thermal_status) == (True, 100.0, 0)
    assert before.temperature_celsius == pytest.approx(62.5)
    assert before.low_power_mode is False
    assert seen.energy is not None
    assert seen.energy.energy_mj is None
    assert "charged" in seen.energy.note
    assert left_over(phone.root) == []


def test_every_command_names_its_device(phone: FakeAdbd, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    run = _transport.run_quietly
    noted = lambda command, timeout_s: (called.append(list(command)), run(command, timeout_s))[1]  # noqa: E731
    monkeypatch.setattr("edgedistill.runners._adb.run_quietly", noted)
    bench(phone, job)
    others = [call for call in called if call[1] not in ("devices", "connect")]
    assert others
    assert all(call[1:3] == ["-s", phone.serial] for call in others)


def test_a_battery_that_is_used_and_a_meter_that_may_be_read_give_energy(phone: FakeAdbd, job: Job) -> None:
    (phone.root / "battery.txt").write_text(BATTERY.replace("USB powered: true", "USB powered: false").replace(
        "status: 5", "status: 3"))  # fmt: skip
    seen = bench(phone, job)
    assert seen.launches[0].before.charging is False
    assert seen.energy is not None
    assert seen.energy.energy_mj is None
    assert seen.energy.note == "no power meter that may be read"


Fault = tuple[str, Callable[[FakeAdbd], None], type[EdgedistillError], str]


FAULTS: list[Fault] = [
    ("unauthorized", faulty(unauthorized=True), InfrastructureError, "accept 'Allow USB debugging'"),
    ("disk full", faulty(disk_full=True), InfrastructureError, "storage is full"),
    ("damaged copy", faulty(damage=True), InfrastructureError, "not the same file on the device"),
    (
        "lost in a command",
        faulty(drop_on="_program"),
        InfrastructureError,
        "lost in the middle of a command.*lost each time",
    ),
    ("lost in a push", faulty(drop_push=True), InfrastructureError, "copying tiny_static.*reached again 3 times"),
    ("killed, told as success", faulty(lie_on="m _program"), InfrastructureError, "lost in the middle"),
    ("too hot", hot, InfrastructureError, "thermal status 3, 0 is needed"),
    ("battery low", empty_battery, InfrastructureError, "battery at 7 %"),
    ("battery saver", saver, InfrastructureError, "battery saver is on"),
]


@pytest.mark.parametrize(("arrange", "kind", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults(
    phone: FakeAdbd, job: Job, arrange: Callable[[FakeAdbd], None], kind: type[EdgedistillError], message: str
) -> None:
    arrange(phone)
    with pytest.raises(kind, match=message) as caught:
        bench(phone, job, unfit="refuse")
    assert caught.value.exit_code == 5
    assert phone.serial in str(caught.value)
    phone.faults.__init__()  # type: ignore[misc]
    if "lost" not in message and "copying" not in message:  # a lost device cannot be cleaned
        assert left_over(phone.root) == []


@pytest.mark.parametrize("status", [0, 1])
def test_a_full_device_whose_client_says_that_all_went_well(
    phone: FakeAdbd, job: Job, adb_home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """adb 34 tells "1 file pushed" of a full device, and the error beside it; 36 tells the error alone."""
    words = "adb: error: failed to copy 'x' to 'y': remote write failed: No space left on device"
    put(
        tmp_path / "adb",
        f'''case "$3" in push) echo "x: 1 file pushed, 0 skipped."; echo "{words}" >&2; exit {status};;
esac; exec {adb_home["ADB"]} "$@"''',
    )
    monkeypatch.setenv("ADB", str(tmp_path / "adb"))
    with pytest.raises(InfrastructureError, match="storage is full") as caught:
        bench(phone, job)
    assert caught.value.exit_code == 5


def test_a_command_that_never_answers_is_given_up(phone: FakeAdbd, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    phone.faults.silent_on = "uname"
    monkeypatch.setattr("edgedistill.runners._session.SHELL_S", 1.0)
    monkeypatch.setattr(_session.Session.shell, "__defaults__", (1.0,))
    with pytest.raises(InfrastructureError, match="no answer within 1 s") as caught:
        bench(phone, job)
    assert caught.value.exit_code == 5


def test_a_program_that_hangs_is_ended_on_the_device(phone: FakeAdbd, job: Job) -> None:
    put(phone.bin / "slowpython", f'case "$*" in *_program*) sleep 60;; *) exec {sys.executable} "$@";; esac')
    start = time.monotonic()
    told = How(where=phone.serial, python="slowpython")
    with pytest.raises(InfrastructureError, match="did not end within 1 s and was stopped there"):
        adb.measure_many({"m": job}, launches=1, timing=replace(QUICK, timeout_s=1.0), how=told)
    assert time.monotonic() - start < 30
    assert left_over(phone.root) == []


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("exit 127", MissingDependency, "no Python|has no|--python"),
        (
            ('echo "No module named numpy" >&2; exit 1', MissingDependency, r"numpy\. On the device: pip install"),
            MissingDependency,
            "pip install",
        ),
        ('case "$*" in *_program*) echo boom >&2; exit 3;; esac', StageError, "cannot load or run .*boom"),
        ('case "$*" in *_program*) kill -SEGV $$;; esac', StageError, "crashed on tiny_static.tflite"),
        ('case "$*" in *_program*) echo "no signature" >&2; exit 64;; esac', SpecError, "no signature"),
        ('case "$*" in *_program*) exit 0;; esac', InfrastructureError, "the program on the device ended before"),
        ('case "$*" in *_program*) for last; do :; done; echo "{" >"$last";; esac', InfrastructureError, "no|without"),
    ],
)
def test_what_the_device_answers(
    phone: FakeAdbd, job: Job, script: str, kind: type[EdgedistillError], message: str
) -> None:
    put(phone.bin / "oddpython", script)
    with pytest.raises(kind, match=message):
        bench(phone, job, python="oddpython")
    assert left_over(phone.root) == []


def test_a_broken_model_is_the_models_fault(phone: FakeAdbd, job: Job, tmp_path: Path) -> None:
    path = tmp_path / 'it\'s "broken" $(rm).tflite'
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(StageError, match="cannot load or run"):
        bench(phone, replace(job, model=path))


def test_a_changed_answer_is_seen(phone: FakeAdbd, job: Job) -> None:
    assert job.expected is not None
    changed = [list(row) for row in job.expected["logits"]]
    changed[3][2] += 0.5
    seen = bench(phone, replace(job, expected={"logits": changed}))
    assert seen.outputs is not None
    assert seen.outputs.max_abs_difference == pytest.approx(0.5)


def test_a_sustained_run(phone: FakeAdbd, job: Job) -> None:
    told = How(where=phone.serial, python=sys.executable)
    timing = replace(QUICK, sustained_s=0.5)
    seen = adb.measure_many({"m": job}, launches=1, timing=timing, how=told)["m"]
    assert seen.sustained is not None
    assert (seen.sustained.seconds, seen.sustained.window_s, len(seen.sustained.curve_ms)) == (0.5, 0.1, 5)
    assert seen.sustained.ratio == seen.sustained.curve_ms[-1] / seen.sustained.curve_ms[0]


def test_ctrl_c_ends_the_program_and_cleans_the_device(phone: FakeAdbd, job: Job, tmp_path: Path) -> None:
    put(phone.bin / "slowpython", f'case "$*" in *_program*) sleep 300;; *) exec {sys.executable} "$@";; esac')
    code = (
        "import sys; from pathlib import Path; from edgedistill.runners import How, Job, adb\n"
        f"job = Job(Path({str(job.model)!r}), 'length_8', {dict(job.inputs)!r})\n"
        f"adb.measure_many({{'m': job}}, launches=1, how=How(where={phone.serial!r}, python='slowpython'))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(path.joinpath("pid").exists() for path in phone.root.glob("edgedistill.*")))
    pid = next(int(path.joinpath("pid").read_text()) for path in phone.root.glob("edgedistill.*"))
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in told
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert left_over(phone.root) == []


def wait_for(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("mask", ["zz", "0", "-1"])
def test_a_core_mask_is_hexadecimal(mask: str) -> None:
    with pytest.raises(SpecError, match="hexadecimal"):
        How(core_mask=mask)


def test_a_core_mask_is_kept(phone: FakeAdbd, job: Job) -> None:
    seen = bench(phone, job, core_mask="1")
    assert seen.fingerprint is not None
    assert seen.fingerprint.core_mask == "1"
    with pytest.raises(SpecError, match="cores, so at most"):
        bench(phone, job, core_mask=f"{1 << (os.cpu_count() or 1) + 3:x}")
