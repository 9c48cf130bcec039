"""Completions that a run stored, as data for the sample browser: bounded, whatever the run wrote.

The files are those of ``core/training/sample_log.py``; they are read here by column, so that a report needs no torch.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from align.core.report.facts import steps_per_phase
from align.core.report.read import RunFacts, StageFacts
from align.core.report.table import PromptSample, StageCompletion
from align.schemas.errors import Problem
from align.schemas.text import number

MOST_ROWS = 10_000
"""Completions on a page; of more, whole files are left out evenly, never the first and the last."""
MOST_TEXT = 4_000
"""Characters of a text; of a longer one the beginning and the end stay."""
MOST_COMPARED = 6
"""Prompts of a stage whose held-out completions are shown side by side, at the first and the last step."""
_COLUMNS = ("source", "prompt", "completion", "length", "finish", "reward", "parts", "gold")
_PHASE = re.compile(r"phase-(\d+)")
_HELD_OUT = re.compile(r"held-out-(?:(\d+)-)?(\d{6,})")


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A file of completions. rows: "" for those it learns from, else which held-out set. step: when they were made."""

    run: int
    stage: str
    rows: str
    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class StoredSamples:
    """Completions that are shown, and how many there were."""

    data: dict[str, Any]
    """``prompts`` and ``rows`` as the page's script reads them."""
    shown: int
    stored: int

    @property
    def held_out(self) -> bool:
        """Return whether completions of held-out prompts are among them."""
        return any(row[-1] for row in self.data["rows"])


def samples_of(runs: Sequence[RunFacts], most: int = MOST_ROWS) -> StoredSamples:
    """Read the stored completions of all runs. A file that cannot be read is left out with a warning on stderr."""
    import pyarrow.parquet as pq  # a tenth of a second, which a run without samples need not wait for

    counted: list[tuple[SampleFile, int]] = []
    for file in _files_of(runs):
        try:
            counted.append((file, pq.read_metadata(file.path).num_rows))
        except (OSError, ValueError) as error:
            _warn(file.path, error)
    stored = sum(count for _, count in counted)
    prompts: dict[str, int] = {}
    rows: list[list[Any]] = []
    for file, _ in _evenly(counted, most):
        for row in _rows_of(file)[: most - len(rows)]:
            prompt = prompts.setdefault(shortened(conversation(row["prompt"])), len(prompts))
            texts = [prompt, shortened(conversation(row["completion"]))]
            scores = [row["reward"], row["gold"], dict(row["parts"] or {})]
            facts = [row["length"], row["finish"], row["source"], file.rows]
            rows.append([file.run, file.stage, file.step, *texts, *scores, *facts])
    return StoredSamples({"prompts": list(prompts), "rows": rows}, len(rows), stored)


def before_and_after(run: RunFacts) -> list[PromptSample]:
    """Return held-out prompts with what each stage answered at its first and its last evaluation.

    Of each stage's first held-out set, the prompts stand evenly in the order of the change of their reward: the one
    that improved most is the first, the one that lost most the last.
    """
    found: list[PromptSample] = []
    for stage in run.stages:
        files = [file for file in _files_of([run]) if file.stage == stage.name and file.rows]
        files = [file for file in files if file.rows == files[0].rows]
        if len(files) > 1:
            found += _compared(files[0], files[-1])
    return found


def _compared(first: SampleFile, last: SampleFile) -> list[PromptSample]:
    later = {row["source"]: row for row in _rows_of(last)}
    pairs = [(row, later[row["source"]]) for row in _rows_of(first) if row["source"] in later]
    pairs.sort(key=lambda pair: (pair[0]["reward"] or 0.0) - (pair[1]["reward"] or 0.0))  # stable: ties by row
    shown = min(MOST_COMPARED, len(pairs))
    picked = [pairs[round(i * (len(pairs) - 1) / max(1, shown - 1))] for i in range(shown)]
    return [
        PromptSample(
            shortened(conversation(before["prompt"])),
            tuple(_answer(file, row) for file, row in ((first, before), (last, after))),
        )
        for before, after in picked
    ]


def _answer(file: SampleFile, row: dict[str, Any]) -> StageCompletion:
    reward = "" if row["reward"] is None else f" · reward {number(row['reward'])}"
    name = f"{file.stage} · step {file.step:,}{reward}"
    return StageCompletion(name, shortened(conversation(row["completion"])))


def _rows_of(file: SampleFile) -> list[dict[str, Any]]:
    """Return a file's rows; none of one that cannot be read (a warning is printed)."""
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(file.path, columns=list(_COLUMNS)).to_pylist(maps_as_pydicts="lossy")
    except (OSError, ValueError) as error:
        _warn(file.path, error)
        return []
    return rows


def _files_of(runs: Sequence[RunFacts]) -> list[SampleFile]:
    """Return the files of all runs, by run, stage and held-out set, and there by step."""
    return [
        file
        for index, run in enumerate(runs)
        for stage in run.stages
        for file in sorted(_files(index, stage), key=lambda file: (file.rows, file.step))
    ]


def _files(run: int, stage: StageFacts) -> Iterator[SampleFile]:
    for path in (stage.directory / "samples").glob("*.parquet"):
        if phase := _PHASE.fullmatch(path.stem):
            yield SampleFile(run, stage.name, "", (int(phase[1]) - 1) * steps_per_phase(stage) + 1, path)
        elif held_out := _HELD_OUT.fullmatch(path.stem):
            rows = f"held out, set {held_out[1]}" if held_out[1] else "held out"
            yield SampleFile(run, stage.name, rows, int(held_out[2]), path)


def _evenly(counted: list[tuple[SampleFile, int]], most: int) -> list[tuple[SampleFile, int]]:
    """Return as many of the files as hold ``most`` rows, evenly over all; of each stage the first and the last."""
    total = sum(rows for _, rows in counted)
    if total <= most:
        return counted
    found: list[tuple[SampleFile, int]] = []
    for _, group in groupby(counted, key=lambda entry: (entry[0].run, entry[0].stage, entry[0].rows)):
        files = list(group)
        keep = min(len(files), max(2, int(len(files) * most / total)))
        found += [files[round(i * (len(files) - 1) / max(1, keep - 1))] for i in range(keep)]
    return found


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
