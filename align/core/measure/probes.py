"""The probes: rows of the user's files to ``Measured``. Each looks at a sample of rows that follows from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from align.core.data.formats import KINDS
from align.core.data.sources import load_records
from align.core.measure.agreement import f1
from align.core.measure.interval import mean
from align.core.measure.probed import Probed
from align.core.measure.retrieve import Retriever, passages
from align.core.rollout.bestof import pass_at_k
from align.schemas.project import Measured, Measurement
from align.schemas.records import Content, Record
from align.schemas.run import Data, Source

T = TypeVar("T")
Score = Callable[[Record, list[str]], list[float | None]]
"""What several answers to one row's prompt are worth, each 0 to 1; None where nothing could score it."""

FOUND = 5
"""Passages put before a question."""


@dataclass(frozen=True, slots=True)
class Settings:
    """rows: most of each kind that are looked at. shots: worked examples. k: sampled answers to a prompt."""

    rows: int = 200
    shots: int = 4
    k: int = 8
    max_tokens: int = 256
    seed: int = 0


@dataclass(slots=True)
class Material:
    """What there is to measure on. questions: with the answer wanted."""

    questions: list[tuple[Content, str, Record]] = field(default_factory=list)
    prompts: list[Record] = field(default_factory=list)
    pairs: list[Record] = field(default_factory=list)
    texts: list[Record] = field(default_factory=list)

    @classmethod
    def read(cls, paths: Sequence[str]) -> Material:
        """Everything that files hold, by what it can show. Raises AlignError as reading does."""
        found = cls()
        for path in paths:
            for record in load_records(Data(train=[Source(path=path)]), KINDS).train:
                found.add(record)
        return found

    def add(self, record: Record) -> None:
        """One row; of a conversation the last answer is what is wanted."""
        if record.kind == "preference":
            self.pairs.append(record)
        elif record.kind == "prompt":
            self.prompts.append(record)
        elif record.kind == "completion" and record.prompt is not None:
            self.questions.append((record.prompt, _plain(record.completion), record))
        elif record.kind == "text" and isinstance(record.text, list):
            if len(record.text) > 1 and record.text[-1].get("role") == "assistant":
                self.questions.append((record.text[:-1], _plain(record.text[-1:]), record))
        elif record.kind == "text":
            self.texts.append(record)


def measure(
    model: Probed,
    held: Material,
    settings: Settings,
    *,
    score: Score | None = None,
    sample: Callable[[Sequence[Record], int], list[list[str]]] | None = None,
    reference: Sequence[Record] = (),
) -> Measured:
    """Every probe that there is material for.

    score: of answers to rows with an answer wanted (default: word F1 with it), and of sampled answers. sample: k
    answers to each prompt; with ``score`` it gives pass@1, pass@k. reference: ordinary text to hold the corpus against.
    """
    dice = random.Random(settings.seed)
    asked = _some(held.questions, settings.rows + settings.shots, dice)
    shown, asked = asked[: settings.shots], asked[settings.shots :] or asked
    found: dict[str, Measurement | None] = {}
    if asked:
        found["zero_shot"] = _answered(model, asked, settings, score, lambda prompt: prompt)
    if asked and shown and len(held.questions) > settings.shots:
        found["few_shot"] = _answered(model, asked, settings, score, lambda prompt: _with_examples(prompt, shown))
    if asked and held.texts:
        retriever = Retriever(passages([_plain(record.text) for record in held.texts]))
        found["closed_book"] = found["zero_shot"]
        found["open_book"] = _answered(model, asked, settings, score, lambda p: _with_passages(p, retriever))
    if held.texts:
        found["corpus_bits"] = model.bits_per_byte(_some(held.texts, settings.rows, dice))
    if reference:
        found["reference_bits"] = model.bits_per_byte(_some(reference, settings.rows, dice))
    if held.prompts and score is not None and sample is not None:
        found |= headroom(_some(held.prompts, settings.rows, dice), score, sample, settings.k)
    if held.pairs:
        agreed = model.prefers(_some(held.pairs, settings.rows, dice))
        found["prefers_chosen"] = mean([float(yes) for yes in agreed])
    return Measured.model_validate(found)


def headroom(
    prompts: Sequence[Record], score: Score, sample: Callable[[Sequence[Record], int], list[list[str]]], k: int
) -> dict[str, Measurement | None]:
    """pass@1 and pass@k (an answer is right at a score of 1), and the share of prompts whose k answers score alike.

    Prompts of which any answer could not be scored are left out; None where that leaves nothing.
    """
    first, best, flat = list[float](), list[float](), list[float]()
    for record, answers in zip(prompts, sample(prompts, k), strict=True):
        scores = [value for value in score(record, answers) if value is not None]
        if len(scores) == k:
            right = sum(value >= 1 for value in scores)
            first.append(pass_at_k(k, right, 1))
            best.append(pass_at_k(k, right, k))
            flat.append(float(len(set(scores)) == 1))
    values = {"pass_1": first, "pass_k": best, "flat_groups": flat}
    return {name: mean(value) if value else None for name, value in values.items()}


def _answered(
    model: Probed,
    asked: Sequence[tuple[Content, str, Record]],
    settings: Settings,
    score: Score | None,
    put: Callable[[Content], Content],
) -> Measurement | None:
    said = model.answers([put(prompt) for prompt, _, _ in asked], settings.max_tokens)
    if score is None:
        return mean([f1(answer, wanted) for answer, (_, wanted, _) in zip(said, asked, strict=True)])
    scores = [score(record, [answer])[0] for answer, (_, _, record) in zip(said, asked, strict=True)]
    heard = [value for value in scores if value is not None]
    return mean(heard) if heard else None


def _with_examples(prompt: Content, shown: Sequence[tuple[Content, str, Record]]) -> Content:
    """Worked examples first: as turns before the last question, or as text."""
    if isinstance(prompt, str):
        return "\n\n".join([*(f"{_plain(asked)}{answer}" for asked, answer, _ in shown), prompt])
    system = [message for message in prompt if message["role"] == "system"]
    turns = [
        message
        for asked, answer, _ in shown
        if isinstance(asked, list)
        for message in (*(m for m in asked if m["role"] != "system"), {"role": "assistant", "content": answer})
    ]
    return [*system, *turns, *(message for message in prompt if message["role"] != "system")]


def _with_passages(prompt: Content, retriever: Retriever) -> Content:
    """What BM25 finds, put before the last question."""
    question = prompt if isinstance(prompt, str) else _plain(prompt[-1:])
    context = "\n\n".join(retriever.find(question, FOUND))
    if not context:
        return prompt
    if isinstance(prompt, str):
        return f"{context}\n\n{prompt}"
    return [*prompt[:-1], {**prompt[-1], "content": f"{context}\n\n{question}"}]


def _some(rows: Sequence[T], most: int, dice: random.Random) -> list[T]:
    return list(rows) if len(rows) <= most else dice.sample(list(rows), most)


def _plain(content: Content | None) -> str:
    if isinstance(content, list):
        return "\n".join(str(message.get("content") or "") for message in content)
    return content or ""
