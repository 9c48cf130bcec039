"""ORPO: fine-tune on the better answer and push its odds above the worse one's, in one stage, without a reference."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from align import Algorithm, Batch, LossOutput, LossTerm, Metric
from align.algorithms import logistic, preference_metrics

ALMOST_SURE = -1e-7
"""Log of the largest probability whose odds float32 still distinguishes."""


def log_odds(mean_logp: Tensor) -> Tensor:
    """log( P/(1−P) ), log P = log π(y|x)/|y|. ORPO, 2403.07691 Eqs 1 and 4."""
    mean_logp = mean_logp.clamp(max=ALMOST_SURE)
    return mean_logp - torch.log(-torch.expm1(mean_logp))


def odds_ratio(chosen_E: Tensor, rejected_E: Tensor) -> Tensor:
    """L_OR = −log σ( log odds(y_w|x) − log odds(y_l|x) ), per pair. ORPO, 2403.07691 Eq 7.

    Takes the log-probabilities already averaged over each answer's tokens.
    """
    return logistic(log_odds(chosen_E) - log_odds(rejected_E))


def nll(chosen_logp_T: Tensor) -> Tensor:
    """L_SFT: −log π(y_w,t | x, y_w,<t), per token of the better answer; x carries no loss (TRL scores x as well)."""
    return -chosen_logp_T


class ORPO(Algorithm):
    """Learns to follow instructions and preferences in one stage, from pairs, starting at a base model.

    L_SFT + λ L_OR (2403.07691 Eq 6).
    """

    name = "orpo"
    paper = "https://arxiv.org/abs/2403.07691"
    learns_from = ("preference",)
    learning_rate = 8e-6
    """TRL's ORPO example. Its ORPOConfig has 1e-6, DPO's rate, though here most of the gradient is fine-tuning's."""
    dropout = False

    class Config(Algorithm.Config):
        """Settings of ORPO."""

        beta: PositiveFloat = 0.1
        """λ of the paper, the weight of L_OR (TRL 1.16's name and default)."""

    config: Config

    def loss(self, batch: Batch) -> LossOutput:
        """One value per token of the better answers, and one per pair."""
        beta = self.config.beta
        mean_B = batch.mean_per_sequence(batch.logp_T)
        chosen_E, rejected_E = batch.select("chosen", mean_B), batch.select("rejected", mean_B)
        nll_T, ratio_E = nll(batch.tokens_of("chosen", batch.logp_T)), odds_ratio(chosen_E, rejected_E)
        metrics = preference_metrics(batch, beta * chosen_E, beta * rejected_E)
        metrics |= {
            "nll_loss": Metric(nll_T),
            "log_odds_ratio": Metric(-ratio_E),
            "log_odds_chosen": Metric(log_odds(chosen_E) - log_odds(rejected_E)),
        }
        return LossOutput([LossTerm(nll_T, "token:chosen"), LossTerm(ratio_E, "example", beta)], metrics)
