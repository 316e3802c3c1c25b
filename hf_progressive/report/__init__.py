"""The report of a ladder: tables, figures and pages, made from the records of its rungs alone."""

from hf_progressive.records.family import FamilyTotals, family_totals
from hf_progressive.records.reading import read_run, read_rung
from hf_progressive.records.rung import Run, Rung
from hf_progressive.report.figures.prices import write_prices
from hf_progressive.report.page import ReportPaths, write_report
from hf_progressive.report.price_table import price_table
from hf_progressive.report.study_page import write_study_report
from hf_progressive.report.study_section import study_section, write_section
from hf_progressive.report.table import results_markdown, results_table

__all__ = [
    "FamilyTotals",
    "ReportPaths",
    "Run",
    "Rung",
    "family_totals",
    "price_table",
    "read_run",
    "read_rung",
    "results_markdown",
    "results_table",
    "study_section",
    "write_prices",
    "write_report",
    "write_section",
    "write_study_report",
]
