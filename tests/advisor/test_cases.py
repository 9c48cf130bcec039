"""Descriptions read by the lexicon alone, and the advice from that, against cases labelled beforehand.

The way that a user's description takes, by both readers, is measured in test_unseen.py.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align.advisor.merge_evidence import gather
from align.advisor.text import read
from tests.advisor import grading
from tests.advisor.deciding import advice

CASES = Path(__file__).parent / "cases"
SETS = ["shared", "dev", "fresh"]


@functools.cache
def graded(name: str) -> tuple[float, dict[str, float], list[str]]:
    """F1 of numbers, shares of outcomes that are right, and the forbidden outcomes."""
    cases = grading.cases(CASES / f"{name}.yaml")
    judged = grading.judged_keys(cases)
    numbers: Counter[str] = Counter()
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    forbidden = []
    for case in (case for case in cases if case["kind"] == "prose"):
        found = read(case["description"])
        numbers += grading.grade_numbers(case, found.evidence, judged)
        missed: dict[str, Any] = grading.grade_advice(case, advice(gather(found.evidence)))
        want = case["expected"]
        for key in ("primary", "algorithm", "pipeline"):
            asked[key] += want[key] is not None
            right[key] += want[key] is not None and key not in missed
        asked["must_warn"] += len(want["must_warn"])
        right["must_warn"] += len(want["must_warn"]) - len(missed.get("must_warn", []))
        forbidden += [f"{case['id']}: {missed['must_not']}"] if "must_not" in missed else []
    return grading.f1(numbers), {key: right[key] / asked[key] for key in asked}, forbidden


@pytest.mark.parametrize("name", ["shared", "dev"])
def test_numbers_are_found(name: str) -> None:
    assert graded(name)[0] >= 0.95


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("key", "least"), [("primary", 0.95), ("must_warn", 0.95), ("algorithm", 0.9), ("pipeline", 0.9)]
)
def test_advice_is_as_expected(name: str, key: str, least: float) -> None:
    assert graded(name)[1][key] >= least


@pytest.mark.parametrize("name", SETS)
def test_nothing_forbidden_is_advised(name: str) -> None:
    assert graded(name)[2] == []


def test_unseen_wording_loses_little() -> None:
    """The held-out set, which nothing is tuned on: floors below what docs/advise.md reports, so that a fall is seen."""
    numbers, outcomes, forbidden = graded("held_out")
    assert numbers >= 0.84
    assert outcomes["primary"] >= 0.84 and outcomes["must_warn"] >= 0.82
    assert outcomes["algorithm"] >= 0.7 and outcomes["pipeline"] >= 0.75
    assert len(forbidden) <= 8
