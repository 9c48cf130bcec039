"""Verdicts of the gate: by hand, at the thresholds, by exact enumeration, and laws."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from align.core.evaluation import gate as g
from align.core.evaluation.statistics import clustered_mean, mcnemar, paired_bootstrap, tango

Arrays = tuple[np.ndarray, np.ndarray]


def shares(gained: int, lost: int, rows: int, right: int = 0) -> Arrays:
    """0/1 scores with so many rows gained, lost, and right on both sides."""
    a, b = np.zeros(rows), np.zeros(rows)
    b[:gained] = 1
    a[gained : gained + lost] = 1
    both = slice(gained + lost, gained + lost + right)
    a[both] = b[both] = 1
    return a, b


def benchmark(name: str = "maths", scores: Arrays | None = None, **changes: Any) -> g.Benchmark:
    a, b = scores or shares(50, 50, 1000, 500)
    return replace(g.Benchmark(name, a, b, margin=0.03, role="gating"), **changes)


def compared(difference: float, error: float, rows: int = 1000) -> g.Comparison:
    """A comparison with a normal interval at 90 %."""
    z = stats.norm.ppf(0.95)
    low, high = difference - z * error, difference + z * error
    p = float(stats.norm.cdf(difference / error))
    return g.Comparison(difference, error, low, high, p, 1 - p, rows, rows, rows - 1, "t", rows)


# --- differences ---------------------------------------------------------------------------------------------------


def test_independent_shares() -> None:
    got = g.compare(benchmark(scores=shares(20, 40, 1000, 300)))
    assert (got.difference, got.gained, got.lost, got.changed, got.method) == (-0.02, 20, 40, 60, "tango")
    assert (got.low, got.high) == tango(20, 40, 1000, 0.9)
    assert got.p_lower == pytest.approx(mcnemar(20, 40).exact / 2) and got.mid_p == mcnemar(20, 40).mid_p
    assert got.p_higher == pytest.approx(stats.binom.sf(19, 60, 0.5))


def test_other_scores_and_clusters_are_student() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(60), rng.random(60)
    labels = np.repeat(np.arange(20), 3)
    for clusters in (None, labels):
        got = g.compare(benchmark(scores=(a, b), clusters=clusters))
        want = clustered_mean(b - a, clusters, 0.9)
        assert (got.low, got.high, got.standard_error) == pytest.approx((want.low, want.high, want.standard_error))
        assert got.method == "t" and got.p_lower == pytest.approx(
            stats.t.cdf(want.value / want.standard_error, want.clusters - 1)
        )
        assert got.p_lower + got.p_higher == pytest.approx(1) and got.mid_p is None
    assert g.compare(benchmark(scores=shares(15, 15, 60), clusters=labels)).method == "t"


def test_a_lower_score_that_is_better_turns_the_difference() -> None:
    a, b = np.linspace(0, 1, 30), np.linspace(0, 0.9, 30)
    there, back = g.compare(benchmark(scores=(a, b))), g.compare(benchmark(scores=(a, b), higher_is_better=False))
    assert (there.difference, there.low, there.p_lower) == pytest.approx((-back.difference, -back.high, back.p_higher))
    assert (there.gained, there.lost) == (back.lost, back.gained)


def test_few_changes_bound_what_the_rows_could_hide() -> None:
    """2 of 40 pairs of turns lost half a point: Clopper-Pearson's 0.95 bound of 2 in 40, and 0 in 40 above."""
    a = np.full(80, 0.5)
    b = a.copy()
    b[[0, 10]] = 0.0
    got = g.compare(benchmark(scores=(a, b), clusters=np.repeat(np.arange(40), 2)))
    assert (got.method, got.changed, got.clusters, got.difference) == ("bounded", 2, 40, -0.0125)
    assert got.low == pytest.approx(-stats.beta.ppf(0.95, 3, 38)) and got.high == pytest.approx(1 - 0.05 ** (1 / 40))
    assert (got.p_lower, got.p_higher) == (0.25, 1.0) and got.contributions == (-0.00625, -0.00625)
    wide = g.compare(benchmark(scores=(a, b), clusters=np.repeat(np.arange(40), 2), span=2.0))
    assert wide.low == pytest.approx(2 * got.low)


