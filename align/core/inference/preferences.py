"""Preference labelling: of each prompt's completions the best and the worst by their rewards become a pair.

Results are kept in a journal in a directory next to the output, one line for each prompt, until the output is written
as a whole. So a run that was killed continues after its last prompt, with the same completions as without the kill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.core.data.mixture import load_records
from align.core.rewards.reward_base import Answer
from align.core.rewards.scorer import Scorer, leveled, tied
from align.core.util.atomic_files import name_in_errors, sealed, verified, write_atomic
from align.schemas.errors import AlignError, Problem
from align.schemas.records import Content, Record
from align.schemas.run import Data, Source

if TYPE_CHECKING:
    from align.core.inference.sampler import Sampler

AT_ONCE = 8
"""Prompts that are sampled and scored together, before their lines are added to the journal."""
GIVEN = "completions"
"""The column that holds a row's own completions."""


@dataclass(slots=True)
class LabelSummary:
    """The result of labelling.

    counts: numbers of prompts that were ``labelled``, ``tied`` or ``abstained``; number of ``blank`` completions.
    spent: figures about each reward's work (``Reward.counts``).
    """

    output: Path
    prompts: int
    counts: Counter[str]
    spent: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        counts = {name: self.counts[name] for name in ("labelled", "tied", "abstained", "blank")}
        return {"output": str(self.output), "prompts": self.prompts, **counts, "rewards": self.spent}


