"""One page that says what a run did, and the same figures in the terminal. Loads no torch."""

from align.core.report.page import Answer, Sample, write_report
from align.core.report.table import Figure, Row, Table, print_table

__all__ = ["Answer", "Figure", "Row", "Sample", "Table", "print_table", "write_report"]
