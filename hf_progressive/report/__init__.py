"""The reports of a ladder, a study and a plan: tables, figures and pages, made from their records alone."""

from hf_progressive.report.figures.prices import write_prices
from hf_progressive.report.ladder_page import LivePage
from hf_progressive.report.page import ReportPaths
from hf_progressive.report.price_summary import price_summary
from hf_progressive.report.price_table import price_table
from hf_progressive.report.report import write_report
from hf_progressive.report.study_section import study_section, write_section
from hf_progressive.report.terminal import results_table

__all__ = [
    "LivePage",
    "ReportPaths",
    "price_summary",
    "price_table",
    "results_table",
    "study_section",
    "write_prices",
    "write_report",
    "write_section",
]
