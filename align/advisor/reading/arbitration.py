"""Two readers, one reading: the facts that are most probable together with the answer they lead to.

    score(F) = sum_{s in F} log-odds(s) + A log P(answer(F) | text)
               + B (sum_k log P(stage k in plan(F), or not | text) + sum_{w in warnings(F)} max(0, log-odds(w) + 2))

F is a set of statements that can be true together; answer(F), plan(F) and warnings(F) are what the rules conclude from
it. So
no model decides: the learned reader says what the text states and what such texts call for, and the rules say what
follows. The search starts from every statement that is more likely than not, and changes one at a time while the score
grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.advisor.decision import Conclusion
from align.advisor.project_facts import Evidence
from align.advisor.reading.answers import PART_OF, STAGES, WARNINGS, Outlook
from align.advisor.reading.candidates import Candidate
from align.advisor.select import LADDER
from align.schemas.advice import Primary

OF_ANSWER, OF_PARTS = 6.0, 2.0
"""A and B, by the accuracy on held-out writers."""
LENIENT = 2.0
"""Added to a warning's log-odds: one that is given needlessly costs less than one that is missing."""
NEARLY = 0.9
"""Share of the likelier answer's probability from which on a cheaper one is taken instead."""
STEPS = 8
"""Most changes of the search."""
COSTLY = -4.0
"""Log-odds that one change may cost at most."""


Conclude = Callable[[Sequence[Evidence]], Conclusion]


@dataclass(frozen=True, slots=True)
class ReadingOfText:
    """One way to read a text. facts: its statements. score: as above. concluded: what the rules make of it."""

    facts: frozenset[int]
    score: float
    concluded: Conclusion

    @property
    def primary(self) -> Primary:
        """The answer that the rules give it."""
        return self.concluded.primary


@dataclass(frozen=True, slots=True)
class Arbitration:
    """The reading taken, and for each other answer the best reading found that leads to it.

    probability: of each answer, calibrated; not renormalized over those found.
    """

    taken: ReadingOfText
    others: tuple[ReadingOfText, ...]
    probability: Mapping[Primary, float]


def arbitrate(
    candidates: Sequence[Candidate], fixed: Sequence[Evidence], conclude: Conclude, outlook: Outlook
) -> Arbitration:
    """Return the most probable reading, of two that are nearly as probable the one that costs less to follow.

    fixed: evidence that every reading has. Deterministic.
    """
    search = _Search(candidates, fixed, conclude, outlook)
    search.climb()
    best: dict[Primary, ReadingOfText] = {}
    for reading in search.seen.values():
        if reading.primary not in best or reading.score > best[reading.primary].score:
            best[reading.primary] = reading
    ranked = sorted(best.values(), key=lambda reading: (-reading.score, _cost(reading.primary)))
    probability = {answer: float(np.exp(value)) for answer, value in outlook.answers.items()}
    enough = NEARLY * probability[ranked[0].primary]
    close = [reading for reading in ranked[1:] if probability[reading.primary] >= enough and reading.primary in LADDER]
    taken = min((ranked[0], *close), key=lambda reading: _cost(reading.primary))
    return Arbitration(taken, tuple(reading for reading in ranked if reading is not taken), probability)


def _cost(primary: Primary) -> int:
    return LADDER.index(primary) if primary in LADDER else -1


class _Search:
    """A climb over sets of statements, each decided once."""

    def __init__(
        self, candidates: Sequence[Candidate], fixed: Sequence[Evidence], conclude: Conclude, outlook: Outlook
    ) -> None:
        self._candidates, self._fixed = candidates, fixed
        self._conclude, self._outlook = conclude, outlook
        self._choices: dict[str, list[int]] = {}
        for at, candidate in enumerate(candidates):
            self._choices.setdefault(candidate.statement.choice, []).append(at)
        self.seen: dict[frozenset[int], ReadingOfText] = {}

    def climb(self) -> None:
        best = self._read(frozenset(self._likely()))
        for _ in range(STEPS):
            step = max(map(self._read, self._neighbours(best.facts)), key=lambda r: r.score, default=best)
            if step.score <= best.score:
                return
            best = step

    def _likely(self) -> Iterator[int]:
        """Yield of each choice the statement that is more likely than not."""
        for options in self._choices.values():
            likeliest = max(options, key=self._log_odds)
            if self._log_odds(likeliest) > 0:
                yield likeliest

    def _log_odds(self, at: int) -> float:
        return self._candidates[at].log_odds

    def _neighbours(self, facts: frozenset[int]) -> Iterator[frozenset[int]]:
        """Yield the sets in which one choice is made otherwise, or not at all."""
        for options in self._choices.values():
            held = [at for at in options if at in facts]
            without = facts.difference(held)
            lost = sum(map(self._log_odds, held))
            if held and -lost >= COSTLY:
                yield without
            yield from (without | {at} for at in options if at not in held and self._log_odds(at) - lost >= COSTLY)

    def _read(self, facts: frozenset[int]) -> ReadingOfText:
        if facts not in self.seen:
            concluded = self._conclude([*self._fixed, *evidence_of(facts, self._candidates)])
            self.seen[facts] = ReadingOfText(facts, self._score(facts, concluded), concluded)
        return self.seen[facts]

    def _score(self, facts: frozenset[int], concluded: Conclusion) -> float:
        steps = concluded.decision.plan.steps
        given = {PART_OF.get(step.stage, step.stage) for step in steps if not step.optional}
        stated = sum(map(self._log_odds, sorted(facts)))
        stages = sum(self._outlook.stages[stage][stage in given] for stage in STAGES)
        warned = sum(
            max(0.0, self._outlook.warnings[each] + LENIENT) for each in sorted(concluded.warnings & {*WARNINGS})
        )
        return stated + OF_ANSWER * self._outlook.answers[concluded.primary] + OF_PARTS * (stages + warned)


def evidence_of(facts: frozenset[int], candidates: Sequence[Candidate]) -> list[Evidence]:
    """Return the evidence of a set of statements, in the order of the candidates."""
    return [e for at in sorted(facts) for e in candidates[at].evidence]
