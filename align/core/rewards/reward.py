"""The interface of rewards: completions in, a score or none for each out. No torch: worker processes import this."""

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
unparsed  the completion holds nothing to judge; the reward decides if that scores 0 or abstains
abstained the reward has no opinion
timeout, error  the reward failed on this completion, which gets no score. A completion whose own code runs too long is
                wrong instead"""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion to be scored.

    completion: in the form of the row's prompt, a string or ``[{"role": "assistant", "content": ...}]``. text: the
    completion as a string, without special tokens. tokens: its ids; empty if they are not known. finish: ``length``
    if it was cut off. columns: the row's other keys (``solution``, ...). group: the same number for all completions
    of a prompt.
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

    value: the score; None abstains, which is not the same as 0. parts: its components by name. why: a sentence, if
    there is no score or it needs an explanation.
    """

    value: float | None
    outcome: Outcome = "scored"
    parts: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class RewardContext:
    """The surroundings of a reward, given to ``Reward.open``.

    cache: directory for data that it keeps between runs. rank, world_size: its process among those that score. seed: of
    the run. accelerator: for rewards that are models. home: directory for data of this run alone (money spent), None
    without a run.
    """

    cache: Path = field(default_factory=lambda: cache_directory() / "rewards")
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    accelerator: Literal["cpu", "cuda"] = "cpu"
    home: Path | None = None


class Reward:
    """Base class of rewards: subclass, set ``name``, write ``score``. A bare function is a reward too.

    A score may depend on its completion and on the others of the same group, but not on other groups in the call.
    """

    name: ClassVar[str]
    """The name in a run file."""
    required_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that every row must have; checked before training."""
    seconds: ClassVar[float | None] = None
    """Time limit for one completion. If set, the reward is called with one completion at a time in a worker process,
    which is killed if it takes longer, crashes or needs too much memory; that completion then gets no score."""

    limits: ClassVar[frozenset[str]] = frozenset()
    """Settings that bound its work and affect no score: a run may be resumed with other values."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings that name a file or a model: a resumed run compares the content there, not the path."""

    class Config(Config):
        """Settings in the run file."""

    @property
    def compares(self) -> bool:
        """True if a score depends on the group's other completions, so that they must be scored in one call."""
        return False

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def label(self) -> str:
        """A text for messages that tells it from others of its name, such as a function's file; "" for none."""
        return ""

    def open(self, place: RewardContext) -> None:
        """Get ready. Raises AlignError if it cannot work here."""

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """Return why no completion of this row can be scored, or None; called for each row before training."""
        lacking = [name for name in self.required_columns if columns.get(name) is None]
        return f"has no {' and no '.join(map(repr, lacking))}" if lacking else None

    def score(self, answers: Sequence[Answer]) -> Sequence[Score | float | None]:
        """Return one score for each completion, in their order; None abstains, a number is a score without verdict."""
        raise NotImplementedError

    def counts(self) -> Mapping[str, float]:
        """Return figures about its work and its cost so far, by name; for summaries."""
        return {}

    def close(self) -> None:
        """Release all resources; safe to call twice."""


# --- units of length, for rewards about length and repetition --------------------------------------------------------

Unit = Literal["tokens", "words", "characters"]
"""Units of a completion's length: see ``pieces``."""


def pieces(answer: Answer, unit: Unit) -> Sequence[int | str] | None:
    """Return the answer as tokens, words (split at whitespace) or characters; None where its tokens are not known."""
    if unit == "tokens":
        return None if answer.text and not answer.tokens else answer.tokens
    return answer.text.split() if unit == "words" else answer.text


NO_TOKENS = "its tokens are not known: give completion_ids, or set unit to words or characters"
"""The reason of a score that is missing because a completion came without token ids."""


# --- regular expressions in the settings of rewards ------------------------------------------------------------------


def compiles(pattern: str) -> str:
    """Return the pattern. Raises ValueError if it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(compiles)]
"""A setting that holds a regular expression; one that does not compile is refused when the run file is read."""
