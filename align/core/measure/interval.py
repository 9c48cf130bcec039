"""How sure a measured mean is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.core.evaluate.statistics import Z95, wilson
from align.schemas.project import Measurement


def mean(values: Sequence[float]) -> Measurement:
    """The mean of independent values with its 95 % interval, of values that are all 0 or 1 Wilson's.

        half = z s / sqrt(n),  s^2 = sum (x - mean)^2 / (n - 1)

    One value has no spread to go by: its interval is all of [0, 1], and itself. Raises ValueError for none.
    """
    if not values:
        raise ValueError("the mean of nothing")
    if set(values) <= {0, 1}:
        low, high = wilson(int(sum(values)), len(values))
        return Measurement(value=float(np.mean(values)), low=low, high=high, rows=len(values))
    centre = float(np.mean(values))
    if len(values) == 1:
        return Measurement(value=centre, low=min(0.0, centre), high=max(1.0, centre), rows=1)
    half = float(Z95 * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Measurement(value=centre, low=centre - half, high=centre + half, rows=len(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Measurement:
    """sum(above) / sum(below) of pairs, with the 95 % interval of the ratio estimator (Cochran 1977, Eq 6.13).

        s^2 = sum (a_i - R b_i)^2 / (n - 1),  half = z s / (sqrt(n) mean(b))

    Right for means over bytes where the pairs are whole documents; of one document nothing is known beyond its own
    value, and the interval reaches from 0 to twice that. Raises ValueError where ``below`` adds up to 0.
    """
    a, b = np.asarray(above, float), np.asarray(below, float)
    if not len(b) or b.sum() <= 0:
        raise ValueError("a ratio to nothing")
    r = float(a.sum() / b.sum())
    if len(b) == 1:
        return Measurement(value=r, low=0.0, high=2 * r, rows=1)
    spread = float(np.sqrt(np.sum((a - r * b) ** 2) / (len(b) - 1)))
    half = float(Z95 * spread / (np.sqrt(len(b)) * b.mean()))
    return Measurement(value=r, low=max(0.0, r - half), high=r + half, rows=len(b))