def test_uneven_clusters_widen_the_bound() -> None:
    """Sizes 1, 1, 1 and 5: the largest is 2.5 times the mean."""
    a = np.full(8, 0.5)
    got = g.compare(benchmark(scores=(a, a), clusters=[0, 1, 2, 3, 3, 3, 3, 3]))
    assert got.high == pytest.approx(2.5 * (1 - 0.05**0.25))


def test_an_unchanged_model_is_not_certain() -> None:
    got = g.compare(benchmark(scores=shares(0, 0, 100, 60)))
    assert got.standard_error == 0 and got.high == pytest.approx(0.0263, abs=1e-4) and got.p_lower == 1.0


def test_sums_that_cancel_are_no_change() -> None:
    a, b = np.array([0.1, 0.2, 0.3] * 10), np.array([0.2, 0.3, 0.1] * 10)
    assert g.compare(benchmark(scores=(a, b), clusters=np.repeat(np.arange(10), 3))).changed == 0


def test_a_metric_is_bootstrapped_on_both_sides_alike() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((200, 2))
    b = a + np.array([0.0, 0.01])
    weighted = lambda rows: float((rows[:, 0] * rows[:, 1]).sum() / rows[:, 0].sum())  # noqa: E731
    case = benchmark(scores=(a, b), metric=weighted)
    got = g.compare(case, g.Rules(bootstrap=200))
    assert got.method == "bootstrap" and got.changed == 200 and got.difference == pytest.approx(0.01)
    assert got == g.compare(case, g.Rules(bootstrap=200)) and got.p_higher == 1 / 201
    turned = g.compare(replace(case, higher_is_better=False), g.Rules(bootstrap=200))
    assert (turned.low, turned.high, turned.p_lower) == pytest.approx((-got.high, -got.low, got.p_higher))


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_bootstrapped_comparison_is_the_bootstrap_s(higher_is_better: bool) -> None:
    """Of clusters, at 90 %; two of 25 clusters of four rows differ."""
    a = np.random.default_rng(0).random((100, 2))
    b = a.copy()
    b[[3, 50], 0] += 0.5
    labels, sign = np.arange(100) // 4, 1 if higher_is_better else -1
    metric = lambda rows: float(np.median(rows[:, 0]) + rows.mean())  # noqa: E731
    case = benchmark(scores=(a, b), metric=metric, clusters=labels, higher_is_better=higher_is_better)
    got = g.compare(case, g.Rules(bootstrap=100, seed=3, alpha=0.1))
    want = paired_bootstrap(metric, a, b, labels, repeats=100, seed=3, level=0.8)
    assert (got.rows, got.clusters, got.degrees, got.changed) == (100, 25, 24, 2)
    assert (got.difference, got.standard_error) == (sign * want.value, want.standard_error)
    ends = [want.low, want.high] if higher_is_better else [-want.high, -want.low]
    assert [got.low, got.high] == ends and got.low != got.high
    sides = [want.p_lower, want.p_higher] if higher_is_better else [want.p_higher, want.p_lower]
    assert [got.p_lower, got.p_higher] == sides


