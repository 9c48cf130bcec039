"""Confidence intervals and tests of measured means, shares, ratios and paired differences.

Pure functions on arrays. Rows that share a cluster label (turns of one dialogue, samples of one prompt, questions on
one text) may depend on each other; clusters are taken as independent. Without labels each row is a cluster of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv, ndtri, stdtrit

from align.schemas.project import Measurement

Floats = NDArray[np.float64]
Labels = Sequence[Hashable] | NDArray[Any]
"""A label for each row, [n]; rows of one label are one cluster."""
Alternative = Literal["two-sided", "less", "greater"]
Metric = Callable[[NDArray[Any]], float]
"""A function of the rows of one side, [n] or [n, ...], to one number."""

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


# One mean, one difference of means


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, with its standard error and interval."""

    value: float
    standard_error: float
    """0 where all clusters agree: see `paired_difference`."""
    low: float
    high: float
    """Ends of the two-sided interval at the level asked for."""
    rows: int
    clusters: int
    """Number of independent clusters; Student's t has one degree of freedom less."""


def clustered_mean(values: ArrayLike, clusters: Labels | None = None, level: float = 0.95) -> Estimate:
    """Return the mean of values [n] with a cluster-robust standard error (Miller 2411.00640, section 2.2).

        SE^2 = C / (C - 1) * 1 / n^2 * sum over clusters of (sum of (s_i - mean) in the cluster)^2

    The interval takes Student's t with C - 1 degrees of freedom. The paper leaves out C / (C - 1), without which few
    clusters give too narrow an interval; without clusters the formula is the textbook's s / sqrt(n).
    Raises ValueError for a value that is not finite, labels of another length, and fewer than two clusters.
    """
    s = _finite(values)
    sums, count = cluster_sums(s - s.mean(), clusters), len(s)
    if len(sums) < 2:
        raise ValueError("a single cluster has no spread: its mean has no standard error")
    error = standard_error(sums, count)
    half = float(stdtrit(len(sums) - 1, (1 + level) / 2)) * error
    centre = float(s.mean())
    return Estimate(centre, error, centre - half, centre + half, count, len(sums))


def paired_difference(
    baseline: ArrayLike, candidate: ArrayLike, clusters: Labels | None = None, level: float = 0.95
) -> Estimate:
    """Return the mean of candidate - baseline over the same rows [n], as `clustered_mean` of the differences.

    Pairing drops the part of the noise that both sides share: SE^2 = SE_a^2 + SE_b^2 - 2 rho SE_a SE_b. With few rows
    that differ the interval is too narrow, and it has no width where none does: for 0/1 scores take `tango`.
    Raises ValueError as `clustered_mean`, and for sides of two lengths.
    """
    return clustered_mean(paired(baseline, candidate), clusters, level)


def paired(baseline: ArrayLike, candidate: ArrayLike) -> Floats:
    """Return candidate - baseline [n]. Raises ValueError for two lengths, no rows or a score that is not finite."""
    a, b = _finite(baseline), _finite(candidate)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} baseline scores and {len(b)} candidate scores: pairs need the same rows")
    return b - a


def cluster_sums(values: Floats, clusters: Labels | None) -> Floats:
    """Return the sum of values [n] in each cluster [C], clusters in the order in which they first appear."""
    if clusters is None:
        return values
    return np.bincount(cluster_index(clusters, len(values)), weights=values).astype(float)


def cluster_index(clusters: Labels, rows: int) -> NDArray[np.int64]:
    """Return each row's cluster number [n], from 0 in the order of first appearance; labels are any hashable values.

    Raises ValueError unless there is a label for each row.
    """
    if len(clusters) != rows:
        raise ValueError(f"{len(clusters)} cluster labels for {rows} rows")
    numbers: dict[Hashable, int] = {}
    labels = clusters.tolist() if isinstance(clusters, np.ndarray) else clusters
    return np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), np.int64, rows)


def standard_error(sums: Floats, rows: int) -> float:
    """Return sqrt(C / (C - 1) * sum of u_c^2) / n from sums u [C] of centred values over the clusters of n rows."""
    count = len(sums)
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / rows


# Paired shares


@dataclass(frozen=True)
class McNemar:
    """P values of equal shares on both sides, from the rows on which the sides disagree."""

    exact: float
    mid_p: float
    """2 P(< min) + P(= min): less conservative than the exact one, which few rows make coarse; 1 for equal counts."""


