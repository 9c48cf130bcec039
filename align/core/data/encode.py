"""Text to token ids as the tokenizer itself does it, and character spans to token spans.

Needs no torch: worker processes import this and start within a second.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from align.schemas.errors import AlignError
from align.schemas.records import Arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Keeps the text of a row from spelling a special token.
#
# A user who writes ``<|im_end|>`` writes ten characters, but a tokenizer that is shown a rendered conversation cannot
# know that, and ends the turn. So a row's text enters the template with such spellings hidden, and what comes out is
# encoded by a tokenizer whose special tokens are spelt as no text is: in Unicode noncharacters, which never occur in
# text meant for interchange. Between U+FDD0 and U+FDD1 stands the id of a special token, between U+FDD2 and U+FDD3 the
# number of a hidden text.

Span = tuple[int, int]

MAX_CHARACTERS = 8_000_000
"""Most characters in one row. A tokenizer needs some 150 bytes for each, and aborts the process when it gets none."""

_NONCHARACTER = re.compile("[\ufdd0-\ufdd3]")
_HIDDEN = re.compile("\ufdd2(\\d+)\ufdd3")


class Refusal(Exception):
    """A row that no example can be made of: the doctor's finding, and what was seen there."""

    def __init__(self, finding: str, detail: str = "") -> None:
        super().__init__(finding, detail)
        self.finding, self.detail = finding, detail


