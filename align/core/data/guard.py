"""Keeps the text of a row from spelling a special token.

A user who writes ``<|im_end|>`` writes ten characters, but a tokenizer that is shown a rendered conversation cannot
know that, and ends the turn. So a row's text enters the template with such spellings hidden, and what comes out is
encoded by a tokenizer whose special tokens are spelt as no text is: in Unicode noncharacters, which never occur in text
meant for interchange. Between U+FDD0 and U+FDD1 stands the id of a special token, between U+FDD2 and U+FDD3 the number
of a hidden text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from align.schemas.records import Arguments

if TYPE_CHECKING:
    from align.core.data.encode import Encoder

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
