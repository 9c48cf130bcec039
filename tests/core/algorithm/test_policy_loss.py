"""Token losses: numbers by hand, gradients by enumeration, and laws."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from align.core.algorithm import policy_gradient
from align.core.algorithm.kl import KL, estimate
from align.core.data.batch import Batch
from align.plugins.algorithms.grpo import cispo


def batch(logp: Tensor, lengths: list[int], ref: Tensor | None = None, **token_data: Tensor) -> Batch:
    """Sequences one after the other, an example each."""
    count, sizes = len(lengths), torch.tensor(lengths)
    sequence = torch.repeat_interleave(torch.arange(count), sizes)
    position = torch.cat([torch.arange(n) for n in lengths])
    each = torch.arange(count)
    return Batch(logp, sequence, position, each, torch.zeros_like(each), ("completion",), count, {}, ref, token_data)


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- ratios --------------------------------------------------------------------------------------------------------


def test_ratios_by_hand() -> None:
    """Log-ratios 0.1 and −0.3 of one answer, 0.5 of another."""
    made = batch(floats(-1.0, -2.0, -3.0), [2, 1], old_logp=floats(-1.1, -1.7, -3.5))
    assert policy_gradient.token_ratio(made).log().tolist() == pytest.approx([0.1, -0.3, 0.5])
    assert policy_gradient.mean_ratio(made).log().tolist() == pytest.approx([-0.1, -0.1, 0.5])
    assert policy_gradient.product_ratio(made).log().tolist() == pytest.approx([-0.2, 0.5])


def test_a_ratio_never_overflows() -> None:
    made = batch(floats(-1.0), [1], old_logp=floats(-1000.0))
    for found in (policy_gradient.token_ratio, policy_gradient.mean_ratio, policy_gradient.product_ratio):
        assert (found(made) * 0).tolist() == [0.0]
        assert found(batch(floats(-1.0), [1], old_logp=floats(-19.0))).log().tolist() == pytest.approx([18.0])


def test_where_nothing_was_measured_the_ratio_is_one_and_has_the_gradient_of_logp() -> None:
    logp = floats(-1.0, -2.0, -3.0).requires_grad_()
    rho = policy_gradient.token_ratio(batch(logp, [2, 1]))
    assert rho.tolist() == [1, 1, 1]
    (gradient,) = torch.autograd.grad(rho.sum(), logp)
    assert gradient.tolist() == [1, 1, 1]


# --- objectives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # good and already likelier: clipped at 1.2
        (0.5, 2.0, -1.0, -2.0),  # good and less likely: not clipped
        (1.5, -2.0, 3.0, 2.0),  # bad and likelier: not clipped
        (0.5, -2.0, 1.6, 0.0),  # bad and already less likely: clipped at 0.8
        (4.0, -2.0, 6.0, 0.0),  # bad and much likelier: dual clip at 3
        (4.0, 2.0, -2.4, 0.0),
    ],
)
def test_clipping_by_hand(rho: float, advantage: float, loss: float, slope: float) -> None:
    r = floats(rho).requires_grad_()
    value = policy_gradient.clipped(r, floats(advantage), 0.2, 0.2, 3.0)
    (gradient,) = torch.autograd.grad(value.sum(), r)
    assert value.item() == pytest.approx(loss)
    assert gradient.item() == pytest.approx(slope)
    if rho < 3:
        assert policy_gradient.clipped(r, floats(advantage), 0.2, 0.2).item() == pytest.approx(loss)


@given(st.floats(0.01, 10), st.floats(-3, 3), st.floats(0.05, 0.9), st.floats(0.05, 2), st.floats(0.01, 5))
def test_dual_clip_is_the_two_sided_clip(rho: float, advantage: float, low: float, high: float, more: float) -> None:
    """INTELLECT-2 caps ρ at δ before the minimum; above 1 + ε_high that is the same."""
    delta = 1 + high + more
    theirs = -min(min(rho, delta) * advantage, min(max(rho, 1 - low), 1 + high) * advantage)
    mine = policy_gradient.clipped(floats(rho), floats(advantage), low, high, delta)
    assert mine.item() == pytest.approx(theirs, abs=1e-9)


def test_cispo_by_hand() -> None:
    """Weights 1.5 and, capped, 5; the gradient is the weight times the advantage whatever the ratio."""
    logp = floats(-1.0, -2.0).requires_grad_()
    values = cispo(logp, floats(1.5, 7.0), floats(2.0, -1.0), 4.0)
    assert values.tolist() == pytest.approx([3.0, -10.0])
    (gradient,) = torch.autograd.grad(values.sum(), logp)
    assert gradient.tolist() == pytest.approx([-3.0, 5.0])


def test_averages_by_hand() -> None:
    """Tokens 1, 2 and 6 of two answers, at most 4 tokens: mean 3; (1.5 + 6) / 2; (3 + 6) / (2 · 4)."""
    x, made = floats(1.0, 2.0, 6.0), batch(floats(0, 0, 0), [2, 1])
    counts = {"token": 3.0, "sequence": 2.0}
    found = {}
    for how in ("token", "sequence", "constant"):
        term = policy_gradient.average_loss(made, x, how, 4, 10.0)
        found[how] = float(term.weight * term.values.sum() / counts[term.per])
    assert found == pytest.approx({"token": 30.0, "sequence": 37.5, "constant": 11.25})


def test_a_mean_weighs_one_unless_it_says_more() -> None:
    made = batch(floats(0, 0, 0), [2, 1])
    weights = [
        policy_gradient.average_loss(made, floats(1.0, 2.0, 6.0), how, 4).weight
        for how in ("token", "sequence", "constant")
    ]
    assert weights == [1.0, 1.0, 0.25]


def test_the_correction_for_the_generator_multiplies_the_loss() -> None:
    logp, loss = floats(0, 0), floats(2.0, -3.0)
    assert policy_gradient.importance_weighted(batch(logp, [2], weight=floats(0.5, 4.0)), loss).tolist() == [1.0, -12.0]
    assert policy_gradient.importance_weighted(batch(logp, [2]), loss).tolist() == [2.0, -3.0]


def test_clip_metrics_by_hand() -> None:
    made = batch(floats(0, 0, 0), [2, 1])
    found = policy_gradient.clip_metrics(floats(0.5, 1.5, 2.0), floats(-1, -1, 1), 0.2, 0.2, made.mean_per_sequence)
    assert found["clip_ratio/low_mean"].values.tolist() == [1, 0, 0]
    assert found["clip_ratio/high_mean"].values.tolist() == [0, 0, 1]
    assert found["clip_ratio/region_mean"].values.tolist() == [1, 0, 1]
    assert found["clip_ratio/low_min"] == (pytest.approx([0.5, 0.0]), "min", None)
    assert found["clip_ratio/high_max"] == (pytest.approx([0.0, 1.0]), "max", None)


# --- divergence ----------------------------------------------------------------------------------------------------


@given(st.floats(-3, 3))
def test_estimators_are_the_same_in_reward_and_loss(x: float) -> None:
    for kind in get_args(KL):
        assert estimate(floats(x), kind).item() == pytest.approx(float(estimate(np.array(x), kind)), abs=1e-12)


@pytest.mark.parametrize("moved", [False, True], ids=["first step", "later step"])
def test_which_estimator_has_the_gradient_of_the_kl(moved: bool) -> None:
    """By enumeration of all answers of one token: Σ_y π_old(y) ∇ estimate(y) against ∇ KL(π ‖ π_ref).

    Alone, k1 has none, k2 the KL's and k3 the forward KL's while π = π_old; times the ratio, k1 and k3 are right ever.
    """
    logits = floats(0.3, -0.5, 1.0, 0.2).requires_grad_()
    old = (logits.detach() + (floats(0.2, 0.1, -0.3, 0.0) if moved else 0.0)).log_softmax(-1)
    ref = floats(0.0, 0.5, 0.4, -0.7).log_softmax(-1)
    logp = logits.log_softmax(-1)
    whole = batch(logp, [1] * 4, ref, old_logp=old)

    def gradient(value: Tensor) -> list[float]:
        return [float(g) for g in torch.autograd.grad(value, logits, retain_graph=True)[0]]

    def expected(x_T: Tensor) -> list[float]:
        return gradient((old.exp() * x_T).sum())

    kl = pytest.approx(gradient((logp.exp() * (logp - ref)).sum()), abs=1e-9)
    rho = policy_gradient.token_ratio(whole)
    assert expected(policy_gradient.kl_loss(whole, "k1", rho)) == kl
    assert expected(policy_gradient.kl_loss(whole, "k3", rho)) == kl
    if not moved:
        assert expected(policy_gradient.kl_loss(whole, "k1")) == pytest.approx([0.0] * 4, abs=1e-9)
        assert expected(policy_gradient.kl_loss(whole, "k2")) == kl
        forward = gradient((ref.exp() * (ref - logp)).sum())
        assert expected(policy_gradient.kl_loss(whole, "k3")) == pytest.approx(forward, abs=1e-9) != kl
