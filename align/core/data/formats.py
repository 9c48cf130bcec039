"""What a row format is. A format plugin says which keys it knows and reads them into a Record's fields."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self, get_args

from align.core.data import fields
from align.core.data.row_errors import RowError
from align.schemas import base
from align.schemas.records import Kind, Record

KINDS: tuple[Kind, ...] = get_args(Kind)
SYSTEM = ("system", "system_prompt")
"""Columns that hold a system prompt for the rest of the row."""
ANYWHERE = ("tools", "functions", "chat_template_kwargs", *SYSTEM)
"""Keys that are read in rows of every shape."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The keys by which a row of one kind is known.

    required must be there, optional may be; both are read, and all other columns are passed on in ``Record.columns``.
    kept: required or optional keys that stay in ``Record.columns`` too. unless: a row that has all of these keys is not
    of this shape.
    """

    kind: Kind
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """Every key that is read; any row may carry those of ``ANYWHERE``."""
        return _keys(self)


@lru_cache(1024)  # asked for every row
def _keys(shape: Shape) -> frozenset[str]:
    return frozenset((*shape.required, *shape.optional, *ANYWHERE))


class Format:
    """How rows are laid out: subclass, set ``name`` and ``shapes``, write ``read``.

    class Qa(Format):
        name = "qa"
        shapes = (Shape("completion", required=("q", "a")),)

        def read(self, row, kind):
            return fields.join(fields.content(row, "q"), "q", {"completion": fields.content(row, "a")}, "a")
    """

    name: ClassVar[str]
    """What ``format:`` in a run file calls it."""
    shapes: ClassVar[tuple[Shape, ...]]
    """The kinds of rows it reads, and the keys of each."""

    class Config(base.Config):
        """Formats have no settings."""

    def __init__(self, config: base.Config | None = None) -> None:
        self.config = config or self.Config()
        self.kinds: tuple[Kind, ...] = KINDS

    def read(self, row: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
        """The Record's fields of that kind. The required keys are there; everything else is this method's to check.

        Raises RowError, or any ValueError with a sentence for the user.
        """
        raise NotImplementedError

    def only(self, kinds: Iterable[Kind]) -> Self:
        """The same format, reading rows as one of these kinds."""
        other = copy.copy(self)
        other.kinds = tuple(kinds)
        return other

    def shape(self, row: Mapping[str, Any]) -> Shape | None:
        """Return the shape that reads most of the row's keys, None where none fits.

        Keys that are null count only if no shape fits without them, because Arrow adds such keys. A shape whose label
        would be neither true nor false comes last: such a column is no judgement of the answer.
        """
        given = {key for key, value in row.items() if value is not None}
        shapes = [s for s in self._shapes() if not (s.unless and given.issuperset(s.unless))]
        fitting = [s for s in shapes if given.issuperset(s.required)]
        fitting = fitting or [s for s in shapes if row.keys() >= set(s.required)]
        if len(fitting) < 2:
            return fitting[0] if fitting else None

        def rank(shape: Shape) -> tuple[bool, int]:
            judged = shape.kind != "unpaired" or any(fields.is_boolean(row[key]) for key in shape.required)
            return judged, len(shape.keys & given)

        return max(fitting, key=rank)

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has the keys of this format."""
        return self.shape(row) is not None

    def keys(self, row: Mapping[str, Any]) -> frozenset[str]:
        """Which of the row's keys would be read: a format that reads more of a row knows it better."""
        shape = self.shape(row)
        return shape.keys & row.keys() if shape else frozenset()

    def convert(self, row: Mapping[str, Any], source: str) -> Record:
        """Understand one row. source: its place, ``train.jsonl:17``.

        Raises RowError, or any ValueError with a sentence for the user.
        """
        shape = self.shape(row)
        if shape is None:
            raise self._missing(row)
        columns = [key for key in SYSTEM if key not in (*shape.required, *shape.optional)]
        found, system = fields.with_system(self.read(row, shape.kind), row, columns)
        if shape.kind == "preference" and found.get("chosen") == found.get("rejected"):
            raise RowError("same-answers", "is the same as chosen", "rejected")
        unread = set(shape.kept)
        if not system:
            unread.update(columns)
        if not fields.reads_functions(row):
            unread.add("functions")
        taken = shape.keys - unread
        return Record(
            kind=shape.kind,
            source=source,
            tools=fields.tools(row),
            chat_template_kwargs=fields.structure(row, "chat_template_kwargs", dict) or {},
            columns={
                key: fields.pruned(value) if key in shape.kept else value
                for key, value in row.items()
                if key not in taken
            },
            **found,
        )

    @property
    def known(self) -> frozenset[str]:
        """Every key that any row may have read of it."""
        return frozenset[str]().union(*(shape.keys for shape in self._shapes()))

    def _shapes(self) -> list[Shape]:
        return [shape for shape in self.shapes if shape.kind in self.kinds]

    def _missing(self, row: Mapping[str, Any]) -> RowError:
        lacks = [[key for key in shape.required if key not in row] for shape in self._shapes()]
        lacks = [lacking for lacking in lacks if lacking]
        if not lacks:  # the row has the keys of some shape, and ``unless`` excludes it
            return RowError("mixed", f"is a row of another kind than {' or '.join(self.kinds)}")
        lacking = min(lacks, key=len)
        near = difflib.get_close_matches(lacking[0], row, n=1)
        return RowError("missing-field", f"is missing; the row has {near[0]!a}" if near else "is missing", lacking[0])
