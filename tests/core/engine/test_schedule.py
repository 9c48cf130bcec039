"""The learning rate's shape, against transformers' schedulers as the oracle."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from align.core.engine.optimizer import factor
from align.schemas.run import Schedule


@pytest.mark.parametrize(
    ("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("warmup", [0, 3, 7])
def test_as_transformers(ours: str, theirs: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    at = factor(Schedule(type=ours, warmup_steps=float(warmup)), 20)
    for step in range(20):
        assert at(step) == pytest.approx(oracle.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        oracle.step()


def test_a_share_of_all_steps_warms_up() -> None:
    """10% of 50 steps: the sixth is the first at the peak."""
    at = factor(Schedule(type="constant", warmup_steps=0.1), 50)
    assert [at(step) for step in range(6)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_floor_is_where_it_ends() -> None:
    """Half way down a line from 1 to 0.2 is 0.6."""
    at = factor(Schedule(type="linear", min_lr_rate=0.2), 10)
    assert (at(0), at(5), at(10)) == pytest.approx((1.0, 0.6, 0.2))


def test_one_is_a_number_of_steps_and_not_all_of_them() -> None:
    at = factor(Schedule(type="linear", warmup_steps=1.0), 5)
    assert [at(step) for step in range(6)] == pytest.approx([0, 1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(("kind", "end"), [("linear", 0.1), ("cosine", 0.1), ("constant", 1.0)])
def test_after_the_last_step_it_stays_at_the_end(kind: str, end: float) -> None:
    """Also where a single step follows the warm-up."""
    for warmup in (0.0, 9.0):
        at = factor(Schedule(type=kind, warmup_steps=warmup, min_lr_rate=0.1), 10)
        assert (at(9), at(10), at(15), at(20)) == pytest.approx((at(9), end, end, end))
    assert at(9) == 1.0
