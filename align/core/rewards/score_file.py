"""Scoring the lines of a file with a reward: TRL's columns in, a score and its duration for each line out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from align.core.data.rows import RowError, parse
from align.core.rewards.reward_base import Answer, Score
from align.core.rewards.scorer import RunningReward, TimedScore
from align.core.util.progress import Work
from align.schemas.errors import AlignError, Problem


@dataclass(frozen=True, slots=True)
class InputLine:
    """One line of the file. where: its place, for messages. answer: None if it holds none. fault: the reason then."""

    where: str
    answer: Answer | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reward's score for one line.

    milliseconds: the duration of the call that scored it. together: the number of lines in that call.
    """

    line: InputLine
    score: Score
    milliseconds: float
    together: int = 1

    def row(self) -> dict[str, Any]:
        """Return the values of a line of JSON."""
        score = self.score
        row: dict[str, Any] = {"score": score.value, "parts": dict(score.parts), "outcome": score.outcome}
        row |= {"milliseconds": round(self.milliseconds, 3), "why": score.why}
        if self.together > 1:
            row["together"] = self.together
        if self.line.fault:
            row["where"] = self.line.where
        return row


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts by outcome, the mean score, and latencies in milliseconds (None if there is nothing to measure)."""

    outcomes: Mapping[str, int]
    mean: float | None
    p50: float | None
    p95: float | None
    longest: float | None


def read_lines(path: Path, completion: bool = True) -> list[InputLine]:
    """Return every line of a JSONL file, bad ones with their fault. completion: True if each line must have one.

    Raises AlignError if the file cannot be read, or has no lines.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise AlignError(f"cannot be read: {error.strerror}", "give a .jsonl file", where=str(path)) from error
    if not lines:
        raise AlignError("is empty", "give a file with a JSON object in each line", where=str(path))
    return _numbered(lines, path.name, completion)


def lines_of(rows: Iterable[Mapping[str, Any]], completion: bool = True) -> list[InputLine]:
    """Return rows as the lines of a JSONL file that holds them. Raises AlignError where there are none."""
    try:
        lines = [json.dumps(dict(row)).encode() for row in rows]
    except (TypeError, ValueError) as error:
        raise AlignError(
            f"hold a value that JSON cannot: {error}", "give mappings of JSON's types", where="rows"
        ) from None
    if not lines:
        raise AlignError("are none", "give at least one mapping", where="rows")
    return _numbered(lines, "rows", completion)


def _numbered(lines: Sequence[bytes], name: str, completion: bool) -> list[InputLine]:
    prompts: dict[str, int] = {}
    return [_line(raw, f"{name}:{number}", completion, prompts) for number, raw in enumerate(lines, 1)]


def _line(raw: bytes, where: str, completion: bool, prompts: dict[str, int]) -> InputLine:
    try:
        row = parse(raw)
        if completion and "completion" not in row:
            what = "has no 'completion', the answer to score (`align sample --jsonl` writes such rows)"
            raise RowError("missing", what, "completion")
        prompt, content = row.pop("prompt", ""), row.pop("completion", "")
        tokens = row.pop("completion_ids", None) or ()
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in tokens):
            raise RowError("wrong-type", "is no list of token ids", "completion_ids")
        text = message_text(content, "completion")
        message_text(prompt, "prompt")
        group = prompts.setdefault(repr(prompt), len(prompts))
        return InputLine(where, Answer(prompt, content, text, tuple(tokens), columns=row, group=group))
    except (RowError, TypeError) as fault:
        field = f"{fault.field} " if isinstance(fault, RowError) and fault.field else ""
        what = fault.what if isinstance(fault, RowError) else str(fault)
        return InputLine(where, fault=what if field.strip() in what else field + what)


def message_text(content: Any, field: str) -> str:
    """Return the text of a string or of messages: of a prompt all of them, of a completion the assistant's.

    field: ``prompt`` or ``completion``. Raises RowError for other values.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(m, dict) and "role" in m for m in content):
        raise RowError("wrong-type", "is neither a string nor a list of messages", field)
    texts = [m.get("content") or "" for m in content if field == "prompt" or m["role"] == "assistant"]
    if not all(isinstance(text, str) for text in texts):
        raise RowError("wrong-type", "has a message whose content is no string", field)
    return "\n".join(texts)


def _counted(batches: Sequence[list[InputLine]], lines: int) -> Iterator[list[InputLine]]:
    """Yield the batches, and count their lines for the progress display once they are done."""
    with Work("scoring lines", lines) as work:
        for batch in batches:
            yield batch
            work.advance(len(batch))


def score_lines(reward: RunningReward, lines: Sequence[InputLine], together: int = 1) -> Iterator[Verdict]:
    """Yield a reward's score for every line, in order. Lines of a call that fails get no score, and the reason.

    together: number of completions in one call. Successive lines with one prompt are always in one call, since the
    reward may compare them.
    """
    for batch in _counted(list(_batches(lines, together)), len(lines)):
        faults = {i: why for i, line in enumerate(batch) if (why := _fault(reward, line))}
        answers = [line.answer for i, line in enumerate(batch) if i not in faults and line.answer is not None]
        started = time.perf_counter()
        try:
            scores = reward.timed(answers) if answers else []
        except AlignError as error:
            why = "; ".join(_in_one_line(problem) for problem in error.problems)
            seconds = time.perf_counter() - started
            scores = [TimedScore(Score(None, "error", why=why), seconds, len(answers))] * len(answers)
        remaining = iter(scores)
        for i, line in enumerate(batch):
            if i in faults:
                yield Verdict(line, Score(None, "error", why=faults[i]), 0.0)
            else:
                timed = next(remaining)
                yield Verdict(line, timed.score, 1000 * timed.seconds, timed.together)


def _in_one_line(problem: Problem) -> str:
    """Return where, what and the fix, without line breaks."""
    where = f"{problem.where}: " if problem.where else ""
    fix = f" ({problem.fix})" if problem.fix else ""
    return " ".join(f"{where}{problem.what}{fix}".split())


def _fault(reward: RunningReward, line: InputLine) -> str:
    if line.answer is None:
        return line.fault
    return reward.reward.unfit(line.answer.columns) or ""


def _batches(lines: Sequence[InputLine], together: int) -> Iterator[list[InputLine]]:
    batch: list[InputLine] = []
    for _, members in groupby(lines, lambda line: line.where if line.answer is None else line.answer.group):
        batch += members
        if len(batch) >= together:
            yield batch
            batch = []
    if batch:
        yield batch


def summarize(verdicts: Sequence[Verdict]) -> Summary:
    """Summarize all verdicts; lines that were not given to the reward have no latency."""
    scores = [v.score.value for v in verdicts if v.score.value is not None]
    times = [v.milliseconds for v in verdicts if v.milliseconds]
    p50, p95, longest = np.percentile(times, [50, 95, 100]).tolist() if times else (None, None, None)
    mean = float(np.mean(scores)) if scores else None
    return Summary(dict(Counter(v.score.outcome for v in verdicts)), mean, p50, p95, longest)
