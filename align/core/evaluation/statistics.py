"""How sure a measured mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from align.schemas.project import Measurement

# How sure a measured share is.

Z95 = 1.959963984540054
"""Two-sided 95 %: the normal distribution's 0.975 quantile."""


def wilson(hits: int, total: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share p = hits / total (Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1).

        centre = (p + z^2 / 2n) / (1 + z^2 / n)
        half   = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

    Right also near 0 and 1, where the textbook interval has no width. Raises ValueError unless 0 <= hits <= total > 0.
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} of {total}")
    p, shrink = hits / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean(values: Sequence[float]) -> Measurement:
    """The mean of independent values with its 95 % interval, of values that are all 0 or 1 Wilson's.

        half = t s / sqrt(n),  s^2 = sum (x - mean)^2 / (n - 1),  t the 0.975 quantile of Student's with n - 1 degrees

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
    half = _student(len(values)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Measurement(value=centre, low=centre - half, high=centre + half, rows=len(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Measurement:
    """R = sum a / sum b of pairs, with the 95 % interval of the ratio estimator (Cochran 1977, section 6.4).

        half = t s / (sqrt(n) mean(b)),  s^2 = sum (a_i - R b_i)^2 / (n - 1)

    For a mean over bytes where whole documents were drawn: the bytes of one are not independent. Of one document
    nothing is known beyond its own value: the interval reaches from 0 to twice that.
    Raises ValueError where ``below`` does not add up to more than 0.
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
