"""What is logged of a phase's answers, under TRL's names. docs/watching.md says what each means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from align.core.algorithm.online import Group
from align.core.rewards.base import Score
from align.core.rewards.scorer import Scored
from align.core.rollout.ties import tied

FAILURES = ("unparsed", "abstained", "timeout", "error")


def answer_metrics(lengths: Sequence[int], cut: Sequence[bool]) -> dict[str, float]:
    """Lengths in tokens, of all answers and of those that ended by themselves; the share that was cut off."""
    found = _range("completions/{}_length", lengths)
    ended = [length for length, over in zip(lengths, cut, strict=True) if not over]
    return (
        found | {"completions/clipped_ratio": float(np.mean(cut))} | _range("completions/{}_terminated_length", ended)
    )


def score_metrics(scored: Sequence[Scored], gold: Sequence[Score | None], group: int = 1) -> dict[str, float]:
    """The reward, its parts, how often each part failed, and the gold reward if there is one.

    group: how many answers, one after the other, were given to each prompt.
    """
    rewards = [each.reward for each in scored]
    found = _estimate("reward", rewards, group)
    if scored:
        found["reward/scored"] = sum(reward is not None for reward in rewards) / len(rewards)
    for name in scored[0].said if scored else ():
        said = [each.said[name] for each in scored]
        values = [score.value for score in said if score.value is not None]
        if values:
            found[f"rewards/{name}/mean"] = float(np.mean(values))
            found[f"rewards/{name}/std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        for outcome in FAILURES:
            share = sum(score.outcome == outcome for score in said) / len(said)
            if share:
                found[f"rewards/{name}/{outcome}"] = share
    if any(score is not None for score in gold):
        found |= _estimate("gold", [None if score is None else score.value for score in gold], group)
    return found


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """How rewards spread within groups: mean standard deviation, and the share of groups without any."""
    compared = [group for group in groups if len(group) > 1]
    if not compared:
        return {}
    spread, none = [_spread(group) for group in compared], [dead(group) for group in compared]
    return {"reward_std": float(np.mean(spread)), "frac_reward_zero_std": float(np.mean(none))}


def dead(group: Group) -> bool:
    """Return whether a group cannot tell better from worse.

    Its rewards are the same but for rounding (``ties``), or fewer than two of them are known.
    """
    return len(group) > 1 and tied(_known(group), max(experience.size for experience in group))


def level(group: Group) -> None:
    """Make the known rewards of a dead group exactly equal, in place.

    They may differ by rounding, and an advantage that is divided by their standard deviation would make ±1 of that.
    """
    known = [experience for experience in group if experience.reward is not None]
    for experience in known:
        experience.reward = known[0].reward


def _spread(group: Group) -> float:
    return 0.0 if dead(group) else float(np.std(_known(group), ddof=1))


def _known(group: Group) -> list[float]:
    return [experience.reward for experience in group if experience.reward is not None]


def _estimate(name: str, values: Sequence[float | None], group: int) -> dict[str, float]:
    """The mean, and its standard error from the groups' means: answers to one prompt are not independent."""
    groups = [[v for v in values[i : i + group] if v is not None] for i in range(0, len(values), group)]
    means = [np.mean(known) for known in groups if known]
    if not means:
        return {}
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return {name: float(np.mean([v for v in values if v is not None])), f"{name}/std_error": error}


def _range(name: str, values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    return {name.format(how): float(f(values)) for how, f in (("mean", np.mean), ("min", np.min), ("max", np.max))}
