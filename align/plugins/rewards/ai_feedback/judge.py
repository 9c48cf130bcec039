"""The contract of judges: conversations in, replies out as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from align.plugins.rewards.ai_feedback.prompts import Conversation
from align.rewards import Outcome


@dataclass(frozen=True, slots=True)
class Reply:
    """The text that a judge has generated, or the reason why there is none.

    text: complete; "" where it was cut off. None: trying again is of no use, and ``outcome`` (abstained, timeout,
    error) and ``why`` give the reason. capped: the reason is that no more may be spent.
    """

    text: str | None
    outcome: Outcome = "scored"
    why: str = ""
    capped: bool = False


class Judge(Protocol):
    """A model that judges."""

    identity: str
    """Everything that its verdicts depend on in addition to the conversation; a part of the cache's keys."""
    special: Sequence[str]
    """Its special tokens, where known."""

    def ask(self, conversations: Sequence[Conversation]) -> Iterator[tuple[int, Reply]]:
        """Yield the index of a conversation and its reply, in the order of arrival.

        Raises AlignError where the judge cannot work at all (a wrong key, an unknown model).
        """
        ...

    def close(self) -> None:
        """Release the judge. Safe to call twice."""
        ...
