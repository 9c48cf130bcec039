"""The evaluation before shipping: suites by capability, the decision rule, and the rows that show the wanted effect.

A share p measured on n rows has the standard error sqrt(p (1 - p) / n). An effect d is seen where it is at least k of
them, k = 2:

    n >= k^2 p (1 - p) / d^2          d >= k sqrt(p (1 - p) / n)
"""

from __future__ import annotations

import functools
import math
from importlib.resources import files
from typing import Any

import yaml

from align.advisor.predicates import skill
from align.advisor.project_facts import Facts, Plan
from align.advisor.thresholds import Thresholds
from align.schemas.advice import EvalPlan

SMALLEST = 0.001
"""The smallest effect that rows are computed for: a tenth of a point."""
ALIKE = {"math": "reasoning", "qa": "rag", "generation": "chat"}
"""Capabilities that are measured by the suites of another one."""


def rows_needed(p: float, effect: float, errors: float) -> int:
    """Return the rows at which a change of a share p by ``effect`` is ``errors`` standard errors."""
    return math.ceil(round(errors**2 * p * (1 - p) / effect**2, 9))


def detectable(p: float, rows: int, errors: float) -> float:
    """Return the smallest change of a share p that ``rows`` rows can show."""
    return errors * math.sqrt(p * (1 - p) / rows)


def plan_evals(facts: Facts, limit: Thresholds, plan: Plan) -> EvalPlan | None:
    """Return the suites and the decision rule for a plan; None where nothing is advised yet."""
    if plan.primary == "insufficient":
        return None
    target, guard = _suites(facts, limit, plan)
    errors = limit.standard_errors
    rule = f"ship if the target rises by more than {errors:g} standard errors and no guard falls by more than "
    rule += f"one point or {errors:g} standard errors, compared with the untouched model and its best prompt"
    p, effect = _effect(facts)
    held = facts.project.evals.held_out_rows
    needed = (
        limit.eval_rows.comfortable if effect is None else max(limit.eval_rows.below, rows_needed(p, effect, errors))
    )
    seen = None if not held else round(detectable(p, held, errors), 4)
    return EvalPlan(target=target, guard=guard, rule=rule, min_rows=needed, detectable=seen)


def _effect(facts: Facts) -> tuple[float, float | None]:
    """Return the share and the change of it that the evaluation must show.

    Of baseline and target the one nearer to a half counts, whose error is larger; 0.8 where nothing is known.
    """
    e = facts.project.evals
    shares = [v for v in (e.baseline, e.target) if v is not None and 0 < v < 1]
    p = min(shares, key=lambda share: abs(share - 0.5), default=0.8)
    if e.baseline is None or e.target is None or not shares or not SMALLEST <= e.target - e.baseline < 1:
        return p, None
    return p, e.target - e.baseline


def _capability(facts: Facts, limit: Thresholds, table: dict[str, Any]) -> str:
    """Return the capability to measure: the target skill, else instruction following for many rules, else the task."""
    wanted = skill(facts)
    if wanted is None and _rules(facts, limit):
        return "instruction_following"
    known = ALIKE.get(wanted or "", wanted or facts.project.task.type or "")
    return known if known in table and known not in ("rag", "domain_model") else "chat"


def _rules(facts: Facts, limit: Thresholds) -> bool:
    """Return whether there are so many rules that keeping them is a measure of its own."""
    return (facts.project.behaviour.rules_count or 0) > limit.few_rules


def _suites(facts: Facts, limit: Thresholds, plan: Plan) -> tuple[list[str], list[str]]:
    table = _table()["capabilities"]
    names = ["domain_model"] if "continual_pretraining" in plan.stages else []
    trained = [stage for stage in plan.stages if stage not in ("rag", "prompting", "continual_pretraining")]
    if trained:
        names.append(_capability(facts, limit, table))
        if _rules(facts, limit):
            names.append("instruction_following")  # in addition to a skill; duplicates are removed below
    names += [stage for stage in ("rag", "prompting") if stage in plan.stages]
    own = [facts.project.evals.metric] if facts.project.evals.metric else []
    target = [*own, *facts.project.evals.suite, *(s for name in names for s in table[name]["target"])]
    guard = [s for name in names for s in table[name]["guard"]] + (_table()["safety"] if trained else [])
    target = list(dict.fromkeys(target))
    return target, [s for s in dict.fromkeys(guard) if s not in target]


@functools.cache
def _table() -> dict[str, Any]:
    read = yaml.load((files("align.advisor") / "suites.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    return dict(read)
