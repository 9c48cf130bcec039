"""Equations that online algorithms share: ratios and their losses, and advantages. Estimators of the KL are in ``kl``.

Losses are functions of a Batch or of plain tensors of [T] scored tokens, [B] sequences; they average over nothing but a
sequence's own tokens. Advantages are computed once in a phase, with numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.core.algorithm.contract import Advantages, Experience, Group, LossTerm, Metric
from align.core.algorithm.kl import KL, estimate
from align.core.data.batch import Batch
from align.core.generation.generator_base import Floats

Averaging = Literal["token", "sequence", "constant"]
"""Ways to average a loss: see ``average_loss``."""
Level = Literal["token", "sequence"]
"""The unit of an importance ratio: each token, or a whole completion."""

LARGEST = 20.0
"""Largest |log ρ|, so that no ratio overflows and turns an advantage of 0 into NaN (as veRL)."""


# --- ratios --------------------------------------------------------------------------------------------------------


def log_ratio(batch: Batch) -> Tensor:
    """Return log π − log π_old of each token: [T]. A phase of a single step measures no π_old: it is π."""
    return batch.logp_T - batch.token_data.get("old_logp", batch.logp_T.detach())


def token_ratio(batch: Batch) -> Tensor:
    """ρ_t = π(y_t) / π_old(y_t): [T]. PPO, 1707.06347 Section 3."""
    return log_ratio(batch).clamp(max=LARGEST).exp()


def mean_ratio(batch: Batch) -> Tensor:
    """(π(y) / π_old(y))^(1/|y|), the same for all of a sequence's tokens: [T]. GSPO, 2507.18071 Eq 7."""
    return batch.expand_to_tokens(batch.mean_per_sequence(log_ratio(batch)).clamp(max=LARGEST).exp())


def product_ratio(batch: Batch) -> Tensor:
    """ρ = π(y) / π_old(y) of whole answers, not normalised by length: [B]. RLOO, 2402.14740."""
    return batch.sum_per_sequence(log_ratio(batch)).clamp(max=LARGEST).exp()


RATIOS: Mapping[Level, Callable[[Batch], Tensor]] = {"token": token_ratio, "sequence": mean_ratio}
"""The function that computes the ratio of each level, [T]."""


# --- objectives ----------------------------------------------------------------------------------------------------


def clipped(
    ratio: Tensor, advantage: Tensor, epsilon: float, epsilon_high: float, delta: float | None = None
) -> Tensor:
    """−min(ρA, clip(ρ, 1−ε_low, 1+ε_high) A); where A < 0 at most −cA.

    PPO, 1707.06347 Eq 7; two epsilons: DAPO, 2503.14476 Section 3.1; c: dual clip, 1912.09729. With c > 1 + ε_high the
    latter is also the two-sided clip of INTELLECT-2 (2505.07291), which caps ρ at δ = c before the minimum.
    """
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantage)
    if delta is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -delta * advantage), loss)


def importance_weighted(batch: Batch, policy_T: Tensor) -> Tensor:
    """Return the policy's loss times the correction for the generator's own probabilities, where there is one: [T]."""
    return policy_T * batch.token_data["weight"] if "weight" in batch.token_data else policy_T


# --- KL loss -----------------------------------------------------------------------------------------------------


def kl_loss(batch: Batch, kind: KL, ratio_T: Tensor | None = None) -> Tensor:
    """Return the KL estimate k_t of each token, with gradient; times ρ_t where a ratio is given: [T].

    Tokens are drawn from π_old, and from a π that the gradient does not see: alone, k1's gradient is 0 in expectation,
    k2's is the KL's and k3's the forward KL's. ρ k1 and ρ k3 have the KL's own (DeepSeek-V3.2, 2512.02556).
    """
    assert batch.ref_logp_T is not None, "the engine gives reference log-probabilities to uses_reference"
    k_T = estimate(batch.logp_T - batch.ref_logp_T, kind)
    return k_T if ratio_T is None else k_T * ratio_T


# --- averages and metrics ------------------------------------------------------------------------------------------


