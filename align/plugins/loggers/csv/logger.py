"""Metrics to ``metrics.csv``: one row a step, a column for every name seen. The default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from align import Logger

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger as LightningLogger


class CSV(Logger):
    """A plain file that a spreadsheet or pandas reads."""

    name = "csv"

    def open(self, directory: Path, run_name: str, resume_step: int) -> LightningLogger:
        """Rows after ``resume_step`` are cut off: they will be written again."""
        # Here: the run file is checked with this class, and Lightning takes half a second to import.
        from align.plugins.loggers.csv.file import CSVFile

        return CSVFile(directory / "metrics.csv", resume_step)
