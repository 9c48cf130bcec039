"""``metrics.csv``: an ordinary file that a spreadsheet reads, and the sum by which a damaged one is known.

The sum is of what the rows say, each with the one before it. So it is the same when columns that come later make the
header wider, and it can be told for the rows up to any step.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path

Row = Mapping[str, str]


def read_rows(path: Path, last: float = math.inf) -> list[dict[str, str]]:
    """The rows up to a step. A kill may have left half a line: only whole lines count.

    Raises ValueError, which says why, where the file is no table of metrics.
    """
    whole = path.read_bytes().decode("utf-8").rpartition("\n")[0]
    try:
        rows = list(takewhile(lambda row: int(row["step"]) <= last, csv.DictReader(io.StringIO(whole))))
    except (KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"it is no table with a step in each row ({error})") from error
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a row has more or fewer cells than the header")
    return rows


def chained(before: str, row: Row) -> str:
    """The sum of all rows up to this one, given that of those before it."""
    cells = sorted((name, text) for name, text in row.items() if text)
    return hashlib.sha256(json.dumps([before, cells]).encode()).hexdigest()


def total(rows: Iterable[Row]) -> str:
    """The sum of all rows, empty where there is none."""
    found = ""
    for row in rows:
        found = chained(found, row)
    return found
