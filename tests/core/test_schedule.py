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
