"""What a description says, without a model: text -> evidence. Deterministic, offline, linear in the text."""

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
from align.advisor.text.topic import Topic

__all__ = ["Extraction", "parse", "read"]

HEAD, TAIL = 60_000, 20_000
"""Characters read of a long text, from its start and its end: some thirty pages. A description has one or two."""
PLACES = 20
"""Most places kept that say the same of one field."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was read.

    evidence: in the order of the text; ``text[e.span[0]:e.span[1]] == e.quote`` for each. languages: ISO codes, the
    main one first, one that has no lexicon with ``?`` behind. passed_over: parts that were not looked at, in words.
    """

    evidence: list[Evidence]
    languages: list[str]
    passed_over: list[str]

    @property
    def not_understood(self) -> list[str]:
        """Everything that was left unread, in words: languages, then parts."""
        unknown = [code.removesuffix("?") for code in self.languages if code.endswith("?")]
        partly = len(unknown) < len(self.languages)
        return [*(_unread(code, partly) for code in unknown), *self.passed_over]


def read(text: str, place: str = "") -> Extraction:
    """The facts in a description.

    place: a name for where the text is from, kept on each piece of evidence. Never raises, whatever the text. Of a text
    of more than ``HEAD`` + ``TAIL`` characters what lies between is not read, and ``not_understood`` says so.
    """
    languages, unknown = languages_of(text[:HEAD])
    parts, passed_over = [(0, text)], list[str]()
    if len(text) > HEAD + TAIL:
        parts = [(0, text[:HEAD]), (len(text) - TAIL, text[-TAIL:])]
        passed_over.append(f"of {len(text):,} characters only the first {HEAD:,} and the last {TAIL:,} were read")
    said = [shift_span(e, start) for start, part in parts for e in _evidence(part, languages or ["xx"])]
    evidence = [replace(e, place=place) for e in resolve_hints(_once(said))]
    return Extraction(evidence, [*languages, *(f"{code}?" for code in unknown)], passed_over)


def _unread(code: str, partly: bool) -> str:
    what = "what is written in it was left out" if partly else "only numbers with units known everywhere were taken"
    return f"the text is in {name(code)}, which is not read without a model: {what}"


def _evidence(text: str, languages: list[str]) -> Iterator[Evidence]:
    """Sentence by sentence; what a sentence says may hang on what kind of data the one before speaks of."""
    subject = Topic(languages)
    known: dict[tuple[str, str | None], tuple[list[Evidence], str | None]] = {}
    kind: str | None = None
    for start, sentence in split_sentences(text):
        key = sentence, kind
        if key not in known:
            scene = SentenceContext(split_words(sentence), languages, kind)
            known[key] = list(_sentence(scene)), kind_mentioned(scene)
            subject.add(scene, start)
        found, kind = known[key]
        yield from (shift_span(e, start) for e in found)
    yield from enumerated(text, languages)
    yield from subject.told()


def _sentence(scene: SentenceContext) -> Iterator[Evidence]:
    yield from hardware(scene)
    yield from quantities(scene)
    yield from datasets(scene)
    yield from cues(scene)


def _once(evidence: Iterable[Evidence]) -> Iterator[Evidence]:
    """Each place once, and not more than ``PLACES`` that say the same."""
    counts: dict[tuple[str, str, str], int] = {}
    for e in evidence:
        key = e.field, repr(e.value), e.status
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= PLACES:
            yield e
