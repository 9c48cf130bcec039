"""Destinations of metrics: the base class of logger plugins, and the checksum of ``metrics.csv``. No torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from align.schemas.base import Config

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger as LightningLogger


class Logger:
    """Base class of destinations for metrics: subclass, name it, and return a Lightning logger from ``open``."""

    name: ClassVar[str]

    class Config(Config):
        """Settings in the run file."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, directory: Path, run_name: str, resume_step: int) -> LightningLogger:
        """Called once, on rank 0, before the first step.

        directory:   the stage's directory.
        resume_step: steps done; what was logged after them is about to be logged again and must go (0: a new run).
        """
        raise NotImplementedError


@runtime_checkable
class Verified(Protocol):
    """Optional methods of a logger that ``open`` returns: its file is then verified when the run is resumed.

    Checkpoints hold the file's checksum, so the file itself stays an ordinary one.
    """

    @property
    def name(self) -> str | None:
        """Name of the logger, the key of its checksum in checkpoints."""
        ...

    def digest(self) -> str:
        """Return the checksum of what was logged so far: of names and values, not of their layout in the file."""
        ...

    def set_aside(self, why: str) -> None:
        """Rename the file and start a new one, because it is not what was written. why: the reason, for the message."""
        ...


# ``metrics.csv``: an ordinary file that a spreadsheet reads, and a checksum that detects a damaged one.
#
# The checksum is a chain: each row is hashed with the sum of the rows before it. Empty cells are left out, so a column
# that appears later does not change the sums of earlier rows, and every prefix of the rows (a checkpoint's) has its
# own.

Row = Mapping[str, str]


def read_rows(path: Path, last: float = math.inf) -> list[dict[str, str]]:
    """Return the rows up to step ``last``. A kill may have left half a line: only whole lines count.

    Raises ValueError with the reason if the file is no table of metrics.
    """
    whole = path.read_bytes().decode("utf-8").rpartition("\n")[0]
    try:
        rows = list(takewhile(lambda row: int(row["step"]) <= last, csv.DictReader(io.StringIO(whole))))
    except (KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"it is no table with a step in each row ({error})") from error
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a row has more or fewer cells than the header")
    return rows


def chain_row(before: str, row: Row) -> str:
    """Return the sum of all rows up to this one. before: the sum of those before it, empty for the first."""
    cells = sorted((name, text) for name, text in row.items() if text)
    return hashlib.sha256(json.dumps([before, cells]).encode()).hexdigest()


def chain_rows(rows: Iterable[Row]) -> str:
    """Return the sum of all rows; empty if there are none."""
    found = ""
    for row in rows:
        found = chain_row(found, row)
    return found
