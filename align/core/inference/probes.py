"""The probes: rows of the user's files to ``Measured``. Each looks at a sample of rows that follows from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from align.core.algorithm.best_of_n import pass_at_k
from align.core.evaluation.statistics import mean
from align.core.inference.probe_material import Material, Question, plain
from align.core.inference.sampler import Said, as_message, score
from align.core.measure.agreement import f1
from align.core.measure.prompts import with_examples, with_passages
from align.core.measure.retrieve import Retriever, passages
from align.core.rewards.scorer import Scorer
from align.schemas.errors import AlignError
from align.schemas.project import Measured, Measurement
from align.schemas.records import Record
from align.schemas.rollout import Sampling

T = TypeVar("T")

DOCUMENTS = 20_000
"""Most documents that are searched."""
WORD_F1 = "word F1"
"""What the score is called where no reward was named."""


class Model(Protocol):
    """What probes ask of a model: ``align.core.inference.probe_models.Probed`` is one."""

    def ask(self, records: Sequence[Record], sampling: Sampling, n: int = 1, seed: int = 0) -> list[list[Said]]:
        """``n`` answers to each prompt."""

    def room(self, record: Record) -> int:
        """Tokens that an answer to the record's prompt may have."""

    def prefers(self, pairs: Sequence[Record]) -> list[bool]:
        """Whether each pair's better answer is the likelier one."""

    def bits_per_byte(self, texts: Sequence[Record]) -> Measurement:
        """How well texts are predicted."""


@dataclass(frozen=True, slots=True)
class Settings:
    """rows: most of each kind that are looked at. shots: worked examples, at most. k: sampled answers to a prompt.

    chat: whether prompts that are strings are asked as a user's message.
    """

    rows: int = 200
    shots: int = 4
    k: int = 8
    max_completion_length: int = 256
    seed: int = 0
    chat: bool = False


def measure(
    model: Model,
    held: Material,
    settings: Settings,
    *,
    scorer: Scorer | None = None,
    reference: Sequence[Record] = (),
    tell: Callable[[str], None] = lambda probe: None,
) -> Measured:
    """Every probe that there is material for.

    scorer: rewards that score answers (default: word F1 with the answer wanted); with them answers are sampled too, for
    pass@1 and pass@k. reference: ordinary text to hold the corpus against. tell: called with the name of each probe,
    and with how many rows are left out. Raises AlignError where no prompt leaves room for an answer.
    """
    work = _Probes(model, settings, scorer, tell)
    dice = random.Random(settings.seed)
    questions = work.roomy(_some(held.questions, settings.rows + settings.shots, dice), lambda q: q.record)
    shots = min(settings.shots, len(questions) // 4)  # most of a few are needed for measuring
    shown, asked = questions[:shots], questions[shots:][: settings.rows]
    found: dict[str, Measurement | None] = {}
    if asked:
        tell("zero shots")
        found["zero_shot"] = work.answered(asked, lambda record: record)
    if shown:
        tell("worked examples")
        found["few_shot"] = work.answered(asked, lambda record: with_examples(record, shown, work.fits))
    if asked and held.texts:
        tell("open book")
        retriever = Retriever(passages([plain(record.text) for record in _some(held.texts, DOCUMENTS, dice)]))
        found["closed_book"] = found["zero_shot"]
        found["open_book"] = work.answered(asked, lambda record: with_passages(record, retriever, work.fits))
    for name, texts in (("corpus_bits", held.texts), ("reference_bits", reference)):
        if texts:
            tell(name.replace("_", " "))
            found[name] = model.bits_per_byte(_some(texts, settings.rows, dice))
    prompts = [*held.prompts, *(question.record for question in held.questions)]
    if prompts and scorer is not None:
        tell(f"{settings.k} samples of each prompt")
        found |= work.headroom(work.roomy(_some(prompts, settings.rows, dice), lambda record: record), scorer)
    if held.pairs:
        tell("preferences")
        agreed = model.prefers(_some(held.pairs, settings.rows, dice))
        found["prefers_chosen"] = mean([float(yes) for yes in agreed])
    by = WORD_F1 if scorer is None else " + ".join(scorer.choices)
    return Measured.model_validate({**found, "score": by if any(found.values()) else None})


@dataclass(frozen=True, slots=True)
class _Probes:
    model: Model
    settings: Settings
    scorer: Scorer | None
    tell: Callable[[str], None]

    def fits(self, record: Record) -> bool:
        return self.model.room(record) >= self.settings.max_completion_length

    def roomy(self, rows: Sequence[T], record_of: Callable[[T], Record]) -> list[T]:
        """The rows whose prompts leave room for the longest answer."""
        fitting = [row for row in rows if self.fits(self._put(record_of(row)))]
        if rows and not fitting:
            what = f"no prompt leaves room for an answer of {self.settings.max_completion_length} tokens"
            raise AlignError(what, "allow shorter answers (--max-completion-length)", where=record_of(rows[0]).source)
        if (left := len(rows) - len(fitting)) > 0:
            self.tell(f"without {left} of {len(rows)} rows, whose prompts leave no room for an answer")
        return fitting

    def answered(self, asked: Sequence[Question], put: Callable[[Record], Record]) -> Measurement | None:
        """The mean score of greedy answers to questions put in some way; None where nothing could score any."""
        records = [put(self._put(question.record)) for question in asked]
        breaks = any(isinstance(record.prompt, list) for record in records) or any("\n\n" in q.wanted for q in asked)
        stop = [] if breaks else ["\n\n"]  # a text has no turns, and a base model goes on with the next question
        sampling = Sampling(max_completion_length=self.settings.max_completion_length, temperature=0, stop=stop)
        groups = self.model.ask(records, sampling)
        if self.scorer is None:
            return mean([f1(said.text, q.wanted) for (said,), q in zip(groups, asked, strict=True)])
        values = [value for group in _rewards(groups, self.scorer) for value in group if value is not None]
        return mean(values) if values else None

    def headroom(self, prompts: Sequence[Record], scorer: Scorer) -> dict[str, Measurement | None]:
        """pass@1 and pass@k (an answer is right at a score of 1), and the share of prompts whose answers score alike.

        Prompts of which any answer could not be scored are left out; None where that leaves nothing.
        """
        k = self.settings.k
        first, best, flat = list[float](), list[float](), list[float]()
        sampling = Sampling(max_completion_length=self.settings.max_completion_length)
        groups = self.model.ask([self._put(record) for record in prompts], sampling, k, self.settings.seed)
        for rewards in _rewards(groups, scorer):
            scores = [value for value in rewards if value is not None]
            if len(scores) == k:
                right = sum(value >= 1 for value in scores)
                first.append(pass_at_k(k, right, 1))
                best.append(pass_at_k(k, right, k))
                flat.append(float(len(set(scores)) == 1))
        values = {"pass_1": first, "pass_k": best, "flat_groups": flat}
        return {name: mean(value) if value else None for name, value in values.items()}

    def _put(self, record: Record) -> Record:
        return as_message(record) if self.settings.chat else record


def _rewards(groups: Sequence[Sequence[Said]], scorer: Scorer) -> list[list[float | None]]:
    scored = score(groups, scorer)
    return [[said.scored.reward if said.scored else None for said in group] for group in scored]


def _some(rows: Sequence[T], most: int, dice: random.Random) -> list[T]:
    return list(rows) if len(rows) <= most else dice.sample(list(rows), most)
