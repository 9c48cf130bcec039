"""Candidates: every statement that a description may make, with the evidence for it and its log-odds.

Both readers have a say. A statement's log-odds are linear in what they found:

    log P(s | text) / P(not s | text) = a max_i f_s(sentence_i) + b [the lexicon reads s] + c max_n g_s(number_n) + d

with f and g the learned heads on sentences and numbers; a, b, c and d are fitted for each statement on texts that the
heads were not trained on. So the lexicon counts where it was seen to be right, and no further.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from align.advisor.project_facts import Evidence, overlap
from align.advisor.reading import features
from align.advisor.reading.features import Hashes
from align.advisor.reading.linear import Array, LinearHeads, Weights
from align.advisor.reading.statements import FREE, Statement, parse
from align.advisor.text.number import Number
from align.advisor.text.number_grammar import numbers
from align.advisor.text.sentences import split_sentences, split_words
from align.schemas.project import DATA_KINDS, Size

HEAD, TAIL = 30_000, 10_000
"""Characters read of a long text, from its start and its end."""
ABSENT = -2.0
"""The score of a head on a text that has no sentence or no number at all."""
LEAST = -5.0
"""Log-odds below which a statement is no candidate."""
A_SIZE = -1.0
"""Log-odds from which on a number is taken for the size of data that are there."""
MODEL_STATES, MODEL_SILENT, MODEL_ALONE = 2.8, -1.5, -1.0
"""Log-odds that a language model adds: ``ln(0.8 / 0.05)`` to what it states, ``ln(0.2 / 0.95)`` to what it does not, by
a cautious guess of its recall and false alarms; and the log-odds before of what no other reader considers."""
LARGEST = {"behaviour.rules_count": 500, "constraints.max_n": 256, "hardware.gpus": 100_000}
"""Largest numbers that fields are taken to have: what is larger counts something else."""
EXACT = ("hardware.", "model.params_b")
"""Fields, by their beginning, in which the lexicon's reading stands: names and units that it knows."""
SHARES = ("evals.baseline", "evals.target")
UNITS = {"data.corpus": "tokens", "data.documents": "docs"}
"""The unit that data are counted in, where it is not rows."""
SIZES = tuple(Size.model_fields)
SIZE_FIELDS = frozenset(f"data.{kind}.{unit}" for kind in DATA_KINDS for unit in SIZES)


@dataclass(frozen=True, slots=True)
class FoundNumber:
    """A number in the text, with its place and its words."""

    number: Number
    span: tuple[int, int]
    quote: str


@dataclass(frozen=True)
class ScoredText:
    """The scores of the learned heads on one text.

    text: (heads on the text,). sentences: (sentences, heads). numbers: (numbers, heads). places: each sentence with
    its start. found: the numbers.
    """

    text: Array
    sentences: Array
    numbers: Array
    places: tuple[tuple[int, str], ...]
    found: tuple[FoundNumber, ...]

    @cached_property
    def best_sentence(self) -> Array:
        """The highest score of each head over sentences."""
        best: Array = self.sentences.max(axis=0, initial=ABSENT)
        return best

    @cached_property
    def best_number(self) -> Array:
        """The highest score of each head over numbers."""
        best: Array = self.numbers.max(axis=0, initial=ABSENT)
        return best


def score_text(text: str, languages: Sequence[str], weights: Weights) -> ScoredText:
    """Return the scores of a text. languages: codes with a lexicon, for its number words; may be empty."""
    return features_of(text, languages).scored(weights.text, weights.sentence, weights.number)


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """The features of a text, of its sentences and of its numbers. places and found: as in ``ScoredText``."""

    text: Hashes
    sentences: list[Hashes]
    numbers: list[Hashes]
    places: tuple[tuple[int, str], ...]
    found: tuple[FoundNumber, ...]

    def scored(self, text: LinearHeads, sentence: LinearHeads, number: LinearHeads) -> ScoredText:
        """Return the scores by heads on texts, sentences and numbers."""
        whole = text.scores([self.text])[0]
        return ScoredText(whole, sentence.scores(self.sentences), number.scores(self.numbers), self.places, self.found)


