r"""GRPO and its relatives: tokens share the advantage of their completion, its reward compared with its group's.

A prompt q has G completions o_1 ... o_G with rewards R_i. What is minimised (2402.03300 Eqs 3 and 4), T_i = |o_i|:

    L    = 1/G Σ_i 1/T_i Σ_t [ −min(ρ_it A_i, clip(ρ_it, 1 − ε, 1 + ε_high) A_i) + β k_it ]

    ρ_it = π(o_it | q, o_i<t) / π_old(o_it | q, o_i<t)     π_old: the policy that the phase began with
    A_i  = (R_i − mean R) / (std R + 1e-4)                 ``group_advantages``
    k_it = exp(−x) − 1 + x,  x = log π − log π_ref         ``kl_estimator`` k3; times ρ_it (``use_bias_correction_kl``)

Relatives replace a part each. They are settings, not algorithms of their own:

    DAPO     2503.14476   epsilon_high: 0.28, mask_truncated_completions: true, and the stage's
                          rollout.zero_std_groups: refill; averaging: token, one mean over all tokens
    Dr. GRPO 2503.20783   A_i = R_i − mean R, and Σ_t over a constant: scale_rewards: none, averaging: constant
    GSPO     2507.18071   ρ_i, the geometric mean over t of ρ_it: importance_sampling_level: sequence,
                          averaging: sequence, epsilon: 3.0e-4, epsilon_high: 4.0e-4
    CISPO    2506.13585   −sg(min(ρ_it, 1 + ε_high)) A_i log π for the minimum: objective: cispo
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
    Numbers,
    average_loss,
    broadcast_to_tokens,
    center,
    clip_metrics,
    clipped,
    concatenate,
    divide_by_std,
    importance_weighted,
    kl_loss,
    rewards,
)


def group_advantages(R: Sequence[Numbers], scale_rewards: Literal["group", "batch", "none"] = "group") -> list[Numbers]:
    """A_i = (R_i − mean R) / (std R + 1e-4), [G] for each group of rewards [G]; NaN where nobody scored.

    2402.03300 Section 4.1.2. The standard deviation is the group's, the phase's (2508.08221), or left out (Dr. GRPO,
    2503.20783).
    """
    A = [center(R_G) for R_G in R]
    if scale_rewards == "none":
        return A
    whole = concatenate(R)
    return [divide_by_std(A_G, R_G if scale_rewards == "group" else whole) for A_G, R_G in zip(A, R, strict=True)]


def clip_objective(batch: Batch, rho_T: Tensor, A_T: Tensor, config: GRPO.Config) -> tuple[Tensor, dict[str, Metric]]:
    """−min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A) of each token, and TRL's ``clip_ratio/*``. 2402.03300 Eq 3."""
    metrics = clip_metrics(rho_T, A_T, config.epsilon, config.high, batch.mean_per_sequence)
    return clipped(rho_T, A_T, config.epsilon, config.high, config.delta), metrics


def cispo_objective(batch: Batch, rho_T: Tensor, A_T: Tensor, config: GRPO.Config) -> tuple[Tensor, dict[str, Metric]]:
    """−sg(min(ρ, 1 + ε_high)) A log π of each token, and the share of capped ones. CISPO, 2506.13585."""
    capped_T = (rho_T > 1 + config.high) & (A_T > 0)
    return cispo(batch.logp_T, rho_T, A_T, config.high), {"cispo_clip_ratio": Metric(capped_T.to(rho_T.dtype))}


def cispo(logp_T: Tensor, rho_T: Tensor, A_T: Tensor, epsilon_high: float) -> Tensor:
    """−sg(min(ρ, 1 + ε_high)) A log π, sg without gradient: every token keeps its gradient. CISPO, 2506.13585."""
    return -rho_T.detach().clamp(max=1 + epsilon_high) * A_T * logp_T


OBJECTIVES = {"clip": clip_objective, "cispo": cispo_objective}


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
        """Passes over each phase's answers (μ of the paper, 2402.03300; TRL 1.16's default)."""
        scale_rewards: Literal["group", "batch", "none"] = "group"
        """The divisor of the advantage: the standard deviation of the group's rewards, of the phase's (2508.08221), or
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
        """The estimator of the KL (http://joschu.net/blog/kl-approx.html, TRL 1.16 has k3)."""
        kl_in: Literal["loss", "reward"] = "loss"
        """Added to each token's loss (2402.03300), or summed up and taken off the answer's reward (2402.14740)."""
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
        """Return A_i for every token of completion i; the KL is taken off its reward first, if it belongs there."""
        config = self.config
        beta = config.beta if config.kl_in == "reward" else 0.0
        R = [rewards(group, beta, config.kl_estimator) for group in groups]
        A = group_advantages(R, config.scale_rewards)
        return broadcast_to_tokens(groups, A, config.mask_truncated_completions)

    def loss(self, batch: Batch) -> LossOutput:
        """Return one value per token, or per completion, of the objective and of β k."""
        config, max_completion_length = self.config, self.rollout.sampling.max_completion_length
        rho_T, A_T = RATIOS[config.importance_sampling_level](batch), batch.token_data["advantage"]
        objective_T, metrics = OBJECTIVES[config.objective](batch, rho_T, A_T, config)
        objective_T = importance_weighted(batch, objective_T)
        terms = [average_loss(batch, objective_T, config.averaging, max_completion_length)]
        metrics["policy_loss"] = Metric(terms[0].weight * terms[0].values)
        if batch.ref_logp_T is not None:
            in_loss = config.beta > 0 and config.kl_in == "loss"
            # Alone, k1 and k3 have not the KL's gradient: tokens were drawn from π_old, which it does not see.
            k_T = kl_loss(batch, config.kl_estimator, rho_T if in_loss and config.corrected else None)
            metrics["kl"] = Metric(k_T)
            if in_loss:
                terms.append(average_loss(batch, k_T, config.averaging, max_completion_length, config.beta))
        return LossOutput(terms, metrics | token_metrics(batch))
