"""One parsed row to a Record, or to a BadRow: the work that reading shares out among processes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from align.core.data.chunks import Chunk
from align.core.data.faults import BadRow, RowError
from align.core.data.formats import KINDS, Format
from align.schemas.records import Kind, Record


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

    form: None where no row parses. formats: all there are, to tell what a row is that does not fit. columns: ours to
    the file's.
    """

    form: Form | None
    formats: Collection[Format]
    columns: Mapping[str, str]

    def row(self, file: str, line: int, row: dict[str, Any] | RowError, nullable: bool) -> Row | BadRow:
        """Understand one row. nullable: whether null may stand for what is not there (Arrow)."""
        try:
            if isinstance(row, RowError):
                raise row
            record = self._convert(self.renamed(row), f"{file}:{line}", nullable)
            return Row(record, digest(record))
        except RowError as error:
            fault = error
        except ValueError as error:
            fault = RowError("refused", str(error))
        except Exception as error:  # a plugin's bug is told with its row, like all else about a row
            fault = RowError("refused", f"makes its format plugin fail: {type(error).__name__}: {error}")
        return bad_row(file, line, fault, self.columns)

    def renamed(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row under our names. Raises RowError where a column would take the place of another."""
        if not self.columns:
            return row
        ours = {theirs: own for own, theirs in self.columns.items()}
        found = {ours.get(key, key): value for key, value in row.items()}
        if len(found) < len(row):
            own, theirs = next((o, t) for o, t in self.columns.items() if t in row and o in row and o not in ours)
            raise RowError("duplicate-key", f"is there beside {theirs!r}, which is to be read as {own!r}", own)
        return found

    def _convert(self, row: Mapping[str, Any], source: str, nullable: bool) -> Record:
        assert self.form is not None  # a row that parses has been seen by then
        format = self.form.format
        if nullable:
            row = {key: pruned(value) if key in format.known else value for key, value in row.items()}
        if not format.matches(row):
            for other in fitting(self.formats, row):
                if not other.keys(row) <= format.known:
                    raise RowError("mixed", f"is a row of format {other.name} among {self.form}")
        return format.convert(row, source)


def work(reader: Reader, job: Job) -> list[Row | BadRow]:
    """All rows of a chunk."""
    wanted = islice(job.chunk.rows(), job.skip, None)
    return [reader.row(job.file, line, row, job.chunk.nullable) for line, row in wanted]


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


def pruned(value: Any) -> Any:
    """A value of Arrow without the keys that it has only because other rows have them; null content stays."""
    if isinstance(value, dict):
        return {key: pruned(item) for key, item in value.items() if item is not None or key == "content"}
    return [pruned(item) for item in value] if isinstance(value, list) else value


def digest(record: Record) -> bytes:
    """8 bytes over what a record teaches: the same in every process, file type and version of Python."""
    said: list[Any] = [
        record.kind,
        record.text,
        record.prompt,
        record.completion,
        record.chosen,
        record.rejected,
        record.label,
    ]
    said += [record.margin, record.tools, dict(record.chat_template_kwargs)]
    pieces: list[str] = []
    _netstrings(said, pieces)
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
