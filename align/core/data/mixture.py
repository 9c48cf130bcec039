"""A stage's data settings to records: mixtures, the held-out split, the policy on bad rows, and streams."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.core.data.lint.duplicates import learned_again
from align.core.data.lint.finding import LintFinding
from align.core.data.rows import BadRow, BadRows, read_report, write_report
from align.core.data.sources import Reading, Row
from align.core.util.atomic_files import sha256
from align.schemas.errors import AlignError
from align.schemas.records import Kind, Record
from align.schemas.run import Data, Source


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


FIX = "fix the rows (`align data check FILE` names all of them), or leave them out with data.on_bad_rows: skip"
