"""The engine's metrics: the same numbers however the values are entered."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.core.algorithm.contract import Metric
from align.core.engine.module import StepMetrics

VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=12)


@given(VALUES, st.integers(0, 12))
def test_a_split_changes_nothing(values: list[float], at: int) -> None:
    whole, parts = StepMetrics(), StepMetrics()
    for how in ("mean", "sum", "min", "max"):
        whole.add(how, Metric(torch.tensor(values), how))
        for part in (values[:at], values[at:]):
            parts.add(how, Metric(torch.tensor(part), how))
    expected = {"mean": sum(values) / len(values), "sum": sum(values), "min": min(values), "max": max(values)}
    assert whole.compute() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert parts.compute() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.booleans()), min_size=1, max_size=12))
def test_values_that_do_not_count_are_as_if_they_were_not_there(given: list[tuple[float, bool]]) -> None:
    """Not even where they are not finite."""
    values = torch.tensor([value if counts else math.nan for value, counts in given])
    where = torch.tensor([counts for _, counts in given])
    masked, chosen = StepMetrics(), StepMetrics()
    for how in ("mean", "sum", "min", "max"):
        masked.add(how, Metric(values, how, where))
        chosen.add(how, Metric(values[where], how))
    assert masked.compute() == pytest.approx(chosen.compute(), rel=1e-12)


def test_a_mean_over_nothing_is_left_out() -> None:
    metrics = StepMetrics()
    metrics.add("nothing", torch.empty(0))
    metrics.add("least of nothing", Metric(torch.empty(0), "min"))
    metrics.add("something", torch.tensor([1.0, 3.0]))
    assert metrics.compute() == {"something": 2.0}


def test_nan_is_not_hidden() -> None:
    metrics = StepMetrics()
    metrics.add("loss", Metric(torch.tensor([1.0, math.nan]), "sum"))
    assert math.isnan(metrics.compute()["loss"])
