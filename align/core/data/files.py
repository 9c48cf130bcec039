"""Read data files (JSONL, JSON, CSV, text, Parquet) as chunks of rows.

The reading process decompresses and finds where rows end, which is cheap; parsing, by a chunk's ``rows()``, can run in
a worker process. Memory stays bounded whatever a file holds.
"""

from __future__ import annotations

import csv
import io
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

from align.core.data.rows import MAX_ROW, RowError, checked, not_utf8, parse
from align.schemas.errors import AlignError

BLOCK = 2**20
"""Bytes read from a file at a time."""
ROWS = 256
"""Most rows of a table (CSV, Parquet, hub) in one chunk."""
CHUNK = 32 * BLOCK
"""Bytes at which a table's chunk is full, however few its rows are."""
UNPACKED, RATIO = 2**28, 200
"""A file may unpack to UNPACKED bytes plus RATIO times its own size; real text stays far below."""
SUFFIXES = (".jsonl", ".json", ".csv", ".txt", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAGIC = {
    b"\x1f\x8b": "gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "zstd (.zst)",
    b"PAR1": "Parquet (.parquet)",
    b"PK\x03\x04": "zip",
}
"""First bytes of file types that are no text, with the name of each type."""
Documents = Literal["file", "blank_lines", "lines"]


def chunks(path: Path, documents: Documents = "file") -> Iterator[tuple[Chunk, int]]:
    """Yield the rows of one file in order, each chunk with the number of the file's bytes read so far.

    documents: the part of a .txt file that makes one row. A truncated or damaged file ends with the RowError
    ``damaged-file``. Raises AlignError where it cannot be opened or read, or there is no room to unpack it: then the
    file itself may be good.
    """
    kind, compression = file_kind(path)
    line = 0
    try:
        with path.open("rb") as raw:
            unpacked = raw if kind == ".parquet" else _unpacked(raw, compression)
            if kind == ".parquet":
                source: Iterable[Chunk] = _parquet(raw)
            elif kind == ".csv":
                source = _csv(unpacked)
            elif kind == ".txt":
                source = _documents(unpacked, documents)
            elif kind == ".json":
                source = _json(unpacked, spool=compression is not None)
            else:
                source = _lines(unpacked)
            for chunk in source:
                if isinstance(chunk, Lines):
                    line = chunk.first + chunk.data.count(b"\n")
                yield chunk, raw.tell()
    except MemoryError:
        raise AlignError("does not fit into memory", "split it into smaller files or rows", where=str(path)) from None
    except Exception as error:
        # An error of the system has a number; one that a damaged file causes in a decoder has none.
        if isinstance(error, OSError) and error.errno is not None:
            raise AlignError(f"cannot be read: {error.strerror}", where=str(path)) from None
        if not (isinstance(error, OSError | ValueError | EOFError) or type(error).__module__.startswith("pyarrow")):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        yield Table([(line, RowError("damaged-file", f"cannot be read any further: {reason}"))]), path.stat().st_size


def file_kind(path: Path) -> tuple[str, str | None]:
    """Return a file's suffix (``.jsonl``) and its compression; an empty suffix for a type that is not read."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    kind = Path(path.stem if compression else path.name).suffix.lower()
    if kind not in SUFFIXES or (compression and kind == ".parquet"):
        return "", None
    return kind, compression


def _unpacked(raw: IO[bytes], compression: str | None) -> IO[bytes]:
    if compression is None:
        return raw
    import pyarrow as pa

    return cast("IO[bytes]", _Bounded(pa.input_stream(raw, compression=compression), _limit(raw)))


def _limit(raw: IO[bytes]) -> int:
    """Return how many bytes a file may unpack to."""
    return UNPACKED + RATIO * os.fstat(raw.fileno()).st_size


def _too_large(limit: int) -> ValueError:
    """Return the error of a file that unpacks to more than ``limit`` bytes."""
    what = f"it unpacks to more than {limit >> 20:,} MiB, far more than text of its size does"
    return ValueError(f"{what}; if that is meant, give its rows as JSONL")


class _Bounded:
    """A stream that raises once more than ``limit`` bytes were read, since a few kB may unpack to terabytes."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self.stream, self.limit, self.left = stream, limit, limit

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, as a file does. Raises ValueError past the limit."""
        block = self.stream.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise _too_large(self.limit)
        return block


def _start(block: bytes) -> bytes:
    """Return the first bytes of a text file without a byte order mark. Raises ValueError if they are no UTF-8 text."""
    if block.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16; save it as UTF-8")
    for magic, name in MAGIC.items():
        if block.startswith(magic):
            raise ValueError(f"it is {name}, whatever its name says; name it so, or unpack it")
    return block.removeprefix(b"\xef\xbb\xbf")


def _lines(stream: IO[bytes]) -> Iterator[Lines]:
    """Yield blocks that end at line ends. Of a line that is too long only enough is kept to see that it is."""
    line, rest, skipping = 1, b"", False
    while block := stream.read(BLOCK):
        if line == 1 and not rest:
            block = _start(block)
        if skipping:
            _, newline, block = block.partition(b"\n")
            if not newline:
                continue
            block, skipping = newline + block, False
        data = rest + block
        cut = data.rfind(b"\n") + 1
        if cut:
            yield Lines(line, data[:cut])
            line += data.count(b"\n", 0, cut)
        rest = data[cut:]
        if len(rest) > MAX_ROW:
            rest, skipping = rest[: MAX_ROW + 1], True
    if rest:
        yield Lines(line, rest)


# A JSON string may not span lines, so a stray quote spoils one row only. Possessive quantifiers cost no backtracking.
_TOKEN = re.compile(rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"|[\[\]{},]')


def _json(stream: IO[bytes], spool: bool) -> Iterator[Chunk]:
    """Yield the elements of a JSON array, or JSON lines in a file with a .json name.

    spool: copy the stream into a temporary file, since an array is read through a memory map.
    """
    with _spooled(stream) if spool else nullcontext(stream) as file:
        head = _start(file.read(BLOCK)).lstrip()
        if head.startswith(b"["):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield from _elements(data)
        elif head:
            first, *others = [line.strip() for line in head.splitlines() if line.strip()]
            if others and not others[0].startswith(b"{") and not first.endswith(b"}"):
                what = "it is one JSON object over several lines, not an array of rows"
                raise ValueError(f"{what}; write the rows as [{{...}}, ...], or each on a line of its own")
            file.seek(0)
            yield from _lines(file)


@contextmanager
def _spooled(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """Copy the stream into a temporary file, opened at its start. Raises AlignError where there is no room for it."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, file, BLOCK)
            file.seek(0)
        except OSError as error:
            if error.errno is None:  # no error of the system: the stream is damaged
                raise
            what = f"there is no room to unpack a file in: {error.strerror}"
            raise AlignError(what, "free some, or name another directory in TMPDIR", where=_temporary()) from None
        yield file


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "TMPDIR"


def _elements(data: mmap.mmap) -> Iterator[Elements]:
    """Yield the elements of a JSON array, found by counting brackets and commas outside strings, without parsing."""
    found: list[tuple[int, bytes]] = []
    line, begin, depth, size = 1, 0, 0, 0
    for token in _TOKEN.finditer(data):
        end, mark = token.start(), data[token.start()]
        depth += (mark in b"[{") - (mark in b"]}")
        if begin == 0:  # the bracket that opens the array
            line, begin = 1 + _newlines(data, 0, end), end + 1
            continue
        if depth and not (depth == 1 and mark == ord(",")):
            continue
        # Of an element that is too long only enough is kept for the row check to refuse it.
        piece = data[begin : min(end, begin + 2 * MAX_ROW)]
        element = piece.strip()
        if element or depth:
            start = line + piece[: len(piece) - len(piece.lstrip())].count(b"\n")
            found.append((start, element[: MAX_ROW + 1] or b","))
            size += len(element)
        line += _newlines(data, begin, end)
        begin = end + 1
        if size > BLOCK or depth == 0:
            yield Elements(found)
            found, size = [], 0
        if depth == 0:
            break
    yield Elements(found)
    if depth:
        raise ValueError("the array is not closed")
    if data[begin : begin + BLOCK].strip():
        raise ValueError("more follows the end of the array")


def _newlines(data: mmap.mmap, start: int, stop: int) -> int:
    """Count line feeds block by block, because a slice of a memory map is a copy."""
    return sum(data[at : min(at + BLOCK, stop)].count(b"\n") for at in range(start, stop, BLOCK))


def _csv(stream: IO[bytes]) -> Iterator[Table]:
    """Yield the rows of a CSV file with a header; every cell is a string."""
    # Errors by line: the csv module is given harmless text in place of such a line, and its row is replaced afterwards.
    marks: dict[int, RowError] = {}
    csv.field_size_limit(MAX_ROW)
    reader = csv.reader(_text_lines(stream, marks), strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise ValueError(f"its header {_csv_fault(error)}") from None
    if marks:
        raise ValueError(f"its header {next(iter(marks.values())).what}")
    if len(set(header)) != len(header):
        raise ValueError("its header names a column twice")
    found: list[Parsed] = []
    size = 0
    while True:
        first = reader.line_num + 1
        row: dict[str, Any] | RowError | None = None
        try:
            cells = next(reader)
            size += sum(map(len, cells))
            if len(cells) == len(header):
                row = dict(zip(header, cells, strict=True))
            elif cells:
                row = RowError("malformed-csv", f"has {len(cells)} cells, the header {len(header)}")
        except StopIteration:
            break
        except csv.Error as error:
            kind = "too-long" if "field limit" in str(error) else "malformed-csv"
            span = f" (lines {first} to {reader.line_num})" if reader.line_num > first else ""
            row = RowError(kind, f"{_csv_fault(error)}{span}")
        row = next((marks.pop(n) for n in range(first, reader.line_num + 1) if n in marks), row)
        if row is not None:
            found.append((first, row))
        if len(found) == ROWS or size > CHUNK:
            yield Table(found)
            found, size = [], 0
    yield Table(found)


def _csv_fault(error: csv.Error) -> str:
    """Return the message for a malformed row: Python's own is about its parser."""
    text = str(error)
    if "new-line character" in text:
        return "has a carriage return alone outside quotes; end lines with a line feed"
    return "has a quote that is never closed" if "unexpected end of data" in text else f"is no CSV: {text}"


class _CarriageReturns:
    """A stream with line feeds for carriage returns, if its first block has carriage returns alone (old Macs)."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.alone: bool | None = None

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, as a file does."""
        block = self.stream.read(size)
        if self.alone is None:
            self.alone = b"\r" in block and b"\n" not in block
        return block.replace(b"\r", b"\n") if self.alone else block


def _text_lines(stream: IO[bytes], marks: dict[int, RowError]) -> Iterator[str]:
    """Yield lines as text; the error of a line that cannot be used is put into ``marks`` under its number."""
    for chunk in _lines(cast("IO[bytes]", _CarriageReturns(stream))):
        for number, line in enumerate(io.BytesIO(chunk.data), chunk.first):
            if len(line) > MAX_ROW:
                marks[number] = RowError("too-long", f"is longer than {MAX_ROW >> 20} MiB")
                line = line[:1]
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                marks[number] = not_utf8(error)
                yield line.decode("utf-8", "replace")


def _documents(stream: IO[bytes], by: Documents) -> Iterator[Table]:
    """Yield rows ``{"text": ...}`` of a text file: the whole file, its lines, or blocks between blank lines.

    Line ends become line feeds; blank lines around a document are dropped.
    """
    found: list[Parsed] = []
    size = 0
    for first, lines in _groups(stream, by):
        document = b"".join(lines).strip(b"\n")
        if not document.strip():
            continue
        row: dict[str, Any] | RowError
        try:
            row = {"text": document.decode("utf-8")}
        except UnicodeDecodeError as error:
            row = not_utf8(error)
        if len(document) > MAX_ROW:
            fix = "" if by == "lines" else "; say where documents end, with documents: blank_lines or lines"
            row = RowError("too-long", f"is longer than {MAX_ROW >> 20} MiB{fix}")
        found.append((first, row))
        size += len(document)
        if len(found) == ROWS or size > CHUNK:
            yield Table(found)
            found, size = [], 0
    yield Table(found)


def _groups(stream: IO[bytes], by: Documents) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the first line's number and the lines of each document; of one that is too long only a part."""
    first, lines, size = 1, list[bytes](), 0
    for chunk in _lines(cast("IO[bytes]", _CarriageReturns(stream))):
        for number, line in enumerate(io.BytesIO(chunk.data), chunk.first):
            blank = not line.strip()
            if by == "lines" or (by == "blank_lines" and blank):
                yield first, lines
                first, lines, size = number, [], 0
            if blank and not lines:
                first = number + 1
            elif size <= MAX_ROW:
                lines.append(line[:-2] + b"\n" if line.endswith(b"\r\n") else line)
                size += len(line)
    yield first, lines


def _parquet(raw: IO[bytes]) -> Iterator[Chunk]:
    """Yield the record batches of a Parquet file, with few rows where rows are large.

    A file of 1 kB may hold gigabytes, because Parquet stores a repeated value once (dictionary encoding). Columns with
    large values stay dictionaries until the size of each row is known.
    """
    import pyarrow.parquet as pq

    left, first = _limit(raw), 1
    with pq.ParquetFile(raw) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > left:
            raise _too_large(left)
        average = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        rows, schema = max(1, min(ROWS, CHUNK // max(1, average))), file.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            raise ValueError("it names a column twice")
        shared = {
            column.path_in_schema
            for group in groups
            for column in map(group.column, range(group.num_columns))
            if column.has_dictionary_page and _page_size(raw, column.dictionary_page_offset) > BLOCK
        }
    with pq.ParquetFile(raw, read_dictionary=sorted(shared)) as file:
        for batch in file.iter_batches(batch_size=rows):
            pieces = _pieces(batch, first, schema) if shared else [(batch.nbytes, ArrowRows(first, batch))]
            for size, piece in pieces:
                left -= size
                if left < 0:
                    raise _too_large(_limit(raw))
                yield piece
            first += batch.num_rows


def _page_size(raw: IO[bytes], offset: int) -> int:
    """Return the unpacked size of the page at this offset, from its header (Thrift's compact protocol).

    pyarrow has no call for it. A header that is not understood counts as 2 GiB, so that its column stays a dictionary.
    """
    place = raw.tell()
    raw.seek(offset)
    head = raw.read(16)
    raw.seek(place)
    fields, at = list[int](), 0
    while len(fields) < 2 and at < len(head) and head[at] == 0x15:  # an i32: the page's type, then its size
        value = shift = 0
        at += 1
        while at < len(head):
            value |= (head[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if head[at - 1] < 0x80:
                break
        fields.append(value >> 1)  # zigzag
    return fields[1] if len(fields) == 2 else 2**31


def _pieces(batch: Any, first: int, schema: Any) -> Iterator[tuple[int, Chunk]]:
    """Split a batch with dictionaries into chunks of bounded size, each with its size; too large a row is bad."""
    waiting, size = list[int](), 0

    def expanded() -> Iterator[tuple[int, Chunk]]:
        if waiting:
            # take(), not slice(): a slice keeps all values of nested columns, and the cast would expand them all.
            yield size, ArrowRows(first + waiting[0], batch.take(waiting).cast(schema))

    for row in range(batch.num_rows):
        more = sum(map(_size, batch.slice(row, 1).columns))
        if waiting and size + more > CHUNK:
            yield from expanded()
            waiting, size = [], 0
        if more > 2 * CHUNK:
            what = f"holds {more >> 20:,} MiB; more than {2 * CHUNK >> 20} MiB are not read"
            yield 0, Table([(first + row, RowError("too-long", what))])
        else:
            waiting.append(row)
            size += more
    yield from expanded()


def _size(array: Any) -> int:
    """Return the bytes of an Arrow array with its dictionaries expanded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(lengths.take(array.indices.drop_null())).as_py() or 0)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if pa.types.is_struct(kind) or any(known(kind) for known in lists):
        inner = array.flatten()
        return sum(map(_size, inner if isinstance(inner, list) else [inner]))
    if pa.types.is_map(kind):
        return _size(array.keys) + _size(array.items)
    return int(array.nbytes)


def tables(dataset: Iterable[dict[str, list[Any]]]) -> Iterator[Table]:
    """Yield chunks of the batches that ``datasets`` gives, each a dict of columns of equal length."""
    number = 1
    for columns in dataset:
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        yield Table([(number + i, row) for i, row in enumerate(rows)])
        number += len(rows)


Parsed = tuple[int, dict[str, Any] | RowError]
"""A row's line (in a table: its number), and the row or the reason why it cannot be used."""


class Chunk(Protocol):
    """Some rows of one file, not parsed yet, few enough to hold in memory."""

    def __len__(self) -> int:
        """Return the number of rows, good and bad."""
        ...

    def rows(self) -> Iterator[Parsed]:
        """Parse the rows."""
        ...


@dataclass(slots=True)
class Lines:
    """Whole lines of JSONL; the first one is line ``first`` of the file."""

    first: int
    data: bytes

    def __len__(self) -> int:
        return sum(1 for line in self.data.split(b"\n") if line.strip())

    def rows(self) -> Iterator[Parsed]:
        """Parse the lines that are not blank."""
        return _parsed((n, line) for n, line in enumerate(self.data.split(b"\n"), self.first) if line.strip())


@dataclass(slots=True)
class Elements:
    """Elements of a JSON array, each with the line on which it starts."""

    elements: list[tuple[int, bytes]]

    def __len__(self) -> int:
        return len(self.elements)

    def rows(self) -> Iterator[Parsed]:
        """Parse each element by itself, so that a malformed one spoils no other."""
        return _parsed(self.elements)


@dataclass(slots=True)
class Table:
    """Rows that a library has parsed, of a CSV file or a hub data set."""

    parsed: list[Parsed]

    def __len__(self) -> int:
        return len(self.parsed)

    def rows(self) -> Iterator[Parsed]:
        """Check the rows."""
        for number, row in self.parsed:
            yield number, _inspected(row)


@dataclass(slots=True)
class ArrowRows:
    """An Arrow record batch; its first row is row ``first`` of the file."""

    first: int
    batch: Any

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def rows(self) -> Iterator[Parsed]:
        """Convert the rows to dicts. Arrow does not check that strings are UTF-8; decoding them here does."""
        try:
            found: list[dict[str, Any] | RowError] = self.batch.to_pylist()
        except Exception:  # invalid UTF-8, or dates that Python does not have: convert row by row to find them
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
    """Return the row if it may be used, else the error in it."""
    try:
        return row if isinstance(row, RowError) else checked(row)
    except RowError as error:
        return error
