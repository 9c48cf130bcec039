"""Reward modelling: a score that puts the better answer above the worse one."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from align import Algorithm, Batch, LossOutput, LossTerm, Metric
from align.algorithms import logistic


def bradley_terry(chosen_E: Tensor, rejected_E: Tensor, margin_E: Tensor) -> Tensor:
    """−log σ(r(x, y_w) − r(x, y_l) − m), per pair.

    InstructGPT 2203.02155 Eq 1; with the margin m of Llama 2 2307.09288 Eq 2 (0 where a row has none).
    """
    return logistic(chosen_E - rejected_E - margin_E)


def centering(chosen_E: Tensor, rejected_E: Tensor) -> Tensor:
    """(r(x, y_w) + r(x, y_l))², per pair. 2312.09244 Eq 2: Bradley-Terry fixes differences only, this the zero."""
    return (chosen_E + rejected_E).square()


class RewardModel(Algorithm):
    """Learns one score per answer from preference pairs; rows may carry a ``margin``."""

    name = "reward_model"
    paper = "https://arxiv.org/abs/2203.02155"
    learns_from = ("preference",)
    head = "reward"
    learning_rate = 1e-5
    """Llama 2 (2307.09288, section 3.2.2). TRL 1.16's 1e-4 is what an adapter gets here (ten times the full rate)."""
    dropout = False

    class Config(Algorithm.Config):
        """Settings of reward modelling."""

        center_rewards_coefficient: NonNegativeFloat = 0.0
        """Weight of the centering term (2312.09244; TRL's documentation suggests 0.01); 0, TRL's default, is none."""

    config: Config

    def loss(self, batch: Batch) -> LossOutput:
        """One value per pair."""
        assert batch.score_B is not None, "the engine gives scores to head 'reward'"
        chosen_E, rejected_E = batch.select("chosen", batch.score_B), batch.select("rejected", batch.score_B)
        margin_E = batch.columns.get("margin", torch.zeros_like(chosen_E))
        terms = [LossTerm(bradley_terry(chosen_E, rejected_E, margin_E), "example")]
        if self.config.center_rewards_coefficient:
            terms.append(LossTerm(centering(chosen_E, rejected_E), "example", self.config.center_rewards_coefficient))
        return LossOutput(
            terms,
            {
                "min_reward": Metric(batch.score_B, "min"),
                "mean_reward": Metric(batch.score_B),
                "max_reward": Metric(batch.score_B, "max"),
                "accuracy": Metric((chosen_E > rejected_E).to(chosen_E.dtype)),
                "margin": Metric(chosen_E - rejected_E),
            },
        )
