"""Which device it is and the state it is in, asked in one shell command each; what it does not tell is None."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from edgedistill.errors import DataError
from edgedistill.parsers import dumpsys_battery, dumpsys_thermal
from edgedistill.runners._session import Session
from edgedistill.specs import Conditions

PART = "@@ed "
# One process per fact is slow on a phone: everything is printed at once, in named parts.
FACTS = f"""
for k in ro.product.manufacturer ro.product.model ro.build.fingerprint ro.serialno ro.soc.model ro.kernel.qemu \
ro.boot.qemu ro.hardware; do command -v getprop >/dev/null && echo "{PART}$k" && getprop $k; done
echo "{PART}uname"; uname -srm
echo "{PART}machine"; uname -m
echo "{PART}board"; tr -d '\\000' </proc/device-tree/model 2>/dev/null
echo; echo "{PART}os"; cat /etc/os-release 2>/dev/null
echo "{PART}id"; cat /etc/machine-id 2>/dev/null || uname -n
echo "{PART}cpu"; grep -iE '^(model name|hardware|cpu part|vendor_id)' /proc/cpuinfo 2>/dev/null | sort -u
echo "{PART}cores"; grep -c ^processor /proc/cpuinfo 2>/dev/null
echo "{PART}above"; tr '\\000' ' ' </proc/$PPID/cmdline 2>/dev/null; echo
echo "{PART}first"; tr '\\000' ' ' </proc/1/cmdline 2>/dev/null; echo
"""
STATE = f"""
echo "{PART}thermal"; command -v dumpsys >/dev/null && dumpsys thermalservice 2>/dev/null
echo "{PART}battery"; command -v dumpsys >/dev/null && dumpsys battery 2>/dev/null
echo "{PART}low_power"; command -v settings >/dev/null && settings get global low_power 2>/dev/null
echo "{PART}governor"; cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor 2>/dev/null | sort -u
echo "{PART}frequency"; cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq 2>/dev/null
echo "{PART}load"; cat /proc/loadavg 2>/dev/null
echo "{PART}zones"; cat /sys/class/thermal/thermal_zone*/temp 2>/dev/null
echo "{PART}throttled"; command -v vcgencmd >/dev/null && vcgencmd get_throttled 2>/dev/null
for p in /sys/class/power_supply/*; do
[ -r "$p/capacity" ] && echo "{PART}supply" && cat "$p/status" "$p/capacity"; done
true
"""
NOW_THROTTLED = 0x4 | 0x8  # vcgencmd: currently throttled, soft temperature limit active


@dataclass(frozen=True)
class Facts:
    """What does not change during a session; `emulator` is empty on real hardware."""

    model: str
    os_build: str
    cpu: str
    machine: str
    device_id: str
    emulator: str
    cores: int


def read_facts(session: Session) -> Facts:
    """Ask the device what it is.

    Raises:
        InfrastructureError: it was lost.
    """
    parts = _parts(session.shell(FACTS).stdout)
    system = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', parts.get("os", ""), re.M))
    maker, model = parts.get("ro.product.manufacturer", ""), parts.get("ro.product.model", "")
    named = model if model.lower().startswith(maker.lower()) else f"{maker} {model}".strip()
    serial = parts.get("ro.serialno") or parts.get("id", "")
    machine = parts.get("machine", "unknown") or "unknown"
    cores = parts.get("cores", "")
    return Facts(
        model=named or parts.get("board", "").strip() or f"{machine} {system.get('PRETTY_NAME', 'device')}",
        os_build=parts.get("ro.build.fingerprint") or f"{system.get('PRETTY_NAME', '')}; {parts.get('uname', '')}",
        cpu=parts.get("ro.soc.model") or _cpu(parts.get("cpu", "")) or machine,
        machine=machine,
        device_id=hashlib.sha256(f"{session.name if not serial else ''}{serial}".encode()).hexdigest(),
        emulator=_emulator(parts, machine),
        cores=int(cores) if cores.isdigit() else 0,
    )


def read_conditions(session: Session) -> Conditions:
    """Ask the device how it is.

    Raises:
        InfrastructureError: it was lost.
    """
    parts = _parts(session.shell(STATE).stdout)
    try:
        battery = dumpsys_battery.parse(parts.get("battery", ""))
    except DataError:
        battery = None
    try:
        thermal = dumpsys_thermal.parse(parts.get("thermal", ""))
    except DataError:
        thermal = None
    status = thermal.status if thermal else None
    if found := re.search(r"throttled=0x([0-9a-fA-F]{1,8})", parts.get("throttled", "")):
        status = 3 if int(found[1], 16) & NOW_THROTTLED else 0  # Android's "severe": the clock was lowered
    supply = parts.get("supply", "").split("\n")
    zones = [int(line) / 1000 for line in parts.get("zones", "").split() if re.fullmatch(r"-?\d{1,7}", line)]
    clocks = [int(line) / 1000 for line in parts.get("frequency", "").split() if line.isdigit()]
    load = re.match(r"\d+(\.\d+)?", parts.get("load", ""))
    charging: bool | None = None
    if battery and battery.present:
        charging = battery.charging
    elif supply[0]:
        charging = supply[0] not in ("Discharging", "Not charging")
    percent = battery.level_percent if battery and battery.present else None
    if percent is None and len(supply) > 1 and supply[1].isdigit():
        percent = min(100.0, float(supply[1]))
    return Conditions(
        thermal_status=status,
        temperature_celsius=(thermal.hottest("cpu", "skin") if thermal else None) or max(zones, default=None),
        charging=charging,
        battery_percent=percent,
        low_power_mode={"0": False, "1": True}.get(parts.get("low_power", "").strip()),
        governor=", ".join(parts.get("governor", "").split()) or None,
        frequency_mhz=max((clock for clock in clocks if clock > 0), default=None),
        load_average=float(load[0]) if load else None,
    )


def _parts(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for block in ("\n" + text).split(f"\n{PART}")[1:]:
        name, _, body = block.partition("\n")
        found.setdefault(name.strip(), body.strip())
    return found


def _cpu(lines: str) -> str:
    named = re.search(r"(?im)^(?:model name|hardware)\s*:\s*(.+)$", lines)
    parts = sorted(set(re.findall(r"(?im)^cpu part\s*:\s*(0x[0-9a-f]+)$", lines)))
    return named[1].strip() if named else f"Arm cores {', '.join(parts)}" if parts else ""


def _emulator(parts: dict[str, str], machine: str) -> str:
    """What stands in for the hardware. qemu's user mode shows in the command line of the shell, and in a processor that
    is not of the machine's kind; the Android emulator says so in its properties.
    """
    if parts.get("ro.kernel.qemu") == "1" or parts.get("ro.boot.qemu") == "1":
        return "Android emulator"
    if parts.get("ro.hardware", "") in ("goldfish", "ranchu", "cutf_cvm"):
        return "Android emulator"
    for above in (parts.get("above", ""), parts.get("first", "")):
        if found := re.match(r"\S*(qemu-[\w-]+)", above):
            return found[1]
    if not machine.startswith(("x86", "i686", "i386")) and re.search(
        r"(?im)^(vendor_id\s*:.*(Intel|AMD)|model name\s*:.*(Intel|AMD))", parts.get("cpu", "")
    ):
        return f"{machine} on an x86 processor"
    return ""
