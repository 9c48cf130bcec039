"""The shared cases that are forms, and facts written by hand: every grading key right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, from_form
from align.schemas.project import Project
from tests.advisor.deciding import advice
from tests.advisor.grading import cases, grade_advice

FORMS = cases(Path(__file__).parent / "cases/forms.yaml")
BY_HAND = cases(Path(__file__).parent / "cases/by_hand.yaml")
NOTHING: dict[str, Any] = {
    "accept": [],
    "combine": [],
    "algorithm": None,
    "pipeline": None,
    "must_warn": [],
    "must_not": [],
    "must_ask": [],
}


def test_there_are_forms() -> None:
    assert len(FORMS) == 8


@pytest.mark.parametrize("case", FORMS, ids=[case["id"] for case in FORMS])
def test_form(case: dict[str, Any]) -> None:
    advised = advice(gather(from_form(Project.model_validate(case["form"]))))
    assert grade_advice(case, advised) == {}
    assert all(reason.quotes and reason.flips_if for reason in advised.reasons)


@pytest.mark.parametrize("case", BY_HAND, ids=[case["id"] for case in BY_HAND])
def test_facts_written_by_hand(case: dict[str, Any]) -> None:
    said = [Evidence(**{"quote": str(e["value"]), "source": "text", **e}) for e in case.get("said", ())]
    advised = advice(gather([*from_form(Project.model_validate(case["form"])), *said]))
    assert grade_advice({"expected": {**NOTHING, **case["expected"]}}, advised) == {}
    assert not {w.id for w in advised.warnings} & set(case["expected"].get("not_warn", ()))
