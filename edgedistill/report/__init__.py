"""The report of a build: one self-contained HTML page, the same facts as Markdown, and the verdicts as JUnit XML.

And the reports of a gate and of a comparison, in the forms that people and CI systems read. It draws and words what it
is given and decides nothing: verdicts are the gate's.
"""

from edgedistill.report.data import Curve, ReportData, Split
from edgedistill.report.gate_page import gate_page, write_gate
from edgedistill.report.github import workflow_commands
from edgedistill.report.junit import junit_xml
from edgedistill.report.write import write_report

__all__ = [
    "Curve",
    "ReportData",
    "Split",
    "gate_page",
    "junit_xml",
    "workflow_commands",
    "write_gate",
    "write_report",
]
