"""Check each row by itself: encoding, template tokens, turns, refusals, truncated answers, leaked answers."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from align.core.data.lint.finding import Lint, LintFinding, Places, finding
from align.core.data.lint.row_view import WORD, RowView, around, normal

_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_TEMPLATE = re.compile(
    r"<\|[a-z][a-z0-9_]{1,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</s>\s*$|^\s*<s>|<[｜|](?:User|Assistant)[｜|]>",
    re.ASCII,
)
"""ChatML, Llama 2 and 3, Mistral, Gemma, DeepSeek. ``<s>`` within text is HTML's."""
_FOREIGN = re.compile(r"[^\x00-\x7f]+")
_READ = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "thinking", "reasoning_content", "weight"})
LEAK_WORDS = 4
"""Shortest answer, in words, that is reported if it occurs in the prompt; shorter ones occur there by chance."""
MOST = 1_000
"""Most different keys that are counted; data with more has no meaningful keys."""
CUT_WORDS = 20
"""Shortest answer, in words, that can count as truncated."""


def _mojibake(row: RowView) -> bool:
    if row.text.isascii():
        return False
    from ftfy.badness import is_bad

    return bool(is_bad(around(row.text, _FOREIGN, 8, 8)))


def _no_words(row: RowView) -> bool:
    return any(not WORD.search(text) for text in (row.answers or (row.text,)))


def _leaks(row: RowView) -> bool:
    answers = (row.solution,) if row.record.kind == "prompt" else row.normal_answers[:1]
    return any(len(answer.split()) >= LEAK_WORDS and answer in row.normal_prompt for answer in answers)


@cache
def phrases() -> Mapping[str, re.Pattern[str]]:
    """Patterns over normalised text, from phrases.yaml."""
    held = yaml.load((Path(__file__).parent / "phrases.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    refusal = "|".join(re.escape(normal(phrase)) for phrases in held["refusal"].values() for phrase in phrases)
    open_ended = "|".join(re.escape(normal(word)) for words in held["goes_on"].values() for word in words)
    return {"refusal": re.compile(refusal), "goes_on": re.compile(rf"(?:^|\s)(?:{open_ended})$|[,(\[{{]$")}


def refuses(answer: str) -> bool:
    """Return True if a normalised answer has a phrase of refusal in its first 200 characters."""
    return phrases()["refusal"].search(answer[:200].replace("\u2019", "'")) is not None


def _refuses(row: RowView) -> bool:
    return any(map(refuses, row.normal_answers[:1]))


def _cut_off(row: RowView) -> bool:
    return any(map(_is_truncated, row.normal_answers))


def _is_truncated(answer: str) -> bool:
    """Return True if a block of code is not closed, or if the answer ends with a word that ends no sentence."""
    if answer.count("```") % 2 == 1:
        return True
    return phrases()["goes_on"].search(answer[-40:]) is not None and len(answer.split()) >= CUT_WORDS


def _roles(row: RowView) -> list[Any]:
    return [message.get("role") for message in row.messages]


def _repeats(row: RowView) -> bool:
    roles = _roles(row)
    return any(one == other and one != "tool" for one, other in pairwise(roles))


def _odd_keys(row: RowView) -> set[str]:
    return {str(key) for message in row.messages for key in message if key not in _READ}


FLAGS: Mapping[str, Callable[[RowView], object]] = {
    "no-words": _no_words,
    "mojibake": _mojibake,
    "replacement-characters": lambda row: "\ufffd" in row.text,
    "control-characters": lambda row: _CONTROL.search(row.text),
    "template-tokens": lambda row: _TEMPLATE.search(row.text),
    "answer-in-prompt": _leaks,
    "refusals": _refuses,
    "cut-off": _cut_off,
    "no-user": lambda row: row.messages and "user" not in _roles(row),
    "ends-without-answer": lambda row: row.turns and _roles(row)[-1] != "assistant",
    "roles-repeat": _repeats,
}


class RowFlags(Lint):
    """The rows that each check of FLAGS marks."""

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {id: array("Q") for id in FLAGS}

    def see(self, row: RowView) -> None:
        """Apply each check to a row."""
        for id, marked in FLAGS.items():
            if marked(row):
                self._rows[id].append(row.number)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield one finding for each check that marked rows, in the order of FLAGS."""
        for id, rows in self._rows.items():
            if rows:
                yield finding(id, places, rows)


class ConversationFlags(Lint):
    """Properties of all conversations together: system messages in only some of them, and keys that nothing reads."""

    def __init__(self) -> None:
        self._system, self._conversations = array("Q"), 0
        self._odd, self._keys = array("Q"), Counter[str]()

    def see(self, row: RowView) -> None:
        """Note the roles and keys of a row's messages."""
        if not row.messages:
            return
        self._conversations += 1
        if {"system", "developer"} & set(_roles(row)):
            self._system.append(row.number)
        if odd := _odd_keys(row):
            self._odd.append(row.number)
            if len(self._keys) < MOST:
                self._keys.update(odd)

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """Yield findings for a mix of conversations with and without a system message, and for unknown keys."""
        if 0 < len(self._system) < self._conversations:
            yield finding("some-system", places, self._system, of=self._conversations)
        if self._odd:
            keys = ", ".join(repr(key[:40]) for key, _ in sorted(self._keys.items(), key=lambda k: (-k[1], k[0]))[:5])
            yield finding("unknown-message-key", places, self._odd, keys=keys)