def test_a_loss_that_is_the_same_on_every_row_is_certain() -> None:
    got = g.compare(benchmark(scores=(np.full(32, 0.75), np.full(32, 0.5))))
    assert (got.low, got.difference, got.high, got.p_lower, got.p_higher) == (-0.25, -0.25, -0.25, 0.0, 1.0)
    back = g.compare(benchmark(scores=(np.full(32, 0.5), np.full(32, 0.75))))
    assert (back.p_lower, back.p_higher) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"scores": (np.array([0, np.nan]), np.zeros(2))}, "maths: the score of row 1 is nan"),
        ({"scores": (np.zeros(3), np.zeros(2))}, "maths: 3 baseline scores and 2"),
        ({"scores": (np.zeros(3), np.full(3, 7.0))}, "maths: differences of up to 7 on a scale 1 wide"),
        ({"span": 0.0}, "maths: differences"),
        ({"clusters": ["a"] * 1000}, "maths: a single cluster"),
        ({"clusters": ["a"]}, "maths: 1 cluster labels"),
    ],
)
def test_what_cannot_be_compared_names_the_benchmark(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        g.compare(benchmark(**changes))


@given(st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.sampled_from([0, 0.5, 1])), min_size=4, max_size=40))
def test_the_order_of_rows_does_not_matter(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs, float).T
    labels = np.arange(len(a)) // 2
    order = np.random.default_rng(0).permutation(len(a))
    plain = g.compare(benchmark(scores=(a, b), clusters=labels))
    moved = g.compare(benchmark(scores=(a[order], b[order]), clusters=labels[order]))
    for field in ("low", "high", "p_lower", "p_higher", "changed", "method"):
        left, right = getattr(plain, field), getattr(moved, field)
        assert left == (pytest.approx(right, abs=1e-9) if isinstance(right, float) else right)


# --- domains -------------------------------------------------------------------------------------------------------


def test_a_domain_is_the_weighted_mean_of_independent_differences() -> None:
    """Welch and Satterthwaite: SE² of 0.25·0.04² and 0.75·0.01²; degrees as scipy's for unequal variances."""
    parts = [compared(0.02, 0.04, 50), compared(-0.01, 0.01, 200)]
    got = g.combine(parts, [0.25, 0.75])
    assert got.difference == pytest.approx(-0.0025)
    squares = np.array([0.01, 0.0075]) ** 2
    assert got.standard_error == pytest.approx(math.sqrt(squares.sum()))
    assert got.degrees == pytest.approx(squares.sum() ** 2 / (squares**2 / [49, 199]).sum())
    half = stats.t.ppf(0.95, got.degrees) * got.standard_error
    assert (got.low, got.high) == pytest.approx((got.difference - half, got.difference + half))


def test_a_part_whose_spread_is_not_measured_widens_its_domain() -> None:
    """30 rows without any change hide up to 8 points; half of that, and of 2.6 points, squared and added."""
    parts = [g.compare(benchmark(scores=shares(0, 0, rows))) for rows in (30, 100)]
    got = g.combine(parts, [0.5, 0.5])
    assert got.low == pytest.approx(-0.5 * math.hypot(parts[0].low, parts[1].low))
    assert got.high == pytest.approx(0.5 * math.hypot(parts[0].high, parts[1].high))
    assert (got.p_lower, got.p_higher, got.changed) == (1.0, 1.0, 0)
    assert (got.method, got.rows, got.clusters) == ("combined", 130, 130)


def test_the_limits_of_a_domain_are_recovered_from_those_of_its_parts() -> None:
    parts = [g.compare(benchmark(scores=shares(gained, lost, 200))) for gained, lost in ((30, 4), (2, 25))]
    got = g.combine(parts, [0.3, 0.7])
    below = math.hypot(*(w * (part.difference - part.low) for w, part in zip([0.3, 0.7], parts, strict=True)))
    above = math.hypot(*(w * (part.high - part.difference) for w, part in zip([0.3, 0.7], parts, strict=True)))
    assert (got.low, got.high) == pytest.approx((got.difference - below, got.difference + above))
    t = got.difference / got.standard_error
    assert got.p_lower == pytest.approx(stats.t.cdf(t, got.degrees)) and got.p_lower + got.p_higher == pytest.approx(1)