def features_of(text: str, languages: Sequence[str]) -> TextFeatures:
    """Return the features of a text. languages: codes with a lexicon, for its number words; may be empty."""
    whole = len(text) <= HEAD + TAIL
    read_part = text if whole else f"{text[:HEAD]}\n{text[-TAIL:]}"
    places = tuple(
        (start, sentence)
        for start, sentence in split_sentences(text)
        if whole or start < HEAD or start >= len(text) - TAIL
    )
    found, hashed = list[FoundNumber](), list[Hashes]()
    for start, sentence in places:
        split = split_words(sentence)
        for number in numbers(split, languages or ["en"]):
            quote, (first, last) = split.quote(number.start, number.end)
            found.append(FoundNumber(number, (start + first, start + last), quote))
            hashed.append(features.of_number(split, number))
    by_sentence = features.of_sentences([sentence for _, sentence in places])
    return TextFeatures(features.of_text(read_part), by_sentence, hashed, places, tuple(found))


# Statements


@dataclass(frozen=True, slots=True)
class Candidate:
    """A statement with the evidence that it adds, and its log-odds."""

    statement: Statement
    log_odds: float
    evidence: tuple[Evidence, ...]


def statement_inputs(scored: ScoredText, lexicon: Sequence[Evidence], weights: Weights) -> Array:
    """Return what the log-odds of each statement rest on: (statements, 4), the last a constant."""
    named = {Statement.of(e).name for e in lexicon}
    inputs = np.ones((len(weights.sentence.names), 4), np.float32)
    inputs[:, 0] = scored.best_sentence
    inputs[:, 1] = [name in named for name in weights.sentence.names]
    heads = number_heads(weights.sentence.names, weights.number.names)
    inputs[:, 2] = [max((scored.best_number[at] for at in own), default=ABSENT) for own in heads]
    return inputs


@functools.cache
def number_heads(statements: tuple[str, ...], numbers: tuple[str, ...]) -> list[list[int]]:
    """Return for each statement the heads on numbers that belong to it: its own, or those of its sizes."""
    heads = [parse(name) for name in numbers]

    def belongs(statement: Statement, head: Statement) -> bool:
        sized = statement.value is True and head.field.rpartition(".")[0] == statement.field
        return head.status == statement.status and (head.field == statement.field or sized)

    return [[at for at, head in enumerate(heads) if belongs(parse(name), head)] for name in statements]


def candidates(scored: ScoredText, lexicon: Sequence[Evidence], weights: Weights) -> list[Candidate]:
    """Return every statement that the text may make, those of the lexicon that no head knows among them."""
    odds = (statement_inputs(scored, lexicon, weights) * weights.combined["statements"]).sum(axis=1)
    read = _by_statement(lexicon)
    readings = _Numbers(scored, read, weights)
    found = []
    for at, name in enumerate(weights.sentence.names):
        if odds[at] > LEAST and not parse(name).field.startswith(EXACT):
            evidence = _evidence(parse(name), at, scored, read.get(name, []), readings)
            if evidence:
                found.append(Candidate(parse(name), float(odds[at]), evidence))
    heads, rare = {*weights.sentence.names}, float(weights.combined["rare"][0])
    owned = fields_of(weights.sentence.names)
    for name, pieces in read.items():
        if name not in heads and pieces[0].field in owned:
            statement = Statement.of(pieces[0])
            sizes = readings.sizes(statement) if statement.value is True else ()
            found.append(Candidate(statement, rare, (*pieces[:1], *sizes)))
    return found


