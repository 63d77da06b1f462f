"""The gate's lines as JUnit XML, which every CI system shows as test cases."""

from __future__ import annotations

from xml.etree import ElementTree

from edgedistill.report.headline import limit_of, value
from edgedistill.report.text import clean
from edgedistill.specs import Check, GateResult, Verdict


def junit_xml(result: GateResult) -> str:
    """One test case per line: FAIL is a failure; INCONCLUSIVE and UNMEASURED are skipped, as JUnit has no third state.

    A CI that must not go green on an open line uses the exit code of `gate`, which is strict.
    """
    failures = sum(check.verdict is Verdict.FAIL for check in result.checks)
    skipped = sum(check.verdict in (Verdict.INCONCLUSIVE, Verdict.UNMEASURED) for check in result.checks)
    counts = {"tests": str(len(result.checks)), "failures": str(failures), "skipped": str(skipped), "errors": "0"}
    name = clean(f"edgedistill gate: {result.target}")
    suite = ElementTree.Element("testsuite", {"name": name, **counts})
    for check in result.checks:
        attributes = {"classname": clean(f"gate.{result.target}"), "name": clean(check.name)}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        if check.verdict is Verdict.FAIL:
            ElementTree.SubElement(case, "failure", {"message": _message(check), "type": check.verdict.value})
        elif check.verdict is not Verdict.PASS:
            ElementTree.SubElement(case, "skipped", {"message": f"{check.verdict.value}: {_message(check)}"})
        else:
            ElementTree.SubElement(case, "system-out").text = _message(check)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _message(check: Check) -> str:
    seen = "not measured" if check.measured is None else value(check.name, check.measured, check.unit)
    source = f", {check.provenance.value}" if check.provenance else ""
    note = f" ({check.note})" if check.note else ""
    return clean(f"{seen}{source}; wanted {limit_of(check)}{note}")
