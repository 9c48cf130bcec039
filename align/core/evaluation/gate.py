"""The verdicts of a gate: is a candidate as good as its baseline on every domain that counts?

Pure functions on arrays: scores come in paired by row, frozen dataclasses of plain numbers go out. Two questions are
kept apart, each with the error it may make:

- non-inferiority: a unit passes where the one-sided 1 - alpha bound of its difference lies above -margin. The gate
  passes where every gating unit does, so that no correction is due: a candidate worse by the margin anywhere passes
  with a chance of at most alpha (intersection-union test; Berger 1982).
- flags: "regressed" and "improved" are said of many units at once, so their p values are adjusted over the whole gate.
  Over all benchmarks and domains an unchanged model is called regressed with a chance of at most alpha.

Differences are turned so that positive is better, whatever the direction of the score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, betaincinv, ndtri, stdtr, stdtrit

from align.core.evaluation.power import pass_probability
from align.core.evaluation.statistics import (
    Floats,
    Labels,
    Metric,
    benjamini_hochberg,
    cluster_sums,
    flipped_p_value,
    holm,
    mcnemar,
    paired,
    paired_bootstrap,
    rate_upper_bound,
    ratio,
    standard_error,
    tango,
)

Verdict = Literal["improved", "pass", "pass (lower)", "inconclusive", "regressed"]
Role = Literal["gating", "watch", "safety"]
Method = Literal["t", "tango", "bounded", "bootstrap", "combined"]
Outcome = Literal["pass", "regressed", "refused", "inconclusive"]

FEW = 10
"""Fewer clusters that differ hardly show how much could: Student's interval is too narrow."""


# What goes in


@dataclass(frozen=True)
class Benchmark:
    """The scores of one benchmark on both sides, row for row, and what is demanded of them."""

    name: str
    baseline: ArrayLike
    """Scores [n], finite; of several samples of a prompt their mean. With a metric its rows, [n] or [n, ...]."""
    candidate: ArrayLike
    """The same of the candidate, for the same rows in the same order."""
    margin: float | None = None
    """Loss to put up with, above 0, in units of the score. None, on the watch list: any shown loss is flagged."""
    clusters: Labels | None = None
    """Labels [n] of rows that depend on each other, as turns of one dialogue; None: all rows are independent."""
    higher_is_better: bool = True
    role: Role = "watch"
    """gating: must be shown to be no worse. safety: so too, its flags by Holm. watch: flagged, never blocks."""
    span: float = 1.0
    """Width of the score's scale: 1 for shares, 9 for grades of 1 to 10. A domain's differences are divided by it."""
    metric: Metric | None = None
    """A metric of all rows that is no mean of them; its difference is bootstrapped."""


@dataclass(frozen=True)
class Domain:
    """Several benchmarks as one unit: the weighted mean of their differences, each divided by its span."""

    name: str
    weights: Mapping[str, float]
    """Weight above 0 of each benchmark by name; they are divided by their sum. Benchmarks must share no rows."""
    margin: float
    """Loss to put up with, above 0, as a share of the scale: 0.02 is 2 points of 100."""
    role: Literal["gating", "watch"] = "gating"


@dataclass(frozen=True)
class Rules:
    """Error rates and demands of a gate."""

    alpha: float = 0.05
    """One-sided level of non-inferiority, and the chance that an unchanged model is called regressed anywhere."""
    power: float = 0.8
    """Chance to pass, for an unchanged model, that the rows needed are computed for."""
    least_power: float = 0.6
    """Below this chance a margin is refused. Lower than ``power``, since the standard error is measured too: rows
    planned for 80 % measure between 65 % and 90 %."""
    minimum_loss: float = 0.5
    """Share of the margin that the difference must lose to be called regressed: a real but small loss is let by."""
    arbitrary_dependence: bool = False
    """Adjust by Benjamini-Yekutieli, for benchmarks whose scores move against each other."""
    allow_underpowered: bool = False
    bootstrap: int = 10_000
    seed: int = 0
    """Draws of a bootstrapped metric, and their seed."""


