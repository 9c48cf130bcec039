"""Load the records of a stage from all its sources: the mixture, the held-out split, bad rows, and streams.

``load_records`` reads them all into memory; ``stream_records`` yields one window after another in bounded memory.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from align.core.data.rows import BadRow, BadRows, read_report, write_report
from align.core.data.sources import GoodRow, Reading
from align.core.util.atomic_files import sha256
from align.schemas.errors import AlignError
from align.schemas.records import Kind, Record
from align.schemas.run import Data, Source


class RowFinding(Protocol):
    """A finding about rows that the data report lists, such as a lint's."""

    def dump(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        ...


@dataclass(slots=True)
class Split:
    """The records on one side of the held-out split, in the order of sources, files and rows.

    sources: the index of each record's source. digests: 64 bits over the content of each record, to the character.
    """

    records: list[Record] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    digests: array[int] = field(default_factory=lambda: array("Q"))
    hash: Any = field(default_factory=hashlib.sha256)

    def add(self, row: GoodRow, source: int) -> None:
        """Append one row of the source with this index."""
        self.records.append(row.record)
        self.sources.append(source)
        self.digests.append(int.from_bytes(row.digest))
        self.hash.update(row.digest + source.to_bytes(4))


Compare = Callable[[Split, Split], Sequence[RowFinding]]
"""A check of training rows against held-out ones, such as ``align.core.data.lint.duplicates.compare_splits``."""


@dataclass(frozen=True, slots=True)
class Records:
    """All records that a stage trains on and is evaluated on.

    train_sources, validation_sources: [N] the source of each record. weights: the mixture weight of each training
    source. names: of the training sources; validation_names: of the held-out ones (the training sources' names where a
    fraction is held out). fingerprint: sha256 over the content of the training records, their order, sources and
    weights. findings: those of the check given to ``load_records``.
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
    findings: Sequence[RowFinding]


def load_records(
    data: Data,
    learns_from: Sequence[Kind],
    report_dir: Path | None = None,
    progress: bool | None = None,
    compare: Compare | None = None,
) -> Records:
    """Read all sources; of a stream (``data.stream``) the held-out rows only.

    report_dir: the directory for ``data_report.json``, which is written whether or not rows are bad. compare: a check
    whose findings go into the report and into ``Records.findings``. Records keep the order of sources, files and rows.
    Raises AlignError naming rows where they are bad and not to be skipped, where a file is damaged, where a source
    cannot be read or holds other kinds than ``learns_from``, and where no row is left.
    """
    _check(data)
    bad, reports = BadRows(), list[dict[str, Any]]()
    train, held_out = Split(), Split()
    for index, source in enumerate(() if data.stream else data.train):
        for row in _rows(source, data, learns_from, bad, reports, progress):
            side = held_out if split_position(row) < data.validation_fraction else train
            side.add(row, index)
    for index, source in enumerate(data.validation or ()):
        for row in _rows(source, data, learns_from, bad, reports, progress):
            held_out.add(row, index)
    findings = compare(train, held_out) if compare else ()
    if report_dir is not None:
        train_reports = 0 if data.stream else len(data.train)
        listed = [{**report, "held_out": index >= train_reports} for index, report in enumerate(reports)]
        write_report(report_dir / "data_report.json", listed, bad, [finding.dump() for finding in findings])
    # Only after the report is written, so that it names every bad row of a run that stops.
    _stop_on_bad_rows(data, bad)
    _stop_without_rows(data, train, held_out, bad)
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


def split_position(row: GoodRow) -> float:
    """Return a row's position in [0, 1), from a hash of its content; rows below the held-out fraction are held out.

    So a row stays on its side whatever rows are added or removed, and rows that differ only in their ids stay together.
    """
    return int.from_bytes(row.digest) / 2**64


def _check(data: Data) -> None:
    """Raise AlignError for a held-out fraction that cannot be applied."""
    if not data.validation_fraction:
        return
    where = "data.validation_fraction"
    if data.validation:
        raise AlignError("has no use: held-out rows are named by data.validation", "leave it out", where=where)
    if data.stream:
        fix = "name held-out rows with data.validation"
        raise AlignError("has no use: a stream is never seen as a whole", fix, where=where)


FIX = "fix the rows (`align data check FILE` names all of them), or leave them out with data.on_bad_rows: skip"


def _stop_on_bad_rows(data: Data, bad: BadRows) -> None:
    """Raise AlignError if the settings do not allow these bad rows to be skipped."""
    if len(bad) and data.on_bad_rows == "error":
        raise bad.error(FIX)
    if bad.counts["damaged-file"]:
        raise bad.error("fix the damaged file; how many rows it has lost cannot be known, so none are skipped")


def _stop_without_rows(data: Data, train: Split, held_out: Split, bad: BadRows) -> None:
    """Raise AlignError if no row is left to learn from, or none of those that are to be held out."""
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


def _rows(
    source: Source,
    data: Data,
    kinds: Iterable[Kind],
    bad: BadRows,
    reports: list[dict[str, Any]],
    progress: bool | None,
) -> Iterator[GoodRow]:
    """Yield the good rows of a source; add the bad ones to ``bad`` and a summary of the source to ``reports``."""
    reading, good, before = Reading(source, kinds), 0, len(bad)
    # Files are hashed in a thread while the rows are read, because hashing releases the interpreter's lock.
    with ThreadPoolExecutor(1) as hashing:
        files = [(part.name, hashing.submit(sha256, part.path) if part.path else None) for part in reading.parts]
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


# Streams: sources that are too large to hold, or never end.


class StreamPosition(NamedTuple):
    """The position of a stream in one source: whole passes, rows (good and bad) read of this pass, records returned."""

    passes: int = 0
    row: int = 0
    drawn: int = 0


class Window(NamedTuple):
    """Some records of a stream, trained on as one epoch of the step plan.

    sources: [N] the source of each record; the mixture is made already, so weigh them equally. places: the position of
    the stream in each source after this window, as plain numbers that a checkpoint can keep. bad: the bad rows that
    were passed.
    """

    records: list[Record]
    sources: NDArray[np.int32]
    places: tuple[StreamPosition, ...]
    bad: BadRows


def stream_records(
    data: Data,
    learns_from: Sequence[Kind],
    start: Sequence[Sequence[int]] | None = None,
    report_dir: Path | None = None,
) -> Iterator[Window]:
    """Yield windows of ``data.stream_window`` records without end, in bounded memory: a source that ends begins again.

    Each next record comes from the source that is furthest behind its weight, in the order of its files and rows.
    start: the ``places`` of the window before; the windows after it are the same as without an interruption.
    report_dir: the directory for ``stream_report.json``, written once a row was bad; with ``skip`` a resumed run adds
    to it. Ids are not compared, as that would need all of them. Raises AlignError as ``load_records`` does, for the bad
    rows of a window before the window is yielded.
    """
    positions = [StreamPosition(*place) for place in start] if start else [StreamPosition()] * len(data.train)
    if len(positions) != len(data.train):
        raise AlignError(f"the stream was left with {len(positions)} sources, now there are {len(data.train)}")
    streams = [_Stream(source, learns_from, at) for source, at in zip(data.train, positions, strict=True)]
    report = report_dir / "stream_report.json" if report_dir else None
    all_bad = read_report(report) if report and data.on_bad_rows == "skip" else BadRows()
    while True:
        records, sources, bad = list[Record](), list[int](), BadRows()
        while len(records) < data.stream_window:
            index = min(range(len(streams)), key=lambda i: (streams[i].drawn + 1) / data.train[i].weight)
            record = streams[index].draw(bad)
            if record is None:  # a whole pass without a good row
                _stop_on_bad_rows(data, bad)
                raise AlignError(f"has no good row; {bad.summary}", where=data.train[index].path)
            records.append(record)
            sources.append(index)
        if len(bad):
            all_bad.merge(bad)
            if report is not None:
                write_report(report, [{"path": source.path} for source in data.train], all_bad, counted_on=True)
            _stop_on_bad_rows(data, bad)
        yield Window(records, np.array(sources, np.int32), tuple(stream.position for stream in streams), bad)


class _Stream:
    """One source, read again from its start each time it ends."""

    def __init__(self, source: Source, kinds: Iterable[Kind], position: StreamPosition) -> None:
        self.reading = Reading(source, kinds, stream=True)
        self.passes, self.row, self.drawn = position
        self.has_good_row = position.row > 0  # in this pass
        self.items = self.reading.rows(workers=1, progress=False, start=position.row, unique=False)

    @property
    def position(self) -> StreamPosition:
        return StreamPosition(self.passes, self.row, self.drawn)

    def draw(self, bad: BadRows) -> Record | None:
        """Return the next good row, None at the end of a pass without one; bad rows are counted in the first pass."""
        while True:
            for item in self.items:
                if isinstance(item, GoodRow):
                    self.row, self.drawn, self.has_good_row = self.row + 1, self.drawn + 1, True
                    return item.record
                self.row += item.kind != "empty-file"
                if self.passes == 0:
                    bad.add(item)
            if not self.has_good_row:
                return None
            self.passes, self.row, self.has_good_row = self.passes + 1, 0, False
            self.items = self.reading.rows(workers=1, progress=False, unique=False)
