"""Confidence intervals of measured means, shares and ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from align.schemas.project import Measurement

Z95 = 1.959963984540054
"""The 0.975 quantile of the normal distribution, for two-sided 95 % intervals."""


def wilson(hits: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Return the score interval of a share p = hits / total (Wilson 1927; Brown, Cai, DasGupta 2001, section 3.1.1).

        centre = (p + z^2 / 2n) / (1 + z^2 / n)
        half   = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

    Valid near 0 and 1 too, where the textbook interval p +- z sqrt(p (1 - p) / n) has no width.
    Raises ValueError unless 0 <= hits <= total > 0.
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} of {total}")
    p, shrink = hits / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean(values: Sequence[float]) -> Measurement:
    """Return the mean of independent values with its 95 % interval; for values that are all 0 or 1 it is Wilson's.

        half = t s / sqrt(n),  s^2 = sum (x - mean)^2 / (n - 1),  t the 0.975 quantile of Student's with n - 1 degrees

    A single value has no spread, so its interval is [0, 1], widened to hold the value. Raises ValueError for none.
    """
    if not values:
        raise ValueError("the mean of nothing")
    if set(values) <= {0, 1}:
        low, high = wilson(int(sum(values)), len(values))
        return Measurement(value=float(np.mean(values)), low=low, high=high, rows=len(values))
    centre = float(np.mean(values))
    if len(values) == 1:
        return Measurement(value=centre, low=min(0.0, centre), high=max(1.0, centre), rows=1)
    half = _student(len(values)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Measurement(value=centre, low=centre - half, high=centre + half, rows=len(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Measurement:
    """Return R = sum a / sum b of pairs, with the 95 % interval of the ratio estimator (Cochran 1977, section 6.4).

        half = t s / (sqrt(n) mean(b)),  s^2 = sum (a_i - R b_i)^2 / (n - 1)

    For a mean over bytes when whole documents were drawn: the bytes of one document are not independent. A single
    document has no spread, so its interval reaches from 0 to twice its value.
    Raises ValueError unless the sum of ``below`` is above 0.
    """
    a, b = np.asarray(above, float), np.asarray(below, float)
    if not len(b) or b.sum() <= 0:
        raise ValueError("a ratio to nothing")
    r = float(a.sum() / b.sum())
    if len(b) == 1:
        return Measurement(value=r, low=0.0, high=2 * r, rows=1)
    spread = float(np.sqrt(np.sum((a - r * b) ** 2) / (len(b) - 1)))
    half = _student(len(b)) * spread / float(np.sqrt(len(b)) * b.mean())
    return Measurement(value=r, low=max(0.0, r - half), high=r + half, rows=len(b))


def _student(n: int) -> float:
    return float(stdtrit(n - 1, 0.975))
