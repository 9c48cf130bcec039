"""CPO: preferences over log-probabilities, with likelihood of the better answer in place of a reference."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from align import Algorithm, Batch, LossOutput, LossTerm, Metric
from align.algorithms import logistic, preference_metrics


def cpo(chosen_E: Tensor, rejected_E: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """−log σ( β log π(y_w|x) − β log π(y_l|x) ), per pair. CPO, 2401.08417 Eq 3.

    DPO with a uniform reference; ``label_smoothing`` as in conservative DPO.
    """
    return logistic(beta * (chosen_E - rejected_E), label_smoothing)


def nll(chosen_logp_T: Tensor) -> Tensor:
    """−log π(y_w,t | x, y_w,<t), per token. The paper sums it over an answer; its code, TRL and this average it."""
    return -chosen_logp_T


class CPO(Algorithm):
    """Learns from pairs without a reference, made for translation."""

    name = "cpo"
    paper = "https://arxiv.org/abs/2401.08417"
    learns_from = ("preference",)
    learning_rate = 1e-6
    """TRL 1.16's CPOConfig."""
    dropout = False

    class Config(Algorithm.Config):
        """Settings of CPO."""

        beta: PositiveFloat = 0.1
        """Scale of the log-probabilities (TRL 1.16's CPOConfig)."""
        cpo_alpha: NonNegativeFloat = 1.0
        """Weight of the likelihood term (2401.08417 adds it with weight 1; TRL 1.16's name)."""
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
        """Probability that a label is wrong (TRL 1.16's CPOConfig)."""

    config: Config

    def loss(self, batch: Batch) -> LossOutput:
        """One value per pair, and one per token of the better answers."""
        config = self.config
        logp_B = batch.sum_per_sequence(batch.logp_T)
        chosen_E, rejected_E = batch.select("chosen", logp_B), batch.select("rejected", logp_B)
        nll_T = nll(batch.tokens_of("chosen", batch.logp_T))
        terms = [LossTerm(cpo(chosen_E, rejected_E, config.beta, config.label_smoothing), "example")]
        if config.cpo_alpha:
            terms.append(LossTerm(nll_T, "token:chosen", config.cpo_alpha))
        metrics = preference_metrics(batch, config.beta * chosen_E, config.beta * rejected_E)
        return LossOutput(terms, metrics | {"nll_loss": Metric(nll_T)})