def test_flips_in_a_domain_are_weighted() -> None:
    """Lost 1 row of weight 0.9, gained 2 of 0.1: of eight flips four have the sum -0.7 or less, the heavy one lost."""
    parts = [g.compare(benchmark(scores=shares(*each))) for each in ((0, 1, 100), (2, 0, 100))]
    got = g.combine(parts, [0.9, 0.1])
    assert (got.p_lower, got.p_higher) == (4 / 8, 5 / 8)


def test_ten_changes_in_a_domain_are_enough_for_student() -> None:
    parts = [g.compare(benchmark(scores=shares(0, lost, 100))) for lost in (5, 5)]
    got = g.combine(parts, [0.5, 0.5])
    assert got.changed == 10 and got.p_lower == pytest.approx(stats.t.cdf(got.difference / got.standard_error, 198))


def test_few_changes_in_a_domain_are_flipped_together() -> None:
    """4 lost of 100 and 3 lost of 100: 1 in 2^7."""
    parts = [g.compare(benchmark(scores=shares(0, lost, 100))) for lost in (4, 3)]
    got = g.combine(parts, [0.5, 0.5])
    assert got.changed == 7 and got.p_lower == pytest.approx(2**-7)


def test_scales_are_made_comparable() -> None:
    rng = np.random.default_rng(0)
    grades = rng.uniform(1, 10, 100), rng.uniform(1, 10, 100)
    cases = [benchmark("chat", grades, span=9.0, margin=None, role="watch"), benchmark(margin=None, role="watch")]
    got = g.gate(cases, [g.Domain("all", {"chat": 2.0, "maths": 6.0}, 0.3)])
    chat, maths = (each.comparison.difference for each in got.benchmarks)
    assert got.domains[0].comparison.difference == pytest.approx(0.25 * chat / 9 + 0.75 * maths)


# --- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "error", "lower", "higher", "margin", "verdict"),
    [
        (0.05, 0.01, False, True, 0.03, "improved"),
        (0.05, 0.01, False, False, 0.03, "pass"),
        (0.0, 0.01, False, False, 0.03, "pass"),
        (-0.005, 0.001, True, False, 0.03, "pass (lower)"),
        (-0.025, 0.002, True, False, 0.03, "pass (lower)"),
        (-0.005, 0.001, False, False, 0.03, "pass"),
        (0.0, 0.02, False, False, 0.03, "inconclusive"),
        (-0.04, 0.03, True, False, 0.03, "inconclusive"),
        (-0.04, 0.01, False, False, 0.03, "inconclusive"),
        (-0.04, 0.01, True, False, 0.03, "regressed"),
        (-0.04, 0.001, True, False, 0.03, "regressed"),
        (-0.04, 0.01, True, False, None, "regressed"),
        (-0.001, 0.0001, True, False, None, "regressed"),
        (0.0, 0.01, False, False, None, "inconclusive"),
        (0.05, 0.01, False, True, None, "improved"),
    ],
)
def test_verdicts(
    difference: float, error: float, lower: bool, higher: bool, margin: float | None, verdict: g.Verdict
) -> None:
    assert g.verdict(compared(difference, error), margin, lower, higher) == verdict


def test_a_loss_below_the_least_share_of_the_margin_is_not_called_regressed() -> None:
    """Lost 2 points of a margin of 3, surely; at most 4: half of the margin is enough by default, all of it is not."""
    case = compared(-0.02, 0.01)
    assert g.verdict(case, 0.03, True, False) == "regressed"
    assert g.verdict(case, 0.03, True, False, minimum_loss=1.0) == "inconclusive"


@given(st.floats(-0.2, 0.2), st.floats(1e-4, 0.1), st.booleans(), st.booleans(), st.floats(0.001, 0.1))
def test_a_verdict_never_contradicts_its_interval(d: float, error: float, low: bool, high: bool, margin: float) -> None:
    case = compared(d, error)
    got = g.verdict(case, margin, low, high)
    assert (got in ("pass", "pass (lower)", "improved")) <= (case.low > -margin)
    assert (got in ("regressed", "pass (lower)")) <= (case.high < 0)
    assert (got == "improved") <= (case.low > 0)
    wider = g.verdict(case, 2 * margin, low, high)
    assert (got in ("pass", "pass (lower)", "improved")) <= (wider in ("pass", "pass (lower)", "improved"))


