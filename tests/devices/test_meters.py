"""Energy meters of boards, through a real ssh server, and of phones, through Google's adb program.

The hardware is missing: a folder stands for /sys, scripts for `vcgencmd`, `tegrastats` and `perfetto`; their form is
that of published outputs, their figures are ours.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_adbd import FakeAdbd
from phones import BATTERY, QUICK, left_over, put
from test_ssh import SSHD, Board, board, keys  # noqa: F401

from edgedistill.runners import How, Job, adb, host, ssh
from edgedistill.specs import Energy, Measurement

needs_sshd = pytest.mark.skipif(not SSHD, reason="needs an ssh server: apt install openssh-server")
METERED = replace(QUICK, energy_s=1.2)
Arrange = Callable[[Path, Path], None]
Counter = Callable[[float, float], str]


def files(sysfs: Path, values: dict[str, object]) -> None:
    for name, value in values.items():
        path = sysfs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def check(seen: Energy | None) -> Energy:
    """What holds whatever the meter is: it tells something, within its bounds, of the time that it was asked for."""
    assert seen is not None
    assert seen.energy_mj is not None, seen.note
    assert seen.low_mj is not None
    assert seen.high_mj is not None
    assert seen.low_mj <= seen.energy_mj <= seen.high_mj
    assert seen.window_s == pytest.approx(METERED.energy_s, rel=0.3)
    assert seen.resolution_mj is not None
    assert seen.resolution_mj < seen.energy_mj / 10
    return seen


def orin(sysfs: Path, _: Path) -> None:
    """An Orin Nano of JetPack 6: 5 V and 1 A in, of which 0.4 A go to processors; a third channel without a label."""
    folder = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    files(sysfs, {
        f"{folder}/in1_label": "VDD_IN", f"{folder}/in1_input": 5000, f"{folder}/curr1_input": 1000,
        f"{folder}/shunt1_resistor": 5000,
        f"{folder}/in2_label": "VDD_CPU_GPU_CV", f"{folder}/in2_input": 5000, f"{folder}/curr2_input": 400,
        f"{folder}/in3_label": "NC", f"{folder}/in3_input": 5000, f"{folder}/curr3_input": 400,
    })  # fmt: skip


def agx_orin(sysfs: Path, _: Path) -> None:
    """Four rails and no input: memory's is fed by the 5 V rail and counts once."""
    one, two = (f"bus/i2c/drivers/ina3221/1-004{n}/hwmon/hwmon{n}" for n in (0, 1))
    rails = [(one, 1, "VDD_GPU_SOC", 800), (one, 2, "VDD_CPU_CV", 400), (one, 3, "VIN_SYS_5V0", 1000),
             (two, 2, "VDDQ_VDD2_1V8AO", 200)]  # fmt: skip
    for folder, channel, label, milliamperes in rails:
        files(sysfs, {f"{folder}/in{channel}_label": label, f"{folder}/in{channel}_input": 5000,
                      f"{folder}/curr{channel}_input": milliamperes})  # fmt: skip


def nano(sysfs: Path, _: Path) -> None:
    """The first Nano, JetPack 4: NVIDIA's driver tells milliwatts."""
    folder = "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files(sysfs, {f"{folder}/rail_name_0": "POM_5V_IN", f"{folder}/in_power0_input": 5000,
                  f"{folder}/rail_name_1": "POM_5V_GPU", f"{folder}/in_power1_input": 1500})  # fmt: skip


def tegra(_: Path, programs: Path) -> None:
    line = ("01-02-2026 10:00:00 RAM 2000/7620MB (lfb 5x4MB) SWAP 0/3810MB (cached 0MB) CPU [5%@729,off] EMC_FREQ 0% "
            "GR3D_FREQ 0%@[305] cpu@45.5C CV0@-256C VDD_IN 5000mW/9999mW VDD_SOC 1500mW/1500mW")  # fmt: skip
    put(programs / "tegrastats", f"while echo '{line}'; do sleep 0.05; done")


def pi(_: Path, programs: Path) -> None:
    """Two rails of 4 W and 1 W; the supply's voltage has no current and counts nothing."""
    put(
        programs / "vcgencmd",
        """[ "$1" = pmic_read_adc ] || exit 0
echo '    3V3_SYS_A current(1)=0.25000000A
   VDD_CORE_A current(7)=5.00000000A
    3V3_SYS_V volt(9)=4.00000000V
   VDD_CORE_V volt(15)=0.80000000V
      EXT5V_V volt(24)=5.10000000V'""",
    )


