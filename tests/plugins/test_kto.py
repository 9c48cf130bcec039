"""KTO against numbers worked out by hand. Throughout σ(log 3) = 3/4."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.data.examples import Example, TokenSequence
from align.plugins.algorithms.kto import KTO
from tests.plugins.handmade import batch, metric, values

LOG3 = log(3)


def kto(**chosen: Any) -> KTO:
    return KTO(KTO.Config(**chosen))


def answers(ratios: list[float], labels: list[float], z: float | None = None) -> Any:
    """One-token answers with the given log-ratios and labels."""
    return batch(
        [{"completion": [r - 1.0]} for r in ratios],
        [{"completion": [-1.0]} for _ in ratios],
        columns={"label": labels},
        step={} if z is None else {"z": z},
        dtype=torch.float64,
    )


def test_values_with_a_given_z() -> None:
    """β = 1, z = log 3, r = 2 log 3: good 1 − σ(log 3) = ¼, bad 1 − σ(−log 3) = ¾. r = z: ½ for either."""
    outcome = kto(beta=1.0).loss(answers([2 * LOG3, 2 * LOG3, LOG3, LOG3], [1, 0, 1, 0], z=LOG3))
    assert values(outcome) == pytest.approx([0.25, 0.75, 0.5, 0.5])
    assert outcome.terms[0].per == "sequence"
    assert metric(outcome, "kl") == pytest.approx([LOG3] * 4)


def test_z_is_never_negative() -> None:
    """A mean ratio of −5 counts as 0: r = log 3 gives 1 − ¾."""
    outcome = kto(beta=1.0).loss(answers([LOG3], [1], z=-5.0))
    assert values(outcome) == pytest.approx([0.25])
    assert metric(outcome, "kl") == [0.0]


def test_without_mismatched_answers_z_is_zero() -> None:
    """So a step of one example is the unpaired APO-zero."""
    assert kto().auxiliary([example([1, 2], [3])]) == ()
    assert values(kto(beta=1.0).loss(answers([LOG3, LOG3], [1, 0]))) == pytest.approx([0.25, 0.75])


def test_weights_multiply_the_two_sides() -> None:
    """λ_D = 2 and λ_U = 0.5 of ½ each."""
    outcome = kto(desirable_weight=2.0, undesirable_weight=0.5).loss(answers([0.0, 0.0], [1, 0], z=0.0))
    assert values(outcome) == pytest.approx([1.0, 0.25])


def test_gradient_raises_the_good_and_lowers_the_bad() -> None:
    """At r = z the slope is ∓β/4 = ∓0.025."""
    made = answers([0.0, 0.0], [1, 0], z=0.0)
    kto().loss(made).terms[0].values.sum().backward()
    assert made.logp_T.grad.tolist() == pytest.approx([-0.025, 0.025])


def test_pairs_count_as_one_good_and_one_bad_answer() -> None:
    """r = log 3 for both at β = 1, z = 0: ¼ and ¾."""
    made = batch([{"chosen": [0.0], "rejected": [-2.0]}], [{"chosen": [-LOG3], "rejected": [-2.0 - LOG3]}])
    assert values(kto(beta=1.0).loss(made)) == pytest.approx([0.25, 0.75])


def test_metrics_are_over_their_own_side() -> None:
    """β = 0.1; a micro-batch without bad answers has nothing to say of them."""
    outcome = kto().loss(answers([1.0, 2.0], [1, 1], z=0.0))
    assert metric(outcome, "rewards/chosen") == pytest.approx([0.1, 0.2])
    assert metric(outcome, "rewards/rejected") == []
    assert metric(outcome, "logps/chosen") == pytest.approx([0.0, 1.0])


def example(prompt: list[int], answer: list[int], ref: list[float] | None = None) -> Example:
    scored = np.array([False] * len(prompt) + [True] * len(answer))
    logp = None if ref is None else np.array(ref, np.float32)
    tokens = np.array(prompt + answer, np.int32)
    return Example(f"rows.jsonl:{prompt[0]}", (TokenSequence("completion", tokens, scored, logp),), {"label": 1.0})


def test_mismatched_pairs_rotate_the_answers_through_the_step() -> None:
    """(x1, y3), (x2, y1), (x3, y2), as TRL pairs them; scored where the answer is; reference left to the engine."""
    step = [example([1, 2], [10], [-1.0]), example([3], [11, 12], [-1.0, -1.0]), example([4, 5, 6], [13], [-1.0])]
    made = kto().auxiliary(step)
    assert [e.sequences[0].tokens.tolist() for e in made] == [[1, 2, 13], [3, 10], [4, 5, 6, 11, 12]]
    assert [e.sequences[0].scored.tolist() for e in made] == [
        [False, False, True],
        [False, True],
        [False, False, False, True, True],
    ]
    assert all(e.sequences[0].ref_logp is None for e in made)
    assert kto(loss_type="apo_zero_unpaired").auxiliary(step) == ()


def test_turns_after_the_first_scored_token_move_with_the_answer() -> None:
    """Two assistant turns with the user's token 9 between them."""
    tokens, scored = np.array([1, 10, 9, 11], np.int32), np.array([False, True, False, True])
    turns = Example("a", (TokenSequence("completion", tokens, scored),))
    mine = kto().auxiliary([turns, example([4, 5], [13])])[1].sequences[0]
    assert mine.tokens.tolist() == [4, 5, 10, 9, 11]
    assert mine.scored.tolist() == [False, False, True, False, True]


def test_statistics_are_ratios_of_the_mismatched_sequences() -> None:
    """Sums of log π − log π_ref: (−1 + 2) + (−1 + 2) = 2 and −1; their mean ½ is what ``loss`` gets as z."""
    made = batch(
        [{"mismatched": [-1.0, -1.0]}, {"mismatched": [-3.0]}], [{"mismatched": [-2.0, -2.0]}, {"mismatched": [-2.0]}]
    )
    assert kto().statistics(made)["z"].tolist() == pytest.approx([2.0, -1.0])


rows = st.tuples(st.floats(-1000, 1000, width=32), st.sampled_from([0.0, 1.0]))


@settings(max_examples=50, deadline=None)
@given(drawn=st.lists(rows, min_size=1, max_size=6), z=st.floats(-1000, 1000, width=32))
def test_values_are_finite_and_follow_their_examples(drawn: list[tuple[float, float]], z: float) -> None:
    """Between 0 and 1, the same alone as together, in order."""

    def run(of: list[tuple[float, float]]) -> list[float]:
        made = answers([r for r, _ in of], [label for _, label in of], z=z)
        outcome = kto().loss(made)
        outcome.terms[0].values.sum().backward()
        assert made.logp_T.grad.isfinite().all()
        return values(outcome)

    together = run(drawn)
    assert all(0 <= x <= 1 for x in together)
    assert [value for row in drawn for value in run([row])] == pytest.approx(together)
    assert run(drawn[::-1]) == pytest.approx(together[::-1])
