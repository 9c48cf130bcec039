"""Reading a source: every row of it comes out, as a Record or as a BadRow that says where and what is wrong."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from align.core.data.chunks import Table
from align.core.data.formats import KINDS, Format, Shape
from align.core.data.locate import Part, locate
from align.core.data.parallel import ordered_map
from align.core.data.row_errors import BadRow, RowError
from align.core.data.rows import Form, Job, Reader, Row, bad_row, fitting, work
from align.core.plugin_system import registry
from align.core.util.progress import Work
from align.schemas.errors import AlignError
from align.schemas.records import Kind
from align.schemas.run import Source
from align.schemas.text import visible

SAMPLE = 64
"""Rows by the majority of which a source's form is recognised."""
WORTH_PROCESSES = 64 * 2**20
"""Bytes from which starting worker processes pays."""


def read_rows(source: Source, kinds: Iterable[Kind] = KINDS) -> Iterator[Row | BadRow]:
    """All rows of a source in the order of its files. Raises AlignError as ``Reading`` does."""
    yield from Reading(source, kinds).rows()


class Reading:
    """One source, opened: its parts, and the form of its rows (None where no row can be parsed).

    kinds: those wanted. stream: read a hub data set as it downloads. Raises AlignError where the source cannot be
    found, or its form is none of those wanted, or could be several.
    """

    def __init__(self, source: Source, kinds: Iterable[Kind] = KINDS, *, stream: bool = False) -> None:
        self.source, self.kinds = source, tuple(kinds)
        self.formats = [known() for known in registry.working("format").values()]
        self.asked = self.formats if source.format == "auto" else [registry.get("format", source.format)()]
        self.parts, self.left_out = locate(source, stream)
        self.form = self._recognised()

    def rows(
        self, *, workers: int | None = None, progress: bool | None = None, start: int = 0, unique: bool = True
    ) -> Iterator[Row | BadRow]:
        """Yield all rows in order.

        workers: processes, by default one per core where the source is large enough. progress: show it; None: as
        ``align.core.util.progress`` is set. start: leave out that many (a file without rows is a BadRow, but counts as
        none). unique: refuse a second row with the same ``id``. A file that is cut short or damaged ends with a BadRow
        ``damaged-file``.
        """
        total = sum(part.size for part in self.parts)
        workers = workers or len(os.sched_getaffinity(0))
        if workers == 1 or total < WORTH_PROCESSES:
            workers = 0
        form, ids, rows = self.form, dict[str | int, str](), 0
        reader, under_way = Reader(form, self.formats, self.source.columns), deque[_Piece]()
        found_in_order = ordered_map(work, reader, self._jobs(start, under_way), workers)
        with Work(f"reading {visible(self.source.path)}", total / 1e6 or None, unit="MB", shown=progress) as bar:
            for found in found_in_order:
                piece = under_way.popleft()
                bar.update(piece.done / 1e6)
                rows += piece.skipped + len(found)
                for item in found:
                    if isinstance(item, Row):
                        record = item.record
                        if form and form.conversational is None:
                            form = Form(form.format, record.kind, record.conversational)
                        if form and form[1:] != (record.kind, record.conversational):
                            item = _mixed(item, form)
                        elif unique:
                            item = _unique(item, ids)
                    yield item
                if piece.ends:
                    if not rows:
                        yield BadRow(piece.part.name, 0, "empty-file", "", "has no rows")
                    rows = 0

    def _jobs(self, start: int, under_way: deque[_Piece]) -> Iterator[Job]:
        """Everything there is to do; what is known of each job beforehand goes into ``under_way``."""
        before = 0
        for part in self.parts:
            for chunk, done in part.open():
                skip = min(start, len(chunk)) if start else 0
                start -= skip
                if skip and skip == len(chunk):
                    chunk = Table([])
                under_way.append(_Piece(part, before + done, skip))
                yield Job(part.name, chunk, skip)
            before += part.size
            under_way.append(_Piece(part, before, 0, ends=True))
            yield Job(part.name, Table([]), 0)

    def _recognised(self) -> Form | None:
        """The form of most of the first SAMPLE rows that parse; those that convert count before those that do not."""
        sure, unsure = Counter[_Vote](), Counter[_Vote]()
        for row in islice(self._sample(), SAMPLE):
            found = fitting(self.asked, row, self.kinds)
            alone = found[0] if len(found) == 1 else None
            names, shape = tuple(format.name for format in found), alone and alone.shape(row)
            vote = _Vote(names, shape.kind if shape else None, None, () if found else tuple(row))
            try:
                if alone:
                    record = alone.convert(row, "")
                    vote = vote._replace(kind=record.kind, conversational=record.conversational)
                (sure if found else unsure)[vote] += 1
            except Exception:  # told with its row, when it is read
                unsure[vote] += 1
        if not (sure or unsure):
            return None
        vote = (sure or unsure).most_common(1)[0][0]
        if len(vote.names) == 1:
            format = next(format for format in self.asked if format.name == vote.names[0])
            return Form(format.only((vote.kind,) if vote.kind else self.kinds), vote.kind, vote.conversational)
        if vote.names:
            both = " or ".join(map(repr, vote.names))
            raise AlignError(
                f"its rows could be of format {both}", f"say which, with format: {vote.names[0]}", where=self._name
            )
        what, mend = unknown_keys(self.asked, vote.keys, self.kinds)
        raise AlignError(what, "\n    ".join(filter(None, [mend, *registry.absent("format")])), where=self._name)

    @property
    def _name(self) -> str:
        return self.parts[0].name

    def _sample(self) -> Iterator[Mapping[str, Any]]:
        reader = Reader(None, self.formats, self.source.columns)
        for part in self.parts:
            for chunk, _ in part.open():
                for _, row in chunk.rows():
                    try:
                        if isinstance(row, RowError):
                            raise row
                        yield {key: value for key, value in reader.renamed(row).items() if value is not None}
                    except RowError:
                        continue