class Guard:
    """Takes one row's text into a chat template and out again.

    ``meant``: special tokens whose spelling in the row is the token, as in a row that was rendered beforehand.
    ``honoured`` lists those of them that the row spells, ``found`` the other special tokens that it spells.
    """

    def __init__(self, encoder: Encoder, meant: Collection[str] = ()) -> None:
        self._encoder = encoder
        self._meant = meant
        self._left = MAX_CHARACTERS
        self._odd = False
        self.found: list[str] = []
        self.honoured: list[str] = []

    @property
    def active(self) -> bool:
        """Whether what ``leave`` gives must be encoded with ``guarded=True``."""
        return bool(self.found)

    def enter(self, value: Any) -> Any:
        """A string, or dicts and lists of strings, with every spelling of a special token hidden.

        Raises Refusal for text that no tokenizer should be given.
        """
        if isinstance(value, str):
            return self._enter(value)
        if isinstance(value, Arguments):
            return Arguments.parsed(self.enter(value.text), {self.enter(k): self.enter(v) for k, v in value.items()})
        if isinstance(value, Mapping):
            return {self.enter(key): self.enter(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.enter(item) for item in value]
        return value

    def _enter(self, text: str) -> str:
        self._left -= len(text)
        if self._left < 0:
            raise Refusal("text-too-long", f"more than {MAX_CHARACTERS:,} characters")
        try:
            _ = text.isascii() or text.encode()
        except UnicodeEncodeError as error:
            raise Refusal("bad-unicode", f"a lone surrogate, U+{ord(text[error.start]):04X}") from None
        self._odd = self._odd or _NONCHARACTER.search(text) is not None
        hidden = self._encoder.spelt.sub(self._hide, text)
        if self._odd and self.active:
            raise Refusal("bad-unicode", "a noncharacter, U+FDD0 to U+FDD3, beside the spelling of a special token")
        return hidden

    def _hide(self, match: re.Match[str]) -> str:
        meant = match[0] in self._meant
        seen = self.honoured if meant else self.found
        if match[0] not in seen:
            seen.append(match[0])
        return match[0] if meant else f"\ufdd2{self.found.index(match[0])}\ufdd3"

    def shown(self, text: str) -> str:
        """Return hidden text as the row has it, for messages."""
        return _HIDDEN.sub(lambda match: self.found[int(match[1])], text)

    def leave(self, text: str, spans: Sequence[Span] = ()) -> tuple[str, list[Span]]:
        """What a template made of hidden text, as the guarded tokenizer must see it, and where ``spans`` now lie."""
        if not self.active:
            return text, list(spans)
        edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
        parts = [self._shown.sub(self._show, text[a:b]) for a, b in pairwise(edges)]
        moved = dict(zip(edges, accumulate(map(len, parts), initial=0), strict=True))
        return "".join(parts), [(moved[a], moved[b]) for a, b in spans]

    @cached_property
    def _shown(self) -> re.Pattern[str]:
        return re.compile(f"{self._encoder.spelt.pattern}|\ufdd2(\\d+)\ufdd3")

    def _show(self, match: re.Match[str]) -> str:
        return self.found[int(match[1])] if match[1] else respelt(self._encoder.special[match[0]])


def respelt(i: int) -> str:
    """How the guarded tokenizer spells the special token of this id."""
    return f"\ufdd0{i}\ufdd1"


def respell(spec: dict[str, Any], special: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer.json in which no special token, and no other entry of the vocabulary, has its usual spelling."""
    name = {text: respelt(i) for text, i in special.items()}
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
    if "merges" in model:  # not those that would build a special token out of its letters
        pairs = ((pair.split(" ") if isinstance(pair, str) else pair, pair) for pair in model["merges"])
        model["merges"] = [pair for (a, b), pair in pairs if not name.keys() & {a, b, a + b}]
    return spec


class Spans(NamedTuple):
    """A text's tokens [T], the token span of each character span, and what merges over an edge of one (or "")."""

    ids: NDArray[np.int32]
    spans: list[Span]
    merged: str


class Encoder:
    """All of a Hugging Face tokenizer that making examples needs, in a form that worker processes can be handed.

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
        """What the tokenizer puts before any text."""
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
        """Spellings of tokens that stand before, after or in place of a text, never inside one."""
        self.templates: str | dict[str, str] | None = tokenizer.chat_template
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int | None = tokenizer.pad_token_id

    def __getstate__(self) -> dict[str, Any]:
        built = {name for name, value in vars(type(self)).items() if isinstance(value, cached_property)}
        return {name: value for name, value in vars(self).items() if name not in built}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that decides which tokens a text becomes."""
        seen = [self.json, self.templates, self.variables, self.prefix, self.eos_id]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()

    def template(self, tools: Any) -> str:
        """The chat template, of several the one that transformers would choose. Raises Refusal where there is none."""
        if isinstance(self.templates, dict):
            tool_use = self.templates.get("tool_use") if tools is not None else None
            template = tool_use or self.templates.get("default")
        else:
            template = self.templates
        if template is None:
            raise Refusal("no-chat-template")
        return template

    @cached_property
    def _is_added(self) -> NDArray[np.bool_]:
        return np.isin(np.arange(1 + max(self._plain.get_vocab().values())), list(self.added))

    @cached_property
    def spelt(self) -> re.Pattern[str]:
        """Matches the spelling of any special token, the longest first."""
        return re.compile("|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) or "(?!)")

    @cached_property
    def _plain(self) -> Tokenizer:
        plain = Tokenizer.from_str(self.json)
        plain.post_processor = TemplateProcessing(single="$A")  # nothing: byte-level ones make offsets inexact
        return plain

    @cached_property
    def _guarded(self) -> Tokenizer:
        guarded = Tokenizer.from_str(json.dumps(respell(json.loads(self.json), self.special)))
        if any(guarded.token_to_id(respelt(i)) != i for i in self.special.values()):
            raise AlignError(
                "this tokenizer's special tokens cannot be told from text that spells them",
                "take such text out of the data (`align data show` names it: special-token-in-text)",
            )
        return guarded

    def encode(self, text: str, guarded: bool = False, goes_on: bool = False) -> NDArray[np.int32]:
        """Tokens of a text, nothing added.

        guarded: the text comes from a Guard. goes_on: it continues another text, so a tokenizer that begins every text
        with a space must not.
        """
        name, i = self._anchor if goes_on else ("", -1)
        front = respelt(i) if name and guarded else name
        ids = (self._guarded if guarded else self._plain).encode(front + text, add_special_tokens=False).ids
        return np.array(ids[bool(front) :], dtype=np.int32)

    def encode_spans(self, text: str, spans: Sequence[Span], guarded: bool = False) -> Spans:
        """Tokens of a text, and which of them lie in each of the ordered, disjoint character spans.

        ``merged`` says where a span does not begin and end between tokens, or where the tokens before it are not those
        of the same text when it ends there.
        """
        encoding = (self._guarded if guarded else self._plain).encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int32)
        starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        added = self._is_added[ids]
        found, merged = [], ""
        for a, b in spans:
            first, last = int(np.searchsorted(ends, a, "right")), int(np.searchsorted(starts, b, "left"))
            if first < len(ids) and added[first] and starts[first] < a:
                first += 1  # an added token that takes the whitespace after it
            found.append((first, max(first, last)))
            before = added[:first].nonzero()[0]
            fixed = int(before[-1]) if len(before) else 0  # what stands before an added token cannot change after it
            crosses = (first < len(ids) and starts[first] < a) or (last and ends[last - 1] > b and not added[last - 1])
            head = text[starts[fixed] if len(before) else 0 : a]
            if not merged and (crosses or not np.array_equal(self.encode(head, guarded), ids[fixed:first])):
                edge = b if last and ends[last - 1] > b else a
                merged = f"between {text[max(0, edge - 12) : edge]!r} and {text[edge : edge + 12]!r}"
        return Spans(ids, found, merged)

    def encode_apart(self, text: str, spans: Sequence[Span], guarded: bool = False) -> Spans:
        """The same with the text cut at every edge of a span and each part tokenised by itself: nothing merges."""
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        parts = [self.encode(text[a:b], guarded, goes_on=a > 0) for a, b in pairwise(edges)]
        places = np.cumsum([0, *map(len, parts)]).tolist()
        return Spans(np.concatenate(parts), [(places[2 * i + 1], places[2 * i + 2]) for i in range(len(spans))], "")

    def blank(self, i: int) -> bool:
        """Whether a token is only whitespace."""
        return i not in self.added and not self._plain.decode([i], skip_special_tokens=False).strip()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; that of a character made of several tokens is with the last of them."""
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
