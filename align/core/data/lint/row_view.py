"""A record as data checks see it: plain text, normalised in case, width and white space, as words and as hashes."""

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
"""Most words of one row that are compared with other rows."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Scripts written without spaces (Thai, Lao, Burmese, Khmer, kana, Han): each character counts as a word."""
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_PRIME = 0x9E3779B97F4A7C15
_WORD_CACHE = 2**20


def content_text(content: Content | None) -> str:
    """Return the text of a string or of all messages, with blank lines between them and tool calls as JSON."""
    if isinstance(content, str):
        return content
    return "\n\n".join(filter(None, map(message_text, content or ())))


def message_text(message: Message) -> str:
    """Return the content of one message, and its tool calls as JSON."""
    words = message.get("content")
    calls = message.get("tool_calls")
    parts = [
        words if isinstance(words, str) else "",
        json.dumps(calls, ensure_ascii=False, default=str) if calls else "",
    ]
    return "\n".join(filter(None, parts))


def normal(text: str) -> str:
    """Return text in NFKC, without case, each run of white space as one space. Equal results count as the same text."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """Return the first MAX_WORDS words of normalised text, without punctuation."""
    return WORD.findall(text[: 12 * MAX_WORDS])[:MAX_WORDS]


def around(text: str, found: re.Pattern[str], before: int, behind: int) -> str:
    """Return the text around each match, each piece on its own line, so that slow patterns search only that."""
    pieces, start, end = list[str](), 0, 0
    for match in found.finditer(text):
        if match.start() - before > end:
            pieces.append(text[start:end])
            start = match.start() - before
        end = match.end() + behind
    return "\n".join([*pieces, text[start:end]])


def digest(*texts: str) -> int:
    """Return a 64-bit hash of normalised texts, the same on every machine."""
    hashed = hashlib.blake2b(digest_size=8)
    for text in texts:
        hashed.update(text.encode("utf-8", "surrogatepass") + b"\xff")  # a byte that no UTF-8 has
    return int.from_bytes(hashed.digest())


class _Words(dict[str, int]):
    """A cache of the hash of every word, since few words make up most text."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _WORD_CACHE:
            self.clear()
        self[word] = value = digest(word)
        return value


_hash_of = _Words()


def hashes(words: Sequence[str]) -> Hashes:
    """Return one 64-bit hash for each word [N]."""
    return np.fromiter(map(_hash_of.__getitem__, words), np.uint64, len(words))


def windows(hashes: Hashes, n: int) -> Hashes:
    """Return a hash of each run of ``n`` words [N - n + 1]; empty where there are fewer words.

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
    """One row. number: its position in the order of reading."""

    number: int
    record: Record

    @cached_property
    def turns(self) -> list[Message]:
        """The messages of a row that is a whole conversation, else an empty list."""
        text = self.record.text
        return text if isinstance(text, list) else []

    @cached_property
    def messages(self) -> list[Message]:
        """The messages of a conversation, or of the prompt and the first answer where these are messages."""
        record = self.record
        parts = (record.text, record.prompt, record.completion if record.chosen is None else record.chosen)
        return [message for part in parts if isinstance(part, list) for message in part]

    @cached_property
    def prompt(self) -> str:
        """The prompt; of a conversation everything before its last answer; of plain text ""."""
        if self.turns:
            return content_text(self.turns[: self._last])
        return content_text(self.record.prompt)

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The answers: one text, for preferences chosen and rejected, for prompts and documents none."""
        if self.turns:
            return (message_text(self.turns[self._last]),) if self._last < len(self.turns) else ()
        record = self.record
        return tuple(content_text(c) for c in (record.completion, record.chosen, record.rejected) if c is not None)

    @cached_property
    def text(self) -> str:
        """The text of the whole row."""
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
        """The words of the whole row."""
        return words(self.normal)

    @cached_property
    def hashes(self) -> Hashes:
        """The hashes of ``words``."""
        return hashes(self.words)

    @cached_property
    def digest(self) -> int:
        """A hash of the row's text and label: rows with the same digest are duplicates."""
        label = self.record.label
        if self.record.text is not None:
            return digest(self.normal)
        return digest(self.normal_prompt, *self.normal_answers, "" if label is None else str(label))

    @cached_property
    def question(self) -> str:
        """The prompt as evaluations have it: normalised, without system messages; of plain text the whole text."""
        prompt = self.turns[: self._last] if self.turns else self.record.prompt
        if isinstance(prompt, list):
            prompt = [message for message in prompt if message.get("role") not in ("system", "developer")]
        return normal(content_text(prompt)) or self.normal

    @property
    def solution(self) -> str:
        """The right answer in a column of a prompt row, normalised; "" where there is none or it is no plain value."""
        known = self.column("solution", "answer", "ground_truth")
        return normal(str(known)) if isinstance(known, (str, int, float)) else ""

    def column(self, *names: str) -> Any:
        """Return the first of some further columns that is there, in any case of its name; None where none is."""
        for key, value in self.record.columns.items():
            if isinstance(key, str) and key.casefold() in names and value not in (None, ""):
                return value
        return None

    @property
    def _last(self) -> int:
        """The index of the last assistant message, the number of messages without one."""
        answers = [i for i, message in enumerate(self.turns) if message.get("role") == "assistant"]
        return answers[-1] if answers else len(self.turns)