def test_a_margin_that_the_rows_cannot_support_is_refused_with_the_rows_it_needs() -> None:
    """Student's SE 0.01: smallest margin 2.4865 SE; a margin of 2 SE passes Phi(2 - 1.645) of unchanged models."""
    got = g.support(compared(0.0, 0.01), 0.02)
    assert got.smallest_margin == pytest.approx(0.024865, abs=1e-6)
    assert got.pass_probability == pytest.approx(stats.norm.cdf(2 - 1.644854), abs=1e-6)
    assert got.rows_needed == math.ceil(1000 * 1.24323**2) and got.supported
    assert not g.support(compared(0.0, 0.01), 0.0185).supported
    assert g.support(compared(0.0, 0.01), 0.0185, g.Rules(least_power=0.5)).supported


# --- gates ---------------------------------------------------------------------------------------------------------

UNCHANGED, WORSE, BETTER, WIDE = (
    shares(30, 30, 3000, 1500),
    shares(30, 300, 3000),
    shares(300, 30, 3000),
    shares(9, 9, 60),
)
FAILED = g.Check("length", 2.0, 1.9, 2.1, 0.8, 1.25, "failed")


@pytest.mark.parametrize(
    ("cases", "checks", "rules", "outcome", "blocking"),
    [
        ([UNCHANGED, UNCHANGED], (), {}, "pass", ()),
        ([UNCHANGED, BETTER], (), {}, "pass", ()),
        ([UNCHANGED, WORSE], (), {}, "regressed", ("b1",)),
        ([WIDE, WORSE], (), {}, "regressed", ("b1",)),
        ([WIDE, UNCHANGED], (), {}, "refused", ("b0",)),
        ([WIDE, UNCHANGED], (), {"allow_underpowered": True}, "inconclusive", ("b0",)),
        ([UNCHANGED], (FAILED,), {}, "regressed", ("length",)),
        ([UNCHANGED], (replace(FAILED, verdict="inconclusive"),), {}, "inconclusive", ("length",)),
        ([UNCHANGED], (replace(FAILED, verdict="pass"),), {}, "pass", ()),
    ],
)
def test_outcomes(
    cases: list[Arrays], checks: tuple[g.Check, ...], rules: dict[str, Any], outcome: str, blocking: tuple[str, ...]
) -> None:
    units = [benchmark(f"b{index}", scores) for index, scores in enumerate(cases)]
    got = g.gate(units, checks=checks, rules=g.Rules(**rules))
    assert (got.outcome, got.blocking) == (outcome, blocking)
    assert json.loads(json.dumps(asdict(got), allow_nan=False))["outcome"] == outcome


def test_the_watch_list_is_flagged_and_blocks_nothing() -> None:
    got = g.gate([benchmark(scores=UNCHANGED), benchmark("watched", WORSE, role="watch", margin=None)])
    assert [each.verdict for each in got.benchmarks] == ["pass", "regressed"]
    assert got.outcome == "pass" and got.benchmarks[1].support is None


def test_a_damaged_domain_is_named() -> None:
    parts = [benchmark(name, scores, role="watch") for name, scores in zip("abcd", [UNCHANGED, WORSE] * 2, strict=True)]
    domains = [g.Domain("fine", {"a": 1, "c": 1}, 0.02), g.Domain("hurt", {"b": 1, "d": 2}, 0.02)]
    got = g.gate(parts, domains)
    assert (got.outcome, got.blocking) == ("regressed", ("hurt",))
    assert [each.verdict for each in got.domains] == ["pass", "regressed"]


