"""Extraction of the answer of a text: exactly one, clearly marked, and meant."""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from align.plugins.rewards.math.notation import Unparsed, closing, plain

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

_BOX = re.compile(
    r"\\f?boxed\s*(?=\{)"  # \boxed{4}
    r"|\\fbox\s*(?=\{)"  # \fbox{4}
    r"|\\boxed|\\fbox"  # \boxed 4
)
_BARE_BOX = re.compile(
    r"\s*(-?(?:\d(?:[\d.,/]*\d)?|\\[a-zA-Z]+\S*?)"  # 4, -1,000, 3/4, \pi
    r"|(?<=\s)-?[a-zA-Z])"  # x, -y
    r"(?=[.,;]?(?:[\s$]|\\[)\]]|$))"  # and nothing more of a formula
)
"""The content of ``\boxed 4``."""
# The patterns below are the wordings of real model answers and of attacks on the reward. Where one is missed, a right
# answer loses its point or a hedged one is paid; tests/plugins/math_cases.jsonl has examples.
_CORRECTED = re.compile(
    r"\b(?:wait|actually|no|not|sorry|correction|corrected|mistake|wrong|error|recheck|instead|rather|hmm|oops|redo|"
    r"let me|check|verify|so|therefore|thus|hence|final|finally|then|next)\b",
    re.I,
)
_JOINED = re.compile(r"\b(?:or|and|also)\b|[,;]", re.I)
_BEGINS_HEDGED = re.compile(
    r"\W*(?:(?:or|alternatively|maybe|perhaps|possibly|otherwise|also)\b|it (?:could|might|may))", re.I
)
_DOUBTED = re.compile(
    r"\b(?:alternatively|maybe|perhaps|possibly|otherwise|either|could|might|may be)\b|[/&|=<>]", re.I
)
"""Words and signs between two boxes with which they are no list."""
_EQUAL = re.compile(r"[\s$]*=[\s$]*")
_NAMED = re.compile(
    r"(?<![a-zA-Z])\\?[a-zA-Z]\w*'?(?:_\{?\w+\}?)?"  # a, \alpha, x', x_{1}
    r"(?:\([a-zA-Z0-9]\))?"  # f(2)
    r"\s*=\s*[$\s({\\\[]*$"
)
"""A name before a box: ``a = \boxed{2}``."""
_VALUE = re.compile(
    r"[\s$]*(?:\\[(\[]\s*)?"
    r"(-?\.?\d(?:[\d.,/]*\d)?"  # 12/4
    r"|(?<=\$)[^$]+(?=\$)"  # $x + 1$
    r"|(?<=\\\()(?:[^\\]|\\(?!\)))+(?=\\\)))"  # \(x + 1\)
    r"(?![\d\w])"
)
"""A value at the beginning of a text."""
_OR_AFTER = re.compile(
    r"[\s$*)\]\\.,;(]*(?:and/)?"
    r"\b(?P<word>or|alternatively|maybe|perhaps|possibly|otherwise)\b"  # ", or 5", "(maybe 5)"
    r"(?P<rest>\s+\S.{0,300})",
    re.I | re.S,
)
"""Words behind a box that offer another answer."""
_SAME_AFTER = re.compile(r"\s+(?:else|equivalently|approximately|about|roughly)\b", re.I)
"""Words after "or" that introduce the same value: "or about 3.14"."""
_AND_AFTER = re.compile(
    r"[\s$*)\]\\]*(?:and\b|[,;&/])"  # " and", ","
    r"[\s$\\({]*-?\.?\d[\d.,]*"  # 5
    r"(?![\d.,]|[a-zA-Z]|\s*[-+*^=]|\s*\\(?![)\]]))",  # not "5x", "5 + y"
    re.I,
)
"""Another value behind a box, and not a formula that begins with a number."""
_OR_BEFORE = re.compile(
    r"\bor\b[\s$*(\\\[]*"  # "or $"
    r"(?:(\\?[a-zA-Z]+)\s*=\s*)?"  # "x ="
    r"[\s$*(\\\[{}]*$",
    re.I,
)
"""The word "or" right before a box."""
_HEDGE_BEFORE = re.compile(
    r"\b(?:not|isn't|n't be|cannot be|never|except|unlike|anything but|(?:other|rather) than|instead of)"
    r"(?: (?:be|equal to|the|a|number))*[\s$*(\\\[]*$"  # "not equal to", "anything but"
    r"|\b(?:could|might|may)(?: also)? be[\s$*(\\\[]*$"  # "could also be"
    r"|\b(?:either(?! (?:way|case|side)\b)|neither)\b"
    r"(?:(?!\b(?:is|are|was|were|equals?|gives?|yields?)\b|=)[^,;:.!?\n])*$"  # "either 4 or", not "either way"
    r"|\b(?:maybe|perhaps|possibly|probably|doubt|wrong|incorrect)\b[^,;:.!?\n]*$",  # "perhaps the answer is"
    re.I,
)
"""Words before a box, in its sentence, that deny or doubt it."""
_LAST_FORMULA = re.compile(
    r"\$([^$]+)\$$"  # $x + 1$
    r"|\\\(((?:[^\\]|\\(?![()]))+)\\\)$"  # \(x + 1\)
    r"|\\\[((?:[^\\]|\\(?![\[\]]))+)\\\]$"  # \[x + 1\]
    r"|(?<![\w.])(-?(?:\\?\$)?\.?\d(?:[\d.,/]*\d)?\s*\\?%?)$"  # 12/4, \$1,000, 50\%
    r"|([^$\n]*[\]}])$"  # \frac{1}{2}
)
"""A formula, or a number, at the end."""
_SHARE = re.compile(
    r"(?:[\d}$%]|\b(?:half|halves|thirds?|quarters?|fourths?|fifths?|twice))\s*(?:of|times)\s*$"  # "two thirds of"
    r"|\b(?:in|per|past)\s*$"  # "1 in", "half past"
    r"|\b(?:reciprocal|negative|opposite|inverse|square|root|cube|double|triple)s? of\s*$",  # "the square of"
    re.I,
)
"""Text before a value that is only a part of the whole expression: two thirds of 6."""
_NUMBER_WORD = re.compile(
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|[a-z]+ty|hundred|thousand", re.I
)
_SOLUTION = r"(?:an? |the |one of the )?(?:\w+ )?(?:answer|solution|root|option|choice|value|result)\b"
"""``one of the valid solutions``."""
_DENIED = (
    r"(?:(?:wrong|incorrect|false|mistaken|invalid)\b"  # "(is) wrong"
    r"|impossible\b(?! (?:for|to|that))"  # "impossible", not "impossible to miss"
    rf"|not (?:(?:correct|right|true|it|valid|possible|-?\d)\b"  # "not right", "not 5"
    rf"|(?!an? extraneous){_SOLUTION}))"  # "not a solution", not "not an extraneous solution"
)
"""Words for what a denied answer "is"."""
_CANNOT = r"(?:isn't|wasn't|cannot be|can't be)(?:\W*[.!?]|\W*$| {})"
"""``isn't``, at the end of a sentence or before what is put in."""
_REFUTED = rf"(?:(?:correct|right|true|it|valid|possible|equal|the case)\b|{_SOLUTION}|[$\\({{-]*\d)"
"""Words for what a refuted answer "isn't": ``right``, ``a solution``, ``5``."""
_RETRACTED = re.compile(
    r"(?:[.!?\n]|^)\W{0,20}"
    r"(?:wait|nope|hmm+|oops|actually|sorry|correction|scratch that|never ?mind|on second thought|"  # ". Wait"
    r"let me (?:re|correct|fix)\w*"  # ". Let me recheck"
    r"|no(?=[,.!:;]|\s+(?:wait|it|that|this)\b))\b"  # ". No, it"
    rf"|^\W{{0,20}}(?:is|was|seems|looks|must be)(?: \w+)? {_DENIED}"  # "<box> is clearly wrong"
    rf"|^\W{{0,20}}{_CANNOT.format(_REFUTED)}"  # "<box> isn't right"
    # "<box> is one of", "<box> is possibly"
    r"|^\W{0,20}(?:is|was|are|were) (?:one of|among|possibly|probably|perhaps|maybe|an? (?:possib|probab|likely)\w*)\b"
    # "that result was wrong"
    rf"|\b(?:it|this|that|which|above|answer|result|value|solution|box)(?:'s| is| was| seems)(?: \w+)? {_DENIED}"
    rf"|\b(?:it|this|that|answer|above|result|value|solution) {_CANNOT.format(_REFUTED)}"  # "that can't be it"
    r"|\b(?:it|this|that|answer|above|result|value|solution) (?:could|might|may)(?: also)? be"
    r"(?: (?:wrong|incorrect|false|mistaken|another|different|something)\b"  # "it may be wrong"
    r"|[\s$\\({-]*\d"  # "it could also be 5"
    r"|\s+\$?[a-zA-Z]\b[\s$]*(?:=|[.!]|$))"  # "it could be x ="
    r"|\bI (?:made|have made) an? (?:\w+ )?(?:mistake|error)",  # "I made a silly mistake"
    re.I,
)
"""An answer taken back, in what follows it."""
_BELOW = (
    r"(?:[ \t]*\n){0,3}[ \t]*"
    r"(?:(?:\$\$|\\\[)[ \t]*\n[ \t]*(?=[^\n]+\n[ \t]*(?:\$\$|\\\])))?"
    r"([^\n]+)"
)
"""A line, perhaps below blank ones, or alone in a displayed formula."""
_HASHES = re.compile(r"####(?![ \t*]*(?:final )?answer[ \t*:]*\n)[ \t]*([^\n]+)", re.I)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.S | re.I)
_PHRASE = re.compile(
    r"(?:\banswer\b(?: (?:to|of|for) [^\n.:]{1,60}?)?"  # "the answer to the question"
    r"[ \t]*(?:\*\*)?[ \t]*(?:is\b|:|=)"  # "is", "**:"
    r"|(?:^|\n)[ \t]*(?:final )?answer[ \t]*(?=\$|\\\(|\\\[))"  # a line that begins "Final answer $"
    rf"(?:[ \t]*(?:\*\*|:))*{_BELOW}",
    re.I,
)
_HEADING = re.compile(rf"(?:^|\n)[ \t]*(?:#{{1,6}}|\*\*)[ \t*]*(?:final )?answer[ \t*]*\n{_BELOW}", re.I)
_MARKERS = (_HASHES, _TAG, _PHRASE, _HEADING)
"""Announcements of an answer without a box, the most explicit first."""
_GOES_ON = re.compile(
    r"[\s$\])\\*]*(?:(?:or|and|alternatively)\b"  # " or 5"
    r"|[-$\\(\[ ]{0,9}\d[\d.,/]*[$)\]\\ ]{0,9}(?:\n|$))",  # a line with a number alone
    re.I,
)
"""The text after an answer, where it goes on with another one."""
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_CHECKING = re.compile(r"\b(?:check|verif|confirm)\w*(?: \w+){0,3} $", re.I)
"""Before a marker that announces no answer: "we check our answer: 2 + 3 = 5"."""
_PROSE = re.compile(
    r"\*{0,2}(?:the|an?|our|his|her|their|so|thus|therefore|hence)\b[^=<>\n]{1,120}?\b(?:is|are|equals)\b\s*:?\s*(?=\S)",
    re.I,
)
"""Words that a final answer may open with: "the largest n is 34"."""
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.S)
_FENCE = re.compile(r"^[ \t]*```\w*[ \t]*$", re.M)
_PERCENT = re.compile(
    r"[\s$*)\]]*(?:\\[)\]])?[\s$]*"
    r"(?:\\?%|\\text\s*\{\s*(?:percent|\\%)\s*\}|per\s?cent\b|pct\b)",  # \%, \text{percent}, percent
    re.I,
)
"""A percent sign or word behind a box."""
_WORDS_OF_DOUBT = re.compile(r"\b(?:either|maybe|perhaps|possibly|probably|not|between|unknown|unclear)\b", re.I)

