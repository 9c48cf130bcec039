"""Advice on descriptions labelled beforehand, by both readers as a user's description is read, and the numbers found.

The floors are what was measured; the unseen descriptions, with other labels, are measured in test_unseen.py.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from align.api.advising import AdviceCase, weigh
from align.api.input_types import as_brief
from tests.advisor import grading
from tests.advisor.deciding import LIMIT

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Graded:
    """The grades of one set of cases.

    numbers: F1 of the numbers found. right: the share of each part of the outcome that is right. forbidden: the cases
    with a forbidden outcome, each with its confidence.
    """

    numbers: float
    right: dict[str, float]
    forbidden: dict[str, str]


@functools.cache
def graded(name: str) -> Graded:
    cases = grading.cases(CASES / f"{name}.yaml")
    judged = grading.judged_keys(cases)
    numbers, right, checked = Counter[str](), Counter[str](), Counter[str]()
    forbidden = {}
    for case in (case for case in cases if case["kind"] == "prose"):
        facts = AdviceCase.of(as_brief(case["description"]), LIMIT).facts()
        advice = weigh(facts, LIMIT, others=False)
        numbers += grading.grade_numbers(case, facts.evidence, judged)
        missed, want = grading.grade_advice(case, advice), case["expected"]
        for key in ("primary", "algorithm", "pipeline"):
            checked[key] += want[key] is not None
            right[key] += want[key] is not None and key not in missed
        checked["must_warn"] += len(want["must_warn"])
        right["must_warn"] += len(want["must_warn"]) - len(missed.get("must_warn", []))
        if "must_not" in missed:
            forbidden[case["id"]] = advice.confidence
    return Graded(grading.f1(numbers), {key: right[key] / checked[key] for key in checked}, forbidden)


FLOORS = {
    "shared": {"primary": 1.0, "must_warn": 0.84, "algorithm": 0.87, "pipeline": 0.8},
    "dev": {"primary": 0.98, "must_warn": 0.92, "algorithm": 0.95, "pipeline": 0.86},
    "fresh": {"primary": 1.0, "must_warn": 0.96, "algorithm": 1.0, "pipeline": 1.0},
}


@pytest.mark.parametrize(("name", "least"), FLOORS.items())
def test_advice_is_as_expected(name: str, least: dict[str, float]) -> None:
    right = graded(name).right
    assert {key: right[key] >= floor for key, floor in least.items()} == dict.fromkeys(least, True), right


@pytest.mark.parametrize(("name", "least"), [("shared", 0.9), ("dev", 0.9)])
def test_numbers_are_found(name: str, least: float) -> None:
    assert graded(name).numbers >= least


@pytest.mark.parametrize(("name", "most"), [("shared", 0), ("dev", 4), ("fresh", 0)])
def test_forbidden_outcomes_are_rare_and_never_come_with_high_confidence(name: str, most: int) -> None:
    forbidden = graded(name).forbidden
    assert len(forbidden) <= most
    assert "high" not in forbidden.values()
