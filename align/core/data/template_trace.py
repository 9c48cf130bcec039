"""Find the text of a row that a chat template leaves out or changes.

Searching the rendered text for a string does not show whether the template wrote it: lost text may occur elsewhere by
chance, and text that is there may be escaped, trimmed or moved. So marks, which are characters that no text uses, are
put inside the words of every string, and the row is rendered a second time. If the result is the first text plus marks,
the marks show what became of each string, whatever the template did with it; a missing mark is missing text. If it is
not (a template that counts letters), the strings are searched for in the text itself.
"""

from __future__ import annotations

import html
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from math import isfinite
from typing import Any, NamedTuple

import jinja2

from align.core.data.encode import Span
from align.core.data.template_sandbox import RenderFailure
from align.schemas.records import Message

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of the message field that holds the assistant's reasoning."""

STRIDE = 256
"""Characters between two marks inside a string; every piece also has one at its start and one at its end."""

ESCAPED = 16
"""Most characters that one is written as: an emoji in JSON in a string of JSON takes 14."""

_FIRST, _LAST = 0xF0000, 0x10FFFD  # planes for private use: no font and no standard gives them a meaning
_MARK = (  # as itself, as JSON escapes it, as Python does
    f"[{chr(_FIRST)}-{chr(_LAST)}]" + r"|\\u[dD][bB][89a-fA-F][0-9a-fA-F]\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|\\U00(?:0[fF]|10)[0-9a-fA-F]{4}"
)
_INK = re.compile(r"\S")
_HIDDEN = "\ufdd2\\d+\ufdd3"  # a special token's form, as the Guard hides it
_AFTER_THOUGHT = re.compile(r"</\W?(?:think|thought|reason)\w*\W?>|\[/THINK\]|<\|?end_of_thought\|?>|<channel\|>", re.I)
_PARTS = ("text", "thinking", "reasoning", "value", "content")  # fields of a content part that hold text
# Numbers take no mark, so each is replaced by one that no row is likely to hold: this plus the number of its leaf.
_NUMBER = 81_270_000_000
_NUMBERS = r"8127\d{7}(?:\.5)?"
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|.)", re.S)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


class Lost(NamedTuple):
    """Text of the row that is missing in the rendered conversation. message: its index, -1 for the tools."""

    message: int
    field: str
    text: str
    reasoning: bool

    @property
    def part(self) -> tuple[int, str]:
        """The message and field, with all of a call's arguments counted as one field."""
        return self.message, self.field.partition(".arguments")[0]


class _Leaf(NamedTuple):
    """One string of the row, or a number or truth value of a call's arguments."""

    message: int
    field: str
    value: Any


class Trace(NamedTuple):
    """The result of tracing a row.

    places: positions of each message's text in the rendered one, ascending, after a first or before a last character.
    """

    lost: list[Lost]
    places: dict[int, list[int]]
    spans: list[Span] | None
    """Spans that the template marks as the assistant's; None where they could not be determined."""


