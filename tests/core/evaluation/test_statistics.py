"""Intervals and tests of means, shares and pairs: published numbers, other libraries, enumeration and laws."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from align.core.algorithm.pass_at_k import pass_at_k
from align.core.evaluation import statistics as s
from align.core.evaluation.power import (
    binary_variance,
    pass_probability,
    rows_needed,
    rows_needed_for_shares,
    sampled_variance,
    smallest_margin,
)
from align.core.evaluation.repeated_samples import maj_at_k, pass_hat_k

scores = st.lists(st.floats(0, 1).map(lambda x: round(x, 3)), min_size=2, max_size=30)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)
counts = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 30)).filter(lambda three: sum(three) > 0)


# --- one mean ------------------------------------------------------------------------------------------------------


def test_a_clustered_mean_by_hand() -> None:
    """Mean 0.5; the clusters' sums of deviations are 1, -1 and 0: SE² = 3/2 · 2 / 36 = 1/12; t(2) = 4.302653."""
    got = s.clustered_mean([1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"])
    assert (got.value, got.rows, got.clusters) == (0.5, 6, 3)
    assert got.standard_error == pytest.approx(math.sqrt(1 / 12))
    assert got.high == pytest.approx(0.5 + 4.302653 * math.sqrt(1 / 12), abs=1e-6)


@given(scores, st.integers(0, 2**32 - 1))
def test_the_standard_error_of_statsmodels(values: list[float], seed: int) -> None:
    """With use_t and the small-sample factor C/(C-1) · (n-1)/(n-p), which is C/(C-1) for the p = 1 of a mean."""
    labels = np.random.default_rng(seed).integers(0, 4, len(values))
    if len(set(labels.tolist())) < 2:
        return
    clustering = {"groups": labels, "use_correction": True}
    fitted = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds=clustering, use_t=True)
    got = s.clustered_mean(values, labels)
    assert got.standard_error == pytest.approx(float(fitted.bse[0]), abs=1e-9)
    assert (got.low, got.high) == pytest.approx(tuple(fitted.conf_int()[0]), abs=1e-7)


@given(scores)
def test_without_clusters_it_is_the_t_interval(values: list[float]) -> None:
    got = s.clustered_mean(values, level=0.9)
    assert got.standard_error == pytest.approx(stats.sem(values), abs=1e-12)
    half = stats.t.ppf(0.95, len(values) - 1) * stats.sem(values)
    assert (got.low, got.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-9)
    assert got == s.clustered_mean(values, list(range(len(values))), level=0.9)


@given(scores, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_the_names_of_clusters_do_not_matter(values: list[float], random: object) -> None:
    labels = [index // 2 for index in range(len(values))]
    if labels[-1] == 0:
        return
    order = np.random.default_rng(0).permutation(len(values))
    plain = s.clustered_mean(values, labels)
    moved = s.clustered_mean(np.array(values)[order], [f"item {labels[i]}" for i in order])
    assert moved.standard_error == pytest.approx(plain.standard_error, abs=1e-12)
    assert moved.low == pytest.approx(plain.low, abs=1e-9)


@given(scores)
def test_a_higher_level_holds_the_lower_interval(values: list[float]) -> None:
    narrow, wide = s.clustered_mean(values, level=0.8), s.clustered_mean(values, level=0.99)
    assert wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high


@pytest.mark.parametrize(
    ("values", "clusters", "why"),
    [
        ([0.5, math.nan], None, "row 1 is nan"),
        ([0.5, math.inf], None, "row 1 is inf"),
        ([], None, "one score a row"),
        ([[1.0], [2.0]], None, "one score a row"),
        ([1.0], None, "single cluster"),
        ([1.0, 0.0], ["a", "a"], "single cluster"),
        ([1.0, 0.0], ["a"], "1 cluster labels for 2 rows"),
    ],
)
def test_what_has_no_standard_error_is_refused(values: list[float], clusters: list[str] | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        s.clustered_mean(values, clusters)


# --- pairs ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=30))
def test_a_paired_difference_and_its_mirror(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    there, back = s.paired_difference(a, b), s.paired_difference(b, a)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-12)
    errors = stats.sem(a) ** 2 + stats.sem(b) ** 2 - 2 * np.cov(a, b)[0, 1] / len(a)
    assert there.standard_error**2 == pytest.approx(errors, abs=1e-12)


def test_pairs_are_of_the_same_rows() -> None:
    with pytest.raises(ValueError, match="2 baseline scores and 3 candidate scores"):
        s.paired_difference([0, 1], [0, 1, 1])


def test_mcnemar_published() -> None:
    """5 against 15: 0.0414 and 0.0266."""
    got = s.mcnemar(5, 15)
    assert (round(got.exact, 4), round(got.mid_p, 4)) == (0.0414, 0.0266)
    assert s.mcnemar(0, 0) == s.McNemar(1.0, 1.0) and s.mcnemar(4, 4).mid_p == 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_of_statsmodels(gained: int, lost: int) -> None:
    got = s.mcnemar(gained, lost)
    assert got.exact == pytest.approx(statsmodels_mcnemar([[0, gained], [lost, 0]], exact=True).pvalue, abs=1e-12)
    assert got == s.mcnemar(lost, gained)
    point = stats.binom.pmf(min(gained, lost), gained + lost, 0.5)
    expected = 1.0 if gained == lost else got.exact - point
    assert got.mid_p == pytest.approx(expected, abs=1e-12)


def test_tango_published() -> None:
    """Airway hyper-responsiveness before and after (Bentur 2009; Fagerland, Lydersen, Laake 2014): -0.517, -0.026."""
    assert s.tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("rows", [10, 100, 500])
def test_tango_without_disagreement_is_as_wide_as_wilson(rows: int) -> None:
    low, high = s.tango(0, 0, rows)
    assert high == pytest.approx(s.Z95**2 / (rows + s.Z95**2), rel=1e-6) == -low
    assert s.wilson(0, rows)[1] == pytest.approx(high, rel=1e-6)


@given(counts, st.sampled_from([0.8, 0.9, 0.95]))
def test_tango_laws(three: tuple[int, int, int], level: float) -> None:
    gained, lost, same = three
    rows = gained + lost + same
    low, high = s.tango(gained, lost, rows, level)
    assert -1 <= low <= (gained - lost) / rows <= high <= 1
    assert s.tango(lost, gained, rows, level) == pytest.approx((-high, -low), abs=1e-9)
    wider = s.tango(gained, lost, rows, 0.99)
    assert wider[0] <= low + 1e-12 and high - 1e-12 <= wider[1]


@pytest.mark.parametrize(("gained", "lost", "rows"), [(3, 1, 20), (12, 2, 50), (2, 9, 30), (0, 4, 25), (40, 20, 160)])
def test_tango_inverts_the_score_test_of_the_multinomial(gained: int, lost: int, rows: int) -> None:
    """At each end: shares that maximise the likelihood under the difference, by a search that knows no formula."""
    for end in s.tango(gained, lost, rows):

        def loss(q: float, end: float = end) -> float:
            cells = [(gained, q + end), (lost, q), (rows - gained - lost, 1 - 2 * q - end)]
            return -sum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

        least, most = max(0.0, -end), (1 - end) / 2
        q = float(optimize.minimize_scalar(loss, bounds=(least, most), options={"xatol": 1e-12}).x)
        z = (gained - lost - rows * end) / math.sqrt(rows * (2 * q + end - end * end))
        assert abs(z) == pytest.approx(s.Z95, rel=1e-4)


@pytest.mark.parametrize(("gained", "lost", "rows"), [(1, 1, 1), (-1, 0, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(gained: int, lost: int, rows: int) -> None:
    with pytest.raises(ValueError, match="gained"):
        s.tango(gained, lost, rows)


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_upper_bound_of_statsmodels(failures: int, total: int) -> None:
    if failures > total:
        with pytest.raises(ValueError, match="of"):
            s.rate_upper_bound(failures, total)
        return
    expected = proportion_confint(failures, total, alpha=0.1, method="beta")[1]
    assert s.rate_upper_bound(failures, total) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("total", [30, 300, 3000])
def test_the_rule_of_three(total: int) -> None:
    bound = s.rate_upper_bound(0, total)
    assert bound == pytest.approx(1 - 0.05 ** (1 / total), rel=1e-9) and 0.95 * 3 / total < bound < 3 / total


# --- resampling ----------------------------------------------------------------------------------------------------


def test_a_bootstrap_is_repeatable_paired_and_near_the_t_interval() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    b = a + rng.normal(0.1, 0.2, size=400)
    got = s.paired_bootstrap(np.mean, a, b, repeats=4000, seed=1)
    assert got == s.paired_bootstrap(np.mean, a, b, repeats=4000, seed=1)
    assert got != s.paired_bootstrap(np.mean, a, b, repeats=4000, seed=2)
    exact = s.paired_difference(a, b)
    assert got.value == pytest.approx(exact.value)
    assert got.standard_error == pytest.approx(exact.standard_error, rel=0.05)
    assert (got.low, got.high) == pytest.approx((exact.low, exact.high), abs=0.1 * exact.standard_error)
    assert got.p_higher == 1 / 4001 and got.p_lower == 1.0
    assert s.paired_bootstrap(np.mean, a, a, repeats=50, seed=1).standard_error == 0.0


def test_a_bootstrap_of_clusters_keeps_them_whole() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), rng.integers(1, 8, 60))
    d = rng.normal(size=60)[labels] + 0.1 * rng.normal(size=len(labels))
    got = s.paired_bootstrap(np.mean, np.zeros(len(d)), d, labels, repeats=4000, seed=1)
    assert got.clusters == 60
    assert got.standard_error == pytest.approx(s.clustered_mean(d, labels).standard_error, rel=0.05)


@pytest.mark.parametrize(
    ("metric", "rows", "why"), [(np.mean, 1, "two clusters"), (lambda rows: math.nan, 3, "finite")]
)
def test_a_bootstrap_that_says_nothing_is_refused(metric: s.Metric, rows: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        s.paired_bootstrap(metric, np.zeros(rows), np.zeros(rows), repeats=3, seed=0)
    with pytest.raises(ValueError, match="3 baseline rows and 2"):
        s.paired_bootstrap(np.mean, np.zeros(3), np.zeros(2), repeats=3, seed=0)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_exact_flips_are_those_of_scipy(values: list[int]) -> None:
    """Zeros flip to themselves, so that all 2^n flips and those of the others give one p value."""
    kept = np.array(values, float)
    if len(values) > 1:
        for alternative in ("two-sided", "less", "greater"):
            expected = stats.permutation_test(
                (kept,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative=alternative
            ).pvalue
            # scipy doubles the smaller tail; by symmetry it is the share of flips as far, but for a sum of 0.
            got = s.sign_flip_test(kept, alternative=alternative)  # type: ignore[arg-type]
            assert got == pytest.approx(min(1.0, expected), abs=1e-9)


@given(st.integers(0, 6), st.integers(0, 6))
def test_exact_flips_of_shares_are_mcnemar(gained: int, lost: int) -> None:
    d = [1.0] * gained + [-1.0] * lost + [0.0] * 5
    assert s.sign_flip_test(d) == pytest.approx(s.mcnemar(gained, lost).exact)


def test_drawn_flips_are_near_the_exact_p_value_and_flip_clusters_whole() -> None:
    d = [1.0] * 15 + [-1.0] * 5
    assert s.sign_flip_test(d, repeats=40_000, seed=3) == pytest.approx(s.mcnemar(15, 5).exact, abs=0.004)
    assert s.sign_flip_test([1.0] * 20, ["a"] * 10 + ["b"] * 10) == 0.5


# --- many tests ----------------------------------------------------------------------------------------------------


@given(p_values)
def test_adjusted_p_values_of_scipy(p: list[float]) -> None:
    assert s.benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p), abs=1e-12)
    assert s.benjamini_hochberg(p, True) == pytest.approx(stats.false_discovery_control(p, method="by"), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_p_values_of_statsmodels(seed: int) -> None:
    p = np.random.default_rng(seed).beta(0.3, 1, 12).round(3)
    assert s.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    assert s.benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=1e-12)


@given(p_values, st.randoms(use_true_random=False))
def test_adjusting_keeps_the_order_given(p: list[float], random: object) -> None:
    order = np.random.default_rng(1).permutation(len(p))
    for adjust in (s.holm, s.benjamini_hochberg):
        assert adjust(np.array(p)[order]) == pytest.approx(adjust(p)[order])
        assert (adjust(p) >= np.array(p) - 1e-15).all()


def test_no_tests_and_no_p_values() -> None:
    assert s.holm([]).tolist() == s.benjamini_hochberg([]).tolist() == []
    with pytest.raises(ValueError, match="not in"):
        s.holm([0.5, 1.5])


# --- power ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disagreement", "rows"),
    [
        (0.05, [3092, 773, 344, 124]),
        (0.10, [6183, 1546, 687, 248]),
        (0.15, [9274, 2319, 1031, 371]),
        (0.20, [12366, 3092, 1374, 495]),
    ],
)
def test_the_table_of_rows(disagreement: float, rows: list[int]) -> None:
    variance = binary_variance(disagreement)
    assert [rows_needed(variance, margin) for margin in (0.01, 0.02, 0.03, 0.05)] == rows


@pytest.mark.parametrize(
    ("rows", "points"),
    [
        *[(30, 17.6), (50, 13.6), (60, 12.4), (80, 10.8), (115, 9.0), (198, 6.8), (500, 4.3), (541, 4.1), (805, 3.4)],
        *[(817, 3.4), (880, 3.2), (4441, 1.4), (12032, 0.9), (14042, 0.8)],
    ],
)
def test_the_smallest_margins(rows: int, points: float) -> None:
    assert round(100 * smallest_margin(binary_variance(0.15), rows), 1) == points


@given(st.floats(0.01, 1), st.floats(0.005, 0.2))
def test_rows_and_margin_undo_each_other(disagreement: float, margin: float) -> None:
    rows = rows_needed(disagreement, margin)
    assert smallest_margin(disagreement, rows) <= margin * (1 + 1e-9)
    assert pass_probability(margin, math.sqrt(disagreement / rows)) >= 0.8 - 1e-9
    if disagreement <= 0.3:
        assert rows_needed_for_shares(disagreement, margin) >= rows


def test_rows_for_shares_by_hand() -> None:
    """q 0.05, m 0.03: p = (sqrt(0.0121 - 0.00618) + 0.11) / 4 = 0.046735, s_0² = 0.06257; 344 rows by the large-sample
    formula."""
    assert rows_needed_for_shares(0.05, 0.03) == 400


def test_more_samples_leave_the_variance_between_rows() -> None:
    assert sampled_variance(0.1, 0.2, 0.2, 4, 4) == pytest.approx(0.2)
    assert sampled_variance(0.1, 0.2, 0.2, 10**9, 10**9) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: binary_variance(0.1, 0.2),
        lambda: rows_needed(0.1, 0.0),
        lambda: rows_needed_for_shares(1.1, 0.1),
        lambda: smallest_margin(-0.1, 10),
        lambda: sampled_variance(0.1, 0.1, 0.1, 0, 1),
    ],
)
def test_impossible_plans_are_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]


def test_nothing_measured_passes_where_the_difference_is_above_the_margin() -> None:
    assert pass_probability(0.02, 0.0) == 1.0 and pass_probability(0.02, 0.0, -0.02) == 0.0


# --- several samples of a prompt -----------------------------------------------------------------------------------


@given(st.integers(1, 8), st.data())
def test_pass_at_k_and_pass_hat_k_over_all_subsets(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_hat_k(n, c, k) == pytest.approx(sum(map(all, subsets)) / len(subsets))
    product_form = 1 - math.prod(1 - Fraction(k, i) for i in range(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(float(product_form))


@pytest.mark.parametrize("arguments", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_hat_k_of_impossible_counts(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="right samples among"):
        pass_hat_k(*arguments)


@pytest.mark.parametrize(
    ("answers", "k", "score"),
    [
        ("aab", 3, 1.0),
        ("abb", 3, 0.0),
        ("ab", 2, 0.5),
        ("aabb", 2, 0.5),
        ("aabbb", 2, 0.5),
        ("bcda", 4, 0.25),
        ([None, None, "a"], 3, 1.0),
        ([None, None], 2, 0.0),
    ],
)
def test_the_majority_of_k(answers: list[str | None], k: int, score: float) -> None:
    assert maj_at_k(list(answers), "a", k) == score


def test_the_majority_is_the_mean_of_a_random_choice_among_the_leaders() -> None:
    for answers in product("ab", repeat=4):
        share = answers.count("a") / 4
        assert maj_at_k(answers, "a", 4) == (share > 0.5) + 0.5 * (share == 0.5)
        assert maj_at_k(answers, "a", 1) == share
    with pytest.raises(ValueError, match="maj@3 of 2"):
        maj_at_k("ab", "a", 3)
