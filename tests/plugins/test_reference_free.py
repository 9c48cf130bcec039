"""SimPO, CPO and ORPO against numbers worked out by hand."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.algorithm.contract import Algorithm
from align.plugins.algorithms.cpo import CPO
from align.plugins.algorithms.orpo import ORPO
from align.plugins.algorithms.simpo import SimPO
from tests.plugins.handmade import batch, metric, values

ALGORITHMS: list[type[Algorithm]] = [SimPO, CPO, ORPO]


def made_by(algorithm: type[Algorithm], **chosen: Any) -> Algorithm:
    return algorithm(algorithm.Config(**chosen))


def test_simpo_averages_and_takes_the_margin_off() -> None:
    """Means −1 (of −0.5, −1.5) and −3: β(−1 + 3) − γ = 2·2 − 0.5·2 = 3, so log(1 + e⁻³) = 0.048587."""
    made = batch([{"chosen": [-0.5, -1.5], "rejected": [-3.0]}])
    outcome = made_by(SimPO).loss(made)
    assert values(outcome) == pytest.approx([log(1 + exp(-3))])
    assert metric(outcome, "rewards/chosen") == pytest.approx([-2.0])
    assert metric(outcome, "logps/chosen") == pytest.approx([-2.0])


def test_simpo_at_the_target_margin_costs_log_two() -> None:
    """The means differ by γ/β = 0.5."""
    made = batch([{"chosen": [-1.0], "rejected": [-1.5]}])
    assert values(made_by(SimPO).loss(made)) == pytest.approx([log(2)])


def test_cpo_sums_and_adds_likelihood_per_token() -> None:
    """Sums −2 and −3 with β = 1: log(1 + e⁻¹) = 0.313262. NLL 0.5 and 1.5, averaged over tokens by the engine."""
    made = batch([{"chosen": [-0.5, -1.5], "rejected": [-3.0]}])
    outcome = made_by(CPO, beta=1.0).loss(made)
    assert values(outcome, 0) == pytest.approx([log(1 + exp(-1))])
    assert values(outcome, 1) == pytest.approx([0.5, 1.5])
    assert [(t.per, t.weight) for t in outcome.terms] == [("example", 1.0), ("token:chosen", 1.0)]
    assert len(made_by(CPO, cpo_alpha=0.0).loss(made).terms) == 1


def test_cpo_smooths_labels() -> None:
    """σ(log 3) = ¾, ε = 0.1: 0.9 log(4/3) + 0.1 log 4 = 0.397543."""
    made = batch([{"chosen": [-1.0], "rejected": [-1.0 - log(3)]}])
    smoothed = made_by(CPO, beta=1.0, label_smoothing=0.1).loss(made)
    assert values(smoothed) == pytest.approx([0.397543], abs=1e-6)


def test_orpo_compares_odds_of_mean_probabilities() -> None:
    """Mean probabilities 3/4 and 1/2 (of log ¼ and log 1, say: exp of their mean): odds 3 and 1, ratio 3, log(4/3)."""
    made = batch([{"chosen": [log(0.75), log(0.75)], "rejected": [log(0.25), log(1.0)]}], dtype=torch.float64)
    outcome = made_by(ORPO).loss(made)
    assert values(outcome, 1) == pytest.approx([log(4 / 3)])
    assert values(outcome, 0) == pytest.approx([log(4 / 3), log(4 / 3)])
    assert [(t.per, t.weight) for t in outcome.terms] == [("token:chosen", 1.0), ("example", 0.1)]
    assert metric(outcome, "log_odds_chosen") == pytest.approx([log(3)])
    assert metric(outcome, "log_odds_ratio") == pytest.approx([-log(4 / 3)])


def test_orpo_stays_finite_for_a_certain_answer() -> None:
    """Probability 1 has infinite odds."""
    made = batch([{"chosen": [0.0], "rejected": [0.0]}, {"chosen": [-200.0], "rejected": [0.0]}])
    outcome = made_by(ORPO).loss(made)
    sum(t.values.sum() for t in outcome.terms).backward()  # type: ignore[union-attr]
    assert made.logp_T.grad is not None
    assert made.logp_T.grad.isfinite().all()
    assert values(outcome, 1)[0] == pytest.approx(log(2))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
def test_the_better_answer_rises_and_the_worse_falls(algorithm: type[Algorithm]) -> None:
    made = batch([{"chosen": [-1.0, -2.0], "rejected": [-1.5]}])
    outcome = made_by(algorithm).loss(made)
    sum(t.weight * t.values.sum() for t in outcome.terms).backward()  # type: ignore[union-attr]
    assert made.logp_T.grad is not None
    slopes = made.logp_T.grad.tolist()
    assert slopes[0] < 0 and slopes[1] < 0 < slopes[2]


answer = st.lists(st.floats(-60, 0, width=32), min_size=1, max_size=4)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"chosen": answer, "rejected": answer}), min_size=1, max_size=4))
def test_values_are_finite_and_follow_their_pairs(algorithm: type[Algorithm], rows: list[Any]) -> None:
    """Values of all pairs together are those of each alone, in order."""
    together = made_by(algorithm).loss(batch(rows))
    alone = [made_by(algorithm).loss(batch([row])) for row in rows]
    for term in range(len(together.terms)):
        found = values(together, term)
        assert torch.tensor(found).isfinite().all()
        assert found == pytest.approx([x for one in alone for x in values(one, term)], rel=1e-6, abs=1e-6)
