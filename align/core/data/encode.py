"""Encode text with a Hugging Face tokenizer, map character spans to token spans, and guard special tokens.

The guard keeps text that merely looks like a special token from becoming one. A user who writes ``<|im_end|>`` writes
ten characters, but a tokenizer that is given a rendered conversation cannot know that, and would end the turn. So such
text is hidden before a row enters the chat template, and the template's output is encoded by a tokenizer whose special
tokens are written as no text is: in Unicode noncharacters, which never occur in text meant for interchange. U+FDD0 and
U+FDD1 enclose the id of a special token, U+FDD2 and U+FDD3 the number of a hidden text.

Needs no torch: worker processes import this module and start within a second.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from align.schemas.errors import AlignError
from align.schemas.records import Arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Span = tuple[int, int]
"""Start and end (exclusive) in characters or in tokens."""

MAX_CHARACTERS = 8_000_000
"""Most characters in one row. A tokenizer needs some 150 bytes for each, and aborts the process when it gets none."""

HEADER, HEADERS = 200, 1_000
"""Most characters of the header of an answer whose tokens are kept, and most headers kept."""

_NONCHARACTER = re.compile("[\ufdd0-\ufdd3]")
_HIDDEN = re.compile("\ufdd2(\\d+)\ufdd3")


class UnusableRow(Exception):
    """A row from which no example can be made: the id of the finding (``template_checks.CATALOGUE``), and a detail."""

    def __init__(self, finding: str, detail: str = "") -> None:
        super().__init__(finding, detail)
        self.finding, self.detail = finding, detail


class Guard:
    """The special tokens in the text of one row, hidden from the chat template and restored in its output.

    meant: special tokens that stay tokens where the row writes them, as in a row that was rendered beforehand. ``kept``
    lists those of them that occur in the row, ``found`` the other special tokens that do.
    """

    def __init__(self, encoder: Encoder, meant: Collection[str] = ()) -> None:
        self._encoder = encoder
        self._meant = meant
        self._left = MAX_CHARACTERS
        self._odd = False
        self.found: list[str] = []
        self.kept: list[str] = []

    @property
    def characters(self) -> int:
        """The number of characters hidden so far."""
        return MAX_CHARACTERS - self._left

    @property
    def active(self) -> bool:
        """True if the text that ``reveal`` returns must be encoded with ``guarded=True``."""
        return bool(self.found)

    def hide(self, value: Any) -> Any:
        """Return a string, or dicts and lists of strings, with every special token in the text hidden.

        Raises UnusableRow for text that a tokenizer must not be given: too long, or not valid Unicode.
        """
        if isinstance(value, str):
            return self._hide_in_text(value)
        if type(value) is dict:  # most often, so it comes before what takes longer to find out
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, Arguments):
            return Arguments.parsed(self.hide(value.text), {self.hide(k): self.hide(v) for k, v in value.items()})
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def _hide_in_text(self, text: str) -> str:
        self._left -= len(text)
        if self._left < 0:
            raise UnusableRow("text-too-long", f"more than {MAX_CHARACTERS:,} characters")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UnusableRow("bad-unicode", f"a lone surrogate, U+{ord(text[error.start]):04X}") from None
            self._odd = self._odd or _NONCHARACTER.search(text) is not None
        for first in self._encoder.special_starts:
            if first in text:  # most texts have no character that a special token starts with
                text = self._encoder.special_token_pattern.sub(self._hide, text)
                break
        if self._odd and self.active:
            raise UnusableRow("bad-unicode", "a noncharacter, U+FDD0 to U+FDD3, in a row that spells a special token")
        return text

    def _hide(self, match: re.Match[str]) -> str:
        meant = match[0] in self._meant
        seen = self.kept if meant else self.found
        if match[0] not in seen:
            seen.append(match[0])
        return match[0] if meant else f"\ufdd2{self.found.index(match[0])}\ufdd3"

    def shown(self, text: str) -> str:
        """Return hidden text as the row has it, for messages."""
        return _HIDDEN.sub(lambda match: self.found[int(match[1])], text)

    def reveal(self, text: str, spans: Sequence[Span] = ()) -> tuple[str, list[Span]]:
        """Return a template's output as the guarded tokenizer must read it, and ``spans`` at their new positions."""
        if not self.active:
            return text, list(spans)
        edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
        parts = [self._shown.sub(self._show, text[a:b]) for a, b in pairwise(edges)]
        moved = dict(zip(edges, accumulate(map(len, parts), initial=0), strict=True))
        return "".join(parts), [(moved[a], moved[b]) for a, b in spans]

    @cached_property
    def _shown(self) -> re.Pattern[str]:
        return re.compile(f"{self._encoder.special_token_pattern.pattern}|\ufdd2(\\d+)\ufdd3")

    def _show(self, match: re.Match[str]) -> str:
        return self.found[int(match[1])] if match[1] else guarded_form(self._encoder.special[match[0]])


