"""KTO: learn from answers that are each known to be good or bad, with no need for pairs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from align import Algorithm, Batch, Example, LossOutput, LossTerm, Metric
from align.algorithms import TokenSequence, token_metrics


def kto(ratio_B: Tensor, desirable_B: Tensor, z: Tensor, beta: float) -> Tensor:
    """1 − σ(β(r − z)) for a desirable answer, 1 − σ(β(z − r)) for an undesirable one, per sequence.

    KTO, 2402.01306 Eq 7; r = log π(y|x) − log π_ref(y|x). The paper's z₀ is KL(π ‖ π_ref), estimated by r of answers
    to other prompts, not below 0, and without gradient. With z = 0 it is the unpaired APO-zero (2408.06266 Eq 7).
    """
    sign_B = torch.where(desirable_B, 1.0, -1.0)
    return torch.sigmoid(-sign_B * beta * (ratio_B - z))


def mismatched(prompt_of: TokenSequence, answer_of: TokenSequence) -> TokenSequence:
    """The one's prompt followed by the other's answer, which starts at its first scored token."""
    cut, start = (int(np.argmax(s.scored)) if s.scored.any() else len(s) for s in (prompt_of, answer_of))
    return TokenSequence(
        role="mismatched",
        tokens=np.concatenate([prompt_of.tokens[:cut], answer_of.tokens[start:]]),
        scored=np.concatenate([prompt_of.scored[:cut], answer_of.scored[start:]]),
    )


class KTO(Algorithm):
    """Learns from single answers marked good or bad, tied to a reference. Pairs serve too, as one good and one bad."""

    name = "kto"
    paper = "https://arxiv.org/abs/2402.01306"
    learns_from = ("unpaired", "preference")
    learning_rate = 1e-6
    """TRL 1.16's KTOConfig."""
    dropout = False

    class Config(Algorithm.Config):
        """Settings of KTO."""

        loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
        """``kto``, or ``apo_zero_unpaired`` (2408.06266) which takes z as 0 and so saves a forward pass."""
        beta: PositiveFloat = 0.1
        """Strength of the tie to the reference (TRL 1.16's KTOConfig)."""
        desirable_weight: NonNegativeFloat = 1.0
        """λ_D. With n_D good and n_U bad answers keep λ_D n_D / (λ_U n_U) between 1 and 4/3 (2402.01306 Eq 8)."""
        undesirable_weight: NonNegativeFloat = 1.0
        """λ_U."""

    config: Config

    @property
    def uses_reference(self) -> bool:
        """Both r and z are measured from it."""
        return True

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """rewards/margins: the difference of the two means, as good and bad answers are not paired."""
        if {"rewards/chosen", "rewards/rejected"} <= metrics.keys():
            return {"rewards/margins": metrics["rewards/chosen"] - metrics["rewards/rejected"]}
        return {}

    def auxiliary(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Each prompt with the answer of the example before it in the step.

        A step of one example has no other answer: its z is 0, the least a divergence can be.
        """
        if self.config.loss_type == "apo_zero_unpaired" or len(examples) < 2:
            return ()
        pairs = zip(examples, [examples[-1], *examples[:-1]], strict=True)
        made = []
        for mine, other in pairs:
            # A row of pairs may stand next to one of single answers: the shorter of the two is gone through again.
            others = itertools.cycle(other.sequences)
            sequences = tuple(mismatched(own, answer) for own, answer in zip(mine.sequences, others, strict=False))
            made.append(Example(source=f"{mine.source} answered by {other.source}", sequences=sequences))
        return made

    def statistics(self, batch: Batch) -> Mapping[str, Tensor]:
        """The ratio r of each mismatched sequence; their mean over the step, not below 0, is z."""
        assert batch.ref_logp_T is not None, "the engine gives reference log-probabilities to uses_reference"
        return {"z": batch.sum_per_sequence(batch.logp_T - batch.ref_logp_T)}

    def loss(self, batch: Batch) -> LossOutput:
        """One value per sequence."""
        assert batch.ref_logp_T is not None, "the engine gives reference log-probabilities to uses_reference"
        config = self.config
        logp_B = batch.sum_per_sequence(batch.logp_T)
        ratio_B = batch.sum_per_sequence(batch.logp_T - batch.ref_logp_T)
        desirable_B = _desirable(batch)
        z = batch.step.get("z", ratio_B.new_zeros(())).detach().clamp(min=0)
        values_B = kto(ratio_B, desirable_B, z, config.beta)
        values_B = torch.where(desirable_B, config.desirable_weight * values_B, config.undesirable_weight * values_B)
        desirable_T = batch.expand_to_tokens(desirable_B)
        metrics = {
            "kl": Metric(z.expand(batch.sequences)),
            "rewards/chosen": Metric(config.beta * ratio_B, where=desirable_B),
            "rewards/rejected": Metric(config.beta * ratio_B, where=~desirable_B),
            "logps/chosen": Metric(logp_B, where=desirable_B),
            "logps/rejected": Metric(logp_B, where=~desirable_B),
        }
        if batch.logit_T is not None:
            metrics["logits/chosen"] = Metric(batch.logit_T, where=desirable_T)
            metrics["logits/rejected"] = Metric(batch.logit_T, where=~desirable_T)
        return LossOutput([LossTerm(values_B, "sequence")], metrics | token_metrics(batch))


def _desirable(batch: Batch) -> Tensor:
    """Return a mask [B] of the good answers: by their role in a pair, else by their example's label."""
    if "label" in batch.columns:
        return batch.columns["label"][batch.example_B] > 0.5
    chosen = batch.roles.index("chosen") if "chosen" in batch.roles else -1
    return batch.role_B == chosen
