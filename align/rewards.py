"""Parts of rewards: verdicts, units of length, functions of the user's own, rewards inside rewards, equal scores.

The base class is ``align.Reward``, what it is given and returns ``align.Answer`` and ``align.Score``.
"""

from align.core.rewards.reward_base import (
    NO_TOKENS,
    Outcome,
    Pattern,
    RewardContext,
    Unit,
    components,
    describe,
    from_function,
    load_function,
    pieces,
)
from align.core.rewards.scorer import RunningReward, Scored, Scorer, reaches, reward_of, tied
from align.schemas.text import visible

__all__ = [
    "NO_TOKENS",
    "RunningReward",
    "Scored",
    "Scorer",
    "Outcome",
    "Pattern",
    "RewardContext",
    "Unit",
    "from_function",
    "load_function",
    "components",
    "pieces",
    "reaches",
    "reward_of",
    "tied",
    "describe",
    "visible",
]
