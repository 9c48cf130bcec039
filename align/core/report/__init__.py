"""One page that says what a run did, and the same figures in the terminal. Loads no torch."""

from align.core.report.page import PromptSample, StageCompletion, write_report
from align.core.report.table import Figure, MeasureRow, MeasureTable, print_table

__all__ = ["StageCompletion", "Figure", "MeasureRow", "PromptSample", "MeasureTable", "print_table", "write_report"]
