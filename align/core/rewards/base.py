"""The contract of rewards: answers in, a score for each out, or none. No torch: worker processes import this."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from align.core.util.atomic_files import cache_directory
from align.schemas.base import Config
from align.schemas.records import Content

Outcome = Literal["scored", "right", "wrong", "unparsed", "abstained", "timeout", "error"]
"""scored    a number that is neither right nor wrong (a length, a judge's mark)
right, wrong  a verdict
unparsed  the answer holds nothing that could be judged; whether that scores 0 or abstains is the reward's choice
abstained the reward has no opinion
timeout, error  the reward failed on this answer, which is left without a score; but code that runs too long is the
                answer's own fault, and a wrong answer"""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to be scored.

    completion: as the row's prompt is, a string or ``[{"role": "assistant", "content": ...}]``. text: the answer alone,
    decoded without special tokens. columns: the row's other keys (``solution``, ...). group: answers to the same
    prompt share it. finish: ``length`` where it was cut off.
    """

    prompt: Content
    completion: Content
    text: str
    tokens: tuple[int, ...] = ()
    finish: Literal["stop", "length"] = "stop"
    columns: Mapping[str, Any] = field(default_factory=dict)
    group: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """The result of a reward for one answer.

    value: the score; None abstains, which is never the same as 0. parts: what it is made of. why: a sentence, where
    there is no score or it needs explaining.
    """

    value: float | None
    outcome: Outcome = "scored"
    parts: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class RewardContext:
    """The surroundings of a reward: a directory for what it keeps between runs, and its process among those that score.

    home: a directory for what it keeps of this run alone (what it has spent), None where there is no run.
    """

    cache: Path = field(default_factory=lambda: cache_directory() / "rewards")
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    accelerator: Literal["cpu", "cuda"] = "cpu"
    home: Path | None = None


class Reward:
    """Base class of rewards: subclass, set ``name``, write ``score``. A bare function is a reward too.

    A score may depend on its answer and on the answers of the same group, never on others that come along.
    """

    name: ClassVar[str]
    """What a run file calls it."""
    required_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that every row must have; checked before training."""
    seconds: ClassVar[float | None] = None
    """Limit for one answer. Set: it is called with one answer at a time in a worker process that is killed when it
    takes longer, crashes or takes too much memory; that answer is then left without a score."""

    limits: ClassVar[frozenset[str]] = frozenset()
    """Settings that bound its work and decide no score: a run may go on with others."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings that name a file or a model: a resumed run compares the content there, not how its path is spelt."""

    class Config(Config):
        """Settings in the run file."""

    @property
    def compares(self) -> bool:
        """Whether a score depends on the group's other answers: then it cannot be asked about one at a time."""
        return False

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def label(self) -> str:
        """The part of messages that tells it from others of its name, such as the file of a function; "" for none."""
        return ""

    def open(self, place: RewardContext) -> None:
        """Get ready; raises AlignError where it cannot work here."""

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """Why answers to this row can never be scored, or None; asked of every row before training."""
        lacking = [name for name in self.required_columns if columns.get(name) is None]
        return f"has no {' and no '.join(map(repr, lacking))}" if lacking else None

    def score(self, answers: Sequence[Answer]) -> Sequence[Score | float | None]:
        """One score for each answer, in their order."""
        raise NotImplementedError

    def counts(self) -> Mapping[str, float]:
        """How its work went and what it has cost so far, by name; for summaries."""
        return {}

    def close(self) -> None:
        """Give everything back; safe to call twice."""


# What an answer is counted in, for rewards about length and repetition.

Unit = Literal["tokens", "words", "characters"]
"""Units of a completion's length: see ``pieces``."""


def pieces(answer: Answer, unit: Unit) -> Sequence[int | str] | None:
    """Return the answer as tokens, words (split at whitespace) or characters; None where its tokens are not known."""
    if unit == "tokens":
        return None if answer.text and not answer.tokens else answer.tokens
    return answer.text.split() if unit == "words" else answer.text


NO_TOKENS = "its tokens are not known: give completion_ids, or set unit to words or characters"
"""The reason of a score that is missing because a completion came without token ids."""


# Regular expressions in the settings of rewards.


def compiles(pattern: str) -> str:
    """The pattern itself. Raises ValueError where it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(compiles)]
"""A setting that holds a regular expression; one that does not compile is refused when the run file is read."""
