"""Reward modelling against numbers worked out by hand."""

from __future__ import annotations

from math import log

import pytest

from align.plugins.algorithms.reward_model import RewardModel
from tests.plugins.handmade import batch, metric, values

ROW = {"chosen": [-1.0], "rejected": [-1.0]}


def test_equal_scores_cost_log_two() -> None:
    """−log σ(0) = log 2."""
    assert values(RewardModel(RewardModel.Config()).loss(batch([ROW], scores=[3.0, 3.0]))) == pytest.approx([log(2)])


def test_margin_is_taken_off_the_difference() -> None:
    """σ(log 3) = 3/4, so a lead of log 3 costs log(4/3). With margin log 3 nothing is left of it: log 2."""
    made = batch([ROW, ROW], scores=[log(3), 0.0, log(3), 0.0], columns={"margin": [0.0, log(3)]})
    outcome = RewardModel(RewardModel.Config()).loss(made)
    assert values(outcome) == pytest.approx([log(4 / 3), log(2)])
    assert outcome.terms[0].per == "example"


def test_centering_adds_the_squared_sum() -> None:
    """Scores 2 and −1: (2 − 1)² = 1, weighted 0.01; without the setting there is no such term."""
    made = batch([ROW], scores=[2.0, -1.0])
    outcome = RewardModel(RewardModel.Config(center_rewards_coefficient=0.01)).loss(made)
    assert values(outcome, 1) == pytest.approx([1.0])
    assert outcome.terms[1].weight == 0.01
    assert len(RewardModel(RewardModel.Config()).loss(made).terms) == 1


def test_gradient_pushes_the_scores_apart_equally() -> None:
    """d/dr_w −log σ(r_w − r_l) = −σ(r_l − r_w) = −1/2 at equality, and +1/2 for r_l."""
    made = batch([ROW], scores=[0.0, 0.0])
    RewardModel(RewardModel.Config()).loss(made).terms[0].values.sum().backward()
    assert made.score_B is not None and made.score_B.grad is not None
    assert made.score_B.grad.tolist() == pytest.approx([-0.5, 0.5])


def test_metrics() -> None:
    """A tie is not accurate."""
    outcome = RewardModel(RewardModel.Config()).loss(batch([ROW, ROW], scores=[2.0, -1.0, 1.0, 1.0]))
    assert metric(outcome, "accuracy") == [1.0, 0.0]
    assert metric(outcome, "margin") == [3.0, 0.0]
    assert metric(outcome, "mean_reward") == [2.0, -1.0, 1.0, 1.0]
    assert {name: outcome.metrics[name].reduce for name in ("min_reward", "max_reward")} == {
        "min_reward": "min",
        "max_reward": "max",
    }