# What comes out


@dataclass(frozen=True)
class Comparison:
    """A difference between two sides, positive where the candidate is better."""

    difference: float
    standard_error: float
    low: float
    high: float
    """Ends of the two-sided 1 - 2 alpha interval, each a one-sided 1 - alpha bound."""
    p_lower: float
    """One-sided p value of a candidate that is worse."""
    p_higher: float
    """One-sided p value of a candidate that is better."""
    rows: int
    clusters: int
    degrees: float
    """Degrees of freedom of Student's t."""
    method: Method
    changed: int
    """Clusters whose sum differs between the sides."""
    gained: int | None = None
    lost: int | None = None
    """Rows on which the candidate is better, and worse; None where rows have no scores of their own."""
    mid_p: float | None = None
    """McNemar's two-sided mid-p value, for independent 0/1 scores."""
    contributions: tuple[float, ...] = ()
    """Parts of the difference by cluster, where fewer than `FEW` differ: what a domain's exact p value is made of."""


@dataclass(frozen=True)
class Support:
    """Margin that the rows support."""

    smallest_margin: float
    """Least margin that an unchanged model passes with the power asked for."""
    pass_probability: float
    """Chance that an unchanged model passes the declared margin."""
    rows_needed: int
    """Rows for the power asked for, if further ones vary as these; a domain's benchmarks growing in proportion."""
    supported: bool


@dataclass(frozen=True)
class Judgement:
    """The verdict on one benchmark or domain and what it rests on."""

    name: str
    role: Role
    margin: float | None
    baseline: float | None
    candidate: float | None
    """Mean score, or metric, of each side as it was scored; None for a domain."""
    comparison: Comparison
    adjusted_lower: float
    """``p_lower`` adjusted over its family: Holm over safety benchmarks, Benjamini-Hochberg over all other units."""
    adjusted_higher: float
    """``p_higher`` adjusted over all units by Benjamini-Hochberg."""
    verdict: Verdict
    support: Support | None
    """None without a margin."""


@dataclass(frozen=True)
class Check:
    """A measured number held against limits: pass within them, failed outside, as far as the interval shows."""

    name: str
    value: float
    low: float
    high: float
    least: float | None
    """None: there is no lower limit."""
    most: float
    verdict: Literal["pass", "inconclusive", "failed"]


@dataclass(frozen=True)
class GateResult:
    """The verdicts on all units, and the gate's own."""

    outcome: Outcome
    """regressed: a gating or safety unit is, or a check failed; else refused: such a unit cannot tell, and its margin
    is not supported; else inconclusive: such a unit or a check cannot tell; else pass.
    The watch list does not enter."""
    blocking: tuple[str, ...]
    """Names of the units and checks that led to the outcome; none for pass."""
    benchmarks: tuple[Judgement, ...]
    domains: tuple[Judgement, ...]
    checks: tuple[Check, ...]
    flag_level: float
    """Level at which a unit is called regressed within each family: alpha, or half of it where both have members."""


# Differences


def compare(benchmark: Benchmark, rules: Rules | None = None) -> Comparison:
    """Return a benchmark's paired difference with its 1 - 2 alpha interval and one-sided p values.

    The interval is Tango's for independent 0/1 scores: Student's lets a loss of the margin pass in 6 % to 9 % of gates
    instead of 5 % where few rows differ (benchmarks/gate.py). Their p values are McNemar's exact ones, one-sided.
    For other scores both are Student's t over clusters. Where fewer than `FEW` clusters differ their spread is hardly
    measured, and 0 where none does; then the p values count all flips of their signs, and the interval bounds what the
    rows could hide: with a chance of at most alpha the mean lies below

        -span * (largest / mean cluster) * (Clopper-Pearson upper bound of the share of clusters that lost)

    and likewise above. Raises ValueError for a score that is not finite, sides or labels of two lengths, differences
    beyond the span, and fewer than two clusters.
    """
    rules = rules or Rules()
    if benchmark.metric is not None:
        return _bootstrapped(benchmark, benchmark.metric, rules)
    try:
        return _compared(benchmark, rules.alpha)
    except ValueError as error:
        raise ValueError(f"{benchmark.name}: {error}") from None


