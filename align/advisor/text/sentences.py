"""Split text into sentences of words, with their places. Linear in the text, whatever it contains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from align.advisor.text.traditional_chinese import SIMPLER

LONGEST_SENTENCE = 1000
"""Characters; a longer sentence is cut at a space, so that readers that search a sentence stay cheap."""

_ITEM = r"[ \t]{0,8}(?:[-*•#|>]|\(?\d{1,2}[.)]\s|\(?[a-z]\)\s)"
_KEY = r"[^\n:]{1,40}:\s"
_END = re.compile(
    r"(?P<stop>[.!?…]{1,4}[\"'”’»)\]]{0,3}(?=\s)|[。！？])"
    rf"|\n\s*\n|\n(?={_ITEM})|\n(?={_KEY})|(?P<line>\n)"
)
SHORT_LINE = 60
"""Characters; a line shorter than this was ended by its author, not wrapped."""
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:e\.g|i\.e|etc|approx|ca|vs|no|nos|nr|bzw|usw|z\. ?b|d\. ?h|u\. ?a|ggf|inkl|mrd|mio|tsd|bio|bspw|sog"
    r"|evtl|max|min|dr|prof|st|art|fig|p\. ?ej|aprox|núm|incl|resp|\d{1,2}|(?-i:[a-z]))\.$",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"(?P<link>https?://\S+)"
    r"|(?P<times>(?<=\d)[x×](?=[A-Za-z]{0,4}\d))"
    r"|(?P<name>[A-Za-z]{1,24}\d(?:[A-Za-z0-9_]|\.(?=\d))*)"
    r"|(?P<number>\d+(?:[.,'’]\d+)*(?:[eE][+-]?\d{1,3}(?![A-Za-z0-9]))?)"
    r"|(?P<han>[\u4e00-\u9fff])"
    r"|(?P<word>[^\W\d_\u4e00-\u9fff]+(?:['’][^\W\d_\u4e00-\u9fff]+)*)"
    r"|(?P<joint>(?<=\w)[-/&·](?=[^\W\d_])|(?<=[^\W\d_])-(?=\d))"
    r"|(?P<mark>->|→|=>|[^\s\w])"
)
_QUOTED = re.compile(r"(?<!\w)[\"“„«‘'「『][^\"”“»’'」』\n]{1,300}[\"”“»’'」』](?!\w)")
_QUOTES = frozenset("\"“”„«»‘’'`*_「」『』《》")


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence, cut into words, numbers and marks.

    words: in lower case, without quotation marks and joining hyphens. kinds: number, word, name (letters and digits:
    A100), han (one Chinese character, in its simplified form), mark. starts, ends: character places in the sentence.
    clauses: the clause of each word; brackets are a clause of their own. quoted: words inside quotation marks, which
    are examples and not statements.
    """

    text: str
    words: tuple[str, ...]
    kinds: tuple[str, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    clauses: tuple[int, ...]
    quoted: frozenset[int]

    def quote(self, start: int, end: int) -> tuple[str, tuple[int, int]]:
        """Return the text of words ``start`` to ``end`` (half-open) and its span in the sentence."""
        span = self.starts[start], self.ends[end - 1]
        return self.text[span[0] : span[1]], span

    def joined(self, index: int) -> bool:
        """Return whether a word is there and no space stands before it."""
        return 0 < index < len(self.words) and self.ends[index - 1] == self.starts[index]


def split_sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield each sentence, list item or heading, with its start."""
    start = line = 0
    for match in _END.finditer(text):
        end = match.end()
        if text[match.start()] == "." and _ABBREVIATION.search(text, max(start, end - 12), end):
            continue
        if match["stop"] is None:
            wrapped = match["line"] is not None and match.start() - line >= SHORT_LINE
            line = end
            if wrapped:
                continue
        yield from _pieces(text, start, end)
        start = end
    yield from _pieces(text, start, len(text))


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    while end - start > LONGEST_SENTENCE:
        limit = start + LONGEST_SENTENCE
        cut = text.rfind(" ", start + LONGEST_SENTENCE // 2, limit) + 1 or limit
        yield start, text[start:cut]
        start = cut
    if end > start and not text[start:end].isspace():
        yield start, text[start:end]


def split_words(text: str) -> Sentence:
    """Split a sentence into words."""
    words, kinds, starts, ends, clauses = [], [], [], [], []
    clause, opened, last = 0, [0], 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        word = match.group()
        if kind == "joint" or kind == "link" or word in _QUOTES:
            continue
        if kind == "mark":
            if word in "([（【":
                opened.append(clause)
                clause = last = last + 1
            elif word in ")]）】":
                clause = opened.pop() if len(opened) > 1 else clause
            elif word in ";:；：—–，。!?！？…" or (word == "-" and text[match.end() : match.end() + 1].isspace()):
                clause = last = last + 1
        if kind == "han":
            words.append(word.translate(SIMPLER))
        else:
            words.append("x" if kind == "times" or word == "×" else word.lower().replace("’", "'"))
        kinds.append("word" if kind == "times" or word == "×" else str(kind))
        starts.append(match.start())
        ends.append(match.end())
        clauses.append(clause)
    spans = [match.span() for match in _QUOTED.finditer(text)]
    quoted = (
        frozenset(i for i, start in enumerate(starts) if any(a <= start < b for a, b in spans))
        if spans
        else frozenset()
    )
    return Sentence(text, tuple(words), tuple(kinds), tuple(starts), tuple(ends), tuple(clauses), quoted)
