"""Free words -> evidence, by two readers and, where one is asked, a language model.

The lexicon (``align.advisor.text``) is exact about numbers, units and what is denied; the learned reader knows what
such texts mean. ``arbitration`` takes the facts that are most probable together with the answer that they lead to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from align.advisor.fact_settings import data_kinds, in_words, joined
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Reading
from align.advisor.reading import candidates as found
from align.advisor.reading.answers import answer_inputs, outlook
from align.advisor.reading.arbitration import Arbitration, Conclude, arbitrate, evidence_of
from align.advisor.reading.linear import weights
from align.advisor.text import read
from align.advisor.understood import understood
from align.schemas.advice import OtherReading, Quote, UnderstoodFact

__all__ = ["WordsRead", "read_words"]

LETTERS = 10
"""Fewest letters of a text that is more than numbers."""
WORTH_NAMING = 0.1
"""Probability from which on another answer is named."""


@dataclass(frozen=True, slots=True)
class WordsRead:
    """The content of free words: their evidence, their languages, parts that were left unread, and the reading."""

    evidence: list[Evidence]
    languages: list[str]
    passed_over: list[str]
    reading: Reading | None


def read_words(text: str, conclude: Conclude, model: Sequence[Evidence] | None = None) -> WordsRead:
    """Return what a description states. conclude: what the rules conclude from evidence.

    model: what a language model read in it, where one was asked; a third reader. Never raises, whatever the text; the
    same text gives the same reading. A text in no language with a lexicon, or hardly in words, is read
    by the lexicon alone.
    """
    lexicon = read(text)
    known = [code for code in lexicon.languages if not code.endswith("?")]
    if not known or sum(map(str.isalpha, text)) < LETTERS:
        return WordsRead([*lexicon.evidence, *(model or ())], lexicon.languages, lexicon.passed_over, None)
    learned = weights()
    scored = found.score_text(text, known, learned)
    by_lexicon = conclude(lexicon.evidence)
    inputs = answer_inputs(
        scored, by_lexicon.primary, {vote.rule for vote in by_lexicon.decision.votes}, learned.about["votes"]
    )
    expected = outlook(inputs, learned)
    options = found.candidates(scored, lexicon.evidence, learned)
    if model:
        options = found.with_model(options, model)
        expected = expected.updated(conclude(model).primary)
    fixed = [*found.undecided(lexicon.evidence, learned), *found.undecided(model or (), learned)]
    taken = arbitrate(options, fixed, conclude, expected)
    # In the order in which it was concluded from: of equals the first counts.
    evidence = [*fixed, *_weighed(taken.taken.facts, options)]
    others = tuple(_others(taken, options, fixed))
    doubtful = expected.doubtful(taken.taken.concluded.decision.plan.steps)
    reading = Reading(taken.taken.primary, taken.probability, others, doubtful, learned.hash)
    return WordsRead(evidence, lexicon.languages, lexicon.passed_over, reading)


def _weighed(facts: frozenset[int], options: Sequence[found.Candidate]) -> Iterator[Evidence]:
    """Yield the evidence of the statements taken, each with its probability by its words alone."""
    for at in sorted(facts):
        probability = round(1 / (1 + math.exp(-options[at].log_odds)), 2)
        yield from (replace(e, probability=probability) for e in options[at].evidence)


def _others(
    arbitration: Arbitration, options: Sequence[found.Candidate], fixed: Sequence[Evidence]
) -> list[OtherReading]:
    """Return the readings that lead to another answer which is likely enough, the likeliest first."""
    taken = {
        fact.setting: fact for fact in understood(gather([*fixed, *evidence_of(arbitration.taken.facts, options)]))
    }
    others = []
    for reading in arbitration.others:
        probability = arbitration.probability[reading.primary]
        if probability < WORTH_NAMING:
            continue
        facts = understood(gather([*fixed, *evidence_of(reading.facts, options)]))
        new = [fact for fact in facts if fact.setting not in taken]
        gone = [fact for setting, fact in taken.items() if setting not in {other.setting for other in facts}]
        others.append(
            OtherReading(
                primary=reading.primary,
                probability=round(probability, 2),
                facts=[_quoted(fact) for fact in new],
                settings=[fact.setting for fact in new],
                question=_question(new, facts, True) if new else _question(gone, taken.values(), False),
            )
        )
    return sorted(others, key=lambda other: -other.probability)


def _quoted(fact: UnderstoodFact) -> Quote:
    first = fact.quotes[0] if fact.quotes else Quote(fact="", quote="", source="description")
    return first.model_copy(update={"fact": fact.text})


def _question(facts: Sequence[UnderstoodFact], known: Iterable[UnderstoodFact], new: bool) -> str:
    """Return the question that decides between two readings: about the first facts that only one of them has.

    known: all facts of that one. new: it is not the reading taken.
    """
    if not facts:
        return "What should be different afterwards, above all?"
    kinds = data_kinds(fact.setting for fact in known)
    wanted = joined(in_words([fact.setting for fact in facts], kinds)[:2])
    return f"Is it so that {wanted}?" if new else f"Is it really so that {wanted}?"
