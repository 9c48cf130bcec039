"""The noise between runs of one model: by hand, and of runs that seeds move more than rows do."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from align.core.evaluation.calibration import Calibration, calibrate
from align.core.evaluation.gate import Benchmark, compare
from align.core.evaluation.power import binary_variance, smallest_margin
from tests.core.evaluation.simulations import shares

REACH = 2.486474860
"""z(0.95) + z(0.8)."""


def noise(runs: list[NDArray[np.float64]]) -> Calibration:
    """Return the noise between runs of one benchmark."""
    return calibrate("b", [compare(Benchmark("b", a, b)) for a, b in combinations(runs, 2)])


def test_two_runs_by_hand() -> None:
    """10 rows gained and 20 lost of 500, so that the difference is -0.02 in one order and 0.02 in the other."""
    a, b = np.zeros(500), np.zeros(500)
    b[:10], a[10:30] = 1, 1
    got = noise([a, b])
    error = compare(Benchmark("b", a, b)).standard_error
    assert (got.name, got.rows, got.disagreement) == ("b", 500, 0.06)
    assert (got.standard_error, got.spread) == pytest.approx((error, 0.02))
    assert got.standard_error**2 * 500 == pytest.approx(binary_variance(0.06, 0.02), rel=0.003)
    assert got.margin == pytest.approx(REACH * 0.02, rel=0.12) and got.margin >= REACH * 0.02
    assert got.false_alarms == 0.5


def test_runs_that_only_the_rows_part() -> None:
    rng = np.random.default_rng(0)
    got = noise([shares(rng, 2000, 1.0, 0.0)[1] for _ in range(8)])
    assert got.spread == pytest.approx(got.standard_error, rel=0.4) and got.false_alarms <= 0.15
    assert got.margin == pytest.approx(smallest_margin(0.5, 2000), rel=0.4)


def test_seeds_that_move_the_score_show() -> None:
    """Each run is right more or less often by 5 points, on 5,000 rows."""
    rng = np.random.default_rng(0)
    got = noise([(rng.random(5000) < rng.normal(0.5, 0.05)).astype(float) for _ in range(6)])
    assert got.spread > 3 * got.standard_error and got.false_alarms > 0.2
    assert got.margin == pytest.approx(REACH * got.spread, rel=1e-4)


def test_identical_runs_show_no_noise_but_what_the_rows_could_hide() -> None:
    same = noise([np.ones(400)] * 3)
    assert (same.spread, same.standard_error, same.false_alarms) == (0.0, 0.0, 0.0)
    assert 0 < same.margin < 0.02
    with pytest.raises(ValueError, match="b: two runs or more"):
        calibrate("b", [])
