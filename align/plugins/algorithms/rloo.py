"""RLOO: REINFORCE on whole answers, each compared with the others to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from align import Advantages, AlignError, Batch, LossOutput, LossTerm, Metric, Online
from align.algorithms import token_metrics
from align.rl import (
    Group,
    broadcast_to_tokens,
    clip_metrics,
    clipped,
    concatenate,
    divide_by_std,
    leave_one_out,
    nanmean,
    product_ratio,
    rewards,
)
from align.settings import Rollout


class RLOO(Online):
    """Learns from rewards, each answer compared with the mean of the others to its prompt; no critic.

    −min(ρA, clip(ρ) A) for each answer, A_i = R_i − the mean of its siblings, R with the KL as a penalty.
    2402.14740. ρ is the whole answer's ratio, 1 in a phase's first step, where this is REINFORCE.
    """

    name = "rloo"
    paper = "https://arxiv.org/abs/2402.14740"
    learning_rate = 1e-6
    """TRL 1.16's RLOOConfig, and the paper's."""

    class Config(Online.Config):
        """Settings of RLOO."""

        num_generations: Annotated[int, Field(ge=2)] = 4
        """Answers to each prompt. The paper (2402.14740) has 2 and 4: the baseline's own noise adds 1/(n − 1) to
        the advantage's variance, so it doubles with TRL 1.16's 2 and grows by a third with 4."""
        num_iterations: PositiveInt = 1
        """Passes over each phase's answers (TRL 1.16's default)."""
        beta: NonNegativeFloat = 0.05
        """Price of a nat of KL to the reference, per answer, in the reward (TRL 1.16's RLOOConfig); 0: no reference."""
        epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
        """The ratio is clipped below 1 − this (TRL 1.16's default)."""
        epsilon_high: PositiveFloat | None = None
        """and above 1 + this; null: as epsilon (TRL 1.16's default, where it is that of epsilon)."""
        normalize_advantages: bool = False
        """Standardise the advantages of each phase (TRL 1.16)."""
        mask_truncated_completions: bool = False
        """Leave answers that were cut off at max_completion_length out of the loss (DAPO, 2503.14476 Section 3.4)."""

        @property
        def high(self) -> float:
            """Return ``epsilon_high`` with its default filled in."""
            return self.epsilon if self.epsilon_high is None else self.epsilon_high

    config: Config

    @property
    def measures_logp(self) -> bool:
        """For the KL in the reward."""
        return self.config.beta > 0

    def configure(self, rollout: Rollout) -> None:
        """Also refuses a correction of single tokens: here an answer is one action."""
        super().configure(rollout)
        correction = rollout.importance_sampling_correction
        if correction.type != "none" and correction.level == "token":
            raise AlignError(
                "rloo weighs whole answers, and this correction weighs single tokens",
                "set level: sequence",
                where="rollout.importance_sampling_correction.level",
            )

    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """R_i less the mean of its siblings."""
        advantages = [leave_one_out(rewards(group, self.config.beta)) for group in groups]
        if self.config.normalize_advantages:
            everything = concatenate(advantages)
            advantages = [divide_by_std(a - nanmean(everything), everything) for a in advantages]
        return broadcast_to_tokens(groups, advantages, self.config.mask_truncated_completions)

    def loss(self, batch: Batch) -> LossOutput:
        """One value per answer."""
        config = self.config
        ratio_B = product_ratio(batch)
        advantage_B = batch.mean_per_sequence(batch.token_data["advantage"])
        loss_B = clipped(ratio_B, advantage_B, config.epsilon, config.high)
        if "weight" in batch.token_data:
            loss_B = loss_B * batch.mean_per_sequence(batch.token_data["weight"])
        metrics = {"policy_loss": Metric(loss_B)}
        metrics |= clip_metrics(ratio_B, advantage_B, config.epsilon, config.high, lambda x_B: x_B)
        if batch.ref_logp_T is not None:
            metrics["kl"] = Metric(batch.token_data.get("old_logp", batch.logp_T) - batch.ref_logp_T)
        return LossOutput([LossTerm(loss_B, "sequence")], metrics | token_metrics(batch))
