"""Locations of quotes in the brief's file, for tools that point at lines."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.schemas.advice import Quote


@dataclass(frozen=True, slots=True)
class Region:
    """Lines and columns from 1, in characters; the end column is the first one after."""

    line: int
    column: int
    end_line: int
    end_column: int


class BriefFile:
    """A brief's file: path, text, and the offset of the description in it (None: it is not there verbatim)."""

    def __init__(self, path: str, text: str, offset: int | None = None) -> None:
        self.path, self.text, self.offset = path, text, offset
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def first(self, quotes: Sequence[Quote]) -> Region:
        """Return the location of the first quote found in the file; the file's first line where none is."""
        return next((found for quote in quotes if (found := self.region(quote))), Region(1, 1, 1, 1))

    def region(self, quote: Quote) -> Region | None:
        """Locate a quote by its span in the description, else by the line that its source names, else by its words."""
        if quote.span is not None and self.offset is not None:
            return self._between(self.offset + quote.span[0], self.offset + quote.span[1])
        line = re.fullmatch(re.escape(self.path) + r" line (\d+)", quote.source)
        if line and 1 <= int(line[1]) <= len(self._starts):
            start = self._starts[int(line[1]) - 1]
            return self._between(start, start + len(self.text[start:].partition("\n")[0].rstrip("\r")))
        found = self.text.find(quote.quote) if quote.quote else -1
        return None if found < 0 else self._between(found, found + len(quote.quote))

    def _between(self, start: int, end: int) -> Region:
        return Region(*self._at(start), *self._at(end))

    def _at(self, position: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._starts, min(position, len(self.text)))
        return line, min(position, len(self.text)) - self._starts[line - 1] + 1