@pytest.mark.parametrize(
    ("arrange", "watts", "source", "rails"),
    [
        (orin, 5.0, "INA3221", {"VDD_IN", "VDD_CPU_GPU_CV"}),
        (pi, 5.0, "PMIC (vcgencmd)", {"3V3_SYS", "VDD_CORE"}),
    ],
    ids=["orin", "pi5"],
)
@needs_sshd
def test_boards(
    board: Board,  # noqa: F811
    job: Job,
    tmp_path: Path,
    arrange: Arrange,
    watts: float,
    source: str,
    rails: set[str],
) -> None:
    (tmp_path / "sys").mkdir()
    arrange(tmp_path / "sys", board.folder / "bin")
    put(board.folder / "bin" / "boardpython", f'EDGEDISTILL_SYSFS={tmp_path}/sys exec {sys.executable} "$@"')
    told = How(where=board.where, python="boardpython")
    try:
        seen = check(ssh.measure_many({"m": job}, launches=1, timing=METERED, how=told)["m"].energy)
    finally:
        (board.folder / "bin" / "vcgencmd").unlink(missing_ok=True)
    assert (seen.source, set(seen.rails_mj)) == (source, rails)
    assert seen.idle_mw == pytest.approx(1000 * watts, rel=1e-6)
    assert seen.above_idle_mj is None  # the power is the same all the time: nothing is above idle, and that is no 0
    assert seen.interval_ms is not None
    assert 30 < seen.interval_ms < 400