_REASONS = re.compile(r",?\s+\(?(?:because|since|which|as)\b")


_VALUE_DENIED = re.compile(
    r"(?:\$|\\\(|\s)\s*([^$\s]{1,80}|[^$\n]{1,80}(?=\$))(?:\$|\\\))? "  # "$x = 5$ "
    rf"(?:(?:is|was)(?: \w+)? {_DENIED}|{_CANNOT.format(_REFUTED)})",  # "is not a solution"
    re.I,
)
"""A value, and that it is not the answer."""


class Found(NamedTuple):
    """The answer that a text gives.

    answers: one, or several boxes side by side, which are a list. joined: these as one text. restated: values that
    the text equates with it, before and after. percent: whether a percent sign stands behind the box. alternatives:
    whether nothing but "or" stands between boxes, which may be one answer or the other.
    """

    answers: tuple[str, ...]
    joined: str
    restated: tuple[str, ...] = ()
    percent: bool = False
    alternatives: bool = False


def answer_of(text: str, boxed: bool) -> Found:
    """Return the answer of a text. boxed: whether only a box counts. Raises Unparsed.

    The last box counts, so a correction is taken; an answer that is denied, doubted or taken back is none.
    """
    if len(text) > LONGEST_TEXT:
        raise Unparsed(f"is longer than {LONGEST_TEXT} characters")
    _, thought, text = text.rpartition("</think>")
    text = _DRAWING.sub("", text) if "[asy]" in text else text
    if not thought and "<think>" in text:
        raise Unparsed("never stops thinking")
    found = _boxed(text) if "box" in text else None
    if found is None:
        if boxed:
            raise Unparsed("has no box")
        answer, rest = _free(_FENCE.sub("", text[-_TAIL:]).replace("`", ""), whole=len(text) <= _TAIL)
        answer = _checked(answer)
        return Found((answer,), answer, tuple(_restated(rest)))
    return found