class Tracer:
    """The marks in one row's messages and tools: put in before rendering, read in the output of template ``source``.

    variables: the other variables that the template is given.
    """

    def __init__(self, source: str, messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]) -> None:
        self._source, self._messages, self._tools, self._variables = source, messages, tools, variables
        self._leaves: list[_Leaf] = []
        self._marks: list[tuple[int, int]] = []  # of each mark, the index of its leaf and its position there
        self._numbers: dict[str, tuple[int, str]] = {}
        self._next = _FIRST
        self._usable = True

    @cached_property
    def plain(self) -> bool:
        """True if every message has a string as content and nothing else that is rendered.

        For such rows, the most common, ``trace_plain`` saves the second rendering.
        """
        others = {"tool_calls", *REASONING}
        if self._tools:
            return False
        return all(
            isinstance(message.get("content"), str) and not others & message.keys() for message in self._messages
        )

    def trace_plain(self, text: str) -> Trace | None:
        """Return a trace without losses if each content stands unchanged in the text, in order; else None.

        A content that the template might write by itself ("user", a default system prompt) proves nothing: then None.
        """
        if not self.plain:
            return None
        rest = [{key: value for key, value in message.items() if key != "content"} for message in self._messages]
        others = f"{self._source}\n{self._variables}\n{rest}"
        places, end = dict[int, list[int]](), 0
        for i, message in enumerate(self._messages):
            content = message["content"].strip()
            start = text.find(content, end)
            if start < 0 or content in others:
                return None
            end = start + len(content)
            places[i] = [start + 1, max(start + 1, end - 1)]  # the positions that marks would have
        return Trace([], places, None)

    # Putting marks in.

    @cached_property
    def traced(self) -> tuple[list[Message], Any]:
        """The messages and the tools, with marks in their strings."""
        messages = [self._message(i, message) for i, message in enumerate(self._messages)]
        tools = [self._tool(f"tools[{n}]", tool) for n, tool in enumerate(self._tools or ())]
        return messages, tools or self._tools  # no tools stay what they are, None or an empty list

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        """A pattern of what a mark may not split: a template that looks for ``</think>`` must still find it."""
        return whole_in(self._source)

    def _message(self, i: int, message: Message) -> Message:
        marked = dict(message)
        for key in ("content", *REASONING):
            value = message.get(key)
            if isinstance(value, str):
                marked[key] = self._string(i, key, value)
            elif key == "content" and isinstance(value, list):
                marked[key] = [self._part(i, f"content[{n}]", part) for n, part in enumerate(value)]
        if isinstance(calls := message.get("tool_calls"), list):
            marked["tool_calls"] = [self._call(i, f"tool_calls[{n}]", call) for n, call in enumerate(calls)]
        return marked

    def _part(self, i: int, field: str, part: Any) -> Any:
        if isinstance(part, str):
            return self._string(i, field, part)
        if not isinstance(part, dict):
            return part
        return self._strings(i, field, part, _PARTS)

    def _strings(self, i: int, field: str, values: Mapping[str, Any], traced: Sequence[str]) -> dict[str, Any]:
        """Return a mapping with marks in those of the keys ``traced`` that are strings."""
        marked = dict(values)
        for key, value in values.items():
            if key in traced and isinstance(value, str):
                marked[key] = self._string(i, f"{field}.{key}", value)
        return marked

    def _call(self, i: int, field: str, call: Any) -> Any:
        if not isinstance(call, dict):
            return call
        if isinstance(call.get("function"), dict):
            return {**call, "function": self._call(i, f"{field}.function", call["function"])}
        marked = dict(call)
        if isinstance(name := call.get("name"), str):
            marked["name"] = self._string(i, f"{field}.name", name)
        if "arguments" in call:
            marked["arguments"] = self._value(i, f"{field}.arguments", call["arguments"])
        return marked

    def _value(self, i: int, field: str, value: Any) -> Any:
        if isinstance(value, str):
            return self._string(i, field, value)
        if isinstance(value, dict):
            return {self._key(i, field, k): self._value(i, f"{field}.{k}", v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._value(i, f"{field}[{n}]", v) for n, v in enumerate(value)]
        if isinstance(value, bool):
            self._leaves.append(_Leaf(i, field, value))
        elif isinstance(value, (int, float)):
            return self._number(i, field, value)
        return value

    def _tool(self, field: str, tool: Any) -> Any:
        """Return the tool with marks in its name and description.

        Parameters get none: templates write them in forms of their own and may leave out parts.
        """
        if not isinstance(tool, dict):
            return tool
        if isinstance(tool.get("function"), dict):
            return {**tool, "function": self._tool(f"{field}.function", tool["function"])}
        return self._strings(-1, field, tool, ("name", "description"))

    def _string(self, i: int, field: str, text: str) -> str:
        """Return the string with its marks."""
        if not text.strip():
            return text
        leaf = len(self._leaves)
        self._leaves.append(_Leaf(i, field, text))
        pieces, last = list[str](), 0
        for place in _places(text, self._whole):
            pieces += (text[last:place], self._mark(leaf, place))
            last = place
        return "".join([*pieces, text[last:]])

    def _key(self, i: int, field: str, key: Any) -> Any:
        """Return a key with one mark, at its end, where it does not change the order in which ``tojson`` sorts keys."""
        if not isinstance(key, str) or not key.strip():
            return key
        self._leaves.append(_Leaf(i, field, key))
        return key + self._mark(len(self._leaves) - 1, len(key))

    def _mark(self, leaf: int, place: int) -> str:
        if self._next > _LAST:
            self._usable = False
            return ""
        self._marks.append((leaf, place))
        self._next += 1
        return chr(self._next - 1)

    def _number(self, i: int, field: str, value: float) -> Any:
        """Return the number of the same type that stands for this one."""
        leaf = len(self._leaves)
        self._leaves.append(_Leaf(i, field, value))
        if not isfinite(value):  # JSON and Python write it differently
            return value
        other = _NUMBER + leaf + (0.5 if isinstance(value, float) else 0)
        self._numbers[repr(other)] = (leaf, repr(value))
        return other

    # Reading marks.

    def read(self, plain: str, traced: str | RenderFailure, generation: tuple[str, str]) -> Trace:
        """Return the trace of the row in ``plain``, from the same text with marks in it.

        generation: the markers in ``traced`` around what the template marks as the assistant's. Where ``traced`` is not
        ``plain`` with marks, the row's strings are searched for in ``plain``, and there are no places and no spans.
        """
        found = None
        if self._usable and isinstance(traced, str):
            found = self._found(plain, traced, generation)
        if found is None:
            missing = [self._search(leaf, plain) for leaf in self._leaves]
            return Trace([one for one in missing if one is not None], {}, None)
        seen, leaves, spans = found
        lost: dict[int, Lost] = {}
        places: dict[int, list[int]] = {}
        marks: dict[int, list[int]] = {}  # of each leaf
        for mark, (index, place) in enumerate(self._marks):
            leaf = self._leaves[index]
            before = marks.setdefault(index, [])
            places.setdefault(leaf.message, []).extend(seen[mark])
            if not seen[mark] and index not in lost:
                start = self._marks[before[-1]][1] if before else place - 1
                lost[index] = _lost(leaf, place, start)
            before.append(mark)
        for index, leaf in enumerate(self._leaves):
            if index in lost or index in leaves:
                continue
            if index not in marks:  # a leaf without marks
                if absent := self._search(leaf, plain):
                    lost[index] = absent
            elif (changed := self._change(leaf.value, marks[index], plain, seen)) is not None:
                lost[index] = _lost(leaf, changed + 1)
        ascending = {i: sorted(some) for i, some in places.items()}
        return Trace([lost[index] for index in sorted(lost)], ascending, spans)

    def _found(
        self, plain: str, traced: str, generation: tuple[str, str]
    ) -> tuple[list[list[int]], set[int], list[Span]] | None:
        """Return the positions of each mark in ``plain``, the leaves of the numbers seen, and the spans.

        None where ``traced`` without its marks is not ``plain``: then the marks changed what the template did.
        """
        seen: list[list[int]] = [[] for _ in self._marks]
        numbers, spans, starts = set[int](), list[Span](), list[int]()
        pieces, last, length = list[str](), 0, 0
        names = [re.escape(mark) for mark in generation if mark]
        for match in re.finditer("|".join([*names, _MARK, _NUMBERS]), traced):
            pieces.append(traced[last : match.start()])
            length += match.start() - last
            last, written, own = match.end(), match[0], ""
            if written == generation[0]:
                starts.append(length)
            elif written == generation[1]:
                if not starts:
                    return None
                spans.append((starts.pop(), length))
            elif written in self._numbers:
                index, own = self._numbers[written]
                numbers.add(index)
            elif 0 <= (mark := _code(written) - _FIRST) < len(seen):
                seen[mark].append(length)
            else:
                own = written
            pieces.append(own)
            length += len(own)
        pieces.append(traced[last:])
        if "".join(pieces) != plain or starts:
            return None
        return seen, numbers, sorted(spans)

    def _change(self, text: str, marks: Sequence[int], plain: str, seen: Sequence[Sequence[int]]) -> int | None:
        """Return the position from which ``text`` is written otherwise; None where it is the same, escapes aside."""
        for a, b in pairwise(marks):
            start, end = self._marks[a][1], self._marks[b][1]
            if self._whole.search(text, start, end):  # two pieces, which a template may write in different places
                continue
            ends = seen[b]
            for place in seen[a]:
                following = bisect_right(ends, place)
                if following < len(ends) and _same(text[start:end], plain[place : ends[following]]):
                    break
            else:
                return start
        first, last = marks[0], marks[-1]
        before, after = self._marks[first][1] - 1, self._marks[last][1]
        if not any(_is_adjacent(text[before], plain, place, -1) for place in seen[first]):
            return before
        inside = _INK.match(text, after) and not self._whole.match(text, after)  # a piece may be one character
        if inside and not any(_is_adjacent(text[after], plain, place, 1) for place in seen[last]):
            return after
        return None

    def _search(self, leaf: _Leaf, plain: str) -> Lost | None:
        """Return a leaf as lost if a piece of it is in ``plain`` neither as it is nor escaped for JSON or HTML."""
        if not isinstance(leaf.value, str):
            written = "|".join(re.escape(form) for form in {json.dumps(leaf.value), str(leaf.value)})
            wanted = sum(json.dumps(other.value) == json.dumps(leaf.value) for other in self._leaves)
            found = len(re.findall(rf"(?<![\d.])(?:{written})(?!\.?\d)", plain))  # 0 is not in 10, nor in 0.5
            return None if found >= wanted else _lost(leaf, 1)
        pieces = [piece.strip() for piece in self._whole.split(leaf.value)]
        for piece in filter(None, pieces):
            escaped = (json.dumps(piece)[1:-1], json.dumps(piece, ensure_ascii=False)[1:-1], html.escape(piece))
            if not any(form in plain for form in (piece, *escaped)):
                return _lost(leaf, leaf.value.index(piece) + 1)
        return None


def spans_in(text: str, marked: str | RenderFailure, generation: tuple[str, str]) -> list[Span] | None:
    """Return the spans of ``text`` between the ``generation`` markers of ``marked``; None where the texts differ."""
    return Tracer("", [], None, {}).read(text, marked, generation).spans


@lru_cache(maxsize=8)
def whole_in(source: str) -> re.Pattern[str]:
    """Return a pattern of the words that a template may look for in a row's strings.

    These are the words of its own string literals that hold more than letters and digits: ``</think>``, but not
    ``user``, which it compares with roles.
    """
    try:
        tokens = list(jinja2.Environment().lex(source))
    except jinja2.TemplateSyntaxError:  # reported when it is rendered
        tokens = []
    words = {word for _, kind, text in tokens if kind == "string" for word in _unescaped(text[1:-1]).split()}
    names = sorted((word for word in words if len(word) > 1 and not word.isalnum()), key=lambda w: (-len(w), w))
    return re.compile("|".join([_HIDDEN, *map(re.escape, names)]))


def _places(text: str, whole: re.Pattern[str]) -> Iterator[int]:
    """Yield the positions of marks: in each piece, after its first character, at every stride and before its last.

    Not at its edges, since a template may trim those or test how a string starts and ends.
    """
    edges = [0, *(edge for match in whole.finditer(text) for edge in match.span()), len(text)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        ink = _INK.search(text, start, end)
        if ink is None:
            continue
        first, last = ink.start(), start + len(text[start:end].rstrip()) - 1
        yield first + 1
        yield from range(first + 1 + STRIDE, last, STRIDE)
        if last > first + 1:
            yield last


def _code(written: str) -> int:
    """Return the code point of a mark, written as itself or escaped; -1 for a number that is no mark."""
    if len(written) == 1:
        return ord(written)
    return ord(_unescaped(written)) if written[0] == "\\" else -1


def _unescaped(text: str) -> str:
    """Return a text without the escapes of JSON and Python."""

    def meant(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else _CONTROLS.get(code, code)

    found = _ESCAPE.sub(meant, text)
    return found if found.isascii() else found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _same(text: str, written: str) -> bool:
    """Return True if ``written`` is the text, as it is or escaped for JSON or HTML."""
    if written == text:
        return True
    once, page = _unescaped(written), html.unescape(written)
    return text in (once, _unescaped(once), page, _unescaped(page))  # a string inside a string is escaped twice


def _is_adjacent(character: str, plain: str, place: int, side: int) -> bool:
    """Return True if the character is before (side -1) or after (side 1) a place, as itself or escaped."""
    windows = (sorted((place, max(0, place + side * width))) for width in range(1, ESCAPED + 1))
    return any(_same(character, plain[start:end]) for start, end in windows)


def _lost(leaf: _Leaf, place: int, start: int | None = None) -> Lost:
    """Return the loss of a leaf's text at a position, quoted from ``start`` (None: from the character before)."""
    if not isinstance(leaf.value, str):
        return Lost(leaf.message, leaf.field, json.dumps(leaf.value), False)
    thought = max((match.start() for match in _AFTER_THOUGHT.finditer(leaf.value)), default=-1)
    # Reasoning has a field of its own, or is what stands in the content before the tag that closes it.
    reasoning = leaf.field.rpartition(".")[2] in REASONING or (leaf.field.startswith("content") and place <= thought)
    start = place - 1 if start is None else start
    return Lost(leaf.message, leaf.field, leaf.value[start:].strip(), reasoning)
