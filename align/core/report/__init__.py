"""The report of a run: one HTML page, and the same figures in the terminal. Imports no torch."""

from align.core.report.gate_view import GateView
from align.core.report.page import write_report
from align.core.report.table import Figure, MeasureRow, MeasureTable, PromptSample, StageCompletion, print_table

__all__ = [
    "StageCompletion",
    "Figure",
    "GateView",
    "MeasureRow",
    "PromptSample",
    "MeasureTable",
    "print_table",
    "write_report",
]
