"""JUnit XML of the gate's lines."""

from __future__ import annotations

from xml.etree import ElementTree

from edgedistill.report import junit_xml
from edgedistill.specs import Check, GateResult, Provenance, Verdict


def check(name: str, verdict: Verdict, measured: float | None = 1.0, note: str = "") -> Check:
    return Check(
        name=name, verdict=verdict, unit="MB", measured=measured, limit=2.0, provenance=Provenance.COMPUTED, note=note
    )


def test_each_line_is_a_case() -> None:
    checks = (
        check("size_mb", Verdict.PASS),
        check("peak_memory_mb", Verdict.FAIL, 3.0),
        check("latency_p95_ms", Verdict.INCONCLUSIVE),
        check("energy_mj", Verdict.UNMEASURED, None),
    )
    suite = ElementTree.fromstring(junit_xml(GateResult(target="pixel8", checks=checks)))
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped", "errors")} == {
        "tests": "4", "failures": "1", "skipped": "2", "errors": "0",
    }  # fmt: skip
    assert [case.get("name") for case in suite] == [item.name for item in checks]
    assert [next((child.tag for child in case), "") for case in suite] == [
        "system-out",
        "failure",
        "skipped",
        "skipped",
    ]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "3.00 MB, computed; wanted ≤ 2 MB"
    skipped = [case.get("message") or "" for case in suite.findall("testcase/skipped")]
    assert skipped[0].startswith("INCONCLUSIVE: ")
    assert skipped[1].startswith("UNMEASURED: not measured")


def test_hostile_texts_stay_text() -> None:
    note = 'a "quoted" <b>&amp; \x00\x1b[31m \ud800 ]]> \n end'
    result = GateResult(target="<t>", checks=(check("size_mb", Verdict.FAIL, note=note),))
    suite = ElementTree.fromstring(junit_xml(result).encode("utf-8"))
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "<b>&amp;" in (failure.get("message") or "")
    assert not list(failure)
