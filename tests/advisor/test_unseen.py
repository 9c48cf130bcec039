"""The accuracy on the 330 unseen descriptions, on which nothing is tuned, by the way that `align advise` takes.

The figures, their intervals and the cases that are wrong are in benchmarks/results/advice.json.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from align.schemas.advice import Advice
from benchmarks.advice import RESULT, by_both, held_out, share, tables
from benchmarks.advice_cases import Grade, grade, load, summary

ROOT = Path(__file__).parents[2]


@functools.cache
def graded() -> Sequence[tuple[str, Advice, Grade]]:
    """The advice on each description, with its id and its grades."""
    advices = [(case, by_both(case)) for case in load("unseen")]
    return [(case.id, advice, grade(case, advice)) for case, advice in advices]


@pytest.mark.parametrize(("part", "least"), [("primary", 0.93), ("warn", 0.9), ("algorithm", 0.85), ("stages", 0.85)])
def test_unseen_descriptions_are_advised_on_rightly(part: str, least: float) -> None:
    counts = summary([marks for _, _, marks in graded()])
    assert counts["cases"] == 330
    right, checked = counts[part]  # type: ignore[literal-required]
    assert right / checked >= least


def test_high_confidence_is_right_and_is_given_in_at_least_half() -> None:
    sure = [marks["primary"] for _, advice, marks in graded() if advice.confidence == "high"]
    assert len(sure) >= len(graded()) / 2
    assert sum(sure) / len(sure) >= 0.97


def test_forbidden_outcomes_hardly_ever_come_with_high_confidence() -> None:
    """The aim is none. One is left: the answer is right, and a stage that the label forbids comes with it."""
    forbidden = [name for name, advice, marks in graded() if advice.confidence == "high" and marks["forbidden"]]
    assert len(forbidden) <= 1, forbidden


def test_older_held_out_descriptions_are_advised_on_rightly() -> None:
    """The third set of tests/advisor/cases, graded as the others in test_cases.py are."""
    found = held_out()
    assert found["primary"]["percent"] >= 93 and found["warn"]["percent"] >= 90
    assert found["algorithm"]["percent"] >= 85 and found["forbidden"] <= 1


@pytest.mark.parametrize("name", sorted(tables(json.loads(RESULT.read_text()))))
def test_the_manual_has_the_measured_figures(name: str) -> None:
    table = tables(json.loads(RESULT.read_text()))[name]
    assert table in (ROOT / "docs/advise.md").read_text(), "paste: python -m benchmarks.advice --tables"


def test_shares_have_wilson_intervals() -> None:
    """By the values of Newcombe (1998), table I: 81 of 263, 95 %."""
    assert share(81, 263) == {"right": 81, "of": 263, "percent": 30.8, "low": 25.5, "high": 36.6}