def with_model(found: Sequence[Candidate], model: Sequence[Evidence]) -> list[Candidate]:
    """Return the candidates with what a language model read: likelier where it states them, less likely where not."""
    stated = _by_statement(model)
    updated = [_updated(candidate, stated.get(candidate.statement.name, []), model) for candidate in found]
    known = {candidate.statement.name for candidate in found}
    for name, pieces in stated.items():
        if name not in known and pieces[0].field not in SIZE_FIELDS:
            statement = Statement.of(pieces[0])
            sizes = [e for e in model if e.field.rpartition(".")[0] == statement.field]
            updated.append(Candidate(statement, MODEL_STATES + MODEL_ALONE, (*pieces[:1], *sizes)))
    return updated


def _updated(candidate: Candidate, stated: Sequence[Evidence], model: Sequence[Evidence]) -> Candidate:
    """Return a candidate with what a language model adds: its log-odds, other numbers, sizes that nobody else read.

    Of two numbers the first counts, and the other is a conflict that the advice asks about.
    """
    odds = candidate.log_odds + (MODEL_STATES if stated else MODEL_SILENT)
    read = {e.field for e in candidate.evidence}
    sizes = [e for e in model if stated and e.field.rpartition(".")[0] == stated[0].field and e.field not in read]
    values = {e.value for e in candidate.evidence if e.field == candidate.statement.field}
    differing = [e for e in stated if candidate.statement.value is None and e.value not in values]
    return replace(candidate, log_odds=odds, evidence=(*candidate.evidence, *differing, *sizes))


def _by_statement(evidence: Sequence[Evidence]) -> dict[str, list[Evidence]]:
    """Return evidence by the name of its statement."""
    named: dict[str, list[Evidence]] = {}
    for e in evidence:
        named.setdefault(Statement.of(e).name, []).append(e)
    return named


@functools.cache
def fields_of(statements: tuple[str, ...]) -> frozenset[str]:
    """Return the fields about which candidates decide; the lexicon's evidence of every other field stands."""
    fields = (parse(name).field for name in statements)
    return frozenset(field for field in fields if not field.startswith(EXACT))


def undecided(lexicon: Sequence[Evidence], weights: Weights) -> list[Evidence]:
    """Return the lexicon's evidence about which no candidate decides."""
    owned = fields_of(weights.sentence.names)
    return [e for e in lexicon if e.field not in owned and e.field not in SIZE_FIELDS]


def _evidence(
    statement: Statement, at: int, scored: ScoredText, read: list[Evidence], numbers: _Numbers
) -> tuple[Evidence, ...]:
    """Return the evidence that a statement adds: the lexicon's, which quotes less, or the sentence that makes it."""
    if statement.value is None and statement.field not in FREE:
        return tuple(numbers.of(statement))[:1]
    if not scored.places:
        return ()
    start, sentence = scored.places[int(scored.sentences[:, at].argmax())]
    quote = sentence.strip()
    start += sentence.index(quote)
    value = quote if statement.field in FREE else statement.value
    learned = Evidence(statement.field, value, statement.status, quote, (start, start + len(quote)), "text")
    sizes: tuple[Evidence, ...] = ()
    if statement.field.startswith("data.") and statement.value is True:
        sizes = numbers.sizes(statement) or numbers.in_sentence(statement, (start, start + len(quote)))
    return (read[0] if read else learned, *sizes)