def _checked(found: str) -> str:
    """Return an answer without boxes inside it. Raises Unparsed where it is empty or too long."""
    found = re.sub(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1", found).strip()
    if not found:
        raise Unparsed("has an empty answer")
    if len(found) > LONGEST_ANSWER:
        raise Unparsed(f"has an answer of more than {LONGEST_ANSWER} characters")
    return found


def _restated(rest: str) -> list[str]:
    """Answers after the answer. Raises Unparsed where it is taken back."""
    if len(rest) > 2 * _TAIL:
        rest = f"{rest[:_TAIL]}\n{rest[-_TAIL:]}"
    rest = plain(rest).replace("\u2019", "'")
    if _RETRACTED.search(rest):
        raise Unparsed("is taken back")
    found = [_innermost(match[1]) for marker in _MARKERS for match in _marked(marker, rest)]
    cut = [_SENTENCE_END.split(value)[0] for value in found]
    return [value for value in cut if re.search(r"\d|\\|\$", value) or re.fullmatch(r"\W*[A-J]\W*", value)]


def _marked(marker: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The places that announce an answer, and do not check one."""
    return [m for m in marker.finditer(text) if not _CHECKING.search(text[max(0, m.start() - 40) : m.start()])]


def _denies(rest: str, answer: str) -> bool:
    """Return whether what follows says of the very answer that it is none: "but 5 is not a solution"."""
    bare = "".join(answer.split())
    denied = (match[1] for match in _VALUE_DENIED.finditer(plain(rest[: 2 * _TAIL]).replace("\u2019", "'")))
    return any("".join(value.split()).rpartition("=")[2] == bare for value in denied)


def _innermost(text: str) -> str:
    """Return 7 of "the final answer is: the answer is: the largest n is 7"."""
    text = text.strip()
    while inner := _PHRASE.search(text) or _HEADING.search(text):
        text = inner[1].strip()
    if opened := _PROSE.match(text):
        text = text[opened.end() :]
    return text


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def _boxes(text: str) -> list[_Box]:
    """The last boxes, outermost ones. Raises Unparsed where the last is not closed."""
    boxes: list[_Box] = []
    for match in deque(_BOX.finditer(text), maxlen=_BOXES):
        if boxes and match.start() < boxes[-1].end:
            continue
        if bare := _BARE_BOX.match(text, match.end()):
            boxes.append(_Box(match.start(), bare.end(1), bare[1]))
            continue
        opened = text.startswith("{", match.end())
        end = closing(text, match.end(), 20 * LONGEST_ANSWER) if opened else None
        if end is not None:
            boxes.append(_Box(match.start(), end, text[match.end() + 1 : end - 1]))
        elif _BOX.search(text, match.end()) is None:
            raise Unparsed("ends in a box that is not closed")
    return boxes


def _boxed(text: str) -> Found | None:
    """Find the last box, with those that are one list with it; None without boxes."""
    boxes = _boxes(text)
    if not boxes:
        return None
    last = boxes[-1]
    start, contents, joined, alternatives = last.start, [last.content], last.content, False
    equal: list[str] = []
    for earlier in reversed(boxes[:-1]):
        between = plain(text[earlier.end : start][:300])
        if _EQUAL.fullmatch(between):
            equal.append(earlier.content)
        elif "".join(earlier.content.split()) != "".join(contents[0].split()):
            if not _are_one_list(between):
                break
            word = r"\text{or}" if re.search(r"\bor\b", between, re.I) else ","
            alternatives = alternatives or (word != "," and not _NAMED.search(between))
            contents.insert(0, earlier.content)
            joined = f"{earlier.content} {word} {joined}"
        start = earlier.start
    restated = [
        *equal,
        *_restated_before(text, start, contents[0]),
        *_restated_after(text, last.end),
        *_restated(text[last.end :]),
    ]
    answers = tuple(map(_checked, contents))
    if any(_denies(text[last.end :], answer) for answer in answers):
        raise Unparsed("is taken back")
    percent = _PERCENT.match(text, last.end) is not None
    return Found(answers, _checked(joined), tuple(restated), percent, alternatives)


def _are_one_list(between: str) -> bool:
    """Return whether two boxes with this between them are one list. Raises Unparsed where they exclude each other."""
    if len(between) >= 100 or _CORRECTED.search(between):
        return False
    bare = _NAMED.sub("", between)
    words = re.sub(r"\\(?:text|quad|qquad|hspace|\W)|\W", "", bare)
    *earlier, sentence = re.split(r"[.!?]\s|\n", bare)
    joined = _BEGINS_HEDGED.match(sentence) if earlier else _JOINED.search(sentence)
    if words and not joined:
        return False
    if not joined or _DOUBTED.search(bare):
        raise Unparsed("gives several answers")
    return True


def _restated_before(text: str, start: int, content: str) -> list[str]:
    r"""Return the value before "or" and a box: ``12/4, or \boxed{3}``. Raises Unparsed where the box is doubted."""
    sentence = _SENTENCE_END.split(plain(text[max(0, start - _LINE) : start]))[-1]
    if _HEDGE_BEFORE.search(sentence):
        raise Unparsed("denies or doubts its box")
    match = _OR_BEFORE.search(sentence)
    if match is None:
        return []
    before = sentence[: match.start()].rstrip(" ,\n").removesuffix(r"\text{")
    formula = _LAST_FORMULA.search(before)
    if formula is None:
        return _described(before, content)
    value = next(filter(None, formula.groups())).strip().rstrip(",.;")
    left, equals, right = value.rpartition("=")
    if match[1] and equals:  # 5x = 180, or x = 36; but x = 35 or x = 36
        return [right] if left.strip() == match[1] else []
    if "=" not in content:
        value = re.split(r"=|\\equiv|\\approx", value)[-1]
    named = re.fullmatch(r"\\?[A-Za-z]{1,5}'?|\\triangle ?[A-Z]+", value) and re.search(r"\d", content)
    chosen = re.search(r"\d", value) and re.fullmatch(r"\W*[A-J]\W*", content)
    return [] if named or chosen or _SHARE.search(before[: formula.start()]) else [value]


def _described(before: str, content: str) -> list[str]:
    """Return nothing where words stand before "or" and a formula behind: "the area of the circle, or ..."."""
    word = re.split(r"[^a-zA-Z]", before)[-1]
    if re.search(r"\([^()]*[a-z]{2,} [^()]*\)$", before):  # an aside
        return []
    counted = _NUMBER_WORD.fullmatch(word) and not _SHARE.search(before.removesuffix(word))
    if not word or counted or not _is_formula(content):
        raise Unparsed("gives several answers")
    return []


def _is_formula(content: str) -> bool:
    return re.search(r"\d|\\(?!text|mbox|mathrm)", content) is not None


def _restated_after(text: str, end: int) -> list[str]:
    """Return the value after a box and "or". Raises Unparsed where another one follows."""
    if _AND_AFTER.match(text, end):
        raise Unparsed("gives another answer after its box")
    match = _OR_AFTER.match(text, end)
    if match is None or (match["word"].lower() == "or" and _SAME_AFTER.match(match["rest"])):
        return []
    value = _VALUE.match(match["rest"]) if match["word"].lower() == "or" else None
    if value is None:
        raise Unparsed("gives another answer after its box")
    return [value[1]]


def _free(text: str, whole: bool) -> tuple[str, str]:
    """Find an answer without a box, and the text after it. Raises Unparsed.

    It stands after ``####``, in ``<answer>``, after "the answer is", right of a last ``=``, or alone. whole: whether
    ``text`` is all that was written, so that it may be nothing but the answer.
    """
    for marker in _MARKERS:
        places = _marked(marker, text)
        if places:
            answer = _innermost(places[-1][1])
            rest = text[places[-1].end() :]
            if marker is not _TAG and (end := _SENTENCE_END.search(answer)):
                if re.match(r"\s*(?:or|alternatively|maybe)\b", answer[end.end() :], re.I):
                    raise Unparsed("gives several answers")
                answer, rest = answer[: end.start()], f"{answer[end.end() :]}{rest}"
            if len(places) > 1:
                between = text[places[-2].end(1) : places[-1].start()]
                differs = places[-2][1].strip(" .$*") != answer.strip(" .$*")
                if differs and re.match(r"\W*(?:or|and|alternatively)\b", between, re.I):
                    raise Unparsed("gives several answers")
            if _GOES_ON.match(rest) or re.search(r"(?:\b(?:or|and)|[,;/&=])[\s$*]*$", answer, re.I):
                raise Unparsed("gives several answers")
            return _meant(answer), rest
    last = text.strip().rpartition("\n")[2]
    if whole and last == text.strip():
        worded = "=" in last and re.search(r"[a-zA-Z]{2,} ", last.rpartition("=")[0])
        return _meant(_right_of(last) if worded else last), ""
    if len(last) <= _LINE and re.search(r"[^=]=[^=]+$", last):
        return _meant(_right_of(last)), ""
    raise Unparsed("has no box and no final answer")


def _right_of(line: str) -> str:
    """Return the value right of the last ``=``; with numbers left of it, so that ``1 = 7`` is seen to be false."""
    before, _, value = line.rpartition("=")
    if _WORDS_OF_DOUBT.search(before) or re.search(r"\b(?:or|guess|suppose|could|might)\b", before, re.I):
        raise Unparsed("gives several answers, or doubts")
    numbers = re.split(r"(?<!\\)\b[a-zA-Z]{2,}|[,;:]", before)[-1].strip()
    arithmetic = re.search(r"\d", numbers) and not re.search(r"(?<![a-zA-Z\\])[a-zA-Z]", numbers)
    return f"{numbers}={value}" if arithmetic else value


def _meant(answer: str) -> str:
    """Return an answer without opening words and reasons. Raises Unparsed for several formulas, or doubt."""
    formulas = re.findall(r"(?<!\\)\$[^$]+(?<!\\)\$", answer)
    if len(formulas) > 1 or _WORDS_OF_DOUBT.search(answer):
        raise Unparsed("gives several answers, or doubts")
    answer = re.sub(r"^(?:therefore|thus|then|simply|just|equal to|indeed|hence)\b", "", answer.strip(), flags=re.I)
    return _REASONS.split(answer)[0]
