"""Parts of algorithms that learn from rewards: advantages, importance ratios, policy losses, KL, best of n.

The base class is ``align.Online``. Advantages are numpy arrays in float64: [G] the completions of one prompt, [N] all
completions of a phase, [T] the tokens of one. NaN marks a completion that no reward scored. Policy losses are functions
of an ``align.Batch`` or of tensors, [T] scored tokens, [B] sequences. Importing this loads PyTorch.
"""

from align.core.algorithm.contract import Group, sequence_of
from align.core.algorithm.kl import KL
from align.core.algorithm.pass_at_k import best_of_k, kl_bound, pass_at_k, powers_of_two
from align.core.algorithm.policy_gradient import (
    RATIOS,
    Averaging,
    Level,
    Numbers,
    adapt_beta,
    average_loss,
    broadcast_to_tokens,
    center,
    clip_metrics,
    clipped,
    concatenate,
    divide_by_std,
    gae,
    importance_weighted,
    kl_loss,
    leave_one_out,
    log_ratio,
    loss_mask,
    nan_to_zero,
    nanmean,
    product_ratio,
    reward_to_go,
    rewards,
    sampled_kl,
    token_ratio,
    token_rewards,
    whiten,
)

__all__ = [
    "Averaging",
    "Group",
    "KL",
    "Level",
    "Numbers",
    "RATIOS",
    "adapt_beta",
    "average_loss",
    "best_of_k",
    "broadcast_to_tokens",
    "center",
    "clip_metrics",
    "clipped",
    "concatenate",
    "divide_by_std",
    "gae",
    "importance_weighted",
    "kl_bound",
    "kl_loss",
    "leave_one_out",
    "log_ratio",
    "loss_mask",
    "nan_to_zero",
    "nanmean",
    "pass_at_k",
    "powers_of_two",
    "product_ratio",
    "reward_to_go",
    "rewards",
    "sampled_kl",
    "sequence_of",
    "token_ratio",
    "token_rewards",
    "whiten",
]
