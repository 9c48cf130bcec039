"""Learning rate over optimizer steps, as a factor of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from align.schemas.run import Schedule


def factor(schedule: Schedule, total_steps: int) -> Callable[[int], float]:
    """Step -> factor in [0, 1]: linear warm-up from 0, then ``schedule.type`` down to ``schedule.min_lr_rate``.

    With w warm-up steps of n, step s (from 0) has s / w while s < w; then, with p = (s - w) / (n - w),
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
