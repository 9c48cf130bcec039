"""The directory of an eval run: rows that are only ever appended, and a manifest of what they were measured on.

    manifest.json   identity of the run (model, suite, data, judge, versions), and whether it is complete
    rows.jsonl      one row for each item and sample, each line with its own checksum
    metrics.json    the metrics of each eval, once it is complete

A run that was interrupted goes on where it ended: rows on disk are not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from filelock import FileLock, Timeout

from align.core.evaluation.eval import Row
from align.core.util import atomic_files
from align.schemas.errors import AlignError, Problem

ROWS, MANIFEST, METRICS, LOCK = "rows.jsonl", "manifest.json", "metrics.json", ".lock"
FORMAT = 1
"""Version of the directory's layout."""


def read_rows(directory: Path, *, partial: bool = False) -> list[Row]:
    """Return the rows of a run, in the order in which they were written.

    partial: leave out a last line that was cut off by a crash, instead of refusing it. Raises AlignError for a
    line that is no row, or not what was written, and for two rows of one item and sample.
    """
    path = directory / ROWS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = content.split(b"\n")
    whole, cut = lines[:-1], lines[-1]
    if cut and not partial:
        raise AlignError("ends in the middle of a row", "finish it: run align eval again", where=str(path))
    rows: dict[tuple[str, str, int], Row] = {}
    for number, line in enumerate(whole, 1):
        where = f"{path}:{number}"
        try:
            row = Row.parsed(line)
        except ValueError as error:
            raise AlignError(str(error), "remove the directory and measure again", where=where) from None
        if row.key in rows:
            raise AlignError(f"has item {row.item_id!r} of {row.eval} twice", "measure again", where=where)
        rows[row.key] = row
    return list(rows.values())


class RowSink(Protocol):
    """A place for rows. rows: those that it has, by their keys."""

    rows: dict[tuple[str, str, int], Row]

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows. Raises AlignError for one that is there already."""
        ...


class RowList:
    """Rows in memory, for evals inside training: a step's rows count together, or not at all."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, int], Row] = {}

    def append(self, rows: Sequence[Row]) -> None:
        """See ``RowSink``; the runner measures no row twice."""
        self.rows |= {row.key: row for row in rows}


