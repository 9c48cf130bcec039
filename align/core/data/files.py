"""Files to chunks: the reading process only finds where rows end, and decompresses."""

from __future__ import annotations

import csv
import io
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from align.core.data.chunks import Batch, Chunk, Elements, Lines, Parsed, Table
from align.core.data.faults import RowError
from align.core.data.strict import MAX_ROW
from align.schemas.errors import AlignError

BLOCK = 2**20
"""Bytes read at a time."""
ROWS = 256
"""Rows of a table (CSV, Parquet, hub) in one chunk."""
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def chunks(path: Path) -> Iterator[tuple[Chunk, int]]:
    """The rows of one file in order, each chunk with how many bytes of the file have been read when it is there.

    A file that breaks off ends with the RowError ``damaged-file``. Raises AlignError where it cannot be opened.
    """
    kind, compression = file_kind(path)
    line = 0
    try:
        with path.open("rb") as raw:
            if kind == ".parquet":
                source: Iterable[Chunk] = _parquet(raw)
            elif kind == ".csv":
                source = _csv(_decompressed(raw, compression))
            elif kind == ".json":
                source = _json(_decompressed(raw, compression))
            else:
                source = _lines(_decompressed(raw, compression))
            for chunk in source:
                if isinstance(chunk, Lines):
                    line = chunk.first + chunk.data.count(b"\n")
                yield chunk, raw.tell()
    except (FileNotFoundError, PermissionError) as error:
        raise AlignError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (OSError, ValueError, EOFError) as error:  # what pyarrow raises for a truncated or corrupt file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        yield Table([(line, RowError("damaged-file", f"cannot be read any further: {reason}"))]), path.stat().st_size


def file_kind(path: Path) -> tuple[str, str | None]:
    """``.jsonl`` and how it is compressed; an empty string for a file that is none of ours."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    kind = Path(path.stem if compression else path.name).suffix.lower()
    if kind not in SUFFIXES or (compression and kind == ".parquet"):
        return "", None
    return kind, compression


def _decompressed(raw: IO[bytes], compression: str | None) -> IO[bytes]:
    if compression is None:
        return raw
    import pyarrow as pa

    return cast("IO[bytes]", pa.input_stream(raw, compression=compression))


def _start(block: bytes) -> bytes:
    """The first bytes of a text file without the mark that says it is UTF-8; ValueError if it says it is UTF-16."""
    if block.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16; save it as UTF-8")
    return block.removeprefix(b"\xef\xbb\xbf")


def _lines(stream: IO[bytes]) -> Iterator[Lines]:
    """Blocks cut at line ends. Of a line that is too long only as much is kept as shows it."""
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


_TOKEN = re.compile(rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"|[\[\]{},]')


def _json(stream: IO[bytes]) -> Iterator[Chunk]:
    """A JSON array, cut at the commas between its elements; also JSON lines under a .json name."""
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(stream, file)
        file.seek(0)
        head = _start(file.read(BLOCK)).lstrip()
        if head.startswith(b"["):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield from _elements(data)
        elif head:
            first, *others = [line.strip() for line in head.splitlines() if line.strip()]
            if others and not others[0].startswith(b"{") and not first.endswith(b"}"):
                raise ValueError("it is one JSON object over several lines, not an array of rows")
            file.seek(0)
            yield from _lines(cast("IO[bytes]", file))


def _elements(data: mmap.mmap) -> Iterator[Elements]:
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
    return sum(data[at : min(at + BLOCK, stop)].count(b"\n") for at in range(start, stop, BLOCK))


def _csv(stream: IO[bytes]) -> Iterator[Table]:
    """Rows of a CSV file with a header; every cell is a string."""
    marks: dict[int, RowError] = {}
    csv.field_size_limit(MAX_ROW)
    reader = csv.reader(_text_lines(stream, marks), strict=True)
    header = next(reader, [])
    if marks:
        raise ValueError(f"its header {marks[1].what}")
    if len(set(header)) != len(header):
        raise ValueError("its header names a column twice")
    found: list[Parsed] = []
    while True:
        first = reader.line_num + 1
        row: dict[str, Any] | RowError | None = None
        try:
            cells = next(reader)
            if len(cells) == len(header):
                row = dict(zip(header, cells, strict=True))
            elif cells:
                row = RowError("malformed-csv", f"has {len(cells)} cells, the header {len(header)}")
        except StopIteration:
            break
        except csv.Error as error:
            kind = "too-long" if "field limit" in str(error) else "malformed-csv"
            span = f" (lines {first} to {reader.line_num})" if reader.line_num > first else ""
            row = RowError(kind, f"{error}{span}")
        row = next((marks.pop(n) for n in range(first, reader.line_num + 1) if n in marks), row)
        if row is not None:
            found.append((first, row))
        if len(found) == ROWS:
            yield Table(found)
            found = []
    yield Table(found)


def _text_lines(stream: IO[bytes], marks: dict[int, RowError]) -> Iterator[str]:
    """Lines as text; what is wrong with one is left in ``marks`` by its number."""
    for chunk in _lines(stream):
        for number, line in enumerate(io.BytesIO(chunk.data), chunk.first):
            if len(line) > MAX_ROW:
                marks[number] = RowError("too-long", f"is longer than {MAX_ROW >> 20} MiB")
                line = line[:1]
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                marks[number] = RowError(
                    "invalid-utf8", f"byte {error.start + 1} is no UTF-8 ({line[error.start]:#04x})"
                )
                yield line.decode("utf-8", "replace")


def _parquet(raw: IO[bytes]) -> Iterator[Batch]:
    import pyarrow.parquet as pq

    first = 1
    with pq.ParquetFile(raw) as file:
        for batch in file.iter_batches(batch_size=ROWS):
            yield Batch(first, batch)
            first += batch.num_rows


def tables(dataset: Iterable[dict[str, list[Any]]]) -> Iterator[Table]:
    """Chunks of what ``datasets`` yields in batches: columns of equal length."""
    number = 1
    for columns in dataset:
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        yield Table([(number + i, row) for i, row in enumerate(rows)], nullable=True)
        number += len(rows)
