"""Probes that measure a model on the user's files. Each uses a sample of rows that is drawn by the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from align.core.algorithm.pass_at_k import pass_at_k
from align.core.evaluation.statistics import mean
from align.core.evaluation.word_f1 import f1, words
from align.core.inference.probe_material import Material, QuestionAnswer, plain
from align.core.inference.probe_models import LocalProbeModel
from align.core.inference.sampler import Completion, as_message, score
from align.core.rewards.reward_base import RewardContext
from align.core.rewards.scorer import Scorer
from align.schemas.errors import AlignError
from align.schemas.project import Measured, Measurement
from align.schemas.records import Content, Message, Record
from align.schemas.run import RewardChoice, Sampling

# --- passages for a question -----------------------------------------------------------------------------------------
#
# BM25 over the user's own documents: the baseline that other retrievers are compared with.

PASSAGE = 180
"""Words in a passage; neighbours overlap by a third, so that a sentence at a border is whole in one of them."""


def passages(documents: Sequence[str]) -> list[str]:
    """Split documents into passages of ``PASSAGE`` words; in writing without spaces two characters count as a word."""
    found: list[str] = []
    for document in documents:
        pieces = document.split()
        if len(pieces) * 12 < len(document):  # more than 12 characters per "word": writing without spaces
            pieces = [document[i : i + 2] for i in range(0, len(document), 2)]
            joint = ""
        else:
            joint = " "
        step = PASSAGE * 2 // 3
        found += [joint.join(pieces[i : i + PASSAGE]) for i in range(0, max(1, len(pieces) - PASSAGE // 3), step)]
    return [text for text in found if text]


class Retriever:
    """BM25 (Robertson and Zaragoza 2009; Lucene's form, k1 1.5, b 0.75) over passages, by the library ``bm25s``."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._texts = [text for text in texts if words(text)]
        if self._texts:
            self._index: Any = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
            self._index.index([words(text) for text in self._texts], show_progress=False)

    def find(self, question: str, k: int) -> list[str]:
        """Return the ``k`` best passages, best first; fewer if fewer share a word with the question."""
        query = words(question)
        if not query or not self._texts:
            return []
        places, scores = self._index.retrieve([query], k=min(k, len(self._texts)), show_progress=False)
        return [self._texts[i] for i, score in zip(places[0].tolist(), scores[0].tolist(), strict=True) if score > 0]


# --- forms of a question ---------------------------------------------------------------------------------------------
#
# As it is, after worked examples, and after passages that may hold its answer.

FOUND = 5
"""Passages put before a question."""


def with_examples(record: Record, shown: Sequence[QuestionAnswer], fits: Callable[[Record], bool]) -> Record:
    """Put worked examples before the question: as turns, or as text with blank lines between.

    As many as ``fits`` allows, the first ones.
    """
    return _most(record, len(shown), lambda n: _examples(record.prompt or "", shown[:n]), fits)


def with_passages(record: Record, retriever: Retriever, fits: Callable[[Record], bool]) -> Record:
    """Put the passages that BM25 finds for the last question before it; as many as ``fits`` allows, the best ones."""
    question = plain(record.prompt[-1:] if isinstance(record.prompt, list) else record.prompt)
    found = retriever.find(question, FOUND)
    return _most(record, len(found), lambda n: _under(record.prompt or "", question, found[:n]), fits)


def _most(record: Record, n: int, put: Callable[[int], Content], fits: Callable[[Record], bool]) -> Record:
    while n and not fits(replace(record, prompt=put(n))):
        n -= 1
    return replace(record, prompt=put(n)) if n else record


def _examples(prompt: Content, shown: Sequence[QuestionAnswer]) -> Content:
    if isinstance(prompt, str):
        return "\n\n".join([*(f"{plain(q.record.prompt)}{q.wanted}" for q in shown), prompt])
    turns = [
        message
        for q in shown
        for message in (*_without_system(as_message(q.record)), {"role": "assistant", "content": q.wanted})
    ]
    system = [message for message in prompt if message["role"] == "system"]
    return [*system, *turns, *(message for message in prompt if message["role"] != "system")]


def _without_system(record: Record) -> list[Message]:
    assert isinstance(record.prompt, list)
    return [message for message in record.prompt if message["role"] != "system"]


def _under(prompt: Content, question: str, passages: Sequence[str]) -> Content:
    text = "\n\n".join([*passages, question])
    return text if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": text}]


# --- measurements ----------------------------------------------------------------------------------------------------

T = TypeVar("T")

DOCUMENTS = 20_000
"""Largest number of documents that are searched."""
WORD_F1 = "word F1"
"""The name of the score without rewards."""


class ProbeModel(Protocol):
    """The interface of models that are measured; ``align.core.inference.probe_models.LocalProbeModel`` has it."""

    def sample(
        self, records: Sequence[Record], sampling: Sampling, n: int = 1, seed: int = 0
    ) -> list[list[Completion]]:
        """Return ``n`` completions of each prompt."""

    def room(self, record: Record) -> int:
        """Return the number of tokens that a completion of the record's prompt may have."""

    def prefers(self, pairs: Sequence[Record]) -> list[bool]:
        """Return True for each pair whose chosen completion is the likelier one."""

    def bits_per_byte(self, texts: Sequence[Record]) -> Measurement:
        """Return the bits per byte at which texts are predicted."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """Settings of the probes.

    rows: largest number of each kind that is used. shots: largest number of worked examples. k: completions sampled of
    a prompt. max_completion_length: in tokens. seed: of the samples of rows and of completions. chat: True takes
    prompts that are strings as a user's message.
    """

    rows: int = 200
    shots: int = 4
    k: int = 8
    max_completion_length: int = 256
    seed: int = 0
    chat: bool = False


def measure(
    model: ProbeModel,
    held: Material,
    settings: ProbeSettings,
    *,
    scorer: Scorer | None = None,
    reference: Sequence[Record] = (),
    report: Callable[[str], None] = lambda probe: None,
) -> Measured:
    """Run every probe that there is material for.

    scorer: rewards that score completions (default: word F1 with the right answer); with rewards completions are
    sampled too, for pass@1 and pass@k. reference: ordinary text to compare the corpus with. report: called with the
    name of each probe, and with the number of rows that are left out. Raises AlignError if no prompt leaves room for a
    completion.
    """
    work = _Probes(model, settings, scorer, report)
    dice = random.Random(settings.seed)
    questions = work.roomy(_some(held.questions, settings.rows + settings.shots, dice), lambda q: q.record)
    shots = min(settings.shots, len(questions) // 4)  # of few questions most are needed for the measurement itself
    shown, asked = questions[:shots], questions[shots:][: settings.rows]
    found: dict[str, Measurement | None] = {}
    if asked:
        report("zero shots")
        found["zero_shot"] = work.answered(asked, lambda record: record)
    if shown:
        report("worked examples")
        found["few_shot"] = work.answered(asked, lambda record: with_examples(record, shown, work.fits))
    if asked and held.texts:
        report("open book")
        retriever = Retriever(passages([plain(record.text) for record in _some(held.texts, DOCUMENTS, dice)]))
        found["closed_book"] = found["zero_shot"]
        found["open_book"] = work.answered(asked, lambda record: with_passages(record, retriever, work.fits))
    for name, texts in (("corpus_bits", held.texts), ("reference_bits", reference)):
        if texts:
            report(name.replace("_", " "))
            found[name] = model.bits_per_byte(_some(texts, settings.rows, dice))
    prompts = [*held.prompts, *(question.record for question in held.questions)]
    if prompts and scorer is not None:
        report(f"{settings.k} samples of each prompt")
        found |= work.headroom(work.roomy(_some(prompts, settings.rows, dice), lambda record: record), scorer)
    if held.pairs:
        report("preferences")
        agreed = model.prefers(_some(held.pairs, settings.rows, dice))
        found["prefers_chosen"] = mean([float(yes) for yes in agreed])
    by = WORD_F1 if scorer is None else " + ".join(scorer.choices)
    return Measured.model_validate({**found, "score": by if any(found.values()) else None})


@dataclass(frozen=True, slots=True)
class _Probes:
    model: ProbeModel
    settings: ProbeSettings
    scorer: Scorer | None
    report: Callable[[str], None]

    def fits(self, record: Record) -> bool:
        return self.model.room(record) >= self.settings.max_completion_length

    def roomy(self, rows: Sequence[T], record_of: Callable[[T], Record]) -> list[T]:
        """Return the rows whose prompts leave room for the longest completion."""
        fitting = [row for row in rows if self.fits(self._put(record_of(row)))]
        if rows and not fitting:
            what = f"no prompt leaves room for an answer of {self.settings.max_completion_length} tokens"
            raise AlignError(
                what,
                "allow shorter answers (--max-completion-length; from Python max_completion_length=)",
                where=record_of(rows[0]).source,
            )
        if (left := len(rows) - len(fitting)) > 0:
            self.report(f"without {left} of {len(rows)} rows, whose prompts leave no room for an answer")
        return fitting

    def answered(self, asked: Sequence[QuestionAnswer], put: Callable[[Record], Record]) -> Measurement | None:
        """Return the mean score of greedy completions of questions, each in the form that ``put`` gives it.

        None if no completion could be scored.
        """
        records = [put(self._put(question.record)) for question in asked]
        # Text has no end of turn: after its answer a base model writes the next question, so stop at a blank line.
        # Conversations end by themselves, and an answer that holds a blank line must not be cut there.
        conversations = any(isinstance(record.prompt, list) for record in records)
        blank_lines = any("\n\n" in question.wanted for question in asked)
        stop = [] if conversations or blank_lines else ["\n\n"]
        sampling = Sampling(max_completion_length=self.settings.max_completion_length, temperature=0, stop=stop)
        groups = self.model.sample(records, sampling)
        if self.scorer is None:
            return mean([f1(each.text, question.wanted) for (each,), question in zip(groups, asked, strict=True)])
        values = [value for group in _rewards(groups, self.scorer) for value in group if value is not None]
        return mean(values) if values else None

    def headroom(self, prompts: Sequence[Record], scorer: Scorer) -> dict[str, Measurement | None]:
        """Return pass@1, pass@k (right means a score of 1 or more) and the share of prompts whose scores are all equal.

        Prompts with a completion that could not be scored are left out; None if that leaves none.
        """
        k = self.settings.k
        first, best, flat = list[float](), list[float](), list[float]()
        sampling = Sampling(max_completion_length=self.settings.max_completion_length)
        groups = self.model.sample([self._put(record) for record in prompts], sampling, k, self.settings.seed)
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


def _rewards(groups: Sequence[Sequence[Completion]], scorer: Scorer) -> list[list[float | None]]:
    scored = score(groups, scorer)
    return [[each.scored.reward if each.scored else None for each in group] for group in scored]


def _some(rows: Sequence[T], most: int, dice: random.Random) -> list[T]:
    return list(rows) if len(rows) <= most else dice.sample(list(rows), most)


# --- from files to measurements --------------------------------------------------------------------------------------


def run_probes(
    model: str,
    files: Sequence[str],
    settings: ProbeSettings,
    *,
    rewards: Sequence[RewardChoice] = (),
    reference: str | None = None,
    chat: bool | None = None,
    report: Callable[[str], None] = lambda probe: None,
) -> Measured:
    """Load a model and files, and run every probe that the files have rows for.

    model: a directory or hub id. rewards: that score completions; without any: word F1. reference: a file of ordinary
    text. chat: True takes prompts that are strings as a user's message; None: if the model has a chat template.
    Raises AlignError for files, models and rewards that do not work, and if no probe has rows.
    """
    held = Material.read(files)
    ordinary = Material.read([reference] if reference else []).texts
    if reference and not ordinary:
        raise AlignError("holds no plain text", "give a file of ordinary text", where=reference)
    if not (held.questions or held.texts or held.pairs or (held.prompts and rewards)):
        what = "hold nothing to measure on: questions with answers, texts, pairs, or prompts with a reward"
        raise AlignError(f"the files {what} (--reward; from Python rewards=)", where=", ".join(files))
    with ExitStack() as opened:
        place = RewardContext(seed=settings.seed)
        scorer = opened.enter_context(Scorer(rewards, place)) if rewards else None
        report("loading the model")
        probed = LocalProbeModel.load(model)
        has_template = probed.tokenizer.chat_template is not None
        settings = replace(settings, chat=has_template if chat is None else chat)
        return measure(probed, held, settings, scorer=scorer, reference=ordinary, report=report)