class Journal:
    """The lines so far of one labelling, which ``fingerprint`` identifies by its prompts and settings."""

    def __init__(self, output: Path, fingerprint: str) -> None:
        """Open or begin a journal. Raises AlignError if the output exists, or its journal has another fingerprint."""
        if output.exists():
            raise AlignError("exists", "remove it, or give another name", where=str(output))
        self.output, self.directory = output, output.with_name(f"{output.name}.partial")
        self.lines: list[dict[str, Any]] = []
        """One for each finished prompt."""
        head, self._path = json.dumps({"of": fingerprint}), self.directory / "journal.jsonl"
        if not self._path.exists():
            write_atomic(self._path, f"{head}\n".encode())
        whole = [line for line in self._path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        if whole[:1] != [f"{head}\n".encode()]:
            fix = "give it the same prompts and settings, or remove that directory to begin again"
            raise AlignError("was begun from other prompts or settings", fix, where=str(self.directory))
        sound = list(_undamaged(whole[1:]))
        if len(sound) < len(whole) - 1:
            what, fix = f"line {len(sound) + 2} of it is damaged", "it and the lines after it are labelled again"
            print(Problem(str(self._path), what, fix), file=sys.stderr)
        self.lines = sound
        self._file = self._path.open("r+b")
        self._file.truncate(sum(map(len, whole[: 1 + len(sound)])))
        self._file.seek(0, 2)

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append lines, each with its checksum."""
        with name_in_errors(self._path):
            self._file.write(b"".join(sealed(line) + b"\n" for line in lines))
            self._file.flush()
        self.lines += lines

    def discard(self) -> None:
        """Remove the journal without writing an output."""
        self.close()
        shutil.rmtree(self.directory)

    def finish(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the output as a whole, and remove the journal."""
        write_atomic(self.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self.close()
        shutil.rmtree(self.directory)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()


def _undamaged(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the lines before the first damaged one. Those after it are left out: labels have the prompts' order."""
    for line in lines:
        try:
            yield verified(line)
        except ValueError:
            return


def read_prompts(path: str, sampled: bool) -> tuple[list[Record], str]:
    """Return the rows of a file of prompts, and a digest of their content.

    sampled: True if rows without completions of their own will get sampled ones; without it each row needs two or
    more. Raises AlignError for bad rows.
    """
    found = load_records(Data(train=[Source(path=path)]), ("prompt",))
    for record in found.train:
        given = _given(record)
        if given is None and not sampled:
            fix = f"give each row {GIVEN!r}: a list of two answers or more, or sample: --model (from Python model=)"
            raise AlignError("has no answers to choose from", fix, where=record.source)
    plain = json.dumps([[record.prompt, record.columns] for record in found.train], default=str)
    return found.train, hashlib.sha256(plain.encode()).hexdigest()


def label(
    records: Sequence[Record],
    scorer: Scorer,
    journal: Journal,
    sampler: Sampler | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> LabelSummary:
    """Label the prompts that the journal does not have yet, then write the preference file.

    scorer: open. sampler: for prompts without completions of their own. report: called with the number of finished
    prompts. If no prompt gives a pair, no file is written, since the next stage would refuse an empty one.
    Raises AlignError for rewards that are normalised: a label may not depend on the prompts before it.
    """
    if any(choice.normalize for choice in scorer.choices.values()):
        raise AlignError("is for training: running means would make labels depend on their order", where="normalize")
    report(len(journal.lines))
    for start in range(len(journal.lines), len(records), AT_ONCE):
        chunk = records[start : start + AT_ONCE]
        journal.add(list(_judged(chunk, _answers(chunk, start, sampler), scorer)))
        report(len(journal.lines))
    counts = Counter(line["came"] for line in journal.lines)
    counts["blank"] = sum(line["blank"] for line in journal.lines)
    spent = {name: dict(opened.reward.counts()) for name, opened in scorer.rewards.items()}
    rows = [line["row"] for line in journal.lines if line["came"] == "labelled"]
    if rows:
        journal.finish(rows)
    else:
        journal.discard()
    return LabelSummary(journal.output, len(records), counts, spent)


def pair(record: Record, answers: Sequence[Answer], rewards: Sequence[float | None]) -> tuple[str, dict[str, Any]]:
    """Return ``labelled`` and a row with the best completion as chosen and the worst as rejected.

    Without such a pair return ``tied`` (equal rewards or texts) or ``abstained`` (less than two rewards) and {}.
    """
    scored = [(reward, place) for place, reward in enumerate(rewards) if reward is not None]
    if len(scored) < 2:
        return "abstained", {}
    (high, best), (low, worst) = max(scored, key=lambda each: (each[0], -each[1])), min(scored)
    chosen, rejected = answers[best].completion, answers[worst].completion
    if tied((high, low)) or chosen == rejected:
        return "tied", {}
    kept = {name: value for name, value in record.columns.items() if name != GIVEN}
    judged = {"scores": [high, low], "answers": len(answers), "source": Path(record.source).name}
    row = {"prompt": record.prompt, "chosen": chosen, "rejected": rejected, "margin": high - low, "judged": judged}
    return "labelled", kept | row


def _judged(records: Sequence[Record], groups: Sequence[Sequence[Answer]], scorer: Scorer) -> Iterator[dict[str, Any]]:
    """Yield a journal line for each record. Blank completions are left out: no row of preferences can hold them."""
    full = [[answer for answer in group if answer.text.strip()] for group in groups]
    flat = [answer for group in full for answer in group]
    scored = iter(scorer.score(flat) if flat else [])
    for record, group, rest in zip(records, groups, full, strict=True):
        came, row = pair(record, rest, leveled(list(islice(scored, len(rest)))))
        yield {"came": came, "blank": len(group) - len(rest), "row": row}


def _answers(records: Sequence[Record], start: int, sampler: Sampler | None) -> list[list[Answer]]:
    """Return each record's own completions, or sampled ones if it has none.

    Seeds of sampled ones depend on the prompt's place in the file, so a run that was interrupted samples the same.
    """
    groups = list[list[Answer]]()
    for sampled, stretch in groupby(records, lambda record: _given(record) is None):
        some, first = list(stretch), start + len(groups)
        if not sampled:
            for place, record in enumerate(some, first):
                groups.append([_answer(record, place, given) for given in _given(record) or ()])
            continue
        assert sampler is not None  # read_prompts refuses rows without completions otherwise
        for place, completions in enumerate(sampler.sample(some, first=first), first):
            groups.append([each.answer(place) for each in completions])
    return groups


def _given(record: Record) -> list[Content] | None:
    """Return a row's own completions in the form of its prompt, None without. Raises AlignError for a bad list."""
    given = record.columns.get(GIVEN)
    if given is None:
        return None
    texts = isinstance(given, list) and len(given) > 1 and all(isinstance(each, str) for each in given)
    if texts:
        return [[{"role": "assistant", "content": each}] for each in given] if record.conversational else given
    messages = isinstance(given, list) and len(given) > 1 and all(map(_is_message, given))
    if not (messages and record.conversational):
        fix = "strings, or to a prompt of messages lists of one message of the assistant each"
        raise AlignError("is no list of two answers or more", fix, where=f"{record.source}: {GIVEN}")
    return list(given)


def _is_message(answer: Any) -> bool:
    one = answer[0] if isinstance(answer, list) and len(answer) == 1 else None
    return isinstance(one, dict) and one.get("role") == "assistant" and isinstance(one.get("content"), str)


def _answer(record: Record, place: int, content: Content) -> Answer:
    text = content if isinstance(content, str) else str(content[0]["content"])
    return Answer(record.prompt or "", content, text, columns=record.columns, group=place)
