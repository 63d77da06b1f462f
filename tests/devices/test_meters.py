"""Energy meters of boards, through a real ssh server. The hardware is missing: a folder stands for /sys, scripts for
`vcgencmd` and `tegrastats`; their form is that of published outputs, their figures are ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from phones import QUICK, put
from test_ssh import SSHD, Board

from edgedistill.runners import How, Job, ssh
from edgedistill.specs import Energy

pytestmark = pytest.mark.skipif(not SSHD, reason="needs an ssh server: apt install openssh-server")
METERED = replace(QUICK, energy_s=1.5)
Arrange = Callable[[Path, Path], None]


def files(sysfs: Path, values: dict[str, object]) -> None:
    for name, value in values.items():
        path = sysfs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def measure(board: Board, job: Job, sysfs: Path, arrange: Arrange) -> Energy:
    sysfs.mkdir()
    programs = board.folder / "bin"
    arrange(sysfs, programs)
    put(programs / "boardpython", f'EDGEDISTILL_SYSFS={sysfs} exec {sys.executable} "$@"')
    told = How(where=board.where, python="boardpython")
    try:
        seen = ssh.measure_many({"m": job}, launches=1, timing=METERED, how=told)["m"]
    finally:
        for name in ("vcgencmd", "tegrastats"):
            (programs / name).unlink(missing_ok=True)
    assert seen.energy is not None
    runs = seen.energy
    # whatever the meter: the average power times the time is what all runs took
    if runs.energy_mj is not None:
        assert runs.low_mj is not None
        assert runs.high_mj is not None
        assert runs.low_mj <= runs.energy_mj <= runs.high_mj
        assert runs.window_s == pytest.approx(METERED.energy_s, rel=0.3)
    return runs


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
        (agx_orin, 11.0, "INA3221", {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}),
        (nano, 5.0, "INA3221", {"POM_5V_IN", "POM_5V_GPU"}),
        (tegra, 5.0, "INA3221 (tegrastats)", {"VDD_IN", "VDD_SOC"}),
        (pi, 5.0, "PMIC (vcgencmd)", {"3V3_SYS", "VDD_CORE"}),
    ],
    ids=["orin", "agx-orin", "nano", "tegrastats", "pi5"],
)
def test_boards(
    board: Board,
    job: Job,
    tmp_path: Path,
    arrange: Arrange,
    watts: float,
    source: str,
    rails: set[str],
) -> None:
    seen = measure(board, job, tmp_path / "sys", arrange)
    assert seen.energy_mj is not None, seen.note
    assert seen.source == source
    assert set(seen.rails_mj) == rails
    assert seen.idle_mw == pytest.approx(1000 * watts, rel=1e-6)
    # constant power: nothing is above idle, and that is said as None
    assert seen.above_idle_mj is None
    assert seen.interval_ms is not None
    assert 30 < seen.interval_ms < 400
    assert seen.resolution_mj is not None
    assert seen.resolution_mj < seen.energy_mj / 10
