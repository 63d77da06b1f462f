"""`xcrun devicectl list devices --json-output FILE`: the iPhones and iPads that a Mac sees."""

from __future__ import annotations

from typing import Any

from edgedistill.errors import DataError
from edgedistill.parsers._text import load_json
from edgedistill.specs import Spec


class AppleDevice(Spec):
    """One device. `ready`: connected, paired and in developer mode."""

    identifier: str
    udid: str
    name: str
    model: str
    platform: str
    os_version: str
    transport: str
    ready: bool


def parse(text: str) -> tuple[AppleDevice, ...]:
    """All devices, ready or not; empty when the Mac knows none.

    Raises:
        DataError: the call failed, or it is another output.
    """
    value = load_json(text)
    info = value.get("info") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(info, dict):
        raise DataError("no 'info' object: not the output of devicectl")
    if info.get("outcome") not in (None, "success"):
        error = value.get("error")
        raise DataError(f"devicectl failed: {str(error)[:200] if error else info.get('outcome')}")
    listed = _part(value, "result").get("devices")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise DataError("no 'result.devices' list: not the output of `devicectl list devices`")
    return tuple(_device(item) for item in listed)


def _device(item: dict[str, Any]) -> AppleDevice:
    line, state, hardware = (_part(item, f"{name}Properties") for name in ("connection", "device", "hardware"))
    ready = (
        line.get("pairingState") == "paired"
        and line.get("tunnelState") in ("connected", "disconnected")  # it connects when it is needed
        and state.get("developerModeStatus") == "enabled"
    )
    return AppleDevice(
        identifier=str(item.get("identifier", "")),
        udid=str(hardware.get("udid", "")),
        name=str(state.get("name", "")),
        model=str(hardware.get("marketingName") or hardware.get("productType", "")),
        platform=str(hardware.get("platform", "")),
        os_version=str(state.get("osVersionNumber", "")),
        transport=str(line.get("transportType", "")),
        ready=ready,
    )


def _part(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