def _compared(benchmark: Benchmark, alpha: float) -> Comparison:
    d = paired(benchmark.baseline, benchmark.candidate)
    if not benchmark.higher_is_better:
        d = -d
    if not 0 < benchmark.span < math.inf or float(np.abs(d).max()) > benchmark.span * (1 + 1e-12):
        raise ValueError(f"differences of up to {float(np.abs(d).max()):g} on a scale {benchmark.span:g} wide")
    rows, difference = len(d), float(d.mean())
    sums = cluster_sums(d, benchmark.clusters)
    # What cancels on paper leaves a last bit, which is no change.
    sums = np.where(np.abs(sums) < 1e-12 * benchmark.span, 0.0, sums)
    count = len(sums)
    if count < 2:
        raise ValueError("a single cluster has no spread: its difference has no standard error")
    sizes = cluster_sums(np.ones(rows), benchmark.clusters)
    error = standard_error(sums - difference * sizes, rows)
    changed, gained, lost = (int(np.count_nonzero(side)) for side in (sums, d > 0, d < 0))
    independent_shares = count == rows and _binary(benchmark.baseline) and _binary(benchmark.candidate)
    few = changed < FEW

    method: Method
    if independent_shares:
        method, (low, high) = "tango", tango(gained, lost, rows, 1 - 2 * alpha)
        p_lower, p_higher = (float(bdtr(side, changed, 0.5)) for side in (gained, lost))
    elif few:
        method, (low, high) = "bounded", _bounded(sums, sizes, benchmark.span, alpha)
        p_lower, p_higher = flipped_p_value(sums, "less"), flipped_p_value(sums, "greater")
    else:
        half = float(stdtrit(count - 1, 1 - alpha)) * error
        method, low, high = "t", difference - half, difference + half
        p_lower, p_higher = _student_p_values(difference, error, count - 1)
    return Comparison(
        difference=difference,
        standard_error=error,
        low=low,
        high=high,
        p_lower=p_lower,
        p_higher=p_higher,
        rows=rows,
        clusters=count,
        degrees=count - 1,
        method=method,
        changed=changed,
        gained=gained,
        lost=lost,
        mid_p=mcnemar(gained, lost).mid_p if independent_shares else None,
        contributions=tuple((sums[sums != 0] / rows).tolist()) if few else (),
    )


def _bounded(sums: Floats, sizes: Floats, span: float, alpha: float) -> tuple[float, float]:
    scale = span * float(sizes.max() / sizes.mean())
    lost, gained = (
        rate_upper_bound(int(np.count_nonzero(side)), len(sums), 1 - alpha) for side in (sums < 0, sums > 0)
    )
    return -scale * lost, scale * gained


def _bootstrapped(benchmark: Benchmark, metric: Metric, rules: Rules) -> Comparison:
    drawn = paired_bootstrap(
        metric,
        benchmark.baseline,
        benchmark.candidate,
        benchmark.clusters,
        repeats=rules.bootstrap,
        seed=rules.seed,
        level=1 - 2 * rules.alpha,
    )
    better, worse = drawn.p_higher, drawn.p_lower
    value, low, high = drawn.value, drawn.low, drawn.high
    if not benchmark.higher_is_better:
        value, low, high, better, worse = -value, -high, -low, worse, better
    differs = np.asarray(benchmark.baseline) != np.asarray(benchmark.candidate)
    rows_differ = differs.reshape(drawn.rows, -1).any(axis=1).astype(float)
    changed = int(np.count_nonzero(cluster_sums(rows_differ, benchmark.clusters)))
    return Comparison(
        difference=value,
        standard_error=drawn.standard_error,
        low=low,
        high=high,
        p_lower=worse,
        p_higher=better,
        rows=drawn.rows,
        clusters=drawn.clusters,
        degrees=drawn.clusters - 1,
        method="bootstrap",
        changed=changed,
    )


