"""Find the files of one data source, recognise the format of its rows, and read every row as a Record or a BadRow.

Rows are read in order; of a large source, worker processes parse and convert the chunks.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from align.core.data.files import CHUNK, COMPRESSIONS, ROWS, SUFFIXES, Chunk, Table, chunks, file_kind, tables
from align.core.data.formats import KINDS, MEDIA, Format, Shape
from align.core.data.rows import BadRow, HasNaN, RowError, inspect, without_nan
from align.core.plugin_system import registry
from align.core.util.child_processes import ordered_map
from align.core.util.progress import Work
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.records import Kind, Record
from align.schemas.run import Source
from align.schemas.text import visible

# Finding the rows: a file, the files of a directory, or a data set on the hub or saved from it.

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_METADATA = ("dataset_info.json", "dataset_infos.json", "readme.txt", "license.txt", "requirements.txt")
_WORD = re.compile(r"[a-z]+")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_KNOWN = f"known: {' '.join(SUFFIXES)}, all but the last also with {' or '.join(COMPRESSIONS)}"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a source, or one split of a data set.

    name: for messages. size: bytes, 0 where unknown. path: None for a data set. open: a function that yields its
    chunks in order, each with the number of bytes of ``size`` read so far.
    """

    name: str
    size: int
    path: Path | None
    open: Callable[[], Iterator[tuple[Chunk, int]]]


def locate(source: Source, stream: bool = False) -> tuple[list[Part], list[str]]:
    """Return the parts of a source in order of their names, and the files of its directory that are left out.

    stream: read a hub data set as it downloads. Raises AlignError where there are no parts.
    """
    path = Path(source.path).expanduser()
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return [_dataset(source, lambda datasets: datasets.load_from_disk(str(path)))], []
        return _files(path, source)
    if path.is_file():
        if not file_kind(path)[0]:
            raise AlignError("is a file of an unknown type", _KNOWN, where=str(path))
        return [_file(path, source)], []
    looks_like_file = file_kind(path)[0] or source.path.startswith((".", "/", "~"))
    if path.exists() or looks_like_file or not _HUB_ID.fullmatch(source.path):
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*")][:1000]) if path.parent.is_dir() else ""
        raise AlignError("is no file or directory", near if near.startswith("did") else "", where=source.path)

    def load(datasets: Any) -> Any:
        return datasets.load_dataset(source.path, source.subset, split=source.split, streaming=stream)

    return [_dataset(source, load)], []


def data_files(source: Source) -> list[Path]:
    """Return the local files that hold a source's rows; none for a dataset of the hub.

    Raises AlignError where its directory holds none.
    """
    path = Path(source.path).expanduser()
    if not path.is_dir():
        return [path] if path.is_file() else []
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [part.path for part in _files(path, source)[0] if part.path is not None]


def _file(path: Path, source: Source) -> Part:
    return Part(str(path), path.stat().st_size, path, lambda: chunks(path, source.documents))


def _files(directory: Path, source: Source) -> tuple[list[Part], list[str]]:
    """Return the data files below a directory, and the other visible files.

    Hidden files and those of ``datasets`` itself are left out; .txt files are read where there are no others. Where
    names tell splits apart (``train-00000.parquet``, ``data/test.jsonl``), only those of one split are read.
    """
    inside = [path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file()]
    visible = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    split = source.split
    found = [path for path in visible if file_kind(path)[0] and path.name.lower() not in _METADATA]
    found = [path for path in found if file_kind(path)[0] != ".txt"] or found
    if not found:
        raise AlignError("has no data files in it", _KNOWN, where=str(directory))
    splits = {path: _split_of(path) for path in found}
    names = sorted(filter(None, set(splits.values())))
    if names:
        if nameless := [str(path) for path in found if not splits[path]]:
            what = f"has files of the splits {', '.join(names)}, and {nameless[0]} that names none"
            raise AlignError(what, "give the files one by one", where=str(directory))
        if split not in names:
            raise AlignError(f"has no files of the split {split!r}", f"split: {', '.join(names)}", where=str(directory))
        found = [path for path in found if splits[path] == split]
    return [_file(directory / path, source) for path in found], [str(path) for path in visible if path not in found]


def _split_of(path: Path) -> str:
    words = set(_WORD.findall(str(path).lower()))
    return next((split for split, names in _SPLITS.items() if words & set(names)), "")


