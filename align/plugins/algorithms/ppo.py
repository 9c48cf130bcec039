"""PPO: a critic estimates the return at each token, and the policy learns from the difference to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from align import Advantages, Batch, CriticSpec, LossOutput, LossTerm, Metric, Online
from align.algorithms import token_metrics
from align.rl import (
    KL,
    Group,
    Numbers,
    adapt_beta,
    clip_metrics,
    clipped,
    concatenate,
    gae,
    importance_weighted,
    log_ratio,
    loss_mask,
    nan_to_zero,
    rewards,
    sampled_kl,
    token_ratio,
    token_rewards,
    whiten,
)

Share = Annotated[float, Field(ge=0, le=1)]


def value_loss(value_T: Tensor, old_T: Tensor, return_T: Tensor, clip: float | None) -> Tensor:
    """½ max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²), per token; null clips nothing.

    Clipping the value is not of the paper (1707.06347 Section 5 has the square alone) but of its authors' code.
    """
    error_T = (value_T - return_T).square()
    if clip is not None:
        near_T = old_T + (value_T - old_T).clamp(-clip, clip)
        error_T = torch.maximum(error_T, (near_T - return_T).square())
    return error_T / 2


class PPO(Online):
    """Learns from rewards with a critic that values every token.

    −min(ρ_t A_t, clip(ρ_t) A_t) for the policy and ½ (V_t − R_t)² for the critic, A_t and R_t by GAE.
    1707.06347 Eq 7, 1506.02438 Eq 16; each token costs β k_t, and the last one brings the answer's reward
    (1909.08593 Eq 2).
    """

    name = "ppo"
    paper = "https://arxiv.org/abs/1707.06347"
    learning_rate = 1e-6
    """OpenRLHF's, veRL's and NeMo-RL's; TRL's (3e-6) was one rate for policy and critic."""
    reads = frozenset({"critic"})

    class Config(Online.Config):
        """Settings of PPO."""

        num_generations: PositiveInt = 1
        """Answers to each prompt (1707.06347 needs no others to compare with)."""
        num_iterations: PositiveInt = 4
        """Passes over each phase's answers (TRL's num_ppo_epochs)."""
        gamma: Share = 1.0
        """γ, discount of what comes later (TRL, and all others)."""
        lam: Share = 0.95
        """λ of GAE, 1506.02438: 1 trusts rewards only, 0 the critic only (TRL and NeMo-RL; OpenRLHF and veRL have
        1)."""
        normalize_advantages: bool = True
        """Standardise the advantages over all tokens of the phase (TRL does so always; its whiten_rewards is
        of the rewards, and has no counterpart)."""
        epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.2
        """The ratio is clipped below 1 − this (1707.06347 Section 6.1)."""
        epsilon_high: PositiveFloat | None = None
        """and above 1 + this; null: as epsilon (1707.06347 Section 6.1)."""
        delta: Annotated[float, Field(gt=1)] | None = None
        """Most that a bad answer's ratio counts for (dual clip, 1912.09729, which has 3; GRPO's in TRL)."""
        cliprange_value: PositiveFloat | None = 0.2
        """Most that a value may move in a phase (TRL); null: no limit."""
        vf_coef: PositiveFloat = 0.1
        """Weight of the critic's loss (TRL); matters where gradients are clipped together."""
        critic: str | None = None
        """The critic's starting weights: a directory, a hub id, ``stage:NAME`` of a reward model; null: the policy's
        own starting weights under a new head (1909.08593 initialises it from the reward model)."""
        critic_learning_rate: PositiveFloat = 1e-5
        """The critic's own peak rate (veRL and NeMo-RL, not of TRL, which had one for both)."""
        critic_warmup: NonNegativeInt = 0
        """Optimizer steps in which only the critic learns (as veRL, none; VC-PPO, 2503.01491, shows what a critic that
        begins untaught costs on long answers)."""
        beta: NonNegativeFloat = 0.05
        """Price of a nat of KL to the reference, in the reward (TRL's kl_coef); 0: no reference."""
        kl_estimator: KL = "k1"
        """The estimator of the KL (http://joschu.net/blog/kl-approx.html, TRL has k1)."""
        kl_target: PositiveFloat | None = None
        """Nats an answer: beta is moved to hold the KL there (1909.08593 Section 2.2; its code had 6); null: fixed."""
        kl_horizon: PositiveFloat = 10_000
        """kl_target only: the more answers, the slower beta moves (TRL's and veRL's horizon)."""
        missing_eos_penalty: NonNegativeFloat = 0.0
        """Taken off the reward of an answer that was cut off at max_completion_length (TRL's)."""

        @property
        def high(self) -> float:
            """Return ``epsilon_high`` with its default filled in."""
            return self.epsilon if self.epsilon_high is None else self.epsilon_high

        @model_validator(mode="after")
        def _read(self) -> PPO.Config:
            given = self.model_fields_set
            if self.beta == 0 and (unread := sorted({"kl_estimator", "kl_target", "kl_horizon"} & given)):
                raise ValueError(f"{' and '.join(unread)} is not read where beta is 0")
            if self.kl_target is None and "kl_horizon" in given:
                raise ValueError("kl_horizon is not read without kl_target")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.beta = config.beta

    @property
    def compares(self) -> bool:
        """No: an answer is compared with what the critic expects."""
        return False

    @property
    def measures_logp(self) -> bool:
        """For the KL in the reward."""
        return self.config.beta > 0

    @property
    def critic(self) -> CriticSpec:
        """The value model."""
        return CriticSpec(self.config.critic, self.config.critic_learning_rate, self.config.critic_warmup)

    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """GAE over each answer's tokens; then the KL controller moves beta for the next phase."""
        config, keep = self.config, loss_mask(groups)
        answers = [e for group in groups for e in group]
        score_N = concatenate([rewards(group) for group in groups])
        score_N -= config.missing_eos_penalty * np.array([e.finish == "length" for e in answers])
        value, kl = [], []
        for experience in answers:
            assert experience.value is not None, "the engine gives values to an algorithm with a critic"
            value.append(experience.value.astype(np.float64))
            if self.uses_reference:
                kl.append(sampled_kl(experience, config.kl_estimator))
            else:
                kl.append(np.zeros(len(experience.tokens)))
        reward = [token_rewards(score, kl_T, self.beta) for score, kl_T in zip(score_N, kl, strict=True)]
        both = [gae(r_T, v_T, config.gamma, config.lam) for r_T, v_T in zip(reward, value, strict=True)]
        advantage = [advantage_T for advantage_T, _ in both]
        if config.normalize_advantages:
            advantage = whiten(advantage)
        token_data = {
            "advantage": nan_to_zero(advantage),
            "return": nan_to_zero([return_T for _, return_T in both]),
            "value": nan_to_zero(value),
        }
        kl_N = np.array([kl_T.sum() for kl_T in kl])
        return Advantages(token_data, keep, self._controlled(score_N[keep], kl_N[keep]))

    def _controlled(self, score_N: Numbers, kl_N: Numbers) -> dict[str, float]:
        """TRL's ``objective/*`` with the beta that made them, nats an answer; then beta is moved."""
        if not len(score_N):
            return {}
        kl, beta, config = float(kl_N.mean()), self.beta, self.config
        if config.kl_target is not None:
            self.beta = adapt_beta(beta, kl, config.kl_target, len(kl_N), config.kl_horizon)
        return {
            "objective/kl": kl,
            "objective/kl_coef": beta,
            "objective/scores": float(score_N.mean()),
            "objective/non_score_reward": -beta * kl,
            "objective/rlhf_reward": float(score_N.mean()) - beta * kl,
        }

    def loss(self, batch: Batch) -> LossOutput:
        """One value per token for the policy and for the critic."""
        config = self.config
        assert batch.value_T is not None, "the engine gives values to an algorithm with a critic"
        token_data, ratio_T = batch.token_data, token_ratio(batch)
        advantage_T, old_T, return_T = token_data["advantage"], token_data["value"], token_data["return"]
        policy_T = clipped(ratio_T, advantage_T, config.epsilon, config.high, config.delta)
        policy_T = importance_weighted(batch, policy_T)
        critic_T = value_loss(batch.value_T, old_T, return_T, config.cliprange_value)
        clips = clip_metrics(ratio_T, advantage_T, config.epsilon, config.high, batch.mean_per_sequence)
        metrics = {
            "loss/policy_avg": Metric(policy_T),
            "loss/value_avg": Metric(critic_T),
            "policy/approxkl_avg": Metric(log_ratio(batch).square() / 2),
            "policy/clipfrac_avg": clips["clip_ratio/region_mean"],
            "val/ratio": Metric(ratio_T),
        }
        if config.cliprange_value is not None:
            beyond_T = (batch.value_T - old_T).abs() > config.cliprange_value
            metrics["val/clipfrac_avg"] = Metric(beyond_T.to(ratio_T.dtype))
        if batch.ref_logp_T is not None:
            metrics["kl"] = Metric(token_data.get("old_logp", batch.logp_T) - batch.ref_logp_T)
        terms = [LossTerm(policy_T, "token"), LossTerm(critic_T, "token", config.vf_coef)]
        return LossOutput(terms, metrics | token_metrics(batch))

    def state_dict(self) -> dict[str, Any]:
        """The KL controller's beta."""
        return {"beta": self.beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self.beta = float(state["beta"])
