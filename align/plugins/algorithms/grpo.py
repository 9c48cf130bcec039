"""GRPO and its relatives: tokens share their answer's advantage, which is its reward against its group's.

They are settings, not algorithms of their own:

    DAPO     2503.14476   epsilon_high: 0.28, mask_truncated_completions: true, and the stage's
                          rollout.zero_std_groups: refill
    Dr. GRPO 2503.20783   scale_rewards: none, averaging: constant
    GSPO     2507.18071   importance_sampling_level: sequence, averaging: sequence, epsilon: 3.0e-4,
                          epsilon_high: 4.0e-4
    CISPO    2506.13585   objective: cispo
    GRPO as published     averaging: sequence, beta: 0.04, use_bias_correction_kl: false
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from align import Advantages, Batch, LossOutput, Metric, Online
from align.algorithms import token_metrics
from align.rl import (
    KL,
    RATIOS,
    Averaging,
    Group,
    Level,
    averaged,
    broadcast_to_tokens,
    center,
    cispo,
    clip_metrics,
    clipped,
    concatenate,
    divide_by_std,
    importance_weighted,
    kl_loss,
    rewards,
)


class GRPO(Online):
    """Learns from rewards, each answer compared with the others to its prompt; no critic.

    −min(ρ_t A, clip(ρ_t) A) + β k_t for each token, A_i = (R_i − mean R) / std R over the prompt's answers.
    2402.03300 Eqs 3 and 4.
    """

    name = "grpo"
    paper = "https://arxiv.org/abs/2402.03300"
    learning_rate = 1e-6
    """TRL 1.16's GRPOConfig, and the paper's."""

    class Config(Online.Config):
        """Settings of GRPO."""

        num_generations: Annotated[int, Field(ge=2)] = 8
        """Answers to each prompt (TRL 1.16's default; the paper, 2402.03300, has 64)."""
        num_iterations: PositiveInt = 1
        """How often each phase's answers are learned from (μ of the paper, 2402.03300; TRL 1.16's default)."""
        scale_rewards: Literal["group", "batch", "none"] = "group"
        """What divides the advantage: the standard deviation of the group's rewards, of the phase's (2508.08221), or
        nothing (Dr. GRPO, 2503.20783: the first makes questions that are almost always or never solved count more)."""
        averaging: Averaging = "token"
        """Mean over all tokens (DAPO 2503.14476, TRL 1.16), over answers of their tokens' mean (2402.03300), or over
        answers of their sum / max_completion_length (Dr. GRPO, 2503.20783)."""
        importance_sampling_level: Level = "token"
        """Each token's own, or the answer's geometric mean (GSPO, 2507.18071)."""
        objective: Literal["clip", "cispo"] = "clip"
        """``clip`` drops tokens whose ratio went too far; ``cispo`` (2506.13585) caps their weight."""
        epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
        """clip only: the ratio is clipped below 1 − this (TRL 1.16's default)."""
        epsilon_high: PositiveFloat | None = None
        """The ratio is clipped above 1 + this; null: as epsilon with ``clip``, 4 with ``cispo`` (TRL 1.16 counts the
        cap of ``cispo`` from 0: its recommended 5 is 4 here). DAPO (2503.14476) has 0.28, which leaves unlikely tokens
        more room to grow."""
        delta: PositiveFloat | None = None
        """clip only: most that a bad answer's ratio counts for, above 1 + epsilon_high (INTELLECT-2, 2505.07291; there
        the same as dual clip, 1912.09729, which has 3)."""
        mask_truncated_completions: bool = False
        """Leave answers that were cut off at max_completion_length out of the loss (DAPO, 2503.14476 Section 3.4)."""
        beta: NonNegativeFloat = 0.0
        """Weight of the KL to the reference (TRL 1.16; the paper, 2402.03300, has 0.04); 0: no reference."""
        kl_estimator: KL = "k3"
        """How it is estimated (http://joschu.net/blog/kl-approx.html, TRL 1.16 has k3)."""
        kl_in: Literal["loss", "reward"] = "loss"
        """Beside each token's loss (2402.03300), or summed up and taken off the answer's reward (2402.14740)."""
        use_bias_correction_kl: bool | None = None
        """kl_in loss only: multiply by the ratio, without which k1 and k3 have not the KL's gradient (2512.02556).
        Null: all but k2, which has it as it is."""

        @property
        def high(self) -> float:
            """Return ``epsilon_high`` with its default filled in."""
            return self.epsilon_high or (self.epsilon if self.objective == "clip" else 4.0)

        @property
        def corrected(self) -> bool:
            """Return ``use_bias_correction_kl`` with its default filled in."""
            return self.kl_estimator != "k2" if self.use_bias_correction_kl is None else self.use_bias_correction_kl

        @model_validator(mode="after")
        def _read_and_possible(self) -> GRPO.Config:
            given = self.model_fields_set
            if self.objective == "cispo" and (unread := sorted({"epsilon", "delta"} & given)):
                problem = "is not read by objective 'cispo', which caps at 1 + epsilon_high"
                raise ValueError(f"{' and '.join(unread)} {problem}")
            if self.delta is not None and self.delta <= 1 + self.high:
                raise ValueError(f"delta must be above 1 + epsilon_high, {1 + self.high:g}; 1912.09729 has 3")
            if self.beta == 0 and (unread := sorted({"kl_estimator", "kl_in", "use_bias_correction_kl"} & given)):
                raise ValueError(f"{' and '.join(unread)} is not read where beta is 0")
            return self

    config: Config

    @property
    def measures_logp(self) -> bool:
        """For the KL in the reward."""
        return self.config.beta > 0 and self.config.kl_in == "reward"

    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """R_i less its group's mean, over a standard deviation."""
        config = self.config
        beta = config.beta if config.kl_in == "reward" else 0.0
        found = [rewards(group, beta, config.kl_estimator) for group in groups]
        everything = concatenate(found)
        advantages = [center(reward) for reward in found]
        if config.scale_rewards != "none":
            by = found if config.scale_rewards == "group" else [everything] * len(found)
            advantages = [divide_by_std(a, own) for a, own in zip(advantages, by, strict=True)]
        return broadcast_to_tokens(groups, advantages, config.mask_truncated_completions)

    def loss(self, batch: Batch) -> LossOutput:
        """One value per token, or per answer, for the policy and for the KL."""
        config, max_completion_length = self.config, self.rollout.sampling.max_completion_length
        ratio_T, advantage_T = RATIOS[config.importance_sampling_level](batch), batch.token_data["advantage"]
        loss_T, metrics = OBJECTIVES[config.objective](batch, ratio_T, advantage_T, config)
        terms = [averaged(batch, importance_weighted(batch, loss_T), config.averaging, max_completion_length)]
        metrics["policy_loss"] = Metric(terms[0].weight * terms[0].values)
        if batch.ref_logp_T is not None:
            in_loss = config.beta > 0 and config.kl_in == "loss"
            kl_T = kl_loss(batch, config.kl_estimator, ratio_T if in_loss and config.corrected else None)
            metrics["kl"] = Metric(kl_T)
            if in_loss:
                terms.append(averaged(batch, kl_T, config.averaging, max_completion_length, config.beta))
        return LossOutput(terms, metrics | token_metrics(batch))


def _clip(batch: Batch, ratio_T: Tensor, advantage_T: Tensor, config: GRPO.Config) -> tuple[Tensor, dict[str, Metric]]:
    low, high = config.epsilon, config.high
    metrics = clip_metrics(ratio_T, advantage_T, low, high, batch.mean_per_sequence)
    return clipped(ratio_T, advantage_T, low, high, config.delta), metrics


def _cispo(batch: Batch, ratio_T: Tensor, advantage_T: Tensor, config: GRPO.Config) -> tuple[Tensor, dict[str, Metric]]:
    capped_T = (ratio_T > 1 + config.high) & (advantage_T > 0)
    metrics = {"cispo_clip_ratio": Metric(capped_T.to(ratio_T.dtype))}
    return cispo(batch.logp_T, ratio_T, advantage_T, config.high), metrics


OBJECTIVES = {"clip": _clip, "cispo": _cispo}
