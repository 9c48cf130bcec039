"""The noise of a gate, from runs that should not differ: how far seeds move scores, and the margin that covers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from align.core.evaluation.gate import Comparison, Rules, support


@dataclass(frozen=True, slots=True)
class Calibration:
    """The noise of an eval, or of a domain, over all pairs of runs."""

    name: str
    rows: int
    """Items, of the pair with the fewest."""
    disagreement: float
    """Mean share of clusters of items whose score differs."""
    standard_error: float
    """Root mean square of the paired standard errors: what a gate reckons with."""
    spread: float
    """Root mean square of the differences themselves. Far above ``standard_error``, seeds move the score by more than
    the choice of items does: then items alone cannot narrow it, and further seeds have to."""
    false_alarms: float
    """Share of pairs, in both orders, whose one-sided p value of a loss is at most alpha, unadjusted."""
    margin: float
    """Least margin that such a run passes with the power asked for."""


def calibrate(name: str, reruns: Sequence[Comparison], rules: Rules | None = None) -> Calibration:
    """Return the noise between runs of one unchanged model.

    reruns: the comparison of each pair of runs, in either order. The margin covers the greater of the standard error
    and the spread, and what the items could hide where few of them changed (``support``). Raises ValueError for none.
    """
    if not reruns:
        raise ValueError(f"{name}: two runs or more show what the seed moves")
    rules = rules or Rules()
    error = float(np.sqrt(np.mean([pair.standard_error**2 for pair in reruns])))
    spread = float(np.sqrt(np.mean([pair.difference**2 for pair in reruns])))
    alarms = [p <= rules.alpha for pair in reruns for p in (pair.p_lower, pair.p_higher)]
    reach = float(ndtri(1 - rules.alpha) + ndtri(rules.power))
    supported = max(support(pair, 1.0, rules).smallest_margin for pair in reruns)
    return Calibration(
        name=name,
        rows=min(pair.rows for pair in reruns),
        disagreement=float(np.mean([pair.changed / pair.clusters for pair in reruns])),
        standard_error=error,
        spread=spread,
        false_alarms=float(np.mean(alarms)),
        margin=max(reach * max(error, spread), supported),
    )
