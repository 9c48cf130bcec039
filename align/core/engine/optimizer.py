"""AdamW over the networks that learn, each at its own rate, and the rates over the optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from align.schemas.run import Schedule, Stage

Groups = list[dict[str, Any]]


def parameter_groups(networks: Mapping[str, nn.Module], rates: Mapping[str, float], weight_decay: float) -> Groups:
    """Return the trained parameters by network; weight decay is on matrices only, not on norms and biases."""
    groups = []
    for name, network in networks.items():
        trained = [p for p in network.parameters() if p.requires_grad]
        for matrices, decay in ((True, weight_decay), (False, 0.0)):
            chosen = [p for p in trained if (p.ndim >= 2) is matrices]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "lr": rates[name], "network": name})
    return groups


def adamw(groups: Groups, stage: Stage) -> torch.optim.AdamW:
    """Return AdamW (1711.05101) as the run file sets it."""
    settings = stage.optimizer
    return torch.optim.AdamW(
        groups,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=stage.train.precision != "16-mixed",  # fused AdamW unscales by itself, before we can clip
    )


def factor_of_each(
    groups: Sequence[Mapping[str, Any]], factor: Callable[[int], float], warmup_steps: int
) -> list[Callable[[int], float]]:
    """Return the schedule of each group.

    The policy's is 0 for the first ``warmup_steps`` steps, in which only a critic learns.
    """

    def after_warmup(step: int) -> float:
        return factor(step) if step >= warmup_steps else 0.0

    return [after_warmup if group["network"] == "policy" else factor for group in groups]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the global 2-norm over all gradients, sharded ones included, on their device; the same on every rank."""
    parameters = list(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros((), device=parameters[0].device)
    norm = nn.utils.get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def factor(schedule: Schedule, total_steps: int) -> Callable[[int], float]:
    """Return the learning rate of a step, as a factor in [0, 1] of the peak rate.

    It is a linear warm-up from 0, then ``schedule.type`` down to ``schedule.min_lr_rate``. With w warm-up steps of n,
    step s (from 0) has s / w while s < w; then, with p = (s - w) / (n - w),
    linear: 1 - p, cosine: (1 + cos(pi p)) / 2, constant: 1; scaled to end at the floor. As transformers' schedulers.
    """
    warmup = schedule.warmup_steps if schedule.warmup_steps >= 1 else math.ceil(schedule.warmup_steps * total_steps)

    def at(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        shape = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
        return schedule.min_lr_rate + (1 - schedule.min_lr_rate) * shape[schedule.type]

    return at
