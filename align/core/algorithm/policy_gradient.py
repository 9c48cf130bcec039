"""Token losses from importance ratios ρ = π / π_old, as functions of a Batch or of plain tensors.

[T] scored tokens, [B] sequences. Nothing is averaged here but over a sequence's own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from align.core.algorithm.base import LossTerm, Metric
from align.core.algorithm.kl import KL, estimate
from align.core.data.batch import Batch

Averaging = Literal["token", "sequence", "constant"]
"""Ways to average a loss: see ``averaged``."""
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


# --- divergence ----------------------------------------------------------------------------------------------------


def kl_loss(batch: Batch, kind: KL, ratio_T: Tensor | None = None) -> Tensor:
    """Return the KL estimate k_t of each token, with gradient; times ρ_t where a ratio is given: [T].

    Tokens are drawn from π_old, and from a π that the gradient does not see: alone, k1's gradient is 0 in expectation,
    k2's is the KL's and k3's the forward KL's. ρ k1 and ρ k3 have the KL's own (DeepSeek-V3.2, 2512.02556).
    """
    assert batch.ref_logp_T is not None, "the engine gives reference log-probabilities to uses_reference"
    k_T = estimate(batch.logp_T - batch.ref_logp_T, kind)
    return k_T if ratio_T is None else k_T * ratio_T


# --- averages and metrics ------------------------------------------------------------------------------------------


def averaged(batch: Batch, x_T: Tensor, how: Averaging, max_completion_length: int, weight: float = 1.0) -> LossTerm:
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