@pytest.mark.parametrize(
    ("arrange", "watts", "source"),
    [(agx_orin, 11.0, "INA3221"), (nano, 5.0, "INA3221"), (tegra, 5.0, "INA3221 (tegrastats)")],
    ids=["agx-orin", "nano", "tegrastats"],
)
def test_boards_of_other_kinds(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrange: Arrange, watts: float, source: str
) -> None:
    """The same program on this machine, where it needs no line."""
    for name in ("sys", "bin"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("EDGEDISTILL_SYSFS", str(tmp_path / "sys"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    arrange(tmp_path / "sys", tmp_path / "bin")
    seen = check(host.measure_many({"m": job}, launches=1, timing=METERED)["m"].energy)
    assert seen.source == source
    assert seen.idle_mw == pytest.approx(1000 * watts, rel=1e-6)


@contextlib.contextmanager
def growing(path: Path, text: Counter) -> Iterator[None]:
    """A counter at `path`, renewed a hundred times a second with `text(seconds, milliseconds since boot)`."""
    path.parent.mkdir(parents=True)
    begin, ended = time.monotonic(), threading.Event()

    def renew() -> None:
        while not ended.is_set():
            new = path.with_name("new")
            new.write_text(text(time.monotonic() - begin, time.clock_gettime(time.CLOCK_BOOTTIME) * 1e3))
            new.replace(path)
            time.sleep(0.01)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    while not path.exists():
        time.sleep(0.01)
    yield
    ended.set()
    thread.join()


@pytest.mark.parametrize(
    ("path", "text", "source"),
    [
        ("bus/iio/devices/iio:device0/energy_value",
         lambda s, ms: f"t={ms:.0f}\nCH0(T={ms:.0f})[S2M_VDD_CPUCL2], {3e6 * s:.0f}\n", "power rails (ODPM)"),
        ("class/powercap/intel-rapl:0/energy_uj", lambda s, _: f"{3e6 * s:.0f}\n", "energy counters of the kernel"),
    ],
    ids=["odpm", "rapl"],
)  # fmt: skip
def test_counters_are_read_at_the_ends_of_the_run(
    job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    text: Callable[[float, float], str],
    source: str,
) -> None:
    monkeypatch.setenv("EDGEDISTILL_SYSFS", str(tmp_path / "sys"))
    with growing(tmp_path / "sys" / path, text):
        seen = check(host.measure_many({"m": job}, launches=1, timing=METERED)["m"].energy)
    assert seen.source == source
    assert seen.idle_mw == pytest.approx(3000, rel=0.05)
    assert seen.low_mj is not None
    assert seen.high_mj is not None
    assert seen.high_mj < 1.5 * seen.low_mj  # from readings near the ends


def traced(
    phone: FakeAdbd,
    job: Job,
    modes: str,
    *,
    tool: str = "",
    charging: bool = False,
    energy_s: float = 1.0,
    launches: int = 1,
) -> Measurement:
    """A phone whose `perfetto` is ours; a cable feeds it where `charging`."""
    here = Path(__file__).parent
    put(phone.bin / "perfetto", f'FAKE_PERFETTO={modes} exec {sys.executable} {here / "fake_perfetto.py"} "$@"')
    state = BATTERY if charging else BATTERY.replace("USB powered: true", "USB powered: false").replace("s: 5", "s: 3")
    (phone.root / "battery.txt").write_text(state + "  voltage: 4000\n")
    (phone.root / "traces").mkdir()
    told = How(where=phone.serial, python=sys.executable, cool_down_s=0.0, tool=tool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgedistill.runners._perfetto.TRACES", str(phone.root / "traces"))
        patch.setattr("edgedistill.runners._perfetto.SETTLE_S", 0.3)
        patch.setattr("edgedistill.runners._perfetto.IDLE_S", 0.8)
        seen = adb.measure_many({"m": job}, launches=launches, timing=replace(QUICK, energy_s=energy_s), how=told)["m"]
    assert left_over(phone.root) == []
    assert not list(phone.root.rglob("*.pftrace*"))
    return seen


def test_perfetto_meters_the_rails_of_a_phone(phone: FakeAdbd, job: Job) -> None:
    seen = traced(phone, job, "rails+battery", charging=True).energy
    assert seen is not None
    assert seen.energy_mj is not None, seen.note
    assert seen.source == "Perfetto, power rails"
    assert set(seen.rails_mj) == {"S2M_VDD_CPUCL2", "VSYS_PWR_DISPLAY"}
    assert seen.rails_mj["VSYS_PWR_DISPLAY"] == 0
    assert seen.idle_mw == pytest.approx(2000, rel=0.02)
    assert seen.low_mj is not None
    assert seen.high_mj is not None
    assert seen.low_mj < seen.energy_mj < seen.high_mj < 1.5 * seen.energy_mj
    assert seen.interval_ms == pytest.approx(100, rel=0.5)


def test_perfetto_falls_back_to_the_battery_while_nothing_charges(phone: FakeAdbd, job: Job) -> None:
    seen = traced(phone, job, "battery").energy
    assert seen is not None
    assert seen.energy_mj is not None, seen.note
    assert seen.source == "Perfetto, battery counters"
    assert seen.idle_mw == pytest.approx(2000, rel=0.02)


@pytest.mark.parametrize(
    ("modes", "charging", "note"),
    [
        ("battery", True, "wireless adb"),
        ("refuse", False, "Could not connect to the traced socket"),
        ("rails+cut", False, "cut off"),
    ],
)
def test_what_perfetto_does_not_tell_is_none(phone: FakeAdbd, job: Job, modes: str, charging: bool, note: str) -> None:
    seen = traced(phone, job, modes, charging=charging, energy_s=0.3, launches=2)
    assert seen.samples_ms
    assert seen.energy is not None
    assert seen.energy.energy_mj is None
    assert note in seen.energy.note
    # what tells nothing once is not asked again
    assert sum("android.power" in command for command in phone.commands) == 2  # with the battery's voltage, and without


def test_perfetto_meters_a_program_that_prints_its_figures(phone: FakeAdbd, job: Job, tmp_path: Path) -> None:
    """50 inferences of 40 ms are its last two seconds; loading and warming up before them do not count."""
    put(
        tmp_path / "benchmark_model",
        """sleep 0.5
echo 'INFO: count=1 curr=41000'
sleep 2
echo 'INFO: count=50 first=41000 curr=40000 min=39000 max=42000 avg=40000 std=10 p5=39000 median=40000 p95=41000'
echo 'INFO: Inference timings in us: Init: 41750, First inference: 41000, Warmup (avg): 41000, Inference (avg): 40000'
""",
    )
    seen = traced(phone, job, "rails", tool=str(tmp_path / "benchmark_model")).energy
    assert seen is not None
    assert seen.energy_mj == pytest.approx(2000 * 0.04, rel=0.03)
    assert seen.idle_mw == pytest.approx(2000, rel=0.02)
    assert seen.low_mj is not None
    assert seen.high_mj is not None
    assert 60 < seen.low_mj < seen.energy_mj < seen.high_mj < 100


def test_a_long_run_is_metered_as_a_whole(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_SYSFS", str(tmp_path))
    orin(tmp_path, tmp_path)
    timing = replace(QUICK, energy_s=0.5, sustained_s=1.5)
    seen = host.measure_many({"m": job}, launches=2, timing=timing)["m"]
    assert seen.sustained is not None
    assert len(seen.sustained.curve_ms) == 5
    assert seen.energy is not None
    assert seen.energy.window_s == pytest.approx(1.5, rel=0.1)
    # all runs of it took 5 W for as long as it lasted
    runs = seen.energy.window_s * 5000 / seen.energy.energy_mj if seen.energy.energy_mj else 0
    assert runs == pytest.approx(round(runs))
    assert runs > 100
