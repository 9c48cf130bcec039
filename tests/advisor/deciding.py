"""Helpers of tests of the decision: the installed rules, the shipped thresholds, and forms written in short."""

from __future__ import annotations

import functools
from typing import Any

from align.advisor.assemble import advise
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Facts, from_form
from align.advisor.rule import Rule
from align.advisor.thresholds import Thresholds
from align.core.plugin_system.registry import registry
from align.schemas.advice import Advice
from align.schemas.project import Project

LIMIT = Thresholds.load()


@functools.cache
def rules() -> dict[str, Rule]:
    """Ours, as they are registered."""
    return {name: registry.get("rule", name) for name in registry.names("rule")}


def form(**settings: Any) -> Project:
    """``form(behaviour__rules_count=4)``."""
    values: dict[str, Any] = {}
    for path, value in settings.items():
        *above, key = path.split("__")
        functools.reduce(lambda level, name: level.setdefault(name, {}), above, values)[key] = value
    return Project.model_validate(values)


def facts(**settings: Any) -> Facts:
    return gather(from_form(form(**settings)))


def advice(known: Facts | None = None, **settings: Any) -> Advice:
    return advise(known if known is not None else facts(**settings), LIMIT, rules(), tool="test")


def fired(advised: Advice) -> set[str]:
    return {reason.rule for reason in advised.reasons}


def warned(advised: Advice) -> set[str]:
    return {warning.id for warning in advised.warnings}


def stages(advised: Advice) -> list[str]:
    return [step.stage for step in advised.plan]


def rows(kind: str, count: int | None = None, **more: Any) -> dict[str, Any]:
    """A body of data: ``rows("sft_pairs", 500)``."""
    return {"kind": kind, "size": {} if count is None else {"rows": count}, **more}


def corpus(tokens: int) -> dict[str, Any]:
    return {"kind": "corpus", "size": {"tokens": tokens}}
