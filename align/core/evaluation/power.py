"""Rows that a comparison needs, and the smallest margin that rows support, before and after the scores are there.

A candidate passes a margin m > 0 where the one-sided 1 - alpha bound of its paired difference lies above -m. Power is
the chance that it does although nothing changed (difference 0).
"""

from __future__ import annotations

import math

from scipy.special import ndtr, ndtri

ALPHA = 0.05
POWER = 0.8


def binary_variance(disagreement: float, difference: float = 0.0) -> float:
    """Return q - d^2, the variance of one row's difference of 0/1 scores of which a share q differs.

    Raises ValueError unless |d| <= q <= 1.
    """
    if not abs(difference) <= disagreement <= 1:
        raise ValueError(f"a disagreement of {disagreement} with a difference of {difference}")
    return disagreement - difference * difference


def sampled_variance(
    between: float, baseline_within: float, candidate_within: float, baseline_samples: int, candidate_samples: int
) -> float:
    """Return omega^2 + sigma_A^2 / K_A + sigma_B^2 / K_B: the variance of a row's difference of means over samples.

    between: omega^2 = Var(x_A) + Var(x_B) - 2 Cov of the rows' true scores, which no number of samples reduces.
    within: mean variance of the samples of one row on each side. (Miller 2411.00640, section 5.)
    """
    if min(between, baseline_within, candidate_within) < 0 or min(baseline_samples, candidate_samples) < 1:
        raise ValueError("variances are 0 or more, samples 1 or more")
    return between + baseline_within / baseline_samples + candidate_within / candidate_samples


def rows_needed(variance: float, margin: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Return n = (z_(1-alpha) + z_power)^2 variance / margin^2, rounded up: rows (clusters) for this power.

    variance: of one row's difference, as `binary_variance`; with clusters, of one cluster's contribution.
    Raises ValueError for a margin that is not positive.
    """
    _check(variance, margin)
    return math.ceil(_distance(alpha, power) ** 2 * variance / margin**2)


def rows_needed_for_shares(disagreement: float, margin: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Return the rows for this power where 0/1 scores are compared by Tango's interval, as the gate does.

        n = (z_(1-alpha) s_0 + z_power s_1)^2 / margin^2,  s_1^2 = disagreement q,  s_0^2 = 2 p - m (1 + m)
        p = (sqrt(B^2 - 8 C) - B) / 4,  B = -q - 2m,  C = q m (1 + m) / 2

    s_0^2 is the variance most likely of these rows if the candidate were worse by the margin. It exceeds a small q
    where the margin is no small part of q; else the rows are `rows_needed`'s. (Liu, Hsueh, Hsieh, Chen 2002.)
    Raises ValueError for a margin that is not positive or a disagreement outside [0, 1].
    """
    if not 0 <= disagreement <= 1:
        raise ValueError(f"a disagreement of {disagreement}")
    _check(disagreement, margin)
    b, c = -disagreement - 2 * margin, disagreement * margin * (1 + margin) / 2
    p = (math.sqrt(b * b - 8 * c) - b) / 4
    null = math.sqrt(2 * p - margin * (1 + margin))
    distance = float(ndtri(1 - alpha)) * null + float(ndtri(power)) * math.sqrt(disagreement)
    return math.ceil((distance / margin) ** 2)


def smallest_margin(variance: float, rows: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return (z_(1-alpha) + z_power) sqrt(variance / rows): the least margin with this power."""
    _check(variance, rows)
    return _distance(alpha, power) * math.sqrt(variance / rows)


def pass_probability(margin: float, standard_error: float, difference: float = 0.0, alpha: float = ALPHA) -> float:
    """Return the chance that a candidate with this true difference passes: Phi((difference + m) / SE - z_(1-alpha))."""
    if standard_error == 0:
        return float(difference > -margin)
    return float(ndtr((difference + margin) / standard_error - ndtri(1 - alpha)))


def _distance(alpha: float, power: float) -> float:
    return float(ndtri(1 - alpha) + ndtri(power))


def _check(variance: float, divisor: float) -> None:
    if variance < 0 or divisor <= 0:
        raise ValueError(f"a variance of {variance} is 0 or more, and {divisor} has to be above 0")