def average_loss(
    batch: Batch, x_T: Tensor, how: Averaging, max_completion_length: int, weight: float = 1.0
) -> LossTerm:
    """Return a loss term: the mean over tokens, over sequences of their mean, or of their sum / max_completion_length.

    ``token``: DAPO, 2503.14476 Section 3.3. ``sequence``: GRPO, 2402.03300 Eq 3. ``constant``: Dr. GRPO, 2503.20783,
    in which no token's weight depends on its answer's length.
    """
    if how == "token":
        return LossTerm(x_T, "token", weight)
    if how == "sequence":
        return LossTerm(batch.mean_per_sequence(x_T), "sequence", weight)
    return LossTerm(batch.sum_per_sequence(x_T), "sequence", weight / max_completion_length)


@torch.no_grad()
def clip_metrics(
    ratio: Tensor, advantage: Tensor, epsilon: float, epsilon_high: float, per_sequence: Callable[[Tensor], Tensor]
) -> dict[str, Metric]:
    """Return TRL's ``clip_ratio/*``: shares of ratios that are clipped, and the extremes of the sequences' shares."""
    low = ((ratio < 1 - epsilon) & (advantage < 0)).to(ratio.dtype)
    high = ((ratio > 1 + epsilon_high) & (advantage > 0)).to(ratio.dtype)
    return {
        "clip_ratio/low_mean": Metric(low),
        "clip_ratio/high_mean": Metric(high),
        "clip_ratio/region_mean": Metric(low + high),
        "clip_ratio/low_min": Metric(per_sequence(low), "min"),
        "clip_ratio/high_max": Metric(per_sequence(high), "max"),
    }


# --- advantages ------------------------------------------------------------------------------------------------------

# From rewards to advantages. Pure functions of numpy arrays, in float64.
#
# [G] the answers to one prompt, [N] all answers of a phase, [T] the tokens of one answer. NaN marks an answer that
# nobody scored: it takes no part in a mean or a deviation, so abstaining is never the same as a reward of 0.

Numbers = NDArray[np.float64]
"""Rewards or advantages in float64, NaN where there is none."""

EPS = 1e-4
"""Added to a standard deviation that divides (TRL's; OpenRLHF has 1e-9, veRL 1e-6)."""


# --- rewards -------------------------------------------------------------------------------------------------------


def sampled_kl(experience: Experience, kind: KL) -> Numbers:
    """Return the KL estimate k_t of each token of a completion, under the policy that the phase began with: [T]."""
    assert experience.logp is not None and experience.ref_logp is not None, "the engine measures what credit needs"
    return estimate(experience.logp.astype(np.float64) - experience.ref_logp, kind)


def rewards(group: Group, beta: float = 0.0, kind: KL = "k1") -> Numbers:
    """R_i − β Σ_t k_t, NaN where nobody scored the answer: [G]. The KL in the reward; RLOO, 2402.14740."""
    scores = np.array([np.nan if e.reward is None else e.reward for e in group], np.float64)
    return scores - [beta * sampled_kl(e, kind).sum() for e in group] if beta else scores


def token_rewards(reward: float, kl_T: Numbers, beta: float) -> Numbers:
    """r_t = −β k_t, plus the completion's reward at the last token: [T]. 1909.08593 Eq 2, token by token."""
    reward_T = -beta * kl_T
    reward_T[-1] += reward
    return reward_T


def adapt_beta(beta: float, kl: float, target: float, answers: int, horizon: float) -> float:
    """β (1 + clip(KL/target − 1, −0.2, 0.2) n / horizon): the next phase's β. 1909.08593 Section 2.2, K_β = n/horizon.

    kl, target: nats an answer. answers: n of this phase. horizon: answers in which β may grow by a fifth.
    """
    return beta * (1 + float(np.clip(kl / target - 1, -0.2, 0.2)) * answers / horizon)


# --- answers -------------------------------------------------------------------------------------------------------


def nanmean(x: Numbers) -> float:
    """Return the mean of the values that are not NaN; NaN where there is none."""
    known = x[~np.isnan(x)]
    return float(known.mean()) if len(known) else float("nan")


