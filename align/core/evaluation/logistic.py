"""Logistic regression on outcomes between 0 and 1, without intercept: what ratings and win rates are fitted by.

An outcome of 0.5 is a tie, one of 0.8 a judge's probability. Both losses are convex, so that the fit depends on the
data alone and not on where the search starts.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from align.core.evaluation.statistics import Floats


def soft_log_loss(logits: Floats, outcomes: Floats) -> Floats:
    """Return -y log s(z) - (1 - y) log(1 - s(z)) = log(1 + e^z) - y z of each row [n]."""
    losses: Floats = np.logaddexp(0.0, logits) - outcomes * logits
    return losses


def fit_ridge(design: ArrayLike, outcomes: ArrayLike, weights: ArrayLike, ridge: float | Floats = 0.0) -> Floats:
    """Return the coefficients [p] that minimise sum_i w_i loss_i + sum_j ridge_j c_j^2 / 2, by Newton's method.

    design [n, p], outcomes [n] in [0, 1], weights [n]. Coefficients that the rows do not settle (as a shift of all
    ratings, with a ridge of 0) are those of least norm. Without a ridge nothing is found where columns separate the
    outcomes: the coefficients grow until the loss no longer falls.
    """
    x, y, w = (np.asarray(part, float) for part in (design, outcomes, weights))
    penalty = np.broadcast_to(np.asarray(ridge, float), x.shape[1:])
    c = np.zeros(x.shape[1])

    def loss(coefficients: Floats) -> float:
        return float(w @ soft_log_loss(x @ coefficients, y) + penalty @ coefficients**2 / 2)

    best = loss(c)
    for _ in range(100):
        p = expit(x @ c)
        gradient = x.T @ (w * (p - y)) + penalty * c
        if np.abs(gradient).max(initial=0.0) <= 1e-11 * max(1.0, float(w.sum())):
            break
        curvature = (x.T * (w * p * (1 - p))) @ x + np.diag(penalty)
        found = _halved_until_lower(loss, c, np.linalg.lstsq(curvature, gradient, rcond=1e-12)[0], best)
        if found is None:
            break
        step, best = found
        c = c - step
    return c


def _halved_until_lower(
    loss: Callable[[Floats], float], start: Floats, step: Floats, best: float
) -> tuple[Floats, float] | None:
    """Return the step, halved until the loss after it is at most ``best``, and that loss; None where none is found."""
    for _ in range(40):
        tried = loss(start - step)
        if tried <= best:
            return step, tried
        step = step / 2
    return None


def fit_lasso(design: ArrayLike, outcomes: ArrayLike, weights: ArrayLike, inverse_penalty: float) -> Floats:
    """Return the coefficients [p] that minimise C sum_i w_i loss_i + sum_j |c_j|, C being the inverse penalty.

    Newton's method whose quadratic step keeps the absolute values (Lee, Sun, Saunders 2014), for a handful of columns.
    """
    x, y, w = (np.asarray(part, float) for part in (design, outcomes, weights))
    penalty = 1 / inverse_penalty
    c = np.zeros(x.shape[1])

    def loss(coefficients: Floats) -> float:
        return float(w @ soft_log_loss(x @ coefficients, y)) + penalty * float(np.abs(coefficients).sum())

    best = loss(c)
    for _ in range(100):
        p = expit(x @ c)
        curvature = (x.T * (w * p * (1 - p))) @ x + 1e-12 * np.eye(len(c))
        target = _quadratic_lasso(curvature, curvature @ c - x.T @ (w * (p - y)), penalty, c)
        found = _halved_until_lower(loss, c, c - target, best)
        if found is None:
            break
        step, best = found
        c = c - step
        if np.abs(step).max(initial=0.0) < 1e-12:
            break
    return c


def _quadratic_lasso(curvature: Floats, slope: Floats, penalty: float, start: Floats) -> Floats:
    """Return the c that minimises c' H c / 2 - slope' c + penalty sum |c_j|.

    One coefficient after another, which takes thousands of sweeps where columns are almost proportional (all answers
    shorter than the baseline's). So after a few the minimum is looked for at their signs, then at all signs.
    """
    c = start.copy()
    for sweep in range(10_000):
        largest = 0.0
        for j in range(len(c)):
            rest = slope[j] - curvature[j] @ c + curvature[j, j] * c[j]
            new = np.sign(rest) * max(0.0, abs(rest) - penalty) / curvature[j, j]
            largest = max(largest, abs(new - c[j]))
            c[j] = new
        if largest < 1e-14:
            break
        if sweep in (5, 20):
            tried = [np.sign(c)] if sweep == 5 else map(np.array, product((-1.0, 0.0, 1.0), repeat=len(c)))
            for signs in tried:
                found = _with_signs(curvature, slope, penalty, signs)
                if found is not None:
                    return found
    return c


def _with_signs(curvature: Floats, slope: Floats, penalty: float, signs: Floats) -> Floats | None:
    """Return the minimum if its coefficients have these signs, else None."""
    c, active = np.zeros(len(signs)), signs != 0
    try:
        c[active] = np.linalg.solve(curvature[np.ix_(active, active)], (slope - penalty * signs)[active])
    except np.linalg.LinAlgError:
        return None
    held = np.abs(slope - curvature @ c)[~active] <= penalty
    return c if (np.sign(c) == signs).all() and held.all() else None