def test_flags_are_adjusted_over_the_whole_gate() -> None:
    """1 of 9 flips in 512 alone, p 0.0195, is flagged; among 9 others that are unchanged it is not: 0.0195 · 10."""
    slight = shares(1, 8, 100)
    alone = g.gate([benchmark("hit", slight)])
    assert alone.benchmarks[0].adjusted_lower == pytest.approx(10 / 512)
    many = g.gate([benchmark("hit", slight), *(benchmark(f"b{index}", UNCHANGED) for index in range(9))])
    assert many.benchmarks[0].adjusted_lower == pytest.approx(100 / 512)
    assert (alone.benchmarks[0].verdict, many.benchmarks[0].verdict) == ("regressed", "inconclusive")


def test_safety_is_a_family_of_its_own_by_holm() -> None:
    """p 10/512 and 7/64: by Holm 20/512 and 7/64; half of alpha where other units are flagged too."""
    pair = [benchmark("s1", shares(1, 8, 100), role="safety"), benchmark("s2", shares(1, 5, 100), role="safety")]
    got = g.gate(pair)
    assert [each.adjusted_lower for each in got.benchmarks] == pytest.approx([20 / 512, 7 / 64])
    assert got.flag_level == 0.05 and got.benchmarks[0].verdict == "regressed"
    mixed = g.gate([*pair, benchmark(scores=UNCHANGED)])
    assert mixed.flag_level == 0.025 and mixed.benchmarks[0].verdict == "inconclusive"
    assert [each.adjusted_lower for each in mixed.benchmarks[:2]] == pytest.approx([20 / 512, 7 / 64])


@pytest.mark.parametrize(
    ("benchmarks", "domains", "why"),
    [
        ([benchmark(), benchmark()], [], "two units are named maths"),
        ([benchmark()], [g.Domain("maths", {"maths": 1}, 0.1)], "two units are named maths"),
        ([benchmark(role="watch")], [], "nothing gates"),
        ([benchmark(margin=None)], [], "maths: gating needs a margin"),
        ([benchmark(margin=None, role="safety")], [], "maths: safety needs a margin"),
        ([benchmark(margin=0.0)], [], "maths: a margin of 0.0"),
        ([benchmark()], [g.Domain("d", {"math": 1}, 0.1)], "d: no benchmark is named math"),
        ([benchmark()], [g.Domain("d", {}, 0.1)], "d: no benchmark is named in its weights"),
        ([benchmark()], [g.Domain("d", {"maths": 0}, 0.1)], "d: a weight is not above 0"),
        ([benchmark()], [g.Domain("d", {"maths": 1}, -0.1)], "d: a margin of -0.1"),
        ([], [], "nothing gates"),
    ],
)
def test_gates_that_cannot_be_judged(benchmarks: list[g.Benchmark], domains: list[g.Domain], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        g.gate(benchmarks, domains)


# --- checks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gained", "lost", "rows", "verdict"),
    [(0, 0, 260, "inconclusive"), (0, 0, 270, "pass"), (30, 0, 1000, "failed"), (12, 0, 1000, "inconclusive")],
)
def test_a_rate_may_not_rise(gained: int, lost: int, rows: int, verdict: str) -> None:
    got = g.rate_check("invalid", *shares(gained, lost, rows))
    assert (got.verdict, got.value) == (verdict, (gained - lost) / rows)
    assert (got.low, got.high) == tango(gained, lost, rows, 0.9)
    assert (got.name, got.least, got.most) == ("invalid", None, 0.01)
    json.dumps(asdict(got), allow_nan=False)


def test_a_rate_of_clusters_at_another_level() -> None:
    a, b = shares(20, 0, 400)
    labels = np.arange(400) // 4
    got = g.rate_check("invalid", a, b, labels, alpha=0.01)
    want = g.compare(g.Benchmark("invalid", a, b, clusters=labels), g.Rules(alpha=0.01))
    assert (got.low, got.high) == (want.low, want.high) and got.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "pass"), (1.2, "pass"), (1.5, "failed"), (0.5, "failed"), (1.26, "inconclusive")]
)
def test_answers_may_not_grow_or_shrink_much(factor: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 300, 200)
    longer = lengths * factor + rng.normal(0, 40, 200)
    got = g.length_check("length", lengths, longer)
    assert got.verdict == verdict and got.low < got.value < got.high
    assert (got.name, got.least, got.most) == ("length", 0.8, 1.25)
    doubled = g.length_check("length", np.repeat(lengths, 3), np.repeat(longer, 3), np.repeat(np.arange(200), 3))
    assert (doubled.value, doubled.low) == pytest.approx((got.value, got.low))


