"""What more than one algorithm is made of: equations, and the metrics that dashboards know by TRL's names.

Everything here is a pure function of a Batch or of plain tensors. [T] scored tokens, [B] sequences, [E] examples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.core.algorithm.base import Metric
from align.core.data.batch import Batch


def logistic(x: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−(1−ε) log σ(x) − ε log σ(−x): the log loss of a preference whose label is wrong with probability ε."""
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


def token_metrics(batch: Batch, correct_of: str | None = None) -> dict[str, Metric]:
    """``entropy`` and ``mean_token_accuracy`` over scored tokens, the latter over one role's tokens if named."""
    metrics = {}
    if batch.entropy_T is not None:
        metrics["entropy"] = Metric(batch.entropy_T)
    if batch.correct_T is not None:
        correct = batch.correct_T.to(batch.logp_T.dtype)
        metrics["mean_token_accuracy"] = Metric(batch.tokens_of(correct_of, correct) if correct_of else correct)
    return metrics


def preference_metrics(batch: Batch, chosen_E: Tensor, rejected_E: Tensor) -> dict[str, Metric]:
    """What TRL logs of pairs: implicit rewards given as [E], log-probabilities, logits, entropy, token accuracy."""
    with torch.no_grad():
        logp_B = batch.sum_per_sequence(batch.logp_T)
        metrics = {
            "rewards/chosen": Metric(chosen_E),
            "rewards/rejected": Metric(rejected_E),
            "rewards/accuracies": Metric((chosen_E > rejected_E).to(chosen_E.dtype)),
            "rewards/margins": Metric(chosen_E - rejected_E),
            "logps/chosen": Metric(batch.of("chosen", logp_B)),
            "logps/rejected": Metric(batch.of("rejected", logp_B)),
        }
        if batch.logit_T is not None:
            metrics["logits/chosen"] = Metric(batch.tokens_of("chosen", batch.logit_T))
            metrics["logits/rejected"] = Metric(batch.tokens_of("rejected", batch.logit_T))
        return metrics | token_metrics(batch, correct_of="chosen")
