"""Metrics to ``metrics.csv``: one row a step, a column for every name seen. The default."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger as LightningLogger

from align.core.disk import naming, write_whole
from align.core.train.logger import Logger


class CSV(Logger):
    """A plain file that a spreadsheet or pandas reads."""

    name = "csv"

    def open(self, directory: Path, run_name: str, resume_step: int) -> LightningLogger:
        """Rows after ``resume_step`` are cut off: they will be written again."""
        return CSVFile(directory / "metrics.csv", resume_step)


class CSVFile(LightningLogger):
    """Appends rows; a new name rewrites the file with a wider header."""

    def __init__(self, path: Path, resume_step: int) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        rows = []
        if path.exists():
            # A kill may have left half a line: only whole lines count.
            whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
            rows = [
                row for row in csv.DictReader(io.StringIO(whole)) if resume_step and int(row["step"]) <= resume_step
            ]
        self.columns = [name for name in rows[0] if name is not None] if rows else ["step", "epoch"]
        self._rewrite(rows)

    @property
    def name(self) -> str:
        """For Lightning."""
        return "csv"

    @property
    def version(self) -> int:
        """For Lightning."""
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run directory holds the resolved run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row."""
        row: dict[str, Any] = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            with open(self.path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        with naming(self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)

    def _rewrite(self, rows: list[Any]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, text.getvalue().encode())
