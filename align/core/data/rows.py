"""One parsed row to a Record, or to a BadRow: the work that reading shares out among processes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Protocol

from align.core.data.formats import KINDS, MEDIA, Format
from align.core.data.row_errors import BadRow, HasNaN, RowError, checked, inspect, parse, without_nan
from align.schemas.records import Kind, Record

# Pieces of a file, small enough to hold, each of which a worker turns into rows by itself.

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


class Row(NamedTuple):
    """One good row. digest: 8 bytes over what it teaches, whatever its id, place and further columns."""

    record: Record
    digest: bytes


class Form(NamedTuple):
    """What a source's rows are. format: restricted to that kind. conversational: None until a good row was seen."""

    format: Format
    kind: Kind | None
    conversational: bool | None

    @property
    def words(self) -> str:
        """``conversational preference``."""
        style = {None: "", True: "conversational ", False: "standard "}[self.conversational]
        return style + (self.kind or "")

    def __str__(self) -> str:
        return f"{self.words} rows (format {self.format.name})"


class Job(NamedTuple):
    """A chunk of the file called ``file``, of which the first ``skip`` rows are not wanted."""

    file: str
    chunk: Chunk
    skip: int


@dataclass(frozen=True, slots=True)
class Reader:
    """How the rows of one source are read.

    form: None where no row parses. formats: all there are, to name the format of a row that does not fit. columns: our
    names to the file's. judging: keys that the form does not read and that mark an answer as good or bad.
    """

    form: Form | None
    formats: Collection[Format]
    columns: Mapping[str, str]
    judging: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        known = self.form.format.known if self.form else frozenset[str]()
        object.__setattr__(self, "judging", frozenset(_judging(self.formats)) - known)

    def row(self, file: str, line: int, row: dict[str, Any] | RowError) -> Row | BadRow:
        """Understand one row."""
        try:
            if isinstance(row, RowError):
                raise row
            record = self._convert(self.renamed(row), f"{file}:{line}")
            return Row(record, digest(record))
        except RowError as error:
            fault = error
        except ValueError as error:
            fault = RowError("refused", str(error))
        except Exception as error:  # a plugin's bug is reported with its row, like any other fault of a row
            fault = RowError("refused", f"makes its format plugin fail: {type(error).__name__}: {error}")
        return bad_row(file, line, fault, self.columns)

    def renamed(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the row under our names, with null for every NaN in columns that are not read.

        Raises RowError where a renamed column would replace another, and for a NaN in a column that is read.
        """
        found = row
        if self.columns:
            ours = {theirs: own for own, theirs in self.columns.items()}
            found = {ours.get(key, key): value for key, value in row.items()}
            if len(found) < len(row):
                own, theirs = next((o, t) for o, t in self.columns.items() if t in row and o in row and o not in ours)
                what = f"is there in addition to {theirs!r}, which is to be read as {own!r}"
                raise RowError("duplicate-key", what, own)
        if isinstance(row, HasNaN):
            read = self.form.format.known & found.keys() if self.form else ()
            for key in read:
                inspect(found[key], key)
            found = without_nan(found)
        return found

    def _convert(self, row: Mapping[str, Any], source: str) -> Record:
        assert self.form is not None  # a row that parses has been seen by then
        format = self.form.format
        try:
            record = format.convert(row, source)
        except RowError:
            if format.matches(row):
                raise
            for other in fitting(self.formats, row):
                if not other.keys(row) <= format.known:
                    raise RowError("mixed", f"is a row of format {other.name} among {self.form}") from None
            raise
        for key in MEDIA:
            if _holds(record.columns.get(key)):
                fix = f"take the column away if the text is whole without it, with columns: {{unread: {key}}}"
                raise RowError("media", f"holds pictures or sound: only text is learned ({fix})", key)
        if record.kind in ("text", "completion"):
            self._refuse_answers_marked_bad(row)
        return record

    def _refuse_answers_marked_bad(self, row: Mapping[str, Any]) -> None:
        """Raise RowError where a label that the form does not read marks the row's answer as bad."""
        labels = self.judging & row.keys()
        if not labels:
            return
        for other in fitting(self.formats, row, ("unpaired",)):
            try:
                good = other.convert(row, "").label
            except Exception:  # the label is no judgement
                continue
            if good is not False:
                continue
            for label in sorted(labels & other.keys(row)):
                what = f"is {row[label]!a}: the answer is marked as a bad one, and would be learned as a good one"
                raise RowError("bad-answer", f"{what}; kto learns from such rows", label)


def _holds(value: Any) -> bool:
    """Return whether a column of media has anything in it."""
    if isinstance(value, list | tuple):
        return any(map(_holds, value))
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    return bool(value) if isinstance(value, str | bytes) else not isinstance(value, bool | int | float | None)


def _judging(formats: Iterable[Format]) -> Iterator[str]:
    """Yield the keys that make a row one whose answer was judged."""
    for format in formats:
        for shape in getattr(format, "shapes", ()):  # a broken plugin has none
            yield from shape.required if shape.kind == "unpaired" else ()


def work(reader: Reader, job: Job) -> list[Row | BadRow]:
    """All rows of a chunk."""
    wanted = islice(job.chunk.rows(), job.skip, None)
    return [reader.row(job.file, line, row) for line, row in wanted]


def fitting(formats: Iterable[Format], row: Mapping[str, Any], kinds: Iterable[Kind] = KINDS) -> list[Format]:
    """The formats that a row can be of, restricted to kinds; one that reads less of the row than another is out."""
    found = {narrow: narrow.keys(row) for format in formats if _matches(narrow := format.only(kinds), row)}
    return [format for format, mine in found.items() if not any(mine < other for other in found.values())]


def _matches(format: Format, row: Mapping[str, Any]) -> bool:
    try:
        return format.matches(row)
    except Exception:  # a broken plugin stops no one who does not ask for it
        return False


def bad_row(file: str, line: int, fault: RowError, columns: Mapping[str, str] | None = None) -> BadRow:
    """The fault with its place, under the file's names and safe to print."""
    head = fault.field.partition(".")[0].partition("[")[0]
    field = (columns or {}).get(head, head) + fault.field[len(head) :]
    return BadRow(file, line, fault.kind, _printable(field), _printable(fault.what))


def digest(record: Record) -> bytes:
    """8 bytes over what a record teaches: the same in every process, file type and version of Python."""
    contents: list[Any] = [
        record.kind,
        record.text,
        record.prompt,
        record.completion,
        record.chosen,
        record.rejected,
        record.label,
    ]
    contents += [record.margin, record.tools, dict(record.chat_template_kwargs)]
    pieces: list[str] = []
    _netstrings(contents, pieces)
    return hashlib.blake2b("".join(pieces).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _netstrings(value: Any, pieces: list[str]) -> None:
    """Unambiguous pieces: every string and list is preceded by its length."""
    if isinstance(value, str):
        pieces += (f"s{len(value)}:", value)
    elif isinstance(value, dict):
        pieces.append(f"d{len(value)}:")
        for key in sorted(value, key=str):
            _netstrings(key, pieces)
            _netstrings(value[key], pieces)
    elif isinstance(value, (list, tuple)):
        pieces.append(f"l{len(value)}:")
        for item in value:
            _netstrings(item, pieces)
    else:
        pieces.append(f"o{value!r};")


def _printable(text: str) -> str:
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 300 else text[:297] + "..."