class RowStore:
    """An open run directory: the rows that it has, and a place to append further ones.

    identity: everything that decides what a row is; a directory with another identity is refused, so that no run mixes
    two models. was_complete: True if nothing was left to measure when it was opened. Raises AlignError for a directory
    of another run or of something else, one that another process has open, and damaged rows.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self.directory, self.identity = directory, identity
        directory.mkdir(parents=True, exist_ok=True)
        begun = (directory / MANIFEST).exists()
        if not begun and any(path.name != LOCK for path in directory.iterdir()):
            raise AlignError("is not empty, and holds no eval run", "name a new directory", where=str(directory))
        # Two processes would measure every item twice, and a file with two rows of one item cannot be read any more.
        self._lock = FileLock(directory / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            fix = "wait for it, or name another directory"
            raise AlignError("another process is measuring into it", fix, where=str(directory)) from None
        try:
            self.was_complete = False
            if begun:
                manifest = read_manifest(directory)
                self._check_same(manifest)
                unchanged = manifest.get("rows_sha256") == _sum_of_rows(directory)
                self.was_complete = manifest["complete"] and unchanged and (directory / METRICS).exists()
            else:
                self._write_manifest({"complete": False})
            self.rows = {row.key: row for row in read_rows(directory, partial=True)}
            self._file = open(directory / ROWS, "ab")  # noqa: SIM115 - closed by __exit__
            self._drop_cut_line()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError:
            if error is None:  # else a row that could not be written, which is being reported, failed once more
                raise
        finally:
            self._lock.release()

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows, and flush them to the disk. Raises AlignError for a row that is there already."""
        for row in rows:
            if row.key in self.rows:
                raise AlignError(f"item {row.item_id!r} was measured already", where=row.eval)
        with atomic_files.name_in_errors(self.directory / ROWS):
            self._file.write(b"".join(row.line() for row in rows))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.rows |= {row.key: row for row in rows}

    def complete(self, metrics: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write the metrics, then mark the run as complete; its rows are verified when it is read.

        facts: further values for the manifest, which no row depends on.
        """
        atomic_files.write_json(self.directory / METRICS, {"metrics": metrics})
        self._write_manifest({"complete": True, "rows_sha256": atomic_files.sha256(self.directory / ROWS), **facts})

    def _write_manifest(self, facts: Mapping[str, Any]) -> None:
        content = {"format": FORMAT, "identity": self.identity, **facts}
        atomic_files.write_json(self.directory / MANIFEST, content)

    def _check_same(self, manifest: Mapping[str, Any]) -> None:
        changed = sorted(differing(manifest["identity"], self.identity))
        if changed:
            fix = "name a new directory, or measure with what it began with"
            where = str(self.directory)
            raise AlignError.gather(Problem(where, f"was begun with another {key}", fix) for key in changed)

    def _drop_cut_line(self) -> None:
        """Remove what a crash left of a line; a row that follows it would be unreadable."""
        path = self.directory / ROWS
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)


def _sum_of_rows(directory: Path) -> str | None:
    path = directory / ROWS
    return atomic_files.sha256(path) if path.exists() else None


def read_manifest(directory: Path) -> Mapping[str, Any]:
    """Return a run's manifest. Raises AlignError where there is none, it is damaged, or of another format."""
    path = directory / MANIFEST
    try:
        manifest = atomic_files.read_json(path, "measure again into a new directory")
    except FileNotFoundError:
        fix = "give the directory that --out named for align eval run"
        raise AlignError("holds no eval run", fix, where=str(directory)) from None
    if manifest.get("format") != FORMAT:
        raise AlignError("is of another version of align", "measure again with this one", where=str(path))
    return manifest


def read_run(directory: Path) -> tuple[Mapping[str, Any], list[Row], Mapping[str, Mapping[str, float]]]:
    """Return manifest, rows and metrics of a complete run. Raises AlignError where it is incomplete or damaged."""
    manifest, metrics = read_summary(directory)
    return manifest, read_rows(directory), metrics


def read_summary(directory: Path) -> tuple[Mapping[str, Any], Mapping[str, Mapping[str, float]]]:
    """Return manifest and metrics of a complete run, whose rows are verified and not parsed. Raises as ``read_run``."""
    manifest = read_manifest(directory)
    if not manifest["complete"]:
        raise AlignError("is not complete", "finish it: run the same align eval again", where=str(directory))
    for name in (ROWS, METRICS):
        if not (directory / name).is_file():
            raise AlignError("is missing", "measure again into a new directory", where=str(directory / name))
    if _sum_of_rows(directory) != manifest["rows_sha256"]:
        raise AlignError("is not what was written", "measure again into a new directory", where=str(directory / ROWS))
    metrics = atomic_files.read_json(directory / METRICS, "measure again into a new directory")["metrics"]
    return manifest, metrics


WEIGHTS = (
    *("*.safetensors", "*.bin", "*.index.json", "adapter_config.json", "config.json", "generation_config.json"),
    "*.py",  # the model's own code, under trust_remote_code
)
"""The files in a model's directory that are its weights and how they are computed with."""


def weights_sum(sums: Mapping[str, str]) -> str:
    """Return the hash by which a run's identity knows a model's weights.

    sums: sha256 by name, of all files of the directory or more: those that are no weights are left out.
    """
    names = sorted(name for name in sums if any(fnmatchcase(name, pattern) for pattern in WEIGHTS) and "/" not in name)
    return atomic_files.digest([[name, sums[name]] for name in names])


def differing(old: Any, new: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted keys at which two identities differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {*old, *new}:
            yield from differing(old.get(key), new.get(key), f"{above}.{key}".removeprefix("."))
    elif old != new:
        yield above
