"""The report of a finished run: what its pages show, gathered from the run's folder."""

from crosscoders.pipeline.report.options import ReportOptions
from crosscoders.pipeline.report.report import write_report, write_report_on

__all__ = ["ReportOptions", "write_report", "write_report_on"]
