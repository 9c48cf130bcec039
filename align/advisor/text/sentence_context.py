"""One sentence with everything found in it: phrases, numbers, scopes of negations and the like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from align.advisor.project_facts import Evidence, Status
from align.advisor.text.assertion_status import Scopes
from align.advisor.text.lexicon import Match, lexicon
from align.advisor.text.number import Number
from align.advisor.text.number_grammar import numbers
from align.advisor.text.sentences import Sentence

_PREPOSITIONS = ("since", "in", "from", "until", "seit", "von", "bis", "desde", "en", "de", "hasta")
"""Prepositions before years."""


def shift_span(e: Evidence, by: int) -> Evidence:
    """Return evidence with its span moved from a sentence to the text, in which the sentence starts at ``by``."""
    return replace(e, span=(e.span[0] + by, e.span[1] + by)) if e.span else e


@dataclass
class SentenceContext:
    """A sentence with its phrases and numbers, found when first needed.

    languages: the lexicons it is read with, the text's main one first. before: the kind of data that the previous
    sentence mentions, if any.
    """

    sentence: Sentence
    languages: Sequence[str]
    before: str | None = None
    taken: set[int] = field(default_factory=set)
    """Words that belong to a number already read, so that no other number claims them."""
    nouns: dict[int, Any] = field(default_factory=dict)
    """The nouns that numbers count, once found, by the numbers' starts."""

    @cached_property
    def matches(self) -> list[Match]:
        """The phrases of all languages."""
        return [match for language in self.languages for match in lexicon(language).find(self.sentence)]

    @cached_property
    def numbers(self) -> list[Number]:
        """The sentence's numbers, in order."""
        return numbers(self.sentence, self.languages)

    @cached_property
    def countable(self) -> list[Match]:
        """Nouns that a number may count."""
        return [match for match in self.matches if match.label.startswith(("unit:", "data:"))]

    @cached_property
    def number_starts(self) -> frozenset[int]:
        """The starts of numbers."""
        return frozenset(number.start for number in self.numbers)

    @cached_property
    def phrase_stops(self) -> frozenset[int]:
        """Words that end the phrase behind a number."""
        return frozenset(match.start for match in self.named("phrase:stop"))

    @cached_property
    def scopes(self) -> Scopes:
        """The scopes of denials, plans, attempts and attributions."""
        return Scopes(self.sentence, self.matches)

    @cached_property
    def _labels(self) -> dict[str, list[Match]]:
        by: dict[str, list[Match]] = {}
        for match in self.matches:
            by.setdefault(match.label, []).append(match)
        return by

    def is_name(self, number: Number) -> bool:
        """Return whether a number names something: revision 19, port 8443, chapter 3."""
        return (
            number.plain
            and any(m.end == number.start for m in self.named("phrase:id"))
            and (self.sentence.words[number.start - 1] not in _PREPOSITIONS or 1900 <= number.value <= 2100)
        )

    def measured_on(self, number: Number) -> bool:
        """Return whether a number counts rows of a measurement: `tested on 250 cases`, `on 420 tickets it gets 71%`."""
        if any(m.end == number.start for m in self.named("near:measured")):
            return True
        things = number.end < len(self.sentence.words) and self.sentence.kinds[number.end] != "mark"
        over = things and any(m.end == number.start for m in self.named("near:over"))
        return (
            over
            and any(n.share for n in self.numbers)
            and not any(True for _ in self.among("cue:method.", 0, len(self.sentence.words)))
        )

    def named(self, label: str) -> list[Match]:
        """Return the phrases of one label."""
        return self._labels.get(label, [])

    def among(self, head: str, start: int, end: int) -> Iterator[Match]:
        """Yield phrases whose label begins with ``head`` and that lie in words ``start`` to ``end``."""
        for match in self.matches:
            if match.start >= start and match.end <= end and match.label.startswith(head):
                yield match

    def has(self, label: str, start: int, end: int, denied: bool = False) -> bool:
        """Return whether an undenied phrase of one label lies in words ``start`` to ``end``."""
        return any(
            match.start >= start and match.end <= end and (denied or not self.scopes.negated(match.start, match.end))
            for match in self.named(label)
        )

    def evidence(
        self,
        name: str,
        value: object,
        start: int,
        end: int,
        status: Status = "asserted",
        number: Number | None = None,
        vague: bool = False,
    ) -> Evidence:
        """Return the evidence of words ``start`` to ``end``; the span is in the sentence."""
        quote, span = self.sentence.quote(start, end)
        guess = vague or (number is not None and number.vague)
        low, high = (number.low, number.high) if number is not None and number.vague else (None, None)
        return Evidence(name, value, status, quote, span, "text", guess, low, high)
