"""Continual pre-training: go on predicting the next token, on your own text."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from align import Algorithm, Batch, LossOutput, LossTerm
from align.algorithms import token_metrics


def nll(logp_T: Tensor) -> Tensor:
    """−log π(y_t | y_<t), per token; exp of its mean is the perplexity.

    The mean is over all tokens of a step, so a long document weighs more than a short one, as in pre-training.
    """
    return -logp_T


class Pretrain(Algorithm):
    """Learns every token of a text but its first, documents kept apart.

    Against forgetting: mix general text into ``data.train`` by weight (replay: 2403.08763 used 5 % for
    a near domain, 25 % for a far one), warm the learning rate up again and let it decay (``schedule: cosine``).
    """

    name = "pretrain"
    paper = "https://arxiv.org/abs/2403.08763"
    learns_from = ("text",)
    weighs_messages = True
    learning_rate = 2e-5
    """TRL 1.16's SFTConfig, whose trainer takes plain text too."""

    @property
    def scores_prompt(self) -> bool:
        """Every token carries loss."""
        return True

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """The perplexity; of a held-out set of general text, watched next to the domain's, it shows forgetting."""
        return {"perplexity": math.exp(min(metrics["loss"], 700.0))}

    def loss(self, batch: Batch) -> LossOutput:
        """One value per token."""
        return LossOutput([LossTerm(batch.by_message(nll(batch.logp_T)), "token")], token_metrics(batch))
