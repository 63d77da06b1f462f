"""A phone that is hot, busy or nearly empty: waited for, marked or refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from adb_phones import Cli, bench, empty_battery, hot, saver
from fake_adbd import FakeAdbd
from phones import put

from edgedistill import catalog
from edgedistill.errors import InfrastructureError
from edgedistill.gate.costs import why_unmeasured
from edgedistill.runners import Job
from edgedistill.specs import Measurement


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


def test_a_race_on_a_phone_is_driven_as_a_measurement_is(phone: FakeAdbd, cli: Cli) -> None:
    """A battery that is nearly empty is refused with 5, if that is asked for."""
    empty_battery(phone)
    decoder = Path(__file__).parents[1] / "runners" / "tiny_decoder.gguf"
    race = ("gate", decoder, "--baseline", decoder, "--on", f"adb:{phone.serial}", "--python", sys.executable,
            "--pairs", 5, "--prompt-tokens", 8, "--answer-tokens", 4, "--cool-down", 0, "--reconnect", 1)  # fmt: skip
    refused = cli(*race, "--unfit", "refuse")
    assert refused.returncode == 5, refused.stdout + refused.stderr
    assert "battery at 7 %" in refused.stderr
