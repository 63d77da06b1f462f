"""GitHub's annotations: one line each, whatever stands in a note."""

from edgedistill.report import workflow_commands
from edgedistill.specs import Check, Provenance, Verdict


def check(verdict: Verdict, name: str = "size_mb", note: str = "") -> Check:
    return Check(
        name=name, verdict=verdict, unit="MB", measured=3.0, limit=2.0, provenance=Provenance.COMPUTED, note=note
    )


def test_failures_are_errors_and_open_lines_warnings() -> None:
    told = workflow_commands(
        [check(Verdict.PASS), check(Verdict.INCONCLUSIVE), check(Verdict.UNMEASURED), check(Verdict.FAIL)]
    )
    assert [line.split(" ")[0] for line in told] == ["::error", "::warning", "::warning"]
    assert told[0] == "::error title=FAIL%3A File size::3.00 MB, wanted ≤ 2 MB"


def test_a_note_cannot_start_another_command() -> None:
    (line,) = workflow_commands([check(Verdict.FAIL, note="50%\r\n::set-output name=verdict::PASS\x00")])
    assert "\n" not in line
    assert "\r" not in line
    assert "\x00" not in line
    assert "50%25%0D%0A::set-output" in line
    (line,) = workflow_commands([check(Verdict.FAIL, name="a::b,c=d\n::error::x")])
    assert line.startswith("::error title=FAIL%3A a%3A%3Ab%2Cc=d%0A%3A%3Aerror")
    assert line.count("::") == 2  # the command's own


def test_github_shows_ten_of_a_kind() -> None:
    assert len(workflow_commands([check(Verdict.FAIL)] * 15 + [check(Verdict.UNMEASURED)] * 15)) == 20
