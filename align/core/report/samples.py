"""Completions that a run stored, as data for the sample browser: bounded, whatever the run wrote.

The files are those of ``core/training/sample_log.py``; they are read here by column, so that a report needs no torch.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.report.facts import steps_per_phase
from align.core.report.read import RunFacts, StageFacts
from align.schemas.errors import Problem

MOST_ROWS = 10_000
"""Completions on a page; of more, whole phases are left out evenly, never the first and the last."""
MOST_TEXT = 4_000
"""Characters of a text; of a longer one the beginning and the end stay."""
_COLUMNS = ("source", "prompt", "completion", "length", "finish", "reward", "parts", "gold")
_PHASE = re.compile(r"phase-(\d+)")


@dataclass(frozen=True, slots=True)
class StoredSamples:
    """What is shown, and how much there was."""

    data: dict[str, Any]
    """``prompts`` and ``rows`` as the page's script reads them."""
    shown: int
    stored: int


def samples_of(runs: Sequence[RunFacts], most: int = MOST_ROWS) -> StoredSamples:
    """Read the stored completions of all runs. A file that cannot be read is left out with a warning on stderr."""
    import pyarrow.parquet as pq  # a tenth of a second, which a run without samples need not wait for

    files = [
        (r, s, stage, *found) for r, run in enumerate(runs) for s, stage in _stages(run) for found in _files(stage)
    ]
    counted: list[tuple[Any, int]] = []
    for entry in files:
        try:
            counted.append((entry, pq.read_metadata(entry[-1]).num_rows))
        except (OSError, ValueError) as error:
            _warn(entry[-1], error)
    stored = sum(rows for _, rows in counted)
    prompts: dict[str, int] = {}
    rows: list[list[Any]] = []
    for (run, name, stage, phase, file), _ in _evenly(counted, most):
        try:
            found = pq.read_table(file, columns=list(_COLUMNS)).to_pylist(maps_as_pydicts="lossy")
        except (OSError, ValueError) as error:
            _warn(file, error)
            continue
        step = (phase - 1) * steps_per_phase(stage) + 1
        for row in found[: most - len(rows)]:
            prompt = prompts.setdefault(shortened(conversation(row["prompt"])), len(prompts))
            texts = [prompt, shortened(conversation(row["completion"]))]
            scores = [row["reward"], row["gold"], dict(row["parts"] or {})]
            rows.append([run, name, step, *texts, *scores, row["length"], row["finish"], row["source"]])
    return StoredSamples({"prompts": list(prompts), "rows": rows}, len(rows), stored)


def _stages(run: RunFacts) -> Iterator[tuple[str, StageFacts]]:
    for stage in run.stages:
        yield stage.name, stage


def _files(stage: StageFacts) -> list[tuple[int, Path]]:
    """Return (phase, file) of a stage, in order."""
    found = [(_PHASE.fullmatch(file.stem), file) for file in sorted((stage.directory / "samples").glob("*.parquet"))]
    return [(int(match[1]), file) for match, file in found if match]


def _evenly(counted: list[tuple[Any, int]], most: int) -> list[tuple[Any, int]]:
    """Return as many of the files as hold ``most`` rows, evenly over all; the first and the last are among them."""
    total = sum(rows for _, rows in counted)
    if total <= most or len(counted) < 3:
        return counted
    keep = max(2, int(len(counted) * most / total))
    return [counted[round(i * (len(counted) - 1) / (keep - 1))] for i in range(keep)]


def conversation(text: str) -> str:
    """Return a prompt as it is read: messages as ``role: content``, the role left out where there is only one."""
    if not text.startswith("[{"):
        return text
    try:
        turns = json.loads(text)
        lines = [f"{turn['role']}: {_content(turn.get('content'))}" for turn in turns]
    except (ValueError, KeyError, TypeError, AttributeError):
        return text
    return lines[0].partition(": ")[2] if len(lines) == 1 else "\n".join(lines)


def _content(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def shortened(text: str, most: int = MOST_TEXT) -> str:
    """Return a text, of a long one its beginning and end."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[… {len(text) - most:,} characters are left out …]\n{text[-most // 2 :]}"


def _warn(file: Path, error: Exception) -> None:
    print(Problem(str(file), f"cannot be read: {error}", "the report is made without it"), file=sys.stderr)
