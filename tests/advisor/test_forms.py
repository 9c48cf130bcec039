"""The shared cases that are forms: every grading key right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.advisor.facts import from_form, gather
from align.schemas.project import Project
from tests.advisor.deciding import advice
from tests.advisor.grading import cases, grade_advice

FORMS = cases(Path(__file__).parent / "cases/forms.yaml")


def test_there_are_forms() -> None:
    assert len(FORMS) == 8


@pytest.mark.parametrize("case", FORMS, ids=[case["id"] for case in FORMS])
def test_form(case: dict[str, Any]) -> None:
    advised = advice(gather(from_form(Project.model_validate(case["form"]))))
    assert grade_advice(case, advised) == {}
    assert all(reason.quotes and reason.flips_if for reason in advised.reasons)
