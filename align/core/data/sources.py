"""A stage's data settings to records: mixtures, the held-out split, the policy on bad rows, and streams."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.core.data.files import CHUNK, COMPRESSIONS, ROWS, SUFFIXES, chunks, file_kind, tables
from align.core.data.formats import KINDS, Format, Shape
from align.core.data.lint.finding import LintFinding
from align.core.data.lint.held_out import learned_again
from align.core.data.row_errors import BadRow, BadRows, RowError, read_report, write_report
from align.core.data.rows import Chunk, Form, Job, Reader, Row, Table, bad_row, fitting, work
from align.core.data.tokenize import ordered_map
from align.core.plugin_system import registry
from align.core.util.atomic_files import sha256
from align.core.util.progress import Work
from align.schemas.errors import AlignError, did_you_mean
from align.schemas.records import Kind, Record
from align.schemas.run import Data, Source
from align.schemas.text import visible

# Where a source's rows are: a file, the files of a directory, or a data set on the hub or saved from it.

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
    """One file, or one split of a data set.

    name: what messages call it. size: bytes, 0 where unknown. path: None for a data set.
    open: its chunks in order, each with how much of ``size`` is read by then.
    """

    name: str
    size: int
    path: Path | None
    open: Callable[[], Iterator[tuple[Chunk, int]]]


def locate(source: Source, stream: bool = False) -> tuple[list[Part], list[str]]:
    """The parts of a source in order of their names, and the files of its directory that are none of them.

    stream: read a hub data set as it downloads.

    Raises AlignError where there are none.
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

    Hidden files and those of ``datasets`` itself are left out; .txt files are read where there are no others.

    Where names tell splits apart (``train-00000.parquet``, ``data/test.jsonl``), those of one split only.
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
    except Exception as error:  # whatever the library raises, the data set could not be had
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AlignError(
            f"cannot be loaded as a hub data set: {reason}",
            "check id, subset, split, connection and login; here there is no file or directory of that name",
            where=source.path,
        ) from error
    if hasattr(dataset, "keys"):  # load_from_disk gives all splits
        if source.split not in dataset:
            raise AlignError(f"has no split {source.split!r}", f"split: {', '.join(dataset)}", where=source.path)
        dataset = dataset[source.split]

    rows, size = getattr(dataset, "num_rows", None), 0
    if rows:  # not known of a stream
        size = int(dataset.data.nbytes)

    def read() -> Iterator[tuple[Chunk, int]]:
        done = 0
        for chunk in tables(dataset.iter(max(1, min(ROWS, CHUNK * (rows or 1) // max(1, size))))):
            done += len(chunk)
            yield chunk, done * size // (rows or 1)

    return Part(name, size, None, read)


# Reading a source: every row of it comes out, as a Record or as a BadRow that says where and what is wrong.

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
        what, fix = unknown_keys(self.asked, vote.keys, self.kinds)
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


FIX = "fix the rows (`align data check FILE` names all of them), or leave them out with data.on_bad_rows: skip"


@dataclass(frozen=True, slots=True)
class Records:
    """All that a stage learns from and is measured on.

    train_sources, validation_sources: [N] which source each record came from. weights: each training source's share.
    names: of the training sources, validation_names: of the held-out ones (the training sources' where a fraction is
    held out). fingerprint: sha256 over what the training records teach, their order, sources and weights. findings:
    rows that are there more than once, and held-out rows that are learned from.
    """

    train: list[Record]
    train_sources: NDArray[np.int32]
    weights: tuple[float, ...]
    names: tuple[str | None, ...]
    validation: list[Record]
    validation_sources: NDArray[np.int32]
    validation_names: tuple[str | None, ...]
    fingerprint: str
    bad: BadRows
    findings: list[LintFinding]


def load_records(
    data: Data, learns_from: Sequence[Kind], report_dir: Path | None = None, progress: bool | None = None
) -> Records:
    """Read everything; of a stream (``data.stream``) the held-out rows only.

    report_dir: where ``data_report.json`` is left, whether or not rows are bad. The order of the records is that of
    sources, files and rows. Raises AlignError naming rows where they are bad and not to be skipped, where a file is
    damaged, where a source cannot be read or holds other kinds than ``learns_from``, and where no row is left.
    """
    _check(data)
    bad, reports = BadRows(), list[dict[str, Any]]()
    train, held_out = _Pile(), _Pile()
    for index, source in enumerate(() if data.stream else data.train):
        for row in _rows(source, data, learns_from, bad, reports, progress):
            (held_out if share(row) < data.validation_fraction else train).add(row, index)
    for index, source in enumerate(data.validation or ()):
        for row in _rows(source, data, learns_from, bad, reports, progress):
            held_out.add(row, index)
    findings = learned_again(train.records, train.digests, held_out.records, held_out.digests)
    if report_dir is not None:
        learned = 0 if data.stream else len(data.train)
        told = [{**report, "held_out": place >= learned} for place, report in enumerate(reports)]
        write_report(report_dir / "data_report.json", told, bad, findings)
    _stop(data, bad)
    good = len(train.records) + len(held_out.records)
    split = f" (data.validation_fraction: {data.validation_fraction:g} of {good:,})" if data.validation_fraction else ""
    if not train.records and not data.stream:
        fix = "give more rows, or hold out less: data.validation_fraction"
        raise AlignError(f"no row is left to learn from{split * bool(good)}; {bad.summary}", fix)
    if not held_out.records and (data.validation or data.validation_fraction):
        fix = "give more rows, raise data.validation_fraction, or leave it out to hold nothing out"
        if data.validation:
            fix = "give data.validation good rows, or leave it out to hold nothing out"
        raise AlignError(f"no row is left to be held out{split}; {bad.summary}", fix)
    weights = tuple(source.weight for source in data.train)
    return Records(
        train=train.records,
        train_sources=np.array(train.sources, np.int32),
        weights=weights,
        names=tuple(source.name for source in data.train),
        validation=held_out.records,
        validation_sources=np.array(held_out.sources, np.int32),
        validation_names=tuple(source.name for source in data.validation or data.train),
        fingerprint=hashlib.sha256(train.hash.digest() + repr(weights).encode()).hexdigest(),
        bad=bad,
        findings=findings,
    )


def share(row: Row) -> float:
    """A row's place in [0, 1), by what it teaches; those below the held-out fraction are held out.

    So a row stays on its side whatever rows are added or removed, and rows that differ only in their ids lie together.
    """
    return int.from_bytes(row.digest) / 2**64


class _Pile:
    """Records on one side of the split."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.sources: list[int] = []
        self.digests = array("Q")
        self.hash = hashlib.sha256()

    def add(self, row: Row, source: int) -> None:
        self.records.append(row.record)
        self.sources.append(source)
        self.digests.append(int.from_bytes(row.digest))
        self.hash.update(row.digest + source.to_bytes(4))


def _check(data: Data) -> None:
    if data.validation_fraction and (data.validation or data.stream):
        why = "held-out rows are named by data.validation" if data.validation else "a stream is never seen as a whole"
        fix = "leave it out" if data.validation else "name held-out rows with data.validation"
        raise AlignError(f"has no use: {why}", fix, where="data.validation_fraction")


def _stop(data: Data, bad: BadRows) -> None:
    if len(bad) and data.on_bad_rows == "error":
        raise bad.error(FIX)
    if bad.counts["damaged-file"]:
        raise bad.error("fix the damaged file; how many rows it has lost cannot be known, so none are skipped")


def _rows(
    source: Source,
    data: Data,
    kinds: Iterable[Kind],
    bad: BadRows,
    reports: list[dict[str, Any]],
    progress: bool | None,
) -> Iterator[Row]:
    """The good rows of a source; the bad ones go into the book, and what was read into ``reports``."""
    reading, good, before = Reading(source, kinds), 0, len(bad)
    with ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter free
        files = [(part.name, beside.submit(sha256, part.path) if part.path else None) for part in reading.parts]
        for item in reading.rows(workers=data.dataset_num_proc, progress=progress):
            if isinstance(item, BadRow):
                bad.add(item)
            else:
                good += 1
                yield item
    reports.append(
        {
            "path": source.path,
            "name": source.name,
            "weight": source.weight,
            "form": str(reading.form),
            "rows": good,
            "bad": len(bad) - before,
            "left_out": reading.left_out,
            "files": [{"path": name, "sha256": digest.result() if digest else None} for name, digest in files],
        }
    )


class Place(NamedTuple):
    """How far a stream has come in one source: whole passes, rows (good and bad) of this one, records handed out."""

    passes: int = 0
    row: int = 0
    drawn: int = 0


class Window(NamedTuple):
    """Some records of a stream, to be learned from as one epoch of the step plan.

    sources: [N] which source each came from; the mixture is made already, so weigh them equally. places: where the
    stream goes on, source by source; plain numbers, so a checkpoint may keep them. bad: the bad rows among these.
    """

    records: list[Record]
    sources: NDArray[np.int32]
    places: tuple[Place, ...]
    bad: BadRows


def stream_records(
    data: Data,
    learns_from: Sequence[Kind],
    start: Sequence[Sequence[int]] | None = None,
    report_dir: Path | None = None,
) -> Iterator[Window]:
    """Windows of ``data.stream_window`` records without end, in bounded memory: a source that ends begins again.

    Each next record comes from the source that is furthest behind its weight, in the order of its files and rows.
    start: the ``places`` of the window before; from there on the windows are the same as they were without a break.
    report_dir: where ``stream_report.json`` is left once a row was bad; with ``skip`` it goes on where it was left.
    Ids are not compared, as that would need all of them. Raises AlignError as ``load_records`` does, for the bad rows
    of a window before the window is handed out.
    """
    places = [Place(*place) for place in start] if start else [Place()] * len(data.train)
    if len(places) != len(data.train):
        raise AlignError(f"the stream was left with {len(places)} sources, now there are {len(data.train)}")
    streams = [_Stream(source, learns_from, place) for source, place in zip(data.train, places, strict=True)]
    report = report_dir / "stream_report.json" if report_dir else None
    everything = read_report(report) if report and data.on_bad_rows == "skip" else BadRows()
    while True:
        records, sources, bad = list[Record](), list[int](), BadRows()
        while len(records) < data.stream_window:
            index = min(range(len(streams)), key=lambda i: (streams[i].drawn + 1) / data.train[i].weight)
            record = streams[index].draw(bad)
            if record is None:  # a whole pass gave nothing
                _stop(data, bad)
                raise AlignError(f"has no good row; {bad.summary}", where=data.train[index].path)
            records.append(record)
            sources.append(index)
        if len(bad):
            everything.merge(bad)
            if report is not None:
                write_report(report, [{"path": source.path} for source in data.train], everything, counted_on=True)
            _stop(data, bad)
        yield Window(records, np.array(sources, np.int32), tuple(stream.place for stream in streams), bad)


class _Stream:
    """One source, over and over."""

    def __init__(self, source: Source, kinds: Iterable[Kind], place: Place) -> None:
        self.reading = Reading(source, kinds, stream=True)
        self.passes, self.row, self.drawn = place
        self.fruitful = place.row > 0
        self.items = self.reading.rows(workers=1, progress=False, start=place.row, unique=False)

    @property
    def place(self) -> Place:
        return Place(self.passes, self.row, self.drawn)

    def draw(self, bad: BadRows) -> Record | None:
        """The next good row; None at the end of a pass without one. Bad rows are entered when first passed."""
        while True:
            for item in self.items:
                if isinstance(item, Row):
                    self.row, self.drawn, self.fruitful = self.row + 1, self.drawn + 1, True
                    return item.record
                self.row += item.kind != "empty-file"
                if self.passes == 0:
                    bad.add(item)
            if not self.fruitful:
                return None
            self.passes, self.row, self.fruitful = self.passes + 1, 0, False
            self.items = self.reading.rows(workers=1, progress=False, unique=False)