class _Piece(NamedTuple):
    """What is known of a job beforehand. done: bytes read by then. ends: whether its part does."""

    part: Part
    done: int
    skipped: int
    ends: bool = False


class _Vote(NamedTuple):
    """What one row of the sample says."""

    names: tuple[str, ...]
    kind: Kind | None
    conversational: bool | None
    keys: tuple[str, ...]


def unknown_keys(formats: Sequence[Format], keys: Iterable[str], kinds: Sequence[Kind]) -> tuple[str, str]:
    """Return what is wrong with rows of these keys, and how to fix it."""
    row = dict.fromkeys(keys, True)  # a value with which a label counts as a judgement
    shapes = [(format.name, shape) for format in formats for shape in format.shapes if shape.kind in kinds]
    guesses = [guess for _, shape in shapes if (guess := _renamed(shape, row)) is not None]
    # The best guess reads most of the row; of several that do, it is the one that renames least.
    columns, _ = max(guesses, key=lambda guess: (guess[1], -len(guess[0]), "prompt" in guess[0]), default=({}, 0))
    renames = ", ".join(f"{key}: {alias}" for key, alias in columns.items())
    fix = f"rename them, perhaps with columns: {{{renames}}}" if renames else ""
    for other in fitting(formats, row):
        held = shape.kind if (shape := other.shape(row)) else "other"
        what = f"holds {held} rows (format {other.name}); {' or '.join(kinds)} rows are wanted"
        messages = next((key for key in _CONVERSATIONS if key in row), None)
        if "prompt" in kinds and messages and "prompt" not in row:
            fix = f"read conversations that end with the user as prompts, with columns: {{prompt: {messages}}}"
        return what, fix
    named = [ascii(key)[:40] for key in row]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    what = f"has the columns {', '.join(named[:_NAMED])}{more}, which no format has"
    foreign = next((fix for key, fix in _FOREIGN.items() if key in row), None)
    if foreign or fix:
        return what, foreign or fix
    if len(named) == 1 and (";" in named[0] or "\\t" in named[0]):
        return what, "separate columns with commas"
    if len(named) > 8 * _NAMED:
        return what, "if the file is one object of rows by name, write its values as an array, [{...}, ...]"
    known = "; ".join(f"{name} ({shape.kind}): {', '.join(shape.required)}" for name, shape in shapes)
    return what, f"rename them with columns: {{OURS: THEIRS}}. Known: {known}"


def _renamed(shape: Shape, row: Mapping[str, Any]) -> tuple[dict[str, str], int] | None:
    """Return the renaming (our names to the row's) with which a shape fits, and how many columns it would then read.

    None where no renaming makes it fit.
    """
    columns: dict[str, str] = {}
    for key in (*shape.required, *shape.optional):
        free = [alias for alias in _ALIASES.get(key, ()) if alias in row and alias not in columns.values()]
        if key not in row and free:
            columns[key] = free[0]
        elif key not in row and key in shape.required:
            return None
    return columns, len(columns) + len(shape.keys & row.keys())


_NAMED = 12
"""Most columns named in a message."""
_CONVERSATIONS = ("messages", "conversations", "conversation")
_FOREIGN = {
    "input_ids": "these are tokens already: give the text or the messages that they were made from, since the model's "
    "own tokenizer and chat template make them again",
    "segments": "text in labelled pieces is not read: give prompt and completion, or messages with train: true or "
    "false",
}
"""The fix for rows with columns that no renaming makes readable."""
_ALIASES = {
    "prompt": ("question", "instruction", "input", "problem"),
    "completion": ("response", "answer", "output", "target", "solution", "generation"),
    "chosen": ("preferred", "winner", "chosen_response"),
    "rejected": ("dispreferred", "loser", "rejected_response"),
    "text": ("content", "document", "response"),
    "messages": ("dialogue", "dialog"),
    "instruction": ("query", "question"),
    "output": ("response",),
    "input": ("context",),
}


def _mixed(row: Row, form: Form) -> BadRow:
    this = Form(form.format, row.record.kind, row.record.conversational)
    return _bad(row, RowError("mixed", f"is a {this.words} row among {form}"))


def _unique(row: Row, ids: dict[str | int, str]) -> Row | BadRow:
    name = row.record.columns.get("id")
    if not isinstance(name, (str, int)):
        return row
    first = ids.setdefault(name, row.record.source)
    if first is row.record.source:
        return row
    return _bad(row, RowError("duplicate-id", f"is {ascii(name)[:80]}, as in {first}", "id"))


def _bad(row: Row, fault: RowError) -> BadRow:
    file, _, line = row.record.source.rpartition(":")
    return bad_row(file, int(line), fault)
