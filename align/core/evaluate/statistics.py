"""How sure a measured share is."""

from __future__ import annotations

import math

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
