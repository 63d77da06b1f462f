"""The report of a build: one self-contained HTML page, the same facts as Markdown, and the verdicts as JUnit XML.

It draws and words what it is given and decides nothing: verdicts are the gate's.
"""

from edgedistill.report.data import Curve, ReportData, Split
from edgedistill.report.junit import junit_xml
from edgedistill.report.write import write_report

__all__ = ["Curve", "ReportData", "Split", "junit_xml", "write_report"]
