"""What runs of one unchanged model say of a gate's noise: how far seeds move scores, and the margin that covers it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from align.core.evaluation.gate import Benchmark, Rules, compare


@dataclass(frozen=True)
class Calibration:
    """The noise between runs of one model on one benchmark, from all ordered pairs of them."""

    runs: int
    rows: int
    disagreement: float
    """Mean share of rows whose score differs."""
    variance: float
    """Mean variance of a row's difference: what `rows_needed` takes. With clusters, per row at this size of cluster."""
    standard_error: float
    """Root mean square of the paired standard errors: what a gate reckons with."""
    spread: float
    """Root mean square of the differences themselves. Far above ``standard_error``, seeds move the score by more than
    the choice of rows does: then rows alone cannot narrow it, and further seeds have to."""
    false_alarms: float
    """Share of pairs whose one-sided p value of a loss is at most alpha, unadjusted: alpha is expected of runs that
    differ by the choice of rows alone, and less of scores that are discrete."""
    margin: float
    """Least margin that such a run passes with the power asked for, from the greater of both spreads."""


def calibrate(benchmark: Benchmark, runs: Sequence[ArrayLike], rules: Rules | None = None) -> Calibration:
    """Return the noise between runs of one unchanged model.

    benchmark: its settings; its scores are not read. runs [R]: scores [n] of two runs or more with other seeds of
    sampling, or of training, on the same rows. Raises ValueError for fewer than two runs and what `compare` raises.
    """
    if len(runs) < 2:
        raise ValueError(f"{benchmark.name}: two runs or more show what the seed moves, there is {len(runs)}")
    rules = rules or Rules()
    pairs = [compare(replace(benchmark, baseline=a, candidate=b), rules) for a, b in permutations(runs, 2)]
    disagreements = [float(np.mean(np.asarray(a) != np.asarray(b))) for a, b in permutations(runs, 2)]
    error = math.sqrt(float(np.mean([pair.standard_error**2 for pair in pairs])))
    spread = math.sqrt(float(np.mean([pair.difference**2 for pair in pairs])))
    reach = float(ndtri(1 - rules.alpha) + ndtri(rules.power))
    return Calibration(
        runs=len(runs),
        rows=pairs[0].rows,
        disagreement=float(np.mean(disagreements)),
        variance=error**2 * pairs[0].rows,
        standard_error=error,
        spread=spread,
        false_alarms=float(np.mean([pair.p_lower <= rules.alpha for pair in pairs])),
        margin=reach * max(error, spread),
    )