@pytest.mark.parametrize(("failures", "verdict"), [(0, "pass"), (5, "inconclusive"), (30, "failed"), (300, "failed")])
def test_a_ceiling(failures: int, verdict: str) -> None:
    got = g.ceiling_check("harmful", failures, 300, 0.01, alpha=0.05)
    assert got.verdict == verdict and got.low <= got.value <= got.high
    exact = stats.binomtest(failures, 300).proportion_ci(0.9, "exact")
    assert (got.low, got.high) == pytest.approx((exact.low, exact.high))
    assert (got.name, got.least, got.most) == ("harmful", None, 0.01)
    stricter = g.ceiling_check("harmful", failures, 300, 0.01, alpha=0.005)
    wider = stats.binomtest(failures, 300).proportion_ci(0.99, "exact")
    assert (stricter.low, stricter.high) == pytest.approx((wider.low, wider.high))


def test_safety_and_the_rest_are_adjusted_each_in_its_way() -> None:
    """Three p values of 7/64: by Holm 21/64 each, by Benjamini-Hochberg 7/64 each."""
    slight = shares(1, 5, 100)
    names = ["s1", "s2", "s3", "w1", "w2", "w3"]
    got = g.gate([benchmark(name, slight, role="safety" if name[0] == "s" else "gating") for name in names])
    assert [each.adjusted_lower for each in got.benchmarks] == pytest.approx([21 / 64] * 3 + [7 / 64] * 3)


def test_a_gate_keeps_its_rules() -> None:
    """Every number of a judgement follows from `compare`, `combine`, `support` and the rules given."""
    rules = g.Rules(alpha=0.2, power=0.9, minimum_loss=1.5, arbitrary_dependence=True)
    units = [benchmark("a", shares(8, 14, 400, 100), role="watch"), benchmark("b", shares(30, 12, 400, 50))]
    got = g.gate(units, [g.Domain("d", {"a": 1, "b": 3}, 0.04)], rules=rules)
    wanted = [g.compare(each, rules) for each in units]
    wanted.append(g.combine(wanted, [0.25, 0.75], 0.2))
    judged = [*got.benchmarks, *got.domains]
    assert [each.comparison for each in judged] == wanted
    assert [each.margin for each in judged] == [0.03, 0.03, 0.04]
    for sides, way in (("p_lower", "adjusted_lower"), ("p_higher", "adjusted_higher")):
        p = [getattr(each, sides) for each in wanted]
        assert [getattr(each, way) for each in judged] == pytest.approx(stats.false_discovery_control(p, method="by"))
    assert [each.support for each in judged] == [
        g.support(each, margin, rules) for each, margin in zip(wanted, [0.03, 0.03, 0.04], strict=True)
    ]
    assert [(each.baseline, each.candidate) for each in judged] == [
        (114 / 400, 108 / 400),
        (62 / 400, 80 / 400),
        (None, None),
    ]
    assert got.benchmarks[1].verdict == "improved"


def test_a_gate_asks_for_the_least_loss_that_its_rules_name() -> None:
    """Lost 34 of 1,000 rows with a margin of 30: regressed, unless the loss has to be twice the margin."""
    case = benchmark(scores=shares(0, 34, 1000), margin=0.03)
    verdicts = [g.gate([case], rules=g.Rules(minimum_loss=least)).benchmarks[0].verdict for least in (0.5, 2.0)]
    assert verdicts == ["regressed", "inconclusive"]
