"""A phone behind Google's own adb program: what is measured, and how every fault ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_adbd import FakeAdbd
from phones import BATTERY, QUICK, left_over, put

from edgedistill import catalog
from edgedistill.errors import EdgedistillError, InfrastructureError, MissingDependency, SpecError, StageError
from edgedistill.gate.costs import why_unmeasured
from edgedistill.runners import How, Job, _session, _transport, adb
from edgedistill.runners._adb import find_adb
from edgedistill.specs import Measurement, Provenance

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def bench(phone: FakeAdbd, job: Job, launches: int = 1, time_s: float = QUICK.time_s, **how: object) -> Measurement:
    usual = {"where": phone.serial, "python": sys.executable, "cool_down_s": 0.0, "reconnect_s": 1.0, "unfit": "record"}
    told = How(**{**usual, **how})  # type: ignore[arg-type]
    return adb.measure_many(
        {"m": job}, launches=launches, timing=replace(QUICK, time_s=time_s, runs_max=10**6), how=told
    )["m"]


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


def faulty(**values: object) -> Callable[[FakeAdbd], None]:
    def set_them(phone: FakeAdbd) -> None:
        for name, value in values.items():
            setattr(phone.faults, name, value)

    return set_them


def hot(phone: FakeAdbd) -> None:
    (phone.root / "thermalservice.txt").write_text("Thermal Status: 3\n")


def empty_battery(phone: FakeAdbd) -> None:
    (phone.root / "battery.txt").write_text(BATTERY.replace("level: 100", "level: 7"))


def saver(phone: FakeAdbd) -> None:
    put(phone.bin / "settings", "echo 1")


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


def test_a_device_that_is_gone_stays_gone(phone: FakeAdbd, job: Job) -> None:
    phone.faults.drop_on = "uname"
    with pytest.raises(InfrastructureError):
        bench(phone, job)
    phone.close()
    with pytest.raises(InfrastructureError, match=r"does not answer|nothing listens|is offline"):
        bench(phone, job)


def marked(phone: FakeAdbd, job: Job, **how: object) -> Measurement:
    """A measurement of a phone whose own work is not looked at: the machine behind it runs other tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edgedistill.runners._fitness.OTHERS_MAX", 1.0)
        patched.setattr("edgedistill.runners._fitness.STEAL_MAX", 1.0)
        return bench(phone, job, **{"unfit": "mark", **how})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arrange", "told"),
    [(hot, "thermal status 3, 0 is needed"), (empty_battery, "battery at 7 %"), (saver, "battery saver is on")],
)
def test_a_device_that_is_not_fit_is_measured_and_does_not_count(
    phone: FakeAdbd, job: Job, arrange: Callable[[FakeAdbd], None], told: str
) -> None:
    """The default of phones: a figure for the person, and none for the gate."""
    arrange(phone)
    seen = marked(phone, job, unfit="")
    assert len(seen.unfit) == 1
    assert told in seen.unfit[0]
    target = catalog.load_target("pixel8").model_copy(update={"threads": seen.threads})
    assert told in why_unmeasured(target, "latency_p95_ms", seen)
    assert why_unmeasured(target, "latency_p95_ms", seen.model_copy(update={"unfit": ()})) == ""
    noted = marked(phone, job, unfit="record")
    assert noted.unfit == ()
    assert len(noted.launches) == 1


