"""Rows of our own in the published formats of the static benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines, and return the file's path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mmlu_rows(subject: str, start: int, count: int) -> list[dict[str, Any]]:
    """Sums with four choices; the right one moves from A to D and round again."""
    rows = []
    for n in range(start, start + count):
        choices = [str(2 * n + (place - n) % 4) for place in range(4)]
        rows.append({"question": f" What is {n}+{n}? ", "subject": subject, "choices": choices, "answer": n % 4})
    return rows


MMLU = [*mmlu_rows("abstract_algebra", 0, 8), *mmlu_rows("anatomy", 20, 4)]
MMLU_SHOTS = [*mmlu_rows("anatomy", 50, 5), *mmlu_rows("abstract_algebra", 60, 6)]
