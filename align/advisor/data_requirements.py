"""Data needed against given, assumptions that were made, and rough numbers on which the answer depends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from align.advisor.data_budget import budget_of, tokens
from align.advisor.decision import Decision, decide
from align.advisor.predicates import DATA_OF
from align.advisor.project_facts import Evidence, Facts, Plan
from align.advisor.rule import Rule
from align.advisor.thresholds import Floor, Thresholds
from align.schemas.advice import Assumption, DataRequirement
from align.schemas.project import DataKind, Project, Size


def data_requirements(facts: Facts, limit: Thresholds, plan: Plan) -> list[DataRequirement]:
    """Return the data that each stage learns from, the documents to look up, and the rows to evaluate on."""
    listed = [_of_stage(facts, limit, step.stage) for step in plan.steps if step.stage in DATA_OF]
    if "rag" in plan.stages:
        held = facts.data("documents")
        given = held.size.docs if held else None
        known = "documents" in facts.kinds
        listed.append(
            _need("documents", "docs", Floor(below=1, warn=1, comfortable=1), given, known, _lint(facts, "documents"))
        )
    if plan.primary != "insufficient":
        held_out = facts.project.evals.held_out_rows
        rows = held_out if held_out is not None else (d.size.rows if (d := facts.data("eval_set")) else None)
        known = rows is not None or "eval_set" in facts.kinds
        listed.append(_need("eval_set", "rows", limit.eval_rows, rows, known, _lint(facts, "eval_set")))
    return list({need.need: need for need in listed}.values())


def _of_stage(facts: Facts, limit: Thresholds, stage: str) -> DataRequirement:
    kind = DATA_OF[stage]
    found = budget_of(facts.data(kind), stage, limit)
    return _need(kind, found.unit, found.floor, found.given, kind in facts.kinds, _lint(facts, kind))


def _need(name: str, unit: str, floor: Floor, given: int | None, known: bool, lint: str) -> DataRequirement:
    if given is None:
        verdict = "unknown" if known else "missing"
    else:
        verdict = "too_little" if given < floor.below else "thin" if given < floor.warn else "ok"
    return DataRequirement.model_validate(
        {
            "need": name,
            "unit": unit,
            "floor": floor.below,
            "comfortable": floor.comfortable,
            "given": given,
            "verdict": verdict,
            "lint": lint,
        }
    )


def _lint(facts: Facts, kind: DataKind) -> str:
    path = next((d.path for d in facts.project.data or () if d.kind == kind and d.path), None)
    return f"align data check {path}" if path else ""


def assumptions(facts: Facts, limit: Thresholds, loose: Sequence[Evidence]) -> list[Assumption]:
    """Return rough numbers taken at their likeliest value, and sizes computed from other sizes."""
    quoted = [
        e for e in facts.evidence if e.vague and e.low != e.high and e.status in ("asserted", "planned") and e.quote
    ]
    rough = [e for e in quoted if e.field.startswith("data.") or e is facts.why(e.field)]
    listed = [
        Assumption(
            fact=f"{e.field} = {e.value:g}",
            why=f"“{e.quote}” may mean {e.low or 0:g} to {e.high or e.value:g}",
            effect="the answer depends on it" if e in loose else "changes sizes and times, not the answer",
        )
        for e in rough
        if isinstance(e.value, int | float)
    ]
    for data in facts.project.data or ():
        if data.kind == "corpus" and data.size.tokens is None and (count := tokens(data, limit)) is not None:
            by_bytes = data.size.bytes is not None
            why = (
                f"{limit.bytes_per_token:g} bytes a token"
                if by_bytes
                else f"{limit.tokens_per_doc:g} tokens a document"
            )
            effect = "there may be 0.8 to 1.3 times as many" if by_bytes else "there may be 0.2 to 5 times as many"
            listed.append(Assumption(fact=f"data.corpus.tokens = {count:,}", why=why, effect=effect))
    return listed


def unsteady(facts: Facts, limit: Thresholds, rules: Mapping[str, Rule], decision: Decision) -> list[Evidence]:
    """Return the rough numbers within whose bounds the answer changes."""
    rough = [e for e in facts.evidence if e.vague and e.status == "asserted" and e is facts.why(e.field)]
    rough = [e for e in rough if (e.low, e.high) != (None, None)]
    return [
        e for e in rough if any(_answer(facts, limit, rules, e, b) != decision.plan.primary for b in (e.low, e.high))
    ]


def _answer(facts: Facts, limit: Thresholds, rules: Mapping[str, Rule], e: Evidence, bound: float | None) -> str:
    value = e.value if bound is None else bound
    return decide(replace(facts, project=_with(facts.project, e.field, value)), limit, rules).plan.primary


def _with(project: Project, path: str, value: float) -> Project:
    """Return the form with another number in one field; for data, in the first data set of the kind that has one."""
    first, *rest = path.split(".")
    if first == "data" and len(rest) == 2 and rest[1] in Size.model_fields:
        held = list(project.data or ())
        at = next((i for i, d in enumerate(held) if d.kind == rest[0] and getattr(d.size, rest[1]) is not None), None)
        if at is None:
            return project
        size = held[at].size.model_copy(update={rest[1]: round(value)})
        held[at] = held[at].model_copy(update={"size": size})
        return project.model_copy(update={"data": held})
    below = getattr(project, first, None)
    present = getattr(below, rest[0], None) if len(rest) == 1 else None
    if below is None or not isinstance(present, int | float):
        return project
    return project.model_copy(update={first: below.model_copy(update={rest[0]: type(present)(value)})})
