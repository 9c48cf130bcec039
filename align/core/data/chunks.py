"""Pieces of a file, small enough to hold, each of which a worker turns into rows by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from align.core.data.row_errors import RowError
from align.core.data.strict import checked, parse

Parsed = tuple[int, dict[str, Any] | RowError]
"""A row's line (of a table: its number), and the row or what is wrong with it."""


class Chunk(Protocol):
    """Some rows of one file, not parsed yet."""

    def __len__(self) -> int:
        """How many rows, good and bad."""
        ...

    def rows(self) -> Iterator[Parsed]:
        """Parse them."""
        ...


@dataclass(slots=True)
class Lines:
    """Whole lines of JSONL, the first of which is line ``first``."""

    first: int
    data: bytes

    def __len__(self) -> int:
        return sum(1 for line in self.data.split(b"\n") if line.strip())

    def rows(self) -> Iterator[Parsed]:
        """Blank lines are no rows."""
        return _parsed((n, line) for n, line in enumerate(self.data.split(b"\n"), self.first) if line.strip())


@dataclass(slots=True)
class Elements:
    """Elements of a JSON array, each with its line."""

    elements: list[tuple[int, bytes]]

    def __len__(self) -> int:
        return len(self.elements)

    def rows(self) -> Iterator[Parsed]:
        """Parse each by itself: one that is malformed costs no other."""
        return _parsed(self.elements)


@dataclass(slots=True)
class Table:
    """Rows that a library has parsed: of a CSV file or a hub data set."""

    parsed: list[Parsed]

    def __len__(self) -> int:
        return len(self.parsed)

    def rows(self) -> Iterator[Parsed]:
        """Inspect them."""
        for number, row in self.parsed:
            yield number, _inspected(row)


@dataclass(slots=True)
class Batch:
    """An Arrow record batch, the first row of which is row ``first``."""

    first: int
    batch: Any

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def rows(self) -> Iterator[Parsed]:
        """Rows as dicts; Arrow does not check that strings are UTF-8, decoding does."""
        try:
            found: list[dict[str, Any] | RowError] = self.batch.to_pylist()
        except Exception:  # bytes that are no UTF-8, dates that Python does not have: find the rows that hold them
            found = [self._row(index) for index in range(len(self))]
        for number, row in enumerate(found, self.first):
            yield number, _inspected(row)

    def _row(self, index: int) -> dict[str, Any] | RowError:
        row = {}
        for key in self.batch.schema.names:
            try:
                row[key] = self.batch[key][index].as_py()
            except UnicodeDecodeError as error:
                return RowError("invalid-utf8", f"byte {error.start + 1} is no UTF-8", key)
            except Exception as error:
                return RowError("wrong-type", f"cannot be read: {type(error).__name__}: {error}", key)
        return row


def _parsed(lines: Iterable[tuple[int, bytes]]) -> Iterator[Parsed]:
    for number, line in lines:
        try:
            yield number, parse(line)
        except RowError as error:
            yield number, error


def _inspected(row: dict[str, Any] | RowError) -> dict[str, Any] | RowError:
    """Return the row, or the fault that is in it."""
    try:
        return row if isinstance(row, RowError) else checked(row)
    except RowError as error:
        return error
