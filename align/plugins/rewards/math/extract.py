"""Which part of a text is its answer: exactly one, clearly marked, and meant."""

from __future__ import annotations

import re
from collections import deque

from align.plugins.rewards.math.notation import plain

LONGEST_TEXT = 2**20
"""Characters of a whole answer."""
LONGEST_ANSWER = 1500
"""Characters of what is in the box."""
_TAIL = 2000
"""Free answers are looked for in the last characters."""
_LINE = 300
"""Characters of a last line that may end in ``= X``."""
_BOXES = 20
"""Boxes that are looked at, the last ones."""

_BOX = re.compile(r"\\f?boxed\s*(?=\{)|\\fbox\s*(?=\{)|\\boxed|\\fbox")
_CORRECTED = re.compile(
    r"\b(?:wait|actually|no|not|sorry|correction|corrected|mistake|wrong|error|recheck|instead|rather|hmm|oops|redo|"
    r"let me|check|verify|so|therefore|thus|hence|final|finally|then|next)\b",
    re.I,
)
_HEDGED = re.compile(
    r"\b(?:or|and|alternatively|maybe|perhaps|possibly|otherwise|either|could|might|also)\b|[,;&/]", re.I
)
_BEGINS_HEDGED = re.compile(
    r"\W*(?:(?:or|alternatively|maybe|perhaps|possibly|otherwise|also)\b|it (?:could|might|may))", re.I
)
_HEDGE_AFTER = re.compile(
    r"[\s$*)\]\\.,;(]*(?:and/)?\b(?:or|alternatively|maybe|perhaps|possibly|otherwise)\b\s+\S"
    r"|[\s$*)\]\\]*(?:and\b|[,;&/])[\s$\\({]*-?\.?\d",
    re.I,
)
"""Another value beside a box."""
_HEDGE_BEFORE = re.compile(
    r"\b(?:not|isn't|n't be|cannot be|never|or|except|unlike)(?: (?:equal to|the|a|number))*[\s$*(\\\[]*$"
    r"|\b(?:could|might|may)(?: also)? be[\s$*(\\\[]*$"
    r"|\b(?:either|neither|maybe|perhaps|possibly|probably|doubt|wrong|incorrect)\b[^,;:.!?\n]*$",
    re.I,
)
_DENIED = r"(?:wrong|incorrect|false|mistaken|impossible|invalid|not (?:the|correct|right|true|it|valid|an?|-?\d))\b"
_RETRACTED = re.compile(
    r"(?:[.!?\n]|^)\W{0,20}(?:wait|nope|hmm+|oops|actually|sorry|correction|scratch that|never ?mind|on second thought|"
    r"let me (?:re|correct|fix)\w*|no(?=[,.!:;]|\s+(?:wait|it|that|this)\b))\b"
    rf"|^\W{{0,20}}(?:is|was|seems|looks|must be)(?: \w+)? {_DENIED}|^\W{{0,20}}(?:isn't|wasn't|cannot be|can't be)\b"
    rf"|\b(?:it|this|that|which|above|answer|result|value|solution|box)(?:'s| is| was| seems)(?: \w+)? {_DENIED}"
    r"|\b(?:it|this|that|answer|above|result|value|solution) (?:isn't|wasn't|cannot be|can't be|(?:could|might|may)"
    r"(?: also)? be)\b|\bI (?:made|have made) an? (?:\w+ )?(?:mistake|error)",
    re.I,
)
"""An answer taken back, in what follows it."""
_BELOW = r"(?:[ \t]*\n){0,3}[ \t]*(?:(?:\$\$|\\\[)[ \t]*\n[ \t]*(?=[^\n]+\n[ \t]*(?:\$\$|\\\])))?([^\n]+)"
"""A line, perhaps below blank ones, or alone in a displayed formula."""
_MARKERS = (
    re.compile(r"####(?![ \t*]*(?:final )?answer[ \t*:]*\n)[ \t]*([^\n]+)", re.I),
    re.compile(r"<answer>(.*?)</answer>", re.S | re.I),
    re.compile(
        r"\banswer\b(?: (?:to|of|for) [^\n.:]{1,60}?)?[ \t]*(?:\*\*)?[ \t]*(?:is|:|=)"
        rf"(?:[ \t]*(?:\*\*|:))*{_BELOW}",
        re.I,
    ),
    re.compile(rf"(?:^|\n)[ \t]*(?:#{{1,6}}|\*\*)[ \t*]*(?:final )?answer[ \t*]*\n{_BELOW}", re.I),
)
_GOES_ON = re.compile(
    r"[\s$\])\\*]*(?:(?:or|and|alternatively)\b|[-$\\(\[ ]{0,9}\d[\d.,/]*[$)\]\\ ]{0,9}(?:\n|$))", re.I
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_WORDS_OF_DOUBT = re.compile(r"\b(?:either|maybe|perhaps|possibly|probably|not|between|unknown|unclear)\b", re.I)

_REASONS = re.compile(r",?\s+\(?(?:because|since|which|as)\b")


class Unparsed(Exception):
    """There is no answer, or not exactly one; says why."""


def answers_of(text: str, boxed: bool) -> list[str]:
    """The one answer of a text, and what restates it behind. boxed: whether only a box counts. Raises Unparsed.

    The last box counts, so a correction is heard; two boxes given side by side are two answers, which is none, and so
    is one that is denied, doubted or taken back.
    """
    if len(text) > LONGEST_TEXT:
        raise Unparsed(f"is longer than {LONGEST_TEXT} characters")
    _, thought, text = text.rpartition("</think>")
    if not thought and "<think>" in text:
        raise Unparsed("never stops thinking")
    found = _boxed(text) if "box" in text else None
    if found is None:
        if boxed:
            raise Unparsed("has no box")
        found = _free(text[-_TAIL:], whole=len(text) <= _TAIL)
    said, rest = found
    return [_checked(said), *_restated(rest)]


def _checked(found: str) -> str:
    found = re.sub(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1", found).strip()
    if not found:
        raise Unparsed("has an empty answer")
    if len(found) > LONGEST_ANSWER:
        raise Unparsed(f"has an answer of more than {LONGEST_ANSWER} characters")
    return found


def _restated(rest: str) -> list[str]:
    """Answers after the answer. Raises Unparsed where it is taken back."""
    rest = plain(rest if len(rest) <= 2 * _TAIL else f"{rest[:_TAIL]}\n{rest[-_TAIL:]}").replace("\u2019", "'")
    if _RETRACTED.search(rest):
        raise Unparsed("is taken back")
    found = [match[1].strip() for marker in _MARKERS for match in marker.finditer(rest)]
    cut = [_SENTENCE_END.split(said)[0] for said in found]
    return [said for said in cut if re.search(r"\d|\\|\$", said) or re.fullmatch(r"\W*[A-J]\W*", said)]


def _boxed(text: str) -> tuple[str, str] | None:
    """What the last box holds, and what follows it; None without boxes."""
    boxes: list[tuple[int, int, str]] = []  # start, end, content; outermost ones
    for match in deque(_BOX.finditer(text), maxlen=_BOXES):
        if boxes and match.start() < boxes[-1][1]:
            continue
        end = _closing(text, match.end())
        if end is None:
            if _BOX.search(text, match.end()) is None:
                raise Unparsed("ends in a box that is not closed")
            continue
        boxes.append((match.start(), end, text[match.end() + 1 : end - 1]))
    if not boxes:
        return None
    start, end, content = boxes[-1]
    for earlier in reversed(boxes[:-1]):
        between = plain(text[earlier[1] : start][:300])
        if "".join(earlier[2].split()) == "".join(content.split()):
            start = earlier[0]
            continue
        if start - earlier[1] < 100 and not _CORRECTED.search(between):
            words = re.sub(r"\\(?:text|quad|qquad|hspace|\W)|\W", "", between)
            sentences = re.split(r"[.!?]\s|\n", between)
            hedged = _HEDGED.search(between) if len(sentences) == 1 else _BEGINS_HEDGED.match(sentences[-1])
            if not words or hedged:
                raise Unparsed("gives several answers")
        break
    if _HEDGE_AFTER.match(text, end):
        raise Unparsed("gives another answer after its box")
    if _HEDGE_BEFORE.search(_SENTENCE_END.split(plain(text[max(0, start - _LINE) : start]))[-1]):
        raise Unparsed("denies or doubts its box")
    return content, text[end:]


def _closing(text: str, brace: int) -> int | None:
    """The place after the brace that closes the one at ``brace``."""
    if brace >= len(text) or text[brace] != "{":
        return None
    depth = 0
    for match in re.compile(r"\\[{}\\]|[{}]").finditer(text, brace, brace + 20 * LONGEST_ANSWER):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


def _free(text: str, whole: bool) -> tuple[str, str]:
    """An answer without a box, and what follows: after ``####``, in ``<answer>``, after "the answer is", or alone."""
    for marker in _MARKERS:
        places = list(marker.finditer(text))
        if places:
            said = places[-1][1].strip()
            while inner := marker.search(said):  # Final answer: the answer is 7
                said = inner[1].strip()
            rest = text[places[-1].end() :]
            if marker is not _MARKERS[1] and (end := _SENTENCE_END.search(said)):
                if re.match(r"\s*(?:or|alternatively|maybe)\b", said[end.end() :], re.I):
                    raise Unparsed("gives several answers")
                said, rest = said[: end.start()], f"{said[end.end() :]}{rest}"
            if len(places) > 1:
                between = text[places[-2].end(1) : places[-1].start()]
                if places[-2][1].strip(" .$*") != said.strip(" .$*") and re.match(
                    r"\W*(?:or|and|alternatively)\b", between, re.I
                ):
                    raise Unparsed("gives several answers")
            if _GOES_ON.match(rest) or re.search(r"(?:\b(?:or|and)|[,;/&=])[\s$*]*$", said, re.I):
                raise Unparsed("gives several answers")
            return _meant(said), rest
    last = text.strip().rpartition("\n")[2]
    if whole and last == text.strip():
        worded = "=" in last and re.search(r"[a-zA-Z]{2,} ", last.rpartition("=")[0])
        return _meant(_right_of(last) if worded else last), ""
    if len(last) <= _LINE and re.search(r"[^=]=[^=]+$", last):
        return _meant(_right_of(last)), ""
    raise Unparsed("has no box and no final answer")


def _right_of(line: str) -> str:
    """What the last ``=`` says; with what is left of it where that is numbers, so that ``1 = 7`` is heard."""
    before, _, value = line.rpartition("=")
    if _WORDS_OF_DOUBT.search(before) or re.search(r"\b(?:or|guess|suppose|could|might)\b", before, re.I):
        raise Unparsed("gives several answers, or doubts")
    numbers = re.split(r"(?<!\\)\b[a-zA-Z]{2,}|[,;:]", before)[-1].strip()
    return (
        f"{numbers}={value}"
        if re.search(r"\d", numbers) and not re.search(r"(?<![a-zA-Z\\])[a-zA-Z]", numbers)
        else value
    )


def _meant(said: str) -> str:
    """Raises Unparsed where more than one formula is there, or doubt."""
    formulas = re.findall(r"(?<!\\)\$[^$]+(?<!\\)\$", said)
    if len(formulas) > 1 or _WORDS_OF_DOUBT.search(said):
        raise Unparsed("gives several answers, or doubts")
    said = re.sub(r"^(?:therefore|thus|then|simply|just|equal to|indeed|hence)\b", "", said.strip(), flags=re.I)
    return _REASONS.split(said)[0]