def test_a_hot_phone_is_waited_for(phone: FakeAdbd, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgedistill.runners._settling.COOL_DOWN_STEP_S", 0.2)
    put(
        phone.bin / "dumpsys",
        f"""[ $1 = thermalservice ] && echo >>{phone.root}/asked
if [ $1 = thermalservice ] && [ $(wc -l <{phone.root}/asked) -le 2 ]; then echo "Thermal Status: 3"
else cat {phone.root}/$1.txt; fi""",
    )
    seen = marked(phone, job, cool_down_s=30.0)
    assert seen.unfit == ()
    assert seen.context["waited_s"] == pytest.approx(0.4)  # twice too hot
    assert seen.launches[0].before.thermal_status == 0


def test_a_busy_device_is_tried_again_and_then_marked(phone: FakeAdbd, job: Job) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edgedistill.runners._fitness.OTHERS_MAX", -1.0)
        seen = bench(phone, job, unfit="mark", time_s=0.3)
        assert "other programs took" in seen.unfit[0]
        assert (seen.context["launches_repeated"], len(seen.launches)) == (2, 1)
        with pytest.raises(InfrastructureError, match=r"other programs took .* at most are fit"):
            bench(phone, job, unfit="refuse", time_s=0.3)


@pytest.mark.parametrize(
    "fault",
    [{"drop_on": "uname"}, {"drop_on": "mkdir"}, {"drop_on": "sha256sum"}, {"drop_push": True}, {"drop_on": "_program"},
     {"lie_on": "m _program", "lies": 1}],
    ids=str,
)  # fmt: skip
def test_a_line_that_comes_back_is_taken_up_again(phone: FakeAdbd, job: Job, fault: dict[str, object]) -> None:
    """Wherever it broke: nothing is lost, nothing counts twice, nothing stays behind, and the provenance says so."""
    faulty(times=1, **fault)(phone)
    seen = bench(phone, job, launches=2)
    assert seen.context["reconnections"] == 1
    assert len(seen.launches) == 2
    assert seen.outputs is not None
    assert (seen.outputs.labels_agree, seen.outputs.max_abs_difference) == (16, 0.0)
    assert left_over(phone.root) == []


def test_what_a_lost_line_left_running_is_ended_before_the_next_launch(phone: FakeAdbd, job: Job) -> None:
    log = phone.root.parent / "running"
    put(
        phone.bin / "slowpython",
        f"""case "$*" in *_program*)
if [ ! -e {log} ]; then echo $$ >{log}; exec sleep 300; fi;; esac
exec {sys.executable} "$@" """,
    )
    faulty(times=1, drop_on="_program", drop_after_s=1.0, detached=True)(phone)
    seen = bench(phone, job, python="slowpython")
    assert seen.context["reconnections"] == 1
    assert not alive(int(log.read_text()))  # and not because its time was up


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_another_device_behind_the_same_address_is_refused(phone: FakeAdbd, job: Job) -> None:
    """The same launch, half on one phone and half on another, would be nobody's figure."""
    faulty(times=1, drop_on="_program", on_drop=lambda: put(phone.bin / "getprop", "echo other"))(phone)
    with pytest.raises(InfrastructureError, match="came back with another device") as caught:
        bench(phone, job)
    assert caught.value.exit_code == 5


def test_a_device_that_was_restarted_in_between_is_not_continued(phone: FakeAdbd, job: Job) -> None:
    def restart() -> None:
        for folder in phone.root.glob("edgedistill.*"):
            shutil.rmtree(folder)

    faulty(times=1, drop_on="_program", on_drop=restart)(phone)
    with pytest.raises(InfrastructureError, match="what was copied to it is gone: it was restarted"):
        bench(phone, job)


def test_a_device_that_does_not_come_back_is_not_waited_for_for_ever(phone: FakeAdbd, job: Job) -> None:
    faulty(drop_on="_program", on_drop=lambda: setattr(phone.faults, "gone", True))(phone)
    start = time.monotonic()
    with pytest.raises(InfrastructureError, match="not back after 1 s") as caught:
        bench(phone, job)
    assert caught.value.exit_code == 5
    assert time.monotonic() - start < 20
    phone.faults.__init__()  # type: ignore[misc]
    faulty(drop_on="_program")(phone)
    with pytest.raises(InfrastructureError) as caught:
        bench(phone, job, reconnect_s=0.0)
    assert "It was" not in str(caught.value)


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


def test_the_command_ends_as_the_table_of_exit_codes_says(phone: FakeAdbd, cli: Cli) -> None:
    """What a script in CI sees of a phone that is away, of one that does not let us in, and of two."""
    decoder = Path(__file__).parents[1] / "runners" / "tiny_decoder.gguf"
    once = ("bench", decoder, "--launches", 1, "--reconnect", 0, "--on")
    away = cli(*once, "adb:127.0.0.1:9", "--json")
    assert (away.returncode, json.loads(away.stdout)["error"]["exit_code"]) == (5, 5)
    assert "nothing listens there" in away.stderr
    phone.faults.unauthorized = True
    shut = cli(*once, f"adb:{phone.serial}")
    assert shut.returncode == 5
    assert "accept 'Allow USB debugging'" in shut.stderr
    wrong = cli(*once, "adb:a b")
    assert wrong.returncode == 2
    assert cli(*once, "adb:x", "--unfit", "perhaps").returncode == 2


def test_a_race_on_a_phone_is_driven_as_a_measurement_is(phone: FakeAdbd, cli: Cli) -> None:
    """A battery that is nearly empty: refused with 5, or raced and not decided."""
    empty_battery(phone)
    decoder = Path(__file__).parents[1] / "runners" / "tiny_decoder.gguf"
    race = ("gate", decoder, "--baseline", decoder, "--on", f"adb:{phone.serial}", "--python", sys.executable,
            "--pairs", 5, "--prompt-tokens", 8, "--answer-tokens", 4, "--cool-down", 0, "--reconnect", 1)  # fmt: skip
    refused = cli(*race, "--unfit", "refuse")
    assert refused.returncode == 5, refused.stdout + refused.stderr
    assert "battery at 7 %" in refused.stderr
    marked = cli(*race, "--json")
    assert marked.returncode == 4, marked.stderr
    lines = json.loads(marked.stdout)["checks"]
    assert {line["verdict"] for line in lines} == {"INCONCLUSIVE"}
    assert all("battery at 7 %" in line["note"] for line in lines)


def test_an_unknown_serial_and_a_closed_port_are_infrastructure(phone: FakeAdbd, job: Job) -> None:
    with pytest.raises(InfrastructureError, match=r"not connected.*\(connected now"):
        bench(phone, job, where="NOSUCHSERIAL")
    with pytest.raises(InfrastructureError, match="nothing listens there"):
        bench(phone, job, where="127.0.0.1:9")


def test_a_serial_that_could_be_an_option_is_refused(adb_home: dict[str, str], job: Job) -> None:
    with pytest.raises(SpecError, match="not a serial number"):
        adb.measure_many({"m": job}, how=How(where="x; rm -rf /"))


def test_two_devices_need_a_name(phone: FakeAdbd, job: Job, tmp_path: Path, adb_home: dict[str, str]) -> None:
    other = FakeAdbd(phone.root, phone.bin)
    for device in (phone, other):
        subprocess.run([adb_home["ADB"], "connect", device.serial], capture_output=True, check=False, timeout=20)
    try:
        with pytest.raises(SpecError, match=r"several devices are connected\. Name one: adb:127"):
            bench(phone, job, where="")
    finally:
        subprocess.run([adb_home["ADB"], "disconnect", other.serial], capture_output=True, check=False, timeout=20)
        other.close()
    bench(phone, job, where="")  # the only one needs none


def test_adb_is_looked_for_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's file, $ADB, the path, the SDK, the package; a name that is none is never passed over."""
    places = {name: tmp_path / name / "adb" for name in ("config", "variable", "path", "sdk/platform-tools")}
    for place in places.values():
        place.parent.mkdir(parents=True)
        put(place, "exit 0")
    config = tmp_path / "config.toml"
    config.write_text(f'adb = "{places["config"]}"\n')
    monkeypatch.setenv("EDGEDISTILL_CONFIG", str(config))
    monkeypatch.setenv("ADB", str(places["variable"]))
    monkeypatch.setenv("PATH", str(places["path"].parent))
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert find_adb() == str(places["config"])
    config.write_text("")
    assert find_adb() == str(places["variable"])
    monkeypatch.delenv("ADB")
    assert find_adb() == str(places["path"])
    places["path"].unlink()
    assert find_adb() == str(places["sdk/platform-tools"])
    config.write_text('adb = "/nonexistent/adb"\n')
    with pytest.raises(SpecError, match=r"config.toml: adb = '/nonexistent/adb' is no program"):
        find_adb()
    config.write_text('abd = "/usr/bin/adb"\n')
    with pytest.raises(SpecError, match=r"config\.toml.*did you mean 'adb'"):
        find_adb()
    config.unlink()
    with pytest.raises(SpecError, match="cannot be read"):
        find_adb()


def test_no_adb_says_where_it_was_looked_for(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("EDGEDISTILL_CONFIG", str(tmp_path / "config.toml"))
    for name in ("ADB", "ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("edgedistill.runners._adb.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="pip install"):
        adb.measure_many({"m": job})
    monkeypatch.setenv("ADB", "/nonexistent/adb")
    with pytest.raises(SpecError, match=r"\$ADB = '/nonexistent/adb' is no program"):
        adb.measure_many({"m": job})


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