def nanstd(x: Numbers) -> float:
    """Return the unbiased standard deviation (n − 1) of the values that are not NaN; 0 for fewer than two."""
    known = x[~np.isnan(x)]
    return float(known.std(ddof=1)) if len(known) > 1 else 0.0


def center(reward: Numbers) -> Numbers:
    """R_i − mean(R). GRPO, 2402.03300 Section 4.1.2.

    Exactly 0 where all are equal.
    """
    known = reward[~np.isnan(reward)]
    # The mean of equal numbers is rounded, and may differ from each of them. Less the first one they are exact zeros.
    shifted = reward - known[0] if len(known) else reward
    return shifted - nanmean(shifted)


def leave_one_out(reward_G: Numbers) -> Numbers:
    """R_i − 1/(n−1) Σ_{j≠i} R_j = n/(n−1) (R_i − mean(R)), n scored answers. RLOO, 2402.14740.

    An answer without scored siblings has nothing to be compared with: 0.
    """
    scored = int((~np.isnan(reward_G)).sum())
    return scored / max(scored - 1, 1) * center(reward_G)


def divide_by_std(advantage: Numbers, by: Numbers) -> Numbers:
    """A_i / (std(R) + 1e-4)."""
    return advantage / (nanstd(by) + EPS)


def concatenate(parts: Sequence[Numbers]) -> Numbers:
    """Return one array of many, or of none."""
    return np.concatenate([np.empty(0), *parts])


# --- tokens --------------------------------------------------------------------------------------------------------


def reward_to_go(reward_T: Numbers, gamma: float = 1.0) -> Numbers:
    """G_t = r_t + γ G_{t+1}: [T]."""
    return gae(reward_T, np.zeros_like(reward_T), gamma, 1.0)[0]


def gae(reward_T: Numbers, value_T: Numbers, gamma: float, lam: float) -> tuple[Numbers, Numbers]:
    """Advantages A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t, and returns A_t + V_t: [T] each.

    Generalised advantage estimation, 1506.02438 Eq 16. The answer's end is the episode's: V beyond it is 0.
    """
    delta_T = reward_T + gamma * np.append(value_T[1:], 0.0) - value_T
    advantage_T, after = np.empty_like(delta_T), 0.0
    for t in reversed(range(len(delta_T))):
        after = advantage_T[t] = delta_T[t] + gamma * lam * after
    return advantage_T, advantage_T + value_T


def whiten(parts: Sequence[Numbers]) -> list[Numbers]:
    """(A − mean) / √(var + 1e-8) over all tokens of all answers, var unbiased; NaN ones apart. As TRL's PPO."""
    together = concatenate(parts)
    centre, spread = nanmean(together), np.sqrt(nanstd(together) ** 2 + 1e-8)
    return [(part - centre) / spread for part in parts]


# --- advantages for the loss ---------------------------------------------------------------------------------------


def nan_to_zero(parts: Sequence[Numbers]) -> list[Floats]:
    """Return values for the loss: float32, and 0 where NaN marks a completion that no reward scored."""
    return [np.nan_to_num(part).astype(np.float32) for part in parts]


def loss_mask(groups: Sequence[Group], mask_truncated_completions: bool = False) -> NDArray[np.bool_]:
    """Return True for each completion that carries loss: it was scored and, if asked for, not truncated: [N]."""
    return np.array(
        [
            e.reward is not None and not (mask_truncated_completions and e.finish == "length")
            for group in groups
            for e in group
        ],
        dtype=bool,
    )


def broadcast_to_tokens(
    groups: Sequence[Group], advantages: Sequence[Numbers], mask_truncated_completions: bool = False
) -> Advantages:
    """Return advantages in which each token has that of its completion. advantages: one [G] for each group."""
    answers = [e for group in groups for e in group]
    spread = [np.full(len(e.tokens), a) for e, a in zip(answers, concatenate(advantages), strict=True)]
    return Advantages({"advantage": nan_to_zero(spread)}, loss_mask(groups, mask_truncated_completions))
