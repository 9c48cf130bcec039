"""The noise between runs of one model: by hand, and of runs that seeds move more than rows do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.core.evaluation.calibration import calibrate
from align.core.evaluation.gate import Benchmark, compare
from align.core.evaluation.power import binary_variance, smallest_margin
from tests.core.evaluation.simulations import shares

CASE = Benchmark("b", [0.0], [0.0])


def test_two_runs_by_hand() -> None:
    """10 rows gained and 20 lost of 500: both orders, so that one difference is -0.02 and the other 0.02."""
    a, b = np.zeros(500), np.zeros(500)
    b[:10], a[10:30] = 1, 1
    got = calibrate(CASE, [a, b])
    error = compare(Benchmark("b", a, b)).standard_error
    assert (got.runs, got.rows, got.disagreement) == (2, 500, 0.06)
    assert (got.standard_error, got.spread) == pytest.approx((error, 0.02))
    assert got.variance == pytest.approx(binary_variance(0.06, 0.02), rel=0.003)
    assert got.margin == pytest.approx(2.4865 * 0.02, rel=1e-4) and got.false_alarms == 0.5


def test_runs_that_only_the_rows_part() -> None:
    rng = np.random.default_rng(0)
    got = calibrate(CASE, [shares(rng, 2000, 1.0, 0.0)[1] for _ in range(8)])
    assert got.spread == pytest.approx(got.standard_error, rel=0.4) and got.false_alarms <= 0.15
    assert got.margin == pytest.approx(smallest_margin(0.5, 2000), rel=0.4)


def test_seeds_that_move_the_score_show() -> None:
    """Each run is right more or less often by 5 points, on 5,000 rows."""
    rng = np.random.default_rng(0)
    got = calibrate(CASE, [(rng.random(5000) < rng.normal(0.5, 0.05)).astype(float) for _ in range(6)])
    assert got.spread > 3 * got.standard_error and got.false_alarms > 0.2
    assert got.margin == pytest.approx(2.4865 * got.spread, rel=1e-4)


def test_identical_runs_and_too_few() -> None:
    same = calibrate(CASE, [np.ones(40)] * 3)
    assert (same.spread, same.margin, same.false_alarms) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="b: two runs or more"):
        calibrate(CASE, [np.ones(40)])
    with pytest.raises(ValueError, match="b: 40 baseline scores and 41"):
        calibrate(CASE, [np.ones(40), np.ones(41)])
    assert math.isfinite(calibrate(CASE, [np.ones(40), np.zeros(40)]).margin)