def mcnemar(gained: int, lost: int) -> McNemar:
    """Return McNemar's two-sided p values of rows right in the candidate alone (gained) or the baseline alone (lost).

        exact = min(1, 2 P(Bin(gained + lost, 1/2) <= min(gained, lost))),  mid_p = exact - P(= min)

    It tests equality alone, so that it serves as a second opinion next to an interval: no margin can be tested with it.
    (McNemar 1947; Fagerland, Lydersen, Laake 2013.) Raises ValueError for a negative count.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"{gained} gained and {lost} lost rows")
    total, least = gained + lost, min(gained, lost)
    below = float(bdtr(least, total, 0.5))
    point = below - (float(bdtr(least - 1, total, 0.5)) if least else 0.0)
    return McNemar(min(1.0, 2 * below), 2 * below - point)


def tango(gained: int, lost: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a difference of paired shares (Tango 1998), (gained - lost) / rows being its centre.

    Its ends are the differences D at which the score statistic

        T(D) = (gained - lost - n D) / sqrt(n (2 q + D (1 - D))),  q = (sqrt(B^2 - 4 A C) - B) / 2A,
        A = 2n,  B = -gained - lost + (2n - gained + lost) D,  C = -lost D (1 - D)

    equals plus and minus z; q is the most likely share of lost rows given D. Unlike Student's interval it has a width
    where the sides never disagree, z^2 / (n + z^2) to both sides. Rows must be independent.
    Raises ValueError unless gained + lost <= rows > 0.
    """
    if min(gained, lost) < 0 or gained + lost > rows or rows == 0:
        raise ValueError(f"{gained} gained and {lost} lost of {rows} rows")
    z = float(ndtri((1 + level) / 2))
    centre = (gained - lost) / rows

    def score(difference: float) -> float:
        b = -gained - lost + (2 * rows - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        q = (math.sqrt(max(0.0, b * b - 8 * rows * c)) - b) / (4 * rows)
        variance = rows * (2 * q + difference * (1 - difference))
        distance = gained - lost - rows * difference
        return distance / math.sqrt(variance) if variance > 1e-300 else math.copysign(math.inf, distance)

    return _crossing(score, z, -1.0, centre), _crossing(score, -z, centre, 1.0)


def _crossing(score: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Return where a falling function passes a level between low and high, by halving to the last bit that counts."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > level else (low, middle)
    return (low + high) / 2


def rate_upper_bound(failures: int, total: int, level: float = 0.95) -> float:
    """Return the exact one-sided upper bound of a rate (Clopper, Pearson 1934).

    Without failures it is 1 - (1 - level)^(1 / n), at 95 % the rule of three: just under 3 / n.
    Raises ValueError unless 0 <= failures <= total > 0.
    """
    if not 0 <= failures <= total or total == 0:
        raise ValueError(f"{failures} of {total}")
    return 1.0 if failures == total else float(betaincinv(failures + 1, total - failures, level))


# Resampling


@dataclass(frozen=True)
class Bootstrap:
    """A difference of metrics and what resampling says of it."""

    value: float
    standard_error: float
    """Standard deviation of the draws."""
    low: float
    high: float
    p_lower: float
    """One-sided p value of a candidate below the baseline, (1 + draws at or above 0) / (draws + 1)."""
    p_higher: float
    rows: int
    clusters: int


def paired_bootstrap(
    metric: Metric,
    baseline: ArrayLike,
    candidate: ArrayLike,
    clusters: Labels | None = None,
    *,
    repeats: int = 10_000,
    seed: int,
    level: float = 0.95,
) -> Bootstrap:
    """Return metric(candidate) - metric(baseline) with its percentile interval under resampled clusters.

    Both sides are arrays of the same rows, [n] or [n, ...]; each draw takes the same clusters, with replacement, on
    both sides and computes the whole metric anew. For metrics that are no means: length-controlled win rate,
    Bradley-Terry, pass^k, maj@k. The same arguments give the same numbers.
    Raises ValueError for sides of two lengths, fewer than two clusters, and a draw whose metric is not finite.
    """
    a, b = np.asarray(baseline), np.asarray(candidate)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} baseline rows and {len(b)} candidate rows: pairs need the same rows")
    index = np.arange(len(a)) if clusters is None else cluster_index(clusters, len(a))
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2:
        raise ValueError("resampling needs two clusters or more")
    draws = np.empty(repeats)
    for draw, rows in enumerate(resampled_rows(index, count, repeats, seed)):
        draws[draw] = metric(b[rows]) - metric(a[rows])
    value = float(metric(b) - metric(a))
    if not np.isfinite(draws).all() or not math.isfinite(value):
        raise ValueError("the metric of a resample is not finite")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    p_lower, p_higher = ((1 + int(np.sum(side))) / (repeats + 1) for side in (draws >= 0, draws <= 0))
    return Bootstrap(value, float(draws.std(ddof=1)), float(low), float(high), p_lower, p_higher, len(a), count)


def resampled_rows(index: NDArray[np.int64], count: int, repeats: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of ``count`` clusters drawn with replacement, ``repeats`` times; index [n] is `cluster_index`."""
    rng = np.random.default_rng(seed)
    if count == len(index):
        for _ in range(repeats):
            yield rng.integers(count, size=count)
        return
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    for _ in range(repeats):
        yield np.concatenate([members[cluster] for cluster in rng.integers(count, size=count)])


EXACT_FLIPS = 12
"""Up to so many clusters that differ all 2^m flips are counted, 4,096 at most; above it flips are drawn."""


def sign_flip_test(
    differences: ArrayLike,
    clusters: Labels | None = None,
    *,
    alternative: Alternative = "two-sided",
    repeats: int = 10_000,
    seed: int = 0,
) -> float:
    """Return the p value of a mean difference of 0 by flipping the signs of cluster sums.

    Valid at any size where a cluster's sides could change places, as of two runs of one model. The p value is exact for
    up to `EXACT_FLIPS` clusters that differ (for 0/1 scores it is McNemar's then), else (1 + flips as far) /
    (repeats + 1). "less" is the alternative of a candidate below the baseline.
    """
    sums = cluster_sums(_finite(differences), clusters)
    return flipped_p_value(sums, alternative, repeats, seed)


def flipped_p_value(sums: Floats, alternative: Alternative, repeats: int = 10_000, seed: int = 0) -> float:
    """Return `sign_flip_test` of cluster sums [C] that were taken already."""
    sums = sums[sums != 0]
    observed, count = float(sums.sum()), len(sums)
    if count <= EXACT_FLIPS:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        flipped = (1 - 2 * bits) @ sums
        extra = 0
    else:
        signs = np.random.default_rng(seed).integers(0, 2, (repeats, count), dtype=np.int8)
        flipped = (1 - 2 * signs) @ sums
        extra = 1
    # Sums that are equal on paper differ in the last bits by the order of addition.
    slack = 1e-9 * float(np.abs(sums).sum())
    match alternative:
        case "less":
            far = flipped <= observed + slack
        case "greater":
            far = flipped >= observed - slack
        case "two-sided":
            far = np.abs(flipped) >= abs(observed) - slack
    return (extra + int(far.sum())) / (extra + len(flipped))


# Many tests at once


def holm(p_values: ArrayLike) -> Floats:
    """Return Holm's adjusted p values [G] (Holm 1979), in the order given.

    Rejecting those at most alpha keeps the chance of any false rejection at most alpha, however they depend.
    Raises ValueError for a value outside [0, 1].
    """
    p = _probabilities(p_values)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def benjamini_hochberg(p_values: ArrayLike, arbitrary_dependence: bool = False) -> Floats:
    """Return adjusted p values [G] (Benjamini, Hochberg 1995; with arbitrary_dependence Benjamini, Yekutieli 2001).

    Rejecting those at most alpha keeps the expected share of false ones among the rejected at most alpha, for tests
    that are independent or rise together. Where every null hypothesis holds this share is the chance of any rejection.
    Raises ValueError for a value outside [0, 1].
    """
    p = _probabilities(p_values)
    order = np.argsort(p)[::-1]
    ranks = np.arange(len(p), 0, -1)
    scale = float(np.sum(1 / np.arange(1, len(p) + 1))) if arbitrary_dependence else 1.0
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(p[order] * len(p) / ranks * scale))
    return adjusted


def _probabilities(p_values: ArrayLike) -> Floats:
    p = np.asarray(p_values, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a p value is not in [0, 1]")
    return p


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"one score a row is needed, this has the shape {array.shape}")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"the score of row {row} is {array[row]}, no number to average")
    return array
