"""Slower than the baseline, or not: how often the rule is wrong, and what it refuses to compare."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest

from edgedistill.errors import SpecError, StageError
from edgedistill.gate import (
    Rule,
    check_comparable,
    compared,
    decided,
    joined,
    paired_interval,
    placement_lines,
    regression_lines,
    unpaired_interval,
)
from edgedistill.specs import Check, Fingerprint, Launch, Measurement, Placement, Provenance, Verdict

P, F, OPEN, U = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNMEASURED
RULE = Rule()
PRINT = Fingerprint(
    runner="adb", device_id="ab" * 32, model="Phone", os_build="build 1", cpu="c", machine="aarch64", runtime="litert",
    runtime_version="2.3.0", threads=1,
)  # fmt: skip


def seen(medians: list[float], **changes: object) -> Measurement:
    base = Measurement(
        artifact_sha256="ab" * 32, provenance=Provenance.MEASURED, device="phone", runtime="litert 2.3.0",
        signature="length_16", threads=1, samples_ms=tuple(value for value in medians for _ in range(3)),
        launch_counts=(3,) * len(medians), launch_medians_ms=tuple(medians), first_inference_ms=2.0, load_ms=3.0,
        peak_memory_mb=50.0, baseline_memory_mb=40.0, context={"kernel": "Linux 1"},
    )  # fmt: skip
    return base.model_copy(update=changes)


def lines(old: list[float], new: list[float], rule: Rule = RULE, **others: object) -> dict[str, Check]:
    found = compared(seen(old), seen(new), rule, **{"interleaved": True, **others})  # type: ignore[arg-type]
    return {check.name: check for check in regression_lines(found, rule)}


def grown(drawn: random.Random, ratio: float, noise: float) -> Verdict:
    """A whole gate, as the race does it: five pairs, and five more while nothing is decided. Some launches are hit."""
    old: list[float] = []
    new: list[float] = []
    while True:
        for _ in range(5):
            shared = drawn.gauss(0, 0.1)  # what both launches of a pair share
            for side, factor in ((old, 1.0), (new, ratio)):
                hit = 0.3 if drawn.random() < 0.03 else 0.0
                side.append(factor * math.exp(shared + drawn.gauss(0, noise) + hit))
        found = compared(seen(old), seen(new), RULE, interleaved=True)
        if decided(found, RULE) or len(old) >= RULE.pairs_max:
            return regression_lines(found, RULE)[0].verdict


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_the_same_file_does_not_fail_and_a_slower_one_does(noise: float) -> None:
    """Launches that are hit make the spread of a pair 7 % even with little other noise; bench/results has real ones."""
    drawn = random.Random(1)
    same = [grown(drawn, 1.0, noise) for _ in range(60)]
    slower = [grown(drawn, 1.10, noise) for _ in range(60)]
    assert same.count(F) == 0
    assert slower.count(F) >= (58 if noise < 0.02 else 50)
    assert slower.count(P) == 0


def test_a_small_slowdown_within_the_tolerance_does_not_fail() -> None:
    drawn = random.Random(2)
    assert [grown(drawn, 1.02, 0.01) for _ in range(50)].count(F) == 0


def test_the_interval_is_that_of_the_pairs_and_not_of_the_launches() -> None:
    """Seconds that are slow for both say nothing: the ratio is exact however much they differ."""
    old = [1.0, 5.0, 2.0, 9.0, 3.0]
    told = paired_interval(old, [1.1 * value for value in old])
    assert told.low == pytest.approx(1.1)
    assert told.high == pytest.approx(1.1)
    apart = unpaired_interval(old, [1.1 * value for value in old])
    assert apart.high / apart.low > 3
    with pytest.raises(ValueError, match="shorter"):
        paired_interval([1.0, 2.0], [1.0])


def test_the_interval_holds_as_often_as_it_says() -> None:
    drawn = random.Random(3)
    held = 0
    for _ in range(100):
        old = [math.exp(drawn.gauss(0, 0.02)) for _ in range(15)]
        new = [1.07 * math.exp(drawn.gauss(0, 0.02)) for _ in range(15)]
        told = paired_interval(old, new)
        held += told.low <= 1.07 <= told.high
    assert held >= 88  # of 95 expected; 1 in 1000 runs would have fewer
    assert median(new) > 0


def test_few_pairs_convict_only_with_the_whole_interval() -> None:
    pairs = [1.01, 1.07, 1.07, 1.07, 1.07]
    assert lines([1.0] * 5, pairs)["latency_ratio"].verdict is OPEN
    assert lines([1.0] * 10, pairs * 2)["latency_ratio"].verdict is F
    assert lines([1.0] * 5, [1.06, 1.07, 1.07, 1.07, 1.07])["latency_ratio"].verdict is F
    assert lines([1.0] * 4, [2.0] * 4)["latency_ratio"].verdict is OPEN


def test_stored_launches_convict_only_with_the_whole_interval() -> None:
    pairs = [1.03] * 4 + [1.07] * 6
    assert lines([1.0] * 10, pairs)["latency_ratio"].verdict is F
    stored = lines([1.0] * 10, pairs, interleaved=False)["latency_ratio"]
    assert stored.verdict is OPEN
    assert "not interleaved" in stored.note
    assert lines([1.0] * 10, [1.07] * 10, interleaved=False)["latency_ratio"].verdict is F


def test_what_is_implausibly_fast_fails() -> None:
    fast = lines([1.0] * 5, [0.3] * 5)
    assert fast["latency_ratio"].verdict is P
    assert fast["latency_ratio_min"].verdict is F
    assert "another file" in fast["latency_ratio_min"].note
    assert lines([1.0] * 5, [0.6] * 5)["latency_ratio_min"].verdict is P
    assert lines([1.0] * 5, [0.6] * 5, Rule(speedup_max=1.5))["latency_ratio_min"].verdict is F


def test_a_device_that_differs_from_itself_decides_nothing() -> None:
    slow = [1.2] * 5
    steady = lines([1.0] * 5, slow, again=seen([1.01] * 5))
    assert (steady["latency_ratio"].verdict, steady["aa_ratio"].verdict) == (F, P)
    for factor in (1.04, 1 / 1.04):
        noisy = lines([1.0] * 5, slow, again=seen([factor] * 5))
        assert (noisy["latency_ratio"].verdict, noisy["aa_ratio"].verdict) == (OPEN, OPEN)
        assert noisy["aa_ratio"].measured == pytest.approx(1.04)
    comparison = compared(seen([1.0] * 5), seen(slow), RULE, interleaved=True, again=seen([1.04] * 5))
    assert not decided(comparison, RULE)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"provenance": Provenance.EMULATED}, "emulated"),
        ({"provenance": Provenance.PREDICTED}, "predicted"),
        ({"device": "another phone"}, "another device"),
        ({"context": {"kernel": "Linux 2"}}, "another OS build"),
        ({"runtime": "litert 2.4.0"}, "another runtime"),
        ({"threads": 2}, "another number of threads"),
        ({"signature": "length_8"}, "another signature"),
    ],
)
def test_figures_that_say_nothing_about_each_other_are_refused(change: dict[str, object], told: str) -> None:
    for pair in ((seen([1.0] * 5, **change), seen([1.0] * 5)), (seen([1.0] * 5), seen([1.0] * 5, **change))):
        with pytest.raises(SpecError, match=told):
            check_comparable(*pair)
    check_comparable(seen([1.0] * 5), seen([2.0] * 5))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"device_id": "cd" * 32}, "another device"),
        ({"os_build": "build 2"}, "another OS build"),
        ({"runtime_version": "2.4.0"}, "another runtime"),
        ({"core_mask": "f0"}, "another core mask"),
        ({"emulator": "qemu"}, "another emulator"),
    ],
)
def test_all_of_a_fingerprint_must_be_equal(change: dict[str, object], told: str) -> None:
    other = PRINT.model_copy(update=change)
    with pytest.raises(SpecError, match=told):
        check_comparable(seen([1.0] * 5, fingerprint=other), seen([1.0] * 5, fingerprint=PRINT))
    with pytest.raises(SpecError, match="another"):
        check_comparable(seen([1.0] * 5), seen([1.0] * 5, fingerprint=PRINT))
    check_comparable(seen([1.0] * 5, fingerprint=PRINT), seen([1.0] * 5, fingerprint=PRINT))


def test_launches_without_a_partner_are_no_pairs() -> None:
    with pytest.raises(StageError, match="partner"):
        compared(seen([1.0] * 5), seen([1.0] * 4), RULE, interleaved=True)
    with pytest.raises(StageError, match="no launches"):
        check_comparable(seen([]), seen([1.0]))


def test_measurements_are_joined_in_their_order() -> None:
    whole = joined([seen([1.0, 2.0]), seen([3.0], peak_memory_mb=60.0, load_ms=5.0)])
    assert whole.launch_medians_ms == (1.0, 2.0, 3.0)
    assert whole.launch_counts == (3, 3, 3)
    assert len(whole.samples_ms) == 9
    assert (whole.peak_memory_mb, whole.load_ms) == (60.0, 4.0)
    assert joined([seen([1.0], peak_memory_mb=None)]).peak_memory_mb is None


@pytest.mark.parametrize(
    "wrong", [{"tolerance": 0.0}, {"tolerance": 1.5}, {"speedup_max": 1.0}, {"pairs_step": 4}, {"pairs_max": 4}]
)
def test_a_rule_that_decides_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        Rule(**wrong)  # type: ignore[arg-type]


def placed(*shares: tuple[str, int, float], provenance: Provenance = Provenance.MEASURED) -> Measurement:
    items = tuple(
        Placement(unit=unit, operators=count, time_ms=share, time_share=share) for unit, count, share in shares
    )
    return seen([1.0] * 5, placement=items, provenance=provenance)


@pytest.mark.parametrize(
    ("shares", "limit", "time", "operators"),
    [
        ((("NPU", 100, 1.0),), 0.0, P, P),
        ((("NPU", 95, 0.97), ("cpu", 5, 0.03)), 0.05, P, P),
        ((("NPU", 99, 0.6), ("cpu", 1, 0.4)), 0.05, F, P),  # one operator that takes almost half of the time
        ((("NPU", 50, 0.99), ("cpu", 50, 0.01)), 0.05, P, F),
        ((("cpu", 100, 1.0),), 0.99, F, F),  # the silent fallback
    ],
)
def test_placement(shares: tuple[tuple[str, int, float], ...], limit: float, time: Verdict, operators: Verdict) -> None:
    found = placement_lines(placed(*shares), "npu", limit)
    assert [check.verdict for check in found] == [time, operators]
    assert all(f"{shares[0][1]} operators" in check.note for check in found)


def test_placement_that_nobody_measured_is_unmeasured() -> None:
    for nothing in (None, seen([1.0] * 5), placed(("npu", 1, 1.0), provenance=Provenance.EMULATED)):
        assert {check.verdict for check in placement_lines(nothing, "npu", 0.0)} == {U}
    with pytest.raises(SpecError, match="between 0 and 1"):
        placement_lines(None, "npu", 5)


def test_a_race_on_a_device_that_was_not_fit_decides_nothing() -> None:
    """Not even what would be clear: a hot phone slows both files down, and not alike."""
    old = seen([1.0] * 5)
    hot = seen([1.5] * 5, unfit=("throttled by heat",))
    for sides in ((old, hot), (hot, old)):
        found = compared(*sides, RULE, interleaved=True)
        checks = regression_lines(found, RULE)
        assert [check.verdict for check in checks] == [OPEN, OPEN]
        assert "not fit to be measured: throttled by heat" in checks[0].note
    assert joined([old, hot]).unfit == ("throttled by heat",)
    assert lines([1.0] * 5, [1.5] * 5)["latency_ratio"].verdict is F


def texts(medians: list[float], decode: list[float], **changes: object) -> Measurement:
    """Launches of a decoder: times to the first token, and tokens written per second."""
    one = Launch.model_construct
    launches = tuple(one(tokens_per_s={"prefill": 24e3 / m, "decode": d}) for m, d in zip(medians, decode, strict=True))
    speeds = {"prefill": 24e3 / median(medians), "decode": median(decode)}
    return seen(medians, launches=launches, tokens_per_s=speeds, **changes)


def test_a_decoder_that_only_writes_more_slowly_fails() -> None:
    """The first token says nothing about it; the time per token is compared, so that more is slower in every line."""
    old = texts([10.0] * 5, [100.0, 101.0, 99.0, 100.0, 102.0])
    slow = texts([10.0] * 5, [90.0, 91.0, 89.0, 90.0, 92.0])
    found = compared(old, slow, RULE, interleaved=True)
    assert list(found.speeds) == ["prefill", "decode"]
    checks = {check.name: check for check in regression_lines(found, RULE)}
    assert {name: check.verdict for name, check in checks.items()} == {
        "latency_ratio": P, "latency_ratio_min": P, "prefill_ratio": P, "decode_ratio": F,
    }  # fmt: skip
    assert checks["decode_ratio"].measured == pytest.approx(100 / 90, rel=0.01)
    assert "90 tokens/s, the baseline 100" in checks["decode_ratio"].note
    assert decided(found, RULE)
    back = compared(slow, old, RULE, interleaved=True)
    assert back.speeds["decode"].ratio == pytest.approx(1 / found.speeds["decode"].ratio)
    assert {check.verdict for check in regression_lines(back, RULE)} == {P}


def test_a_speed_that_is_open_keeps_the_race_going() -> None:
    old, wild = texts([10.0] * 5, [100.0] * 5), texts([10.0] * 5, [100.0, 80.0, 125.0, 101.0, 99.0])
    found = compared(old, wild, RULE, interleaved=True)
    assert {check.name for check in regression_lines(found, RULE) if check.verdict is OPEN} == {"decode_ratio"}
    assert not decided(found, RULE)


@pytest.mark.parametrize("change", [{"unfit": ("throttled by heat",)}, {}])
def test_speeds_on_a_device_that_cannot_be_trusted_decide_nothing(change: dict[str, object]) -> None:
    old, slow = texts([10.0] * 5, [100.0] * 5), texts([10.0] * 5, [50.0] * 5, **change)
    again = None if change else texts([10.4] * 5, [100.0] * 5)
    checks = regression_lines(compared(old, slow, RULE, interleaved=True, again=again), RULE)
    assert {check.verdict for check in checks} == {OPEN}


def test_a_launch_without_its_speed_is_refused() -> None:
    whole, part = texts([10.0] * 5, [100.0] * 5), texts([10.0] * 5, [100.0, 0.0, 100.0, 100.0, 100.0])
    for sides in ((whole, part), (part, whole), (whole, seen([10.0] * 5))):
        with pytest.raises(SpecError, match=r"does not tell its tokens per second \(\w+\)"):
            compared(*sides, RULE, interleaved=True)