def combine(parts: Sequence[Comparison], weights: Sequence[float], alpha: float = 0.05) -> Comparison:
    """Return the weighted mean of differences of benchmarks that share no rows; weights are taken as they are.

        d = sum w_j d_j,  SE^2 = sum w_j^2 SE_j^2,  degrees of freedom of Welch and Satterthwaite

    Where a part's interval is not Student's, the combined one recovers the variance from the parts' own limits l, u
    (MOVER; Zou, Donner 2008): low = d - sqrt(sum w_j^2 (d_j - l_j)^2). Where fewer than `FEW` clusters differ in all
    parts together, the p values count all flips of their signs.
    """
    w = np.asarray(weights, float)
    d, low, high, error, degrees = np.array(
        [(part.difference, part.low, part.high, part.standard_error, part.degrees) for part in parts]
    ).T
    difference, squares = float(w @ d), (w * error) ** 2
    total, changed = float(squares.sum()), sum(part.changed for part in parts)
    freedom = total**2 / float((squares**2 / degrees).sum()) if total > 0 else float(degrees.sum())
    if all(part.method == "t" for part in parts):
        below = above = float(stdtrit(freedom, 1 - alpha)) * math.sqrt(total)
    else:
        below = math.sqrt(float(((w * (d - low)) ** 2).sum()))
        above = math.sqrt(float(((w * (high - d)) ** 2).sum()))
    if changed < FEW and all(part.method != "bootstrap" for part in parts):
        moved = np.array([weight * each for part, weight in zip(parts, w, strict=True) for each in part.contributions])
        p_lower, p_higher = flipped_p_value(moved, "less"), flipped_p_value(moved, "greater")
    else:
        p_lower, p_higher = _student_p_values(difference, math.sqrt(total), freedom)
    return Comparison(
        difference=difference,
        standard_error=math.sqrt(total),
        low=difference - below,
        high=difference + above,
        p_lower=p_lower,
        p_higher=p_higher,
        rows=sum(part.rows for part in parts),
        clusters=sum(part.clusters for part in parts),
        degrees=freedom,
        method="combined",
        changed=changed,
    )


def _student_p_values(difference: float, error: float, degrees: float) -> tuple[float, float]:
    if error == 0:
        return float(difference >= 0), float(difference <= 0)
    t = difference / error
    return float(stdtr(degrees, t)), float(stdtr(degrees, -t))


def _binary(scores: ArrayLike) -> bool:
    a = np.asarray(scores)
    return bool(((a == 0) | (a == 1)).all())


# Verdicts


def support(comparison: Comparison, margin: float, rules: Rules | None = None) -> Support:
    """Return what margin the rows support, from the distance between the difference and its lower bound.

    For Student's interval this is t SE, and the smallest margin (z_(1-alpha) + z_power) SE but for t in place of z.
    """
    rules = rules or Rules()
    z = float(ndtri(1 - rules.alpha))
    error = (comparison.difference - comparison.low) / z
    smallest = (z + float(ndtri(rules.power))) * error
    chance = pass_probability(margin, error, 0.0, rules.alpha)
    rows_needed = math.ceil(comparison.rows * (smallest / margin) ** 2)
    return Support(smallest, chance, rows_needed, chance >= rules.least_power)


def verdict(
    comparison: Comparison,
    margin: float | None,
    shown_lower: bool,
    shown_higher: bool,
    minimum_loss: float = 0.5,
) -> Verdict:
    """Return the verdict on one unit; shown_lower and shown_higher say whether its adjusted p values are small enough.

    - improved: shown to be better.
    - pass: the lower bound is above -margin; "pass (lower)" where it is shown to be worse all the same: the loss is
      real, and smaller than the margin that was declared for it.
    - regressed: shown to be worse, with the upper bound below 0, and by ``minimum_loss`` of the margin at least.
    - inconclusive: neither can be said of these rows.
    """
    shown_lower = shown_lower and comparison.high < 0
    if shown_higher and comparison.low > 0:
        return "improved"
    if margin is None:
        return "regressed" if shown_lower else "inconclusive"
    if comparison.low > -margin:
        return "pass (lower)" if shown_lower else "pass"
    lost_enough = comparison.difference <= -margin * minimum_loss or comparison.high < -margin
    return "regressed" if shown_lower and lost_enough else "inconclusive"


