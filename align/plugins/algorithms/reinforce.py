"""REINFORCE: every token's log-probability times what came after it, less a baseline. REINFORCE++ by default.

REINFORCE++           2501.03262   the defaults: KL in the reward, token by token, and one standard for the phase
REINFORCE++-baseline  2501.03262   baseline: group, num_generations: 8, kl_in: loss, kl_estimator: k2
REINFORCE             Williams 1992   baseline: moving, normalize_advantages: false, beta: 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from align import Advantages, Batch, LossOutput, Metric, Online
from align.algorithms import token_metrics
from align.rl import (
    KL,
    Averaging,
    Group,
    Numbers,
    average_loss,
    center,
    clip_metrics,
    clipped,
    concatenate,
    importance_weighted,
    kl_loss,
    loss_mask,
    nan_to_zero,
    nanmean,
    reward_to_go,
    rewards,
    sampled_kl,
    token_ratio,
    token_rewards,
    whiten,
)


class Reinforce(Online):
    """Learns from rewards with one answer to a prompt (REINFORCE, REINFORCE++).

    −A_t log π(y_t), A_t = Σ_{s≥t} γ^(s−t) r_s of r_s = −β k_s and the answer's R − b at its last token.
    Williams 1992; 2501.03262. Written as −min(ρ_t A_t, clip(ρ_t) A_t), which has the same gradient in a phase's first
    step and stays right in those after it.
    """

    name = "reinforce"
    paper = "https://arxiv.org/abs/2501.03262"
    learning_rate = 1e-6
    """OpenRLHF's, whose authors wrote REINFORCE++."""

    class Config(Online.Config):
        """Settings of REINFORCE."""

        num_generations: PositiveInt = 1
        """Answers to each prompt (2501.03262 has 1, and several under ``baseline: group``)."""
        num_iterations: PositiveInt = 1
        """Passes over each phase's answers (the authors' max_epochs)."""
        baseline: Literal["none", "group", "batch", "moving"] = "none"
        """The baseline of an answer's reward: nothing, the mean of its prompt's answers, of the phase, or of the
        phases before (Williams 1992). REINFORCE++ (2501.03262) leaves that to ``normalize_advantages``."""
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
        """moving only: share of the old mean that each phase keeps; 0.9 remembers ten phases (2501.03262 has none)."""
        normalize_advantages: bool = True
        """Standardise the advantages over all tokens of the phase (2501.03262)."""
        gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
        """γ, discount of what comes later (the authors)."""
        averaging: Averaging = "token"
        """Mean over all tokens (the authors), over answers of their tokens' mean, or of their sum /
        max_completion_length."""
        epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
        """The ratio is clipped below 1 − this (the authors' eps_clip)."""
        epsilon_high: PositiveFloat | None = None
        """and above 1 + this; null: as epsilon (the authors' eps_clip)."""
        mask_truncated_completions: bool = False
        """Leave answers that were cut off at max_completion_length out of the loss (DAPO, 2503.14476 Section 3.4)."""
        beta: NonNegativeFloat = 0.01
        """Price of a nat of KL to the reference (the authors' init_kl_coef); 0: no reference."""
        kl_estimator: KL = "k1"
        """The estimator of the KL (http://joschu.net/blog/kl-approx.html, 2501.03262 has k1)."""
        kl_in: Literal["reward", "loss"] = "reward"
        """Token by token in the reward, or added to each token's loss (2501.03262's baseline variant, with k2); there
        k1 and k3 are multiplied by the ratio, so that they have the KL's gradient as k2 has (2512.02556)."""

        @property
        def high(self) -> float:
            """Return ``epsilon_high`` with its default filled in."""
            return self.epsilon if self.epsilon_high is None else self.epsilon_high

        @model_validator(mode="after")
        def _read_and_possible(self) -> Reinforce.Config:
            given = self.model_fields_set
            if self.baseline == "group" and self.num_generations < 2:
                raise ValueError("baseline 'group' compares a prompt's answers: num_generations must be at least 2")
            if self.baseline != "moving" and "decay" in given:
                raise ValueError(f"decay is not read by baseline {self.baseline!r}; it is read by 'moving'")
            if self.beta == 0 and (unread := sorted({"kl_estimator", "kl_in"} & given)):
                raise ValueError(f"{' and '.join(unread)} is not read where beta is 0")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.moving: float | None = None

    @property
    def measures_logp(self) -> bool:
        """For the KL in the reward."""
        return self.config.beta > 0 and self.config.kl_in == "reward"

    @property
    def compares(self) -> bool:
        """Only under ``baseline: group``; else with other prompts' answers."""
        return bool(self.config.baseline == "group")

    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """Rewards less the baseline, and what each token's KL costs, summed up from the end."""
        config, keep = self.config, loss_mask(groups, self.config.mask_truncated_completions)
        found = [rewards(group) for group in groups]
        baseline = self._baseline(concatenate(found))
        score_N = concatenate(
            [center(reward_G) if config.baseline == "group" else reward_G - baseline for reward_G in found]
        )
        answers = [e for group in groups for e in group]
        kl = [sampled_kl(e, config.kl_estimator) if self.measures_logp else np.zeros(len(e.tokens)) for e in answers]
        score_N = np.where(keep, score_N, np.nan)
        reward = [token_rewards(score, kl_T, config.beta) for score, kl_T in zip(score_N, kl, strict=True)]
        advantage = [reward_to_go(reward_T, config.gamma) for reward_T in reward]
        if config.normalize_advantages:
            advantage = whiten(advantage)
        metrics = {"baseline": baseline} if config.baseline in ("batch", "moving") else {}
        return Advantages({"advantage": nan_to_zero(advantage)}, keep, metrics)

    def _baseline(self, reward_N: Numbers) -> float:
        """The phase's mean, or that of the phases before, which then moves towards it; 0 where there is none."""
        now = nanmean(reward_N)
        if self.config.baseline not in ("batch", "moving") or np.isnan(now):
            return self.moving or 0.0
        if self.config.baseline == "batch":
            return now
        before = now if self.moving is None else self.moving
        self.moving = self.config.decay * before + (1 - self.config.decay) * now
        return before

    def loss(self, batch: Batch) -> LossOutput:
        """One value per token, or per answer, for the policy and for the KL."""
        config, max_completion_length = self.config, self.rollout.sampling.max_completion_length
        ratio_T, advantage_T = token_ratio(batch), batch.token_data["advantage"]
        loss_T = importance_weighted(batch, clipped(ratio_T, advantage_T, config.epsilon, config.high))
        terms = [average_loss(batch, loss_T, config.averaging, max_completion_length)]
        metrics = {"policy_loss": Metric(terms[0].weight * terms[0].values)}
        metrics |= clip_metrics(ratio_T, advantage_T, config.epsilon, config.high, batch.mean_per_sequence)
        if batch.ref_logp_T is not None:
            in_loss = config.kl_in == "loss"
            kl_T = kl_loss(batch, config.kl_estimator, ratio_T if in_loss and config.kl_estimator != "k2" else None)
            metrics["kl"] = Metric(kl_T)
            if in_loss:
                terms.append(average_loss(batch, kl_T, config.averaging, max_completion_length, config.beta))
        return LossOutput(terms, metrics | token_metrics(batch))

    def state_dict(self) -> dict[str, Any]:
        """The moving baseline."""
        return {"moving": self.moving}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the moving baseline."""
        self.moving = state["moving"]