def guarded_form(i: int) -> str:
    """Return the text that the guarded tokenizer reads as the special token of this id."""
    return f"\ufdd0{i}\ufdd1"


def guard_tokenizer(spec: dict[str, Any], special: Mapping[str, int]) -> dict[str, Any]:
    """Return a tokenizer.json in which special tokens have their guarded forms, also in vocabulary and merges."""
    name = {text: guarded_form(i) for text, i in special.items()}
    for token in spec["added_tokens"]:
        if token["special"]:
            token |= {"content": name[token["content"]], "normalized": False}
    spec["post_processor"] = None
    model = spec["model"]
    model["vocab"] = (
        {name.get(text, text): i for text, i in model["vocab"].items()}
        if isinstance(model["vocab"], dict)
        else [[name.get(text, text), score] for text, score in model["vocab"]]
    )
    if model.get("unk_token") in name:
        model["unk_token"] = name[model["unk_token"]]
    if "merges" in model:  # without merges that would build a special token from its characters
        pairs = ((pair.split(" ") if isinstance(pair, str) else pair, pair) for pair in model["merges"])
        model["merges"] = [pair for (a, b), pair in pairs if not name.keys() & {a, b, a + b}]
    return spec


class EncodedSpans(NamedTuple):
    """The tokens of a text [T], the token span of each character span, and text that merges over an edge (or "")."""

    ids: NDArray[np.int32]
    spans: list[Span]
    merged: str