def gate(
    benchmarks: Sequence[Benchmark],
    domains: Sequence[Domain] = (),
    checks: Sequence[Check] = (),
    rules: Rules | None = None,
) -> GateResult:
    """Return the verdicts on all benchmarks and domains, and the gate's outcome.

    "Regressed" is said in two families, each at half of alpha where both have members: the safety benchmarks by Holm,
    all other benchmarks and the domains together by Benjamini-Hochberg (one-sided p values of a domain and of its
    benchmarks rise together, as it demands). So an unchanged model is called regressed anywhere with a chance of at
    most alpha. "Improved" is said by Benjamini-Hochberg over all units, at alpha.

    Raises ValueError where nothing gates, for two units of one name, a weight of no benchmark, a weight or margin that
    is not above 0, a gating or safety benchmark without a margin, and what `compare` raises.
    """
    rules = rules or Rules()
    _check_units(benchmarks, domains)
    compared = {each.name: compare(each, rules) for each in benchmarks}
    spans = {each.name: each.span for each in benchmarks}
    units: list[Benchmark | Domain] = [*benchmarks, *domains]
    comparisons = list(compared.values())
    for domain in domains:
        scale = sum(domain.weights.values())
        parts = [compared[name] for name in domain.weights]
        weights = [weight / scale / spans[name] for name, weight in domain.weights.items()]
        comparisons.append(combine(parts, weights, rules.alpha))

    safety = np.array([unit.role == "safety" for unit in units])
    lower, higher = (np.array(p) for p in zip(*((each.p_lower, each.p_higher) for each in comparisons), strict=True))
    adjusted_lower = np.empty(len(units))
    adjusted_lower[safety] = holm(lower[safety])
    adjusted_lower[~safety] = benjamini_hochberg(lower[~safety], rules.arbitrary_dependence)
    adjusted_higher = benjamini_hochberg(higher, rules.arbitrary_dependence)
    flag_level = rules.alpha / 2 if safety.any() and not safety.all() else rules.alpha

    judgements = [
        _judge(unit, comparison, float(below), float(above), flag_level, rules)
        for unit, comparison, below, above in zip(units, comparisons, adjusted_lower, adjusted_higher, strict=True)
    ]
    outcome, blocking = _outcome(judgements, checks, rules.allow_underpowered)
    count = len(benchmarks)
    return GateResult(
        outcome, blocking, tuple(judgements[:count]), tuple(judgements[count:]), tuple(checks), flag_level
    )


def _judge(
    unit: Benchmark | Domain,
    comparison: Comparison,
    adjusted_lower: float,
    adjusted_higher: float,
    flag_level: float,
    rules: Rules,
) -> Judgement:
    sides: tuple[float | None, float | None] = (None, None)
    if isinstance(unit, Benchmark):
        metric = unit.metric or np.mean
        sides = float(metric(np.asarray(unit.baseline))), float(metric(np.asarray(unit.candidate)))
    shown_lower, shown_higher = adjusted_lower <= flag_level, adjusted_higher <= rules.alpha
    return Judgement(
        name=unit.name,
        role=unit.role,
        margin=unit.margin,
        baseline=sides[0],
        candidate=sides[1],
        comparison=comparison,
        adjusted_lower=adjusted_lower,
        adjusted_higher=adjusted_higher,
        verdict=verdict(comparison, unit.margin, shown_lower, shown_higher, rules.minimum_loss),
        support=None if unit.margin is None else support(comparison, unit.margin, rules),
    )


