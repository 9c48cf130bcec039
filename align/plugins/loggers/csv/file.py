"""``metrics.csv`` as a Lightning logger."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger as LightningLogger

from align import Problem
from align.files import name_in_errors, set_aside, write_atomic
from align.loggers import chain_row, chain_rows, read_rows


class CSVFile(LightningLogger):
    """Appends rows; a new name rewrites the file with a wider header."""

    def __init__(self, path: Path, resume_step: int) -> None:
        super().__init__()
        self.path = path
        rows: list[dict[str, str]] = []
        if path.exists() and resume_step:
            try:
                rows = read_rows(path, resume_step)
            except ValueError as error:
                self.set_aside(str(error))
        self._begin(rows)

    def _begin(self, rows: list[dict[str, str]]) -> None:
        self.columns = list(rows[0]) if rows else ["step", "epoch"]
        self._checksum = chain_rows(rows)
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
        """Log nothing: the run directory holds the resolved run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row."""
        row = {name: _text(value) for name, value in {"step": step, **metrics}.items()}
        self._checksum = chain_row(self._checksum, row)
        new = [name for name in row if name not in self.columns]
        if new:
            with open(self.path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        with name_in_errors(self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)

    def digest(self) -> str:
        """Return the checksum of all rows."""
        return self._checksum

    def set_aside(self, why: str) -> None:
        """Rename a damaged file to ``metrics.csv.damaged``, print a warning, and begin a new one."""
        aside = set_aside(self.path)
        warning = Problem(str(self.path), f"is damaged: {why}", f"the log goes on in a new file; kept as {aside.name}")
        print(warning, file=sys.stderr)
        self._begin([])

    def _rewrite(self, rows: list[Any]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())


def _text(value: Any) -> str:
    """Return a value as the file has it: the checksum is of text, so that it can be taken of a file that is read."""
    return repr(float(value)) if isinstance(value, float) else str(value)
