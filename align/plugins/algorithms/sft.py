"""Supervised fine-tuning: make the answers in the data likelier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from align import Algorithm, Batch, LossOutput, LossTerm
from align.algorithms import token_metrics


def nll(logp_T: Tensor) -> Tensor:
    """−log π(y_t | x, y_<t), per token."""
    return -logp_T


def dft(logp_T: Tensor) -> Tensor:
    """−sg(π(y_t | x, y_<t)) log π(y_t | x, y_<t), per token; sg stops the gradient.

    Dynamic fine-tuning, 2508.05629: weighting by the token's own probability undoes the 1/π that makes the
    gradient of nll largest where the model is least sure. At the same weights its value is below nll's, so the two
    losses cannot be compared by value.
    """
    return -logp_T.exp().detach() * logp_T


LOSSES: Mapping[str, Callable[[Tensor], Tensor]] = {"nll": nll, "dft": dft}


class SFT(Algorithm):
    """Learns the assistant's tokens of conversations and the answers of prompt-answer rows."""

    name = "sft"
    paper = "https://arxiv.org/abs/2203.02155"
    learns_from = ("completion", "text")
    weighs_messages = True
    learning_rate = 2e-5
    """TRL 1.16's SFTConfig."""

    class Config(Algorithm.Config):
        """Settings of supervised fine-tuning."""

        loss_type: Literal["nll", "dft"] = "nll"
        """``nll``, or ``dft`` which weights each token by its own probability (2508.05629)."""

    config: Config

    def loss(self, batch: Batch) -> LossOutput:
        """One value per scored token."""
        loss_T = batch.by_message(LOSSES[self.config.loss_type](batch.logp_T))
        return LossOutput([LossTerm(loss_T, "token")], token_metrics(batch))