def _outcome(
    judgements: Sequence[Judgement], checks: Sequence[Check], allow_underpowered: bool
) -> tuple[Outcome, tuple[str, ...]]:
    demanded = [each for each in judgements if each.role != "watch"]
    regressed = [each.name for each in demanded if each.verdict == "regressed"]
    regressed += [each.name for each in checks if each.verdict == "failed"]
    if regressed:
        return "regressed", tuple(regressed)
    # A margin that these rows do not support is no matter where they have shown what was asked all the same.
    refused = [
        each.name
        for each in demanded
        if each.verdict == "inconclusive" and each.support is not None and not each.support.supported
    ]
    if refused and not allow_underpowered:
        return "refused", tuple(refused)
    inconclusive = [each.name for each in demanded if each.verdict == "inconclusive"]
    inconclusive += [each.name for each in checks if each.verdict == "inconclusive"]
    return ("inconclusive", tuple(inconclusive)) if inconclusive else ("pass", ())


def _check_units(benchmarks: Sequence[Benchmark], domains: Sequence[Domain]) -> None:
    units: list[Benchmark | Domain] = [*benchmarks, *domains]
    names = [unit.name for unit in units]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two units are named {', '.join(sorted(twice))}")
    if all(unit.role == "watch" for unit in units):
        raise ValueError("nothing gates: no domain or benchmark has the role gating or safety")
    for unit in units:
        if unit.margin is None and unit.role != "watch":
            raise ValueError(f"{unit.name}: {unit.role} needs a margin")
        if unit.margin is not None and not 0 < unit.margin < math.inf:
            raise ValueError(f"{unit.name}: a margin of {unit.margin} is not above 0")
    known = {each.name for each in benchmarks}
    for domain in domains:
        missing = sorted(set(domain.weights) - known)
        if missing or not domain.weights:
            raise ValueError(f"{domain.name}: no benchmark is named {', '.join(missing) or 'in its weights'}")
        if not all(0 < weight < math.inf for weight in domain.weights.values()):
            raise ValueError(f"{domain.name}: a weight is not above 0")


# Checks next to the scores


def rate_check(
    name: str,
    baseline: ArrayLike,
    candidate: ArrayLike,
    clusters: Labels | None = None,
    most: float = 0.01,
    alpha: float = 0.05,
) -> Check:
    """Hold the increase of a rate against a limit: outputs that are invalid, truncated, or refuse a benign prompt.

    baseline, candidate: flags [n] of the same rows, 0 or 1. The limits are those of `compare`: about 270 rows without
    any flag show an increase below 1 point, so pool the rows of all benchmarks.
    """
    difference = compare(Benchmark(name, baseline, candidate, clusters=clusters), Rules(alpha=alpha))
    return _held(name, difference.difference, difference.low, difference.high, None, most)


def length_check(
    name: str,
    baseline: ArrayLike,
    candidate: ArrayLike,
    clusters: Labels | None = None,
    least: float = 0.8,
    most: float = 1.25,
) -> Check:
    """Hold the ratio of mean output lengths, candidate / baseline, against limits; judges reward length.

    baseline, candidate: lengths [n] of the outputs on the same rows, in tokens. The interval is `ratio`'s, 95 %.
    """
    a, b = (cluster_sums(np.asarray(side, float), clusters) for side in (baseline, candidate))
    measured = ratio(b.tolist(), a.tolist())
    return _held(name, measured.value, measured.low, measured.high, least, most)


def ceiling_check(name: str, failures: int, total: int, most: float, alpha: float = 0.05) -> Check:
    """Hold a rate of the candidate alone against a ceiling, with exact one-sided bounds (Clopper-Pearson).

    For absolute floors of safety, where 0 failures in n show a rate below 3 / n, and for a judge's disagreement with
    its calibration set.
    """
    high = rate_upper_bound(failures, total, 1 - alpha)
    low = float(betaincinv(failures, total - failures + 1, alpha)) if failures else 0.0
    return _held(name, failures / total, low, high, None, most)


def _held(name: str, value: float, low: float, high: float, least: float | None, most: float) -> Check:
    bottom = -math.inf if least is None else least
    if bottom < low and high < most:
        return Check(name, value, low, high, least, most, "pass")
    outside = high < bottom or low > most
    return Check(name, value, low, high, least, most, "failed" if outside else "inconclusive")
