"""The reward ``repetition``: a penalty for n-grams that occur more than once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pydantic import NonNegativeFloat, PositiveInt

from align import Answer, Reward, Score
from align.rewards import NO_TOKENS, Unit, pieces


def repeated(units: Sequence[Hashable], n: int) -> float:
    """Return 1 − unique n-grams / n-grams, in [0, 1); 0 for an answer shorter than n. 2502.03373, appendix C.2."""
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class Repetition(Reward):
    """A penalty for repeating itself: the share of n-grams that occurred before, times ``penalty``."""

    name = "repetition"

    class Config(Reward.Config):
        """Settings; the defaults are those of TRL's get_repetition_penalty_reward."""

        n: PositiveInt = 3
        """Length of the n-grams."""
        penalty: NonNegativeFloat = 1.0
        """The cost of a share of 1."""
        unit: Unit = "tokens"
        """The unit of n-grams. ``tokens`` needs an answer's token ids."""

    config: Config

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Return scores in (-penalty, 0]."""
        return [self._score(pieces(answer, self.config.unit)) for answer in answers]

    def _score(self, units: Sequence[Hashable] | None) -> Score:
        if units is None:
            return Score(None, "error", why=NO_TOKENS)
        share = repeated(units, self.config.n)
        return Score(0.0 - share * self.config.penalty, parts={"repeated": share})
