"""Rewards that differ by rounding are one reward, and no others are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.algorithm.contract import Experience
from align.core.algorithm.policy_gradient import center, leave_one_out
from align.core.inference.difficulty import zero_variance_share
from align.core.online.monitor import group_metrics, level, zero_variance
from align.core.rewards.reward_base import RewardContext, Score
from align.core.rewards.scorer import Scored, Scorer, classes, leveled, reaches, tied
from align.plugins.algorithms.best_of_n import BestOfN
from align.schemas.run import RewardChoice


def group(*rewards: float | None, size: float = 0.0) -> list[Experience]:
    none = np.zeros(1, np.float32)
    return [Experience("r", none.astype(np.int32), none.astype(np.int32), "stop", none, r, size=size) for r in rewards]


@pytest.mark.parametrize(
    "rewards",
    [
        [0.3, 0.1 + 0.2],
        [1.0, sum([0.1] * 10)],
        [1 / 3 + 1 / 3 + 1 / 3, 1.0],
        [-0.3, -(0.1 + 0.2)],
        [1e9 / 3 * 3, 1e9],
        [1e300, math.nextafter(1e300, math.inf)],
        [0.0, 0.0, -0.0],
        [7.0],
    ],
)
def test_the_same(rewards: list[float]) -> None:
    assert (
        tied(rewards)
        and zero_variance(group(*rewards, None))
        and group_metrics([group(*rewards, None)])["reward_std"] == 0
    )


@pytest.mark.parametrize(
    "rewards",
    [
        [0.3, 0.3 + 1e-9],
        [1e9, 1e9 + 1],
        [0.0, 1e-300],
        [1e-20, 2e-20],
        [0.0, 5e-324],
        [-1.0, 1.0],
        [1.0, float(np.nextafter(np.float32(1), np.float32(2)))],  # neighbours of a reward model in float32
        [0.3, 0.1 + 0.2, 0.4],
    ],
)
def test_not_the_same(rewards: list[float]) -> None:
    assert (
        not tied(rewards)
        and not zero_variance(group(*rewards))
        and group_metrics([group(*rewards)])["frac_reward_zero_std"] == 0
    )


def test_what_cancels_is_measured_by_what_was_added() -> None:
    """1 x 0.3 - 1 x (0.1 + 0.2) is -5.6e-17 where 0.3 - 0.3 is 0."""
    choices = [RewardChoice(type="exact", weight=1.0), RewardChoice(type="length", weight=-1.0)]
    scorer = Scorer(choices, RewardContext.__new__(RewardContext))
    said = [{"exact": Score(0.3), "length": Score(b)} for b in (0.3, 0.1 + 0.2)]
    one, two = scorer.combine(said)
    assert one.reward == 0 and two.reward not in (0, None) and one.size == pytest.approx(0.6)
    assert not tied([0.0, two.reward]) and tied([0.0, two.reward], one.size)
    assert zero_variance(group(one.reward, two.reward, size=one.size)) and not zero_variance(
        group(one.reward, two.reward)
    )


@pytest.mark.parametrize("others", [[], [0.9, 0.0, 0.0], [0.6, 0.0]])
def test_near_their_mean_normalised_rewards_are_all_rounding(others: list[float]) -> None:
    """(r - mean) / spread: the mean is of the size of r, so what rounds r rounds the difference."""
    scorer = Scorer([RewardChoice(type="exact", normalize=True)], RewardContext.__new__(RewardContext))
    same, other = scorer.combine([{"exact": Score(value)} for value in (0.3, 0.1 + 0.2, *others)])[:2]
    assert same.learned != other.learned
    assert zero_variance(group(same.learned, other.learned, size=same.size))
    near, next_ = scorer.combine([{"exact": Score(value)} for value in (0.3, 0.3 + 1e-9)])
    assert not zero_variance(group(near.learned, next_.learned, size=near.size))


def test_rows_are_chosen_by_leveled_rewards() -> None:
    """A plain comparison of two sums that differ by rounding alone would make a preference of it."""
    choices = [RewardChoice(type="exact", weight=1.0), RewardChoice(type="length", weight=-1.0)]
    scorer = Scorer(choices, RewardContext.__new__(RewardContext))
    said = [{"exact": Score(0.3), "length": Score(b)} for b in (0.3, 0.1 + 0.2, None)]
    assert leveled(scorer.combine([*said, {"exact": Score(None), "length": Score(None)}])) == [
        *[-(2.0**-54)] * 2,
        0.6,
        None,
    ]
    scored = [Scored(reward, {}, reward, 1.0) for reward in (0.3, 1.0, 0.1 + 0.2, 0.3 + 1e-9)]
    assert leveled(scored) == [0.3, 1.0, 0.3, 0.3 + 1e-9]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8), st.floats(0.5, 2))
def test_the_unit_does_not_matter(rewards: list[float], unit: float) -> None:
    power = 2.0 ** round(20 * unit)  # exact
    assert tied(rewards) == tied([power * reward for reward in rewards])


def test_a_dead_group_has_no_advantage_at_all() -> None:
    """Not 1e-17 either, which an optimizer that divides by the gradient's size would make a step of."""
    made = group(0.3, 0.1 + 0.2, None, 0.3)
    level(made)
    rewards = np.array([np.nan if e.reward is None else e.reward for e in made])
    for advantage in (center(rewards), leave_one_out(rewards), center(np.array([0.1] * 3))):
        assert set(advantage[~np.isnan(advantage)]) == {0.0}


def test_groups_that_are_forecast_and_chosen_by_the_same_rule() -> None:
    assert list(classes([1, 0.1 + 0.2, 0.3, 2])) == [[0.3, 0.1 + 0.2], [1], [2]]
    assert zero_variance_share([0.3, 0.1 + 0.2, 0.3], 3) == 1
    assert reaches(sum([0.1] * 10), 1.0) and not reaches(0.999, 1.0) and reaches(2, 1)
    pairs = BestOfN(BestOfN.Config(make="pairs", num_generations=2))
    assert pairs.rows("p", [("a", 0.3), ("b", 0.1 + 0.2)]) == []
    assert pairs.rows("p", [("a", 0.3), ("b", 0.31)]) == [{"prompt": "p", "chosen": "b", "rejected": "a"}]
    whole = BestOfN(BestOfN.Config(minimum=1.0, num_generations=2))
    assert whole.rows("p", [("a", sum([0.1] * 10)), ("b", 0.5)]) == [{"prompt": "p", "completion": "a"}]
    assert whole.curves([[sum([0.1] * 10), 0.0]])["pass@2"] == 1
