"""What an answer is counted in, for rewards about length and repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from align.core.rewards.base import Answer

Unit = Literal["tokens", "words", "characters"]


def pieces(answer: Answer, unit: Unit) -> Sequence[int | str] | None:
    """The answer in tokens, words (by whitespace) or characters; None where its tokens are not known."""
    if unit == "tokens":
        return None if answer.text and not answer.tokens else answer.tokens
    return answer.text.split() if unit == "words" else answer.text


NO_TOKENS = "its tokens are not known: give completion_ids, or set unit to words or characters"