class _Numbers:
    """The numbers of a text, each with its log-odds of stating a field."""

    def __init__(self, scored: ScoredText, read: dict[str, list[Evidence]], weights: Weights) -> None:
        self._scored, self._read, self._weights = scored, read, weights
        self._rare = float(weights.combined["rare"][0])

    def of(self, statement: Statement) -> list[Evidence]:
        """Return the evidence of a numeric statement, the likeliest first."""
        return [e for _, e in self._ranked(statement.name)]

    def sizes(self, statement: Statement) -> tuple[Evidence, ...]:
        """Return the sizes of data, one of each unit; several where the lexicon lists them."""
        found: list[Evidence] = []
        taken: list[tuple[int, int]] = []
        for unit in SIZES:
            standings = dict.fromkeys((statement.status, "asserted", "planned"))
            ranked = [one for each in standings for one in self._ranked(f"{statement.field}.{unit}|{each}")]
            likely = [
                (odds, e)
                for odds, e in ranked
                if odds > (LEAST if self._is_read(e) else A_SIZE) and not any(overlap(e.span, span) for span in taken)
            ]
            if not likely:
                continue
            _, first = max(likely, key=lambda one: one[0])
            listed = [e for _, e in likely if self._is_read(e)]
            kept = listed if any(e is first for e in listed) else [first]
            found += [replace(e, status=statement.status) for e in kept]
            taken += [e.span for e in kept if e.span]
        return tuple(found)

    def in_sentence(self, statement: Statement, span: tuple[int, int]) -> tuple[Evidence, ...]:
        """Return the size in the sentence that makes a statement, where it seems to count data, of whatever kind."""
        unit = UNITS.get(statement.field, "rows")
        fields = [parse(name).field for name in self._weights.number.names]
        counting = [at for at, field in enumerate(fields) if field.startswith("data.") and field.endswith(f".{unit}")]
        sized = Statement(f"{statement.field}.{unit}", None, statement.status)
        found = []
        for at, number in enumerate(self._scored.found):
            evidence = as_evidence(sized, number)
            if span[0] <= number.span[0] < span[1] and evidence is not None:
                odds = max((self._odds(at, head) for head in counting), default=A_SIZE)
                found.append((odds, evidence))
        odds, best = max(found, key=lambda one: one[0], default=(A_SIZE, None))
        return (best,) if best is not None and odds > A_SIZE else ()

    def _odds(self, at: int, head: int) -> float:
        """Return the log-odds that a number makes a head's statement."""
        score, flag, constant = (float(value) for value in self._weights.combined["numbers"][head])
        read = self._read.get(self._weights.number.names[head], [])
        same = any(overlap(e.span, self._scored.found[at].span) for e in read)
        return score * float(self._scored.numbers[at, head]) + flag * same + constant

    def _is_read(self, e: Evidence) -> bool:
        """Return whether evidence is the lexicon's own."""
        return any(e is other for others in self._read.values() for other in others)

    def _ranked(self, name: str) -> list[tuple[float, Evidence]]:
        """Return the numbers that may state this, with their log-odds."""
        read = self._read.get(name, [])
        if name not in self._weights.number.names:
            return [(self._rare, e) for e in read]
        head = self._weights.number.names.index(name)
        score, flag, constant = (float(value) for value in self._weights.combined["numbers"][head])
        ranked, seen = list[tuple[float, Evidence]](), list[Evidence]()
        for at, number in enumerate(self._scored.found):
            same = [e for e in read if overlap(e.span, number.span)]
            evidence = same[0] if same else as_evidence(parse(name), number)
            seen += same
            if evidence is not None:
                ranked.append((self._odds(at, head), evidence))
        ranked += [(score * ABSENT / 2 + flag + constant, e) for e in read if not any(e is other for other in seen)]
        return sorted(ranked, key=lambda one: -one[0])


def as_evidence(statement: Statement, found: FoundNumber) -> Evidence | None:
    """Return a number as evidence of a field; None where the field cannot have it."""
    number = found.number
    value, low, high = number.value, number.low, number.high
    if statement.field in SHARES and not number.share:
        if not 1 < value <= 100:
            return None
        value, low, high = value / 100, low / 100, high / 100
    elif number.share and statement.field not in SHARES:
        return None
    if value > LARGEST.get(statement.field, value):
        return None
    whole = round(value) if value == round(value) else value
    if not number.vague:
        return Evidence(statement.field, whole, statement.status, found.quote, found.span, "text")
    return Evidence(statement.field, whole, statement.status, found.quote, found.span, "text", True, low, high)
