"""Description -> evidence, without a model. Deterministic, offline, linear in the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from align.advisor.project_facts import Evidence
from align.advisor.text.cues import cues
from align.advisor.text.data_sizes import datasets, kind_mentioned
from align.advisor.text.enumerations import enumerated
from align.advisor.text.hardware_mentions import hardware
from align.advisor.text.languages import languages_of, name
from align.advisor.text.number_grammar import parse
from align.advisor.text.quantities import quantities
from align.advisor.text.resolve import resolve_hints
from align.advisor.text.sentence_context import SentenceContext, shift_span
from align.advisor.text.sentences import split_sentences, split_words

__all__ = ["Extraction", "parse", "read"]

HEAD, TAIL = 60_000, 20_000
"""Characters read of a long text, from its start and its end: some thirty pages. A description has one or two."""
PLACES = 20
"""Most pieces of evidence kept for the same value of one field."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """The evidence of a description.

    evidence: in the order of the text; ``text[e.span[0]:e.span[1]] == e.quote`` for each. languages: ISO codes, the
    main one first, one that has no lexicon with ``?`` behind. passed_over: parts that were not read, in words.
    """

    evidence: list[Evidence]
    languages: list[str]
    passed_over: list[str]

    @property
    def not_understood(self) -> list[str]:
        """Languages and parts that were left unread, in words."""
        unknown = [code.removesuffix("?") for code in self.languages if code.endswith("?")]
        partly = len(unknown) < len(self.languages)
        return [*(_unread(code, partly) for code in unknown), *self.passed_over]


def read(text: str, place: str = "") -> Extraction:
    """Return the facts in a description.

    place: a name for where the text is from, kept on each piece of evidence. Never raises, whatever the text. In a text
    of more than ``HEAD`` + ``TAIL`` characters the middle is not read, and ``not_understood`` reports it.
    """
    languages, unknown = languages_of(text[:HEAD])
    parts, passed_over = [(0, text)], list[str]()
    if len(text) > HEAD + TAIL:
        parts = [(0, text[:HEAD]), (len(text) - TAIL, text[-TAIL:])]
        passed_over.append(f"of {len(text):,} characters only the first {HEAD:,} and the last {TAIL:,} were read")
    found = [shift_span(e, start) for start, part in parts for e in _evidence(part, languages or ["xx"])]
    evidence = [replace(e, place=place) for e in resolve_hints(_once(found))]
    return Extraction(evidence, [*languages, *(f"{code}?" for code in unknown)], passed_over)


def _unread(code: str, partly: bool) -> str:
    what = "what is written in it was left out" if partly else "only numbers with units known everywhere were taken"
    return f"the text is in {name(code)}, which is not read without a model: {what}"


def _evidence(text: str, languages: list[str]) -> Iterator[Evidence]:
    """Yield evidence sentence by sentence; the kind of data that one sentence mentions helps to read the next."""
    known: dict[tuple[str, str | None], tuple[list[Evidence], str | None]] = {}
    kind: str | None = None
    for start, sentence in split_sentences(text):
        key = sentence, kind
        if key not in known:
            scene = SentenceContext(split_words(sentence), languages, kind)
            known[key] = list(_sentence(scene)), kind_mentioned(scene)
        found, kind = known[key]
        yield from (shift_span(e, start) for e in found)
    yield from enumerated(text, languages)


def _sentence(scene: SentenceContext) -> Iterator[Evidence]:
    yield from hardware(scene)
    yield from quantities(scene)
    yield from datasets(scene)
    yield from cues(scene)


def _once(evidence: Iterable[Evidence]) -> Iterator[Evidence]:
    """Yield evidence, at most ``PLACES`` times for the same value of one field."""
    counts: dict[tuple[str, str, str], int] = {}
    for e in evidence:
        key = e.field, repr(e.value), e.status
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= PLACES:
            yield e