def _dataset(source: Source, load: Callable[[Any], Any]) -> Part:
    name = f"{source.path}[{source.subset}:{source.split}]" if source.subset else f"{source.path}[{source.split}]"
    try:
        import datasets

        dataset = load(datasets)
    except Exception as error:  # whatever the library raises, the data set could not be loaded
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AlignError(
            f"cannot be loaded as a hub data set: {reason}",
            "check id, subset, split, connection and login; here there is no file or directory of that name",
            where=source.path,
        ) from error
    if hasattr(dataset, "keys"):  # a dict of splits, as load_from_disk returns
        if source.split not in dataset:
            raise AlignError(f"has no split {source.split!r}", f"split: {', '.join(dataset)}", where=source.path)
        dataset = dataset[source.split]

    rows, size = getattr(dataset, "num_rows", None), 0
    if rows:  # unknown for a stream
        size = int(dataset.data.nbytes)

    def read() -> Iterator[tuple[Chunk, int]]:
        done = 0
        for chunk in tables(dataset.iter(max(1, min(ROWS, CHUNK * (rows or 1) // max(1, size))))):
            done += len(chunk)
            yield chunk, done * size // (rows or 1)

    return Part(name, size, None, read)


# Reading: every row comes out, as a Record or as a BadRow that says where and what is wrong.

SAMPLE = 64
"""Rows by whose majority the form of a source is recognised."""
WORTH_PROCESSES = 64 * 2**20
"""Bytes from which starting worker processes saves time."""


class Reading:
    """An opened source: its parts, and the form of its rows (None where no row can be parsed).

    kinds: the kinds of rows that are wanted. stream: read a hub data set as it downloads. Raises AlignError where the
    source cannot be found, or its form is none of those wanted, or could be several.
    """

    def __init__(self, source: Source, kinds: Iterable[Kind] = KINDS, *, stream: bool = False) -> None:
        self.source, self.kinds = source, tuple(kinds)
        self.formats = [known() for known in registry.working("format").values()]
        self.wanted = self.formats if source.format == "auto" else [registry.get("format", source.format)()]
        self.parts, self.left_out = locate(source, stream)
        self.form = self._recognised()

    def rows(
        self, *, workers: int | None = None, progress: bool | None = None, start: int = 0, unique: bool = True
    ) -> Iterator[GoodRow | BadRow]:
        """Yield all rows in order.

        workers: processes, by default one per core where the source is large enough. progress: show a bar; None: as
        ``align.core.util.progress`` is set. start: rows to leave out (a file without rows gives a BadRow that does not
        count). unique: refuse a second row with the same ``id``. A truncated or damaged file ends with a BadRow
        ``damaged-file``.
        """
        total = sum(part.size for part in self.parts)
        workers = workers or len(os.sched_getaffinity(0))
        if workers == 1 or total < WORTH_PROCESSES:
            workers = 0
        form, ids, rows = self.form, dict[str | int, str](), 0
        reader, pending = Reader(form, self.formats, self.source.columns), deque[_Piece]()
        found_in_order = ordered_map(convert_chunk, reader, self._jobs(start, pending), workers)
        with Work(f"reading {visible(self.source.path)}", total / 1e6 or None, unit="MB", shown=progress) as bar:
            for found in found_in_order:
                piece = pending.popleft()
                bar.update(piece.done / 1e6)
                rows += piece.skipped + len(found)
                for item in found:
                    if isinstance(item, GoodRow):
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

    def _jobs(self, start: int, pending: deque[_Piece]) -> Iterator[ChunkJob]:
        """Yield the jobs of all parts, and append to ``pending`` a note on each for the collecting process."""
        before = 0
        for part in self.parts:
            for chunk, done in part.open():
                skip = min(start, len(chunk)) if start else 0
                start -= skip
                if skip and skip == len(chunk):
                    chunk = Table([])
                pending.append(_Piece(part, before + done, skip))
                yield ChunkJob(part.name, chunk, skip)
            before += part.size
            pending.append(_Piece(part, before, 0, ends=True))
            yield ChunkJob(part.name, Table([]), 0)

    def _recognised(self) -> Form | None:
        """Return the form of most of the first SAMPLE rows that parse; rows that fit a format count before others."""
        sure, unsure = Counter[_FormVote](), Counter[_FormVote]()
        for row in islice(self._sample(), SAMPLE):
            found = fitting(self.wanted, row, self.kinds)
            alone = found[0] if len(found) == 1 else None
            names, shape = tuple(format.name for format in found), alone and alone.shape(row)
            vote = _FormVote(names, shape.kind if shape else None, None, () if found else tuple(row))
            try:
                if alone:
                    record = alone.convert(row, "")
                    vote = vote._replace(kind=record.kind, conversational=record.conversational)
                (sure if found else unsure)[vote] += 1
            except Exception:  # reported with its row when that is read
                unsure[vote] += 1
        if not (sure or unsure):
            return None
        vote = (sure or unsure).most_common(1)[0][0]
        if len(vote.names) == 1:
            format = next(format for format in self.wanted if format.name == vote.names[0])
            return Form(format.only((vote.kind,) if vote.kind else self.kinds), vote.kind, vote.conversational)
        if vote.names:
            both = " or ".join(map(repr, vote.names))
            raise AlignError(
                f"its rows could be of format {both}", f"say which, with format: {vote.names[0]}", where=self._name
            )
        what, fix = unknown_keys(self.wanted, vote.keys, self.kinds)
        raise AlignError(what, "\n    ".join(filter(None, [fix, *registry.absent("format")])), where=self._name)

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
    """A note on a submitted job. done: bytes of the source read by then. ends: True if it is the last of its part."""

    part: Part
    done: int
    skipped: int
    ends: bool = False


class _FormVote(NamedTuple):
    """The form that one row of the sample suggests: candidate formats, kind, style, and its keys where none fits."""

    names: tuple[str, ...]
    kind: Kind | None
    conversational: bool | None
    keys: tuple[str, ...]


# Suggestions for rows that no format fits.


def unknown_keys(formats: Sequence[Format], keys: Iterable[str], kinds: Sequence[Kind]) -> tuple[str, str]:
    """Return a message for rows with these keys, which no wanted shape fits, and a fix for it."""
    row = dict.fromkeys(keys, True)  # with True, a label counts as a judgement
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
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    what = f"has the columns {', '.join(named[:_MAX_NAMED])}{more}, which no format has"
    foreign = next((fix for key, fix in _FOREIGN.items() if key in row), None)
    if foreign or fix:
        return what, foreign or fix
    if len(named) == 1 and (";" in named[0] or "\\t" in named[0]):
        return what, "separate columns with commas"
    if len(named) > 8 * _MAX_NAMED:
        return what, "if the file is one object of rows by name, write its values as an array, [{...}, ...]"
    known = "; ".join(f"{name} ({shape.kind}): {', '.join(shape.required)}" for name, shape in shapes)
    return what, f"rename them with columns: {{OURS: THEIRS}}. Known: {known}"


def _renamed(shape: Shape, row: Mapping[str, Any]) -> tuple[dict[str, str], int] | None:
    """Return a renaming (our names to the row's) with which a shape fits, and the number of columns it would then read.

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


_MAX_NAMED = 12
"""Most columns that one message names."""
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


def _mixed(row: GoodRow, form: Form) -> BadRow:
    """Return the BadRow for a row of another kind or style than its source."""
    this = Form(form.format, row.record.kind, row.record.conversational)
    return _bad(row, RowError("mixed", f"is a {this.words} row among {form}"))


def _unique(row: GoodRow, ids: dict[str | int, str]) -> GoodRow | BadRow:
    """Return the row, or a BadRow if an earlier one has its ``id``; ids: the place of the first row with each id."""
    name = row.record.columns.get("id")
    if not isinstance(name, (str, int)):
        return row
    first = ids.setdefault(name, row.record.source)
    if first is row.record.source:
        return row
    return _bad(row, RowError("duplicate-id", f"is {ascii(name)[:80]}, as in {first}", "id"))


def _bad(row: GoodRow, fault: RowError) -> BadRow:
    """Return the BadRow for a row that converted but cannot be used together with the others."""
    file, _, line = row.record.source.rpartition(":")
    return bad_row(file, int(line), fault)


# Converting: one parsed row to a Record or a BadRow. This part runs in worker processes.


class GoodRow(NamedTuple):
    """One good row. digest: 8 bytes over the record's content; id, place and further columns do not count."""

    record: Record
    digest: bytes


class Form(NamedTuple):
    """The form of a source's rows. format: restricted to ``kind``. conversational: None until a good row was seen."""

    format: Format
    kind: Kind | None
    conversational: bool | None

    @property
    def words(self) -> str:
        """Style and kind, as in ``conversational preference``."""
        style = {None: "", True: "conversational ", False: "standard "}[self.conversational]
        return style + (self.kind or "")

    def __str__(self) -> str:
        return f"{self.words} rows (format {self.format.name})"


class ChunkJob(NamedTuple):
    """A chunk of the file called ``file``, of which the first ``skip`` rows are not wanted."""

    file: str
    chunk: Chunk
    skip: int


@dataclass(frozen=True, slots=True)
class Reader:
    """A converter of parsed rows of one source to Records.

    form: None where no row parses. formats: all formats, to name the one of a row that does not fit. columns: our
    names to the file's. judging: keys that the form does not read and that mark an answer as good or bad.
    """

    form: Form | None
    formats: Collection[Format]
    columns: Mapping[str, str]
    judging: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        known = self.form.format.known if self.form else frozenset[str]()
        object.__setattr__(self, "judging", frozenset(_judging(self.formats)) - known)

    def row(self, file: str, line: int, row: dict[str, Any] | RowError) -> GoodRow | BadRow:
        """Convert one row to a Record, or to a BadRow that says why it cannot be used."""
        try:
            if isinstance(row, RowError):
                raise row
            record = self._convert(self.renamed(row), f"{file}:{line}")
            return GoodRow(record, digest(record))
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
            if key in record.columns and _holds(record.columns[key]):
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
    """Return True if a column of media has anything in it."""
    if isinstance(value, list | tuple):
        return any(map(_holds, value))
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    return bool(value) if isinstance(value, str | bytes) else not isinstance(value, bool | int | float | None)


def _judging(formats: Iterable[Format]) -> Iterator[str]:
    """Yield the keys that mark the answer of a row as good or bad."""
    for format in formats:
        for shape in getattr(format, "shapes", ()):  # a broken plugin has none
            yield from shape.required if shape.kind == "unpaired" else ()


def convert_chunk(reader: Reader, job: ChunkJob) -> list[GoodRow | BadRow]:
    """Convert the rows of one chunk."""
    wanted = islice(job.chunk.rows(), job.skip, None)
    return [reader.row(job.file, line, row) for line, row in wanted]


def fitting(formats: Iterable[Format], row: Mapping[str, Any], kinds: Iterable[Kind] = KINDS) -> list[Format]:
    """Return the formats that fit a row, restricted to kinds, without those that read less of it than another."""
    restricted = [format.only(kinds) for format in formats]
    read = {format: format.keys(row) for format in restricted if _matches(format, row)}
    return [format for format, keys in read.items() if not any(keys < others for others in read.values())]


def _matches(format: Format, row: Mapping[str, Any]) -> bool:
    try:
        return format.matches(row)
    except Exception:  # a broken plugin must not stop runs that do not use it
        return False


def bad_row(file: str, line: int, fault: RowError, columns: Mapping[str, str] | None = None) -> BadRow:
    """Return the error with its place, under the file's column names and safe to print."""
    head = fault.field.partition(".")[0].partition("[")[0]
    field = (columns or {}).get(head, head) + fault.field[len(head) :]
    return BadRow(file, line, fault.kind, _printable(field), _printable(fault.what))


def digest(record: Record) -> bytes:
    """Return an 8-byte hash of a record's content, the same in every process, file type and version of Python."""
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
    """Append an unambiguous form of a value to ``pieces``: every string and list is preceded by its length."""
    if isinstance(value, str):
        pieces += (f"s{len(value)}:", value)
    elif isinstance(value, dict):
        pieces.append(f"d{len(value)}:")
        for key in sorted(value, key=str):
            for each in (key, value[key]):
                if type(each) is str:  # as most are: without a call, since this runs for every string of the data
                    pieces += (f"s{len(each)}:", each)
                else:
                    _netstrings(each, pieces)
    elif isinstance(value, (list, tuple)):
        pieces.append(f"l{len(value)}:")
        for item in value:
            _netstrings(item, pieces)
    else:
        pieces.append(f"o{value!r};")


def _printable(text: str) -> str:
    """Return the text for a message: escaped unless printable, at most 300 characters."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 300 else text[:297] + "..."


def load_rows(source: Source) -> list[tuple[str, dict[str, Any]]]:
    """Return every row of a source as it is, without a format, each with its origin (``mmlu.jsonl:17``).

    Raises AlignError with all rows that cannot be read, and where the source cannot be found or has no rows.
    """
    rows: list[tuple[str, dict[str, Any]]] = []
    problems: list[Problem] = []
    ours = {theirs: name for name, theirs in source.columns.items()}
    for part in locate(source)[0]:
        for chunk, _ in part.open():
            for number, row in chunk.rows():
                where = f"{part.name}:{number}"
                if isinstance(row, RowError):
                    problems.append(Problem(where, str(row)))
                else:
                    rows.append((where, {ours.get(key, key): value for key, value in row.items()}))
    if problems:
        raise AlignError.gather(problems)
    if not rows:
        raise AlignError("has no rows", where=source.path)
    return rows
