"""The promise of the reading room: exactly the bad rows are reported, good rows are untouched, memory is bounded."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.core.data.rows import FAULTS, BadRow, RowError
from align.core.data.sources import GoodRow, Reading
from align.schemas.records import Record
from align.schemas.run import Source
from tests.core.poison import POISON, good, line

ROWS = 10_000


def _as_row(record: Record) -> dict[str, Any]:
    fields = ("prompt", "chosen", "rejected", "margin", "tools")
    row = {name: getattr(record, name) for name in fields} | {"chat_template_kwargs": record.chat_template_kwargs}
    return row | dict(record.columns)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, bytes], dict[int, tuple[str, str]]]:
    """The file, its good lines and its bad ones, by line number. Some good lines are escaped, some are not."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("poison") / "train.jsonl"
    entries: list[tuple[bytes, tuple[str, str] | None]] = [(line(good(i), bool(i % 3)), None) for i in range(ROWS)]
    for _, raw, kind, field in POISON:
        entries.insert(draw.randint(1, len(entries)), (raw, (kind, field)))
    for _ in range(20):  # blank lines are no rows, but they are lines
        entries.insert(draw.randint(1, len(entries)), (b" \r", None))
    with path.open("wb") as file:
        for raw, _ in entries:
            file.write(raw + (b"\r\n" if draw.random() < 0.1 else b"\n"))
    goods = {n: raw for n, (raw, bad) in enumerate(entries, 1) if bad is None and raw.strip()}
    bads = {n: bad for n, (_, bad) in enumerate(entries, 1) if bad is not None}
    return path, goods, bads


@pytest.mark.parametrize("workers", [1, 2])
def test_exactly_the_bad_rows(
    poisoned: tuple[Path, dict[int, bytes], dict[int, tuple[str, str]]], workers: int
) -> None:
    path, goods, bads = poisoned
    seen: dict[int, tuple[str, str]] = {}
    untouched = 0
    for item in Reading(Source(path=str(path))).rows(workers=workers):
        if isinstance(item, GoodRow):
            number = int(item.record.source.removeprefix(f"{path}:"))
            row, raw = _as_row(item.record), goods[number]
            untouched += line({key: row[key] for key in json.loads(raw)}, raw.isascii()) == raw
        else:
            assert item.file == str(path)
            assert item.kind in FAULTS
            assert item.what and item.what.isprintable() and len(item.what) <= 300
            seen[item.line] = item.kind, item.field
    assert seen == bads
    assert untouched == len(goods) == ROWS


@pytest.mark.parametrize(("raw", "kind", "field"), [p[1:] for p in POISON], ids=[p[0] for p in POISON])
def test_each_among_three_good_rows(tmp_path: Path, raw: bytes, kind: str, field: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([line(good(0)), raw, line(good(1)), line(good(2))]))
    bad = [item for item in Reading(Source(path=str(path))).rows() if isinstance(item, BadRow)]
    assert [(b.line, b.kind, b.field) for b in bad] == [(2, kind, field)]


def test_memory_is_bounded(poisoned: tuple[Path, object, object]) -> None:
    """100 MB on one line and 10,000 records: under 300 MB over what the imports take, here and in each worker.

    VmHWM and not ru_maxrss for this process: the latter starts at what the process that started it had.
    """
    script = """
import multiprocessing, re, resource, sys, time
from align.core.data.sources import Reading
from align.schemas.run import Source

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

if __name__ == "__main__":
    reading = Reading(Source(path=sys.argv[1]))
    before = peak()
    kept = list(reading.rows(workers=int(sys.argv[2])))
    after = peak()
    while multiprocessing.active_children():
        time.sleep(0.05)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    assert "torch" not in sys.modules
    print(len(kept), after - before, workers - before)
"""
    path = poisoned[0]
    for workers in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", script, str(path), workers], capture_output=True, text=True, check=True
        ).stdout.split()
        assert int(out[0]) == ROWS + len(POISON)
        assert float(out[1]) < 300 and float(out[2]) < 300


def test_every_kind_of_fault_is_described() -> None:
    named = {kind for _, _, kind, _ in POISON}
    elsewhere = {"malformed-csv", "empty-file", "damaged-file", "refused", "bad-answer"}
    assert named | elsewhere == set(FAULTS)


def test_a_row_error_says_what_it_says() -> None:
    assert str(RowError("null", "is null", "text")) == "is null"
