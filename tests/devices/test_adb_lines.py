"""Finding adb and the device, and lines that are lost: taken up again, or one clear end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adb_phones import Cli, bench, faulty
from fake_adbd import FakeAdbd
from phones import left_over, put

from edgedistill.errors import InfrastructureError, MissingDependency, SpecError
from edgedistill.runners import How, Job, adb
from edgedistill.runners._adb import find_adb


def test_a_device_that_is_gone_stays_gone(phone: FakeAdbd, job: Job) -> None:
    phone.faults.drop_on = "uname"
    with pytest.raises(InfrastructureError):
        bench(phone, job)
    phone.close()
    with pytest.raises(InfrastructureError, match=r"does not answer|nothing listens|is offline"):
        bench(phone, job)


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
