"""Advice with rules that are not installed: for tests of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.advisor.assemble import advise
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import from_form
from align.advisor.rule import Rule
from align.advisor.thresholds import Thresholds
from align.core.plugin_system.registry import registry
from align.schemas.advice import Advice
from align.schemas.project import Project


def advise_with(rules: Mapping[str, Rule], project: Mapping[str, Any]) -> Advice:
    """Return the advice on a project by these rules, by id, together with the installed ones.

    project: a form as a mapping, ``{"behaviour": {"rules_count": 30}}``. Raises pydantic's ValidationError for another.
    """
    facts = gather(from_form(Project.model_validate(project)))
    return advise(facts, Thresholds.load(), {**registry.working("rule"), **rules})
