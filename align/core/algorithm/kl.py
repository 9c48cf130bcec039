"""The estimators of the KL divergence from the reference, for the KL in the reward and the KL in the loss alike."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KL = Literal["k1", "k2", "k3"]
"""Estimators of the KL divergence of one sampled token: see ``estimate``."""

Values = TypeVar("Values", NDArray[np.float64], Tensor)


def estimate(x: Values, kind: KL) -> Values:
    """Return an estimate of KL(π ‖ π_ref) for each sampled token, from x = log π − log π_ref, in nats, of x's shape.

        k1    x                    unbiased, may be below 0
        k2    x² / 2               biased, its gradient is the KL's
        k3    exp(−x) − 1 + x      unbiased, never below 0

    Schulman 2020, http://joschu.net/blog/kl-approx.html. Tensors keep their gradient.
    """
    if kind == "k1":
        return x
    if kind == "k2":
        return x * x / 2
    # expm1 instead of exp(-x) - 1: near x = 0, where training begins, the difference would lose all digits.
    expm1 = torch.expm1(-x) if isinstance(x, Tensor) else np.expm1(-x)
    return expm1 + x
