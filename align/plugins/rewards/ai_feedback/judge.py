"""The contract of judges: conversations in, replies out as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from align.plugins.rewards.ai_feedback.prompts import Conversation
from align.rewards import Outcome


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said, or why it said nothing.

    text: whole, never cut off; "" where it was cut off. None: there is no use in asking again, and ``outcome``
    (abstained, timeout, error) and ``why`` tell the reason. capped: the reason is that no more may be spent.
    """

    text: str | None
    outcome: Outcome = "scored"
    why: str = ""
    capped: bool = False


class Judge(Protocol):
    """A model that judges."""

    identity: str
    """What its verdicts depend on, beside the conversation."""
    special: Sequence[str]
    """Its special tokens, where known."""

    def ask(self, conversations: Sequence[Conversation]) -> Iterator[tuple[int, Reply]]:
        """The number of a conversation and its reply, as they come.

        Raises AlignError where the judge cannot work at all (a wrong key, an unknown model).
        """
        ...

    def close(self) -> None:
        """Safe to call twice."""
        ...
