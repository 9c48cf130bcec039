"""SimPO: preferences over average log-probabilities, with a target margin and no reference."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from align import Algorithm, Batch, LossOutput, LossTerm
from align.algorithms import logistic, preference_metrics


def simpo(chosen_E: Tensor, rejected_E: Tensor, beta: float, gamma: float) -> Tensor:
    """−log σ( β log π(y_w|x)/|y_w| − β log π(y_l|x)/|y_l| − γ ), per pair. SimPO, 2405.14734 Eq 6.

    Takes the log-probabilities already averaged over each answer's tokens.
    """
    return logistic(beta * (chosen_E - rejected_E) - gamma)


class SimPO(Algorithm):
    """Learns from pairs without a reference: half the memory of DPO, and no tie to where it started."""

    name = "simpo"
    paper = "https://arxiv.org/abs/2405.14734"
    learns_from = ("preference",)
    learning_rate = 5e-7
    """The middle of the authors' grid (3e-7, 5e-7, 1e-6); they warn that 1e-5 ruins a model."""
    dropout = False

    class Config(Algorithm.Config):
        """Settings of SimPO."""

        beta: PositiveFloat = 2.0
        """Scale of the rewards (the authors: 2 to 2.5, up to 10). TRL 1.16's 0.1 is DPO's, twenty times too low."""
        gamma_beta_ratio: NonNegativeFloat = 0.5
        """Target margin γ in units of β (the authors: start at 0.5, search 0 to 1)."""

    config: Config

    def loss(self, batch: Batch) -> LossOutput:
        """One value per pair."""
        beta = self.config.beta
        mean_B = batch.mean_per_sequence(batch.logp_T)
        chosen_E, rejected_E = batch.select("chosen", mean_B), batch.select("rejected", mean_B)
        values = simpo(chosen_E, rejected_E, beta, self.config.gamma_beta_ratio * beta)
        return LossOutput([LossTerm(values, "example")], preference_metrics(batch, beta * chosen_E, beta * rejected_E))
