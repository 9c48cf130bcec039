"""The error rates that the gate promises, by exact sums and 2,000 seeded simulations each."""

from __future__ import annotations

import pytest

from align.core.evaluation.power import rows_needed, rows_needed_for_shares
from tests.core.evaluation import simulations

REPEATS = 2000
NOISE = 0.0125
"""2.6 standard errors of a share of 5 % in 2,000 repeats."""


def test_an_unchanged_model_is_called_regressed_in_at_most_one_gate_of_twenty() -> None:
    """Anywhere: 12 benchmarks, 3 of safety, 4 domains."""
    assert simulations.unchanged(REPEATS, seed=11).regressed <= 0.05


def test_a_damaged_domain_is_named_and_no_other() -> None:
    caught, others = simulations.damaged(300, seed=12)
    assert caught >= 0.95 and others <= 0.05


@pytest.mark.parametrize(
    ("rows", "q", "margin"),
    [(50, 0.2, 0.15), (198, 0.1, 0.05), (200, 0.15, 0.05), (500, 0.1, 0.03), (1000, 0.02, 0.015), (2000, 0.24, 0.02)],
)
def test_a_candidate_worse_by_the_margin_passes_in_one_of_twenty(rows: int, q: float, margin: float) -> None:
    """Exactly, over all counts; and the gate's own comparison is the one summed over."""
    exact = simulations.passed_exactly(rows, q, -margin, margin)
    assert 0.04 <= exact <= 0.06
    assert simulations.passed(REPEATS, 13, rows, q, -margin, margin) == pytest.approx(exact, abs=NOISE)


def test_student_s_interval_would_let_more_pass() -> None:
    """Hence Tango's for 0/1 scores."""
    assert simulations.passed_exactly(50, 0.2, -0.15, 0.15, student=True) > 0.07
    assert simulations.passed_exactly(198, 0.1, -0.05, 0.05, student=True) > 0.06


@pytest.mark.parametrize("sizes", [(500, 500), (30, 200, 500)])
def test_a_domain_worse_by_the_margin_passes_in_one_of_twenty(sizes: tuple[int, ...]) -> None:
    assert simulations.passed_combined(REPEATS, 14, sizes, 0.2, 0.06) == pytest.approx(0.05, abs=NOISE)


@pytest.mark.parametrize(("clusters", "size"), [(40, 1), (80, 2), (30, 10)])
def test_grades_worse_by_the_margin_pass_in_one_of_twenty(clusters: int, size: int) -> None:
    assert simulations.passed_means(REPEATS, 15, clusters, size, 0.2) == pytest.approx(0.05, abs=NOISE)


@pytest.mark.parametrize(("q", "margin"), [(0.05, 0.02), (0.05, 0.03), (0.1, 0.03), (0.15, 0.05), (0.2, 0.02)])
def test_the_rows_needed_give_the_power_stated(q: float, margin: float) -> None:
    rows = rows_needed_for_shares(q, margin)
    assert 0.79 <= simulations.passed_exactly(rows, q, 0.0, margin) <= 0.82


@pytest.mark.parametrize(("q", "margin"), [(0.1, 0.02), (0.2, 0.02), (0.15, 0.01)])
def test_the_large_sample_rows_give_nearly_the_power_stated(q: float, margin: float) -> None:
    assert simulations.passed_exactly(rows_needed(q, margin), q, 0.0, margin) == pytest.approx(0.8, abs=0.01)


def test_clustered_intervals_hold_the_mean_as_often_as_they_say() -> None:
    clustered, naive = simulations.covered(REPEATS, 16, clusters=50, size=20, between=0.2)
    assert 0.94 <= clustered <= 0.96 and naive < 0.90
