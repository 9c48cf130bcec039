"""A record as lints see it: plain text, compared without regard to case, width and white space."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.schemas.records import Content, Message, Record

Hashes = NDArray[np.uint64]

MAX_WORDS = 100_000
"""Words of one row that are compared with other rows; a book is judged by its beginning."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Scripts written without spaces (Thai, Lao, Burmese, Khmer, kana, Han): each character counts as a word."""
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_PRIME = 0x9E3779B97F4A7C15
_WORD_CACHE = 2**20


def content_text(content: Content | None) -> str:
    """The text of a string or of all messages, a blank line between; calls of tools as JSON."""
    if isinstance(content, str):
        return content
    return "\n\n".join(filter(None, map(message_text, content or ())))


def message_text(message: Message) -> str:
    """What one message says and calls."""
    words = message.get("content")
    calls = message.get("tool_calls")
    parts = [
        words if isinstance(words, str) else "",
        json.dumps(calls, ensure_ascii=False, default=str) if calls else "",
    ]
    return "\n".join(filter(None, parts))


def normal(text: str) -> str:
    """NFKC, without case, each run of white space one space: what counts as the same text."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """The words of normalised text, punctuation left out; the first MAX_WORDS."""
    return WORD.findall(text[: 12 * MAX_WORDS])[:MAX_WORDS]


def around(text: str, found: re.Pattern[str], before: int, behind: int) -> str:
    """The text about each match, pieces on lines of their own: what slower patterns need to see."""
    pieces, start, end = list[str](), 0, 0
    for match in found.finditer(text):
        if match.start() - before > end:
            pieces.append(text[start:end])
            start = match.start() - before
        end = match.end() + behind
    return "\n".join([*pieces, text[start:end]])


def digest(*texts: str) -> int:
    """64 bits over normalised texts, the same everywhere."""
    hashed = hashlib.blake2b(digest_size=8)
    for text in texts:
        hashed.update(text.encode("utf-8", "surrogatepass") + b"\xff")  # a byte that no UTF-8 has
    return int.from_bytes(hashed.digest())


class _Words(dict[str, int]):
    """The hash of every word, kept since few words make up most text."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _WORD_CACHE:
            self.clear()
        self[word] = value = digest(word)
        return value


_hash_of = _Words()


def hashes(words: Sequence[str]) -> Hashes:
    """[N] one 64-bit hash a word."""
    return np.fromiter(map(_hash_of.__getitem__, words), np.uint64, len(words))


def windows(hashes: Hashes, n: int) -> Hashes:
    """[N - n + 1] a hash of each run of ``n`` words; empty where there are fewer.

    h_i = sum_k w_{i+k} p^(n-1-k)  mod 2^64
    """
    count = len(hashes) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    found = hashes[:count].copy()
    for k in range(1, n):
        found *= np.uint64(_PRIME)
        found += hashes[k : k + count]
    return found


@dataclass
class RowView:
    """One row. number: in the order of reading."""

    number: int
    record: Record

    @cached_property
    def turns(self) -> list[Message]:
        """All messages of a row that is a whole conversation, else none."""
        text = self.record.text
        return text if isinstance(text, list) else []

    @cached_property
    def messages(self) -> list[Message]:
        """All messages there are: of a conversation, or of the prompt and the first answer where these are messages."""
        record = self.record
        parts = (record.text, record.prompt, record.completion if record.chosen is None else record.chosen)
        return [message for part in parts if isinstance(part, list) for message in part]

    @cached_property
    def prompt(self) -> str:
        """What is asked: the prompt; of a conversation everything before its last answer; of plain text nothing."""
        if self.turns:
            return content_text(self.turns[: self._last])
        return content_text(self.record.prompt)

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """What is answered: one text, of preferences the chosen and the rejected one, of prompts and documents none."""
        if self.turns:
            return (message_text(self.turns[self._last]),) if self._last < len(self.turns) else ()
        record = self.record
        return tuple(content_text(c) for c in (record.completion, record.chosen, record.rejected) if c is not None)

    @cached_property
    def text(self) -> str:
        """All of it."""
        if self.record.text is not None:
            return content_text(self.record.text)
        return "\n\n".join(filter(None, (self.prompt, *self.answers)))

    @cached_property
    def normal(self) -> str:
        """``text``, normalised."""
        return normal(self.text)

    @cached_property
    def normal_prompt(self) -> str:
        """``prompt``, normalised."""
        return normal(self.prompt)

    @cached_property
    def normal_answers(self) -> tuple[str, ...]:
        """``answers``, normalised."""
        return tuple(map(normal, self.answers))

    @cached_property
    def words(self) -> list[str]:
        """The words of all of it."""
        return words(self.normal)

    @cached_property
    def hashes(self) -> Hashes:
        """Of ``words``."""
        return hashes(self.words)

    @cached_property
    def digest(self) -> int:
        """Over all that the row says, and its label: rows of one digest are duplicates."""
        label = self.record.label
        if self.record.text is not None:
            return digest(self.normal)
        return digest(self.normal_prompt, *self.normal_answers, "" if label is None else str(label))

    @cached_property
    def question(self) -> str:
        """What is asked, normalised and without system messages; of plain text all: what an evaluation would ask."""
        asked = self.turns[: self._last] if self.turns else self.record.prompt
        if isinstance(asked, list):
            asked = [message for message in asked if message.get("role") not in ("system", "developer")]
        return normal(content_text(asked)) or self.normal

    @property
    def solution(self) -> str:
        """The right answer that a prompt has beside it, normalised; "" where there is none or it is no plain value."""
        known = self.column("solution", "answer", "ground_truth")
        return normal(str(known)) if isinstance(known, (str, int, float)) else ""

    def column(self, *names: str) -> Any:
        """The first of some further columns that is there, whatever the case of its name; None where none is."""
        for key, value in self.record.columns.items():
            if isinstance(key, str) and key.casefold() in names and value not in (None, ""):
                return value
        return None

    @property
    def _last(self) -> int:
        speaks = [i for i, message in enumerate(self.turns) if message.get("role") == "assistant"]
        return speaks[-1] if speaks else len(self.turns)
