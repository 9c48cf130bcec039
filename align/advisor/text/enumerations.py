"""Count the items of lists of rules: `Must: 1. ... 2. ... 3. ...`, `needs to (a) ... (b) ...`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from align.advisor.project_facts import Evidence
from align.advisor.text.sentence_context import SentenceContext, shift_span
from align.advisor.text.sentences import split_words

_ITEM = re.compile(r"^[ \t]{0,8}(?:[-*•]|\(?\d{1,2}[.)]|\(?[a-z]\))[ \t]+\S.*$", re.MULTILINE)
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii")
_INLINE = re.compile(
    r"(?:[(（]|(?<!\S)(?=[iv]))([a-h1-8]|viii|vii?|iv|v|i{1,3})[)）]"
    r"|[第其]?([一二三四五六七八])[，、,是]|([①-⑧])|(?<![\d.])([1-8])、"
)
_ORDER = {mark: i % 8 for i, mark in enumerate((*"abcdefgh12345678一二三四五六七八①②③④⑤⑥⑦⑧", *_ROMAN))}
LEAD = 200
"""Characters before a list that are searched for words of duty."""
MOST = 60


def enumerated(text: str, languages: Sequence[str]) -> Iterator[Evidence]:
    """Yield the number of rules of each list of at least two items after words of duty: must, rules, should change."""
    lists = [*_lines(text), *_inline(text)]
    for lead, start, end, count in lists[:MOST]:
        scene = SentenceContext(split_words(text[lead:start]), languages)
        if any(True for _ in scene.among("rules:lead", 0, len(scene.sentence.words))):
            quote = text[start:end].rstrip()
            yield shift_span(
                Evidence("behaviour.rules_count", count, "asserted", quote, (0, len(quote)), "text"), start
            )


def _lines(text: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield lists of one item a line: start of the lead, start and end of the list, number of items."""
    group: list[tuple[int, int]] = []
    for span in [*(match.span() for match in _ITEM.finditer(text)), None]:
        if group and (span is None or not _continued(text, group[-1][1], span[0])):
            if len(group) > 1:
                lead = text.rfind("\n\n", max(group[0][0] - LEAD, 0), max(group[0][0] - 2, 0))
                yield max(lead, group[0][0] - LEAD, 0), group[0][0], group[-1][1], len(group)
            group = []
        if span is not None:
            group.append(span)


def _continued(text: str, end: int, start: int) -> bool:
    """Return whether only indented lines of the first item lie between two items."""
    return start - end < 600 and all(
        not line or line[0] in " \t" for line in text[end + 1 : start].split("\n")[:-1] or [""]
    )


def _inline(text: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield lists in a sentence: (a) ... (b) ...; (i) ... (ii) ..., i) ... ii) ...; 第一，...; 一是 ...; ① ..."""
    run: list[re.Match[str]] = []
    for match in _INLINE.finditer(text):
        mark = _ORDER[next(filter(None, match.groups()))]
        if mark == 0:
            run = [match]
        elif run and mark == len(run) and match.start() - run[-1].end() < 400:
            run.append(match)
            continue
        else:
            run = []
            continue
    if len(run) > 1:
        yield max(run[0].start() - LEAD, 0), run[0].start(), run[-1].end(), len(run)
