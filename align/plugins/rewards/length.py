"""The reward ``length``: a score of how long an answer is. L is its length, M the setting ``max``.

overlong   0 up to M - cache, then (M - cache - L) / cache, and -1 beyond M          DAPO 2503.14476 Eq 13
cosine     b + (a - b) / 2 * (1 + cos(pi * min(L / M, 1))), a at length 0, b at M    2502.03373 appendix C.1
target     -min(1, |L - target| / target)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from align import Answer, Reward, Score
from align.rewards import NO_TOKENS, RewardContext, RunningReward, Unit, pieces, reward_of
from align.settings import RewardChoice, RewardPlugin


def overlong(length: int, longest: int, cache: int) -> float:
    """Soft overlong punishment, in [-1, 0]. DAPO 2503.14476 Eq 13."""
    if length > longest:
        return -1.0
    return min(0.0, (longest - cache - length) / cache) if cache else 0.0


def cosine(length: int, longest: int, at_0: float, at_max: float) -> float:
    """From ``at_0`` to ``at_max`` along half a cosine, and ``at_max`` beyond. 2502.03373 appendix C.1."""
    return at_max + (at_0 - at_max) / 2 * (1 + math.cos(math.pi * min(length / longest, 1.0)))


def near(length: int, target: int) -> float:
    """0 at the target, falling in proportion to -1 at length 0 and at twice the target."""
    return -min(1.0, abs(length - target) / target)


_READS = {
    "overlong": ({"max", "cache"}, {"max", "cache"}),
    "cosine": ({"max"}, {"max", "correct", "right", "wrong"}),
    "target": ({"target"}, {"target"}),
}
"""The settings that each shape must have, and all that it reads."""


class Length(Reward):
    """A score of an answer's length: overlong shaping, a cosine that depends on correctness, or a target."""

    name = "length"

    class Config(Reward.Config):
        """Settings; each shape reads its own and refuses the others'."""

        shape: Literal["overlong", "cosine", "target"]
        """``overlong`` (settings max, cache), ``cosine`` (max, correct, right, wrong) or ``target`` (target)."""
        unit: Unit = "tokens"
        """The unit of length. ``tokens`` needs an answer's token ids."""
        max: PositiveInt | None = None
        """overlong: length from which an answer costs 1. cosine: length from which the score no longer changes."""
        cache: NonNegativeInt | None = None
        """overlong: over how much of the length before ``max`` the punishment grows; 0: all at once."""
        target: PositiveInt | None = None
        """target: the length that is wanted."""
        correct: RewardPlugin = RewardChoice(type="math")
        """cosine: a reward that says what is right (a score above 0); where it abstains so does this one."""
        right: tuple[float, float] = (1.0, 0.5)
        """cosine: score of a right answer at length 0 and at ``max`` (TRL's max_value_correct, min_value_correct)."""
        wrong: tuple[float, float] = (-1.0, -0.5)
        """cosine: score of a wrong answer at length 0 and at ``max`` (TRL's min_value_wrong, max_value_wrong): a short
        one costs more, so that a model in doubt goes on thinking."""

        @model_validator(mode="after")
        def _read_by_the_shape(self) -> Length.Config:
            must, reads = _READS[self.shape]
            given = {name for name in self.model_fields_set if getattr(self, name) is not None} - {"shape", "unit"}
            wrong = [f"{name} is not read where shape is {self.shape}" for name in sorted(given - reads)]
            wrong += [f"{name} is missing: shape {self.shape} needs it" for name in sorted(must - given)]
            if self.shape == "overlong" and self.max and self.cache and self.cache > self.max:
                wrong.append("cache is longer than max")
            if wrong:
                raise ValueError("\n".join(wrong))
            return self

    config: Config
    _judge: RunningReward | None = None

    def open(self, place: RewardContext) -> None:
        """Open the reward that says what is right."""
        if self.config.shape == "cosine":
            self._judge = RunningReward(self.config.correct, place)

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """Return what the reward that says what is right returns."""
        return reward_of(self.config.correct).unfit(columns) if self.config.shape == "cosine" else None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Return scores in [-1, 0]; those of ``cosine`` lie between the settings ``right`` and ``wrong``."""
        if self._judge is None:
            return [self._score(answer, None) for answer in answers]
        return [self._score(a, judged) for a, judged in zip(answers, self._judge.score(answers), strict=True)]

    def _score(self, answer: Answer, judged: Score | None) -> Score:
        measured, config = pieces(answer, self.config.unit), self.config
        if measured is None:
            return Score(None, "error", why=NO_TOKENS)
        length = len(measured)
        parts = {"length": float(length)}
        if config.shape == "target":
            return Score(near(length, config.target or 1), parts=parts)
        if config.shape == "overlong":
            return Score(overlong(length, config.max or 1, config.cache or 0), parts=parts)
        assert judged is not None, "open() comes first"
        if judged.value is None:
            return Score(None, judged.outcome, parts, judged.why)
        ends = config.right if judged.value > 0 else config.wrong
        outcome: Literal["right", "wrong"] = "right" if judged.value > 0 else "wrong"
        return Score(cosine(length, config.max or 1, *ends), outcome, parts, judged.why)

    def close(self) -> None:
        """Close the reward that says what is right."""
        if self._judge is not None:
            self._judge.close()
            self._judge = None