class Encoder:
    """The parts of a Hugging Face tokenizer that making examples needs; it can be pickled for worker processes.

    Raises AlignError where the tokenizer has no fast (Rust) form: only that one says where a token came from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise AlignError(
                f"the tokenizer {type(tokenizer).__name__} has no fast form", "convert it to a tokenizer.json first"
            )
        bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        self.prefix: list[int] = whole[:at]
        """Ids that the tokenizer puts before any text."""
        backend = tokenizer.backend_tokenizer
        self.json = backend.to_str()  # without truncation and padding: the calls above switched them off
        added = backend.get_added_tokens_decoder()
        self.special: dict[str, int] = {token.content: i for i, token in added.items() if token.special}
        self.added = frozenset[int](added)
        self.names = frozenset(token.content for token in added.values())
        fit = (i for i, token in sorted(added.items()) if token.special and not (token.rstrip or token.single_word))
        self._anchor = next(((added[i].content, i) for i in fit), ("", -1))  # after it, text is a continuation
        self.variables: dict[str, str] = dict(tokenizer.special_tokens_map)
        self.eos = self.variables.get("eos_token", "")
        edges = ("bos_token", "eos_token", "pad_token", "unk_token")
        self.edges = frozenset(self.variables[name] for name in edges if name in self.variables)
        """Tokens that stand before, after or in place of a text, never inside one."""
        self.templates: str | dict[str, str] | None = tokenizer.chat_template
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int | None = tokenizer.pad_token_id

    def __getstate__(self) -> dict[str, Any]:
        built = {name for name, value in vars(type(self)).items() if isinstance(value, cached_property)}
        return {name: value for name, value in vars(self).items() if name not in built}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that decides which tokens a text becomes."""
        seen = [self.json, self.templates, self.variables, self.prefix, self.eos_id]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()

    @cached_property
    def tails(self) -> dict[str, str | None]:
        """The generation prompt of each template, by its source; None where rows may have their own."""
        return {}

    def template(self, tools: Any) -> str:
        """Return the chat template, of several the one that transformers would use. Raises UnusableRow without one."""
        if isinstance(self.templates, dict):
            tool_use = self.templates.get("tool_use") if tools is not None else None
            template = tool_use or self.templates.get("default")
        else:
            template = self.templates
        if template is None:
            raise UnusableRow("no-chat-template")
        return template

    @cached_property
    def _heads(self) -> dict[tuple[str, bool], tuple[int, ...]]:
        return {}

    @cached_property
    def special_token_pattern(self) -> re.Pattern[str]:
        """A pattern of the text of any special token, the longest first."""
        return re.compile("|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) or "(?!)")

    @cached_property
    def special_starts(self) -> frozenset[str]:
        """The first character of each special token."""
        return frozenset(token[:1] for token in self.special)

    @cached_property
    def _plain(self) -> Tokenizer:
        plain = Tokenizer.from_str(self.json)
        # Adds nothing; byte-level post-processors make offsets inexact.
        plain.post_processor = TemplateProcessing(single="$A")
        return plain

    @cached_property
    def _guarded(self) -> Tokenizer:
        guarded = Tokenizer.from_str(json.dumps(guard_tokenizer(json.loads(self.json), self.special)))
        if any(guarded.token_to_id(guarded_form(i)) != i for i in self.special.values()):
            raise AlignError(
                "this tokenizer's special tokens cannot be told apart from text that spells them",
                "take such text out of the data (`align data show` names it: special-token-in-text)",
            )
        return guarded

    def encode(self, text: str, guarded: bool = False, goes_on: bool = False) -> NDArray[np.int32]:
        """Return the tokens of a text, with nothing added.

        guarded: the text comes from ``Guard.reveal``. goes_on: the text continues another one, so a tokenizer that puts
        a space before every text must not do so here.
        """
        name, i = self._anchor if goes_on else ("", -1)
        front = guarded_form(i) if name and guarded else name
        ids = (self._guarded if guarded else self._plain).encode(front + text, add_special_tokens=False).ids
        return np.array(ids[bool(front) :], dtype=np.int32)

    def find_spans(self, text: str, spans: Sequence[Span], guarded: bool = False) -> EncodedSpans:
        """Return the tokens of a text, and those that lie in each of the ordered, disjoint character spans.

        ``merged`` names the first place where a span does not begin and end between tokens, or where the tokens before
        a span differ from those of the same text when it ends there, which is what the model is prompted with.
        """
        # One text at a time: ``encode_batch`` takes no less processor time, and starts threads in each process that
        # tokenises rows, after which a fork warns.
        encoding = (self._guarded if guarded else self._plain).encode(text, add_special_tokens=False)
        listed = encoding.ids
        ids = np.array(listed, dtype=np.int32)
        found, merged = list[Span](), ""
        offsets = encoding.offsets if spans else []
        for a, b in spans:
            first, last = bisect_right(offsets, a, key=itemgetter(1)), bisect_left(offsets, b, key=itemgetter(0))
            if first < len(listed) and listed[first] in self.added and offsets[first][0] < a:
                first += 1  # an added token that includes the whitespace after it
            found.append((first, max(first, last)))
            # Added tokens split the text before tokenization, so tokens before the last one cannot change.
            fixed = next((i for i in range(first - 1, -1, -1) if listed[i] in self.added), 0)
            crosses_start = first < len(listed) and offsets[first][0] < a
            ends_past = last and offsets[last - 1][1] > b
            crosses_end = ends_past and listed[last - 1] not in self.added
            if merged:
                continue
            head = text[offsets[fixed][0] if first and listed[fixed] in self.added else 0 : a]
            if crosses_start or crosses_end or self._head(head, guarded) != tuple(listed[fixed:first]):
                edge = b if ends_past else a
                merged = f"between {text[max(0, edge - 12) : edge]!r} and {text[edge : edge + 12]!r}"
        return EncodedSpans(ids, found, merged)

    def _head(self, text: str, guarded: bool) -> tuple[int, ...]:
        """Return the tokens of the end of a prompt, mostly the header of an answer, which all rows share."""
        key = text, guarded
        if (ids := self._heads.get(key)) is None:
            ids = tuple(self.encode(text, guarded).tolist())
            if len(text) <= HEADER and len(self._heads) < HEADERS:
                self._heads[key] = ids
        return ids

    def encode_apart(self, text: str, spans: Sequence[Span], guarded: bool = False) -> EncodedSpans:
        """Return the same with each part between edges of spans tokenised by itself: nothing merges over an edge."""
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        parts = [self.encode(text[a:b], guarded, goes_on=a > 0) for a, b in pairwise(edges)]
        places = np.cumsum([0, *map(len, parts)]).tolist()
        return EncodedSpans(
            np.concatenate(parts), [(places[2 * i + 1], places[2 * i + 2]) for i in range(len(spans))], ""
        )

    def blank(self, i: int) -> bool:
        """Return True if a token is only whitespace."""
        return i not in self.added and not self._plain.decode([i], skip_special_tokens=False).strip()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; a character made of several tokens is given with the last of them."""
        name, anchor = self._anchor
        front = [anchor] if name else []
        pieces, waiting = list[str](), list[int]()
        for place, i in enumerate(ids, 1):
            waiting.append(i)
            text = self._plain.decode([*front, *waiting], skip_special_tokens=False).removeprefix(name)
            whole = "\ufffd" not in text or len(waiting) == 4 or place == len(ids)
            pieces.append(text if whole else "")
            waiting = [] if whole else waiting
        return pieces
