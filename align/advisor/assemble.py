"""Facts, thresholds and rules -> advice. Pure: no clock, no network, no registry; equal facts give equal bytes.

Rules run twice: first without a plan, when their votes decide; then with the plan as a fact, when their warnings and
questions are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from align.advisor import default_settings, input_hashes
from align.advisor.alternatives import alternatives
from align.advisor.data_requirements import assumptions, data_requirements, unsteady
from align.advisor.decision import Decision, decide
from align.advisor.estimate.plan_fit import plan_fit
from align.advisor.eval_plan import plan_evals
from align.advisor.fact_words import quote_of, source_of, value_of
from align.advisor.first_experiment import first_experiment
from align.advisor.merge_evidence import PROSE
from align.advisor.project_facts import Conflict, Evidence, Facts
from align.advisor.requested import requested, summary
from align.advisor.rule import Ask, Rule, Vote, Warn
from align.advisor.select import run_rules
from align.advisor.thresholds import Thresholds
from align.advisor.understood import understood
from align.schemas.advice import (
    Advice,
    AdviceWarning,
    Confidence,
    Disagreement,
    OpenQuestion,
    Quote,
    Reason,
)
from align.schemas.project import Size

DECIDING = ("goal", "data", "data_kind", "data_size", "reward")
"""Questions whose answers may change the answer itself, in the order to ask them."""
HIGH, MEDIUM = 0.9, 0.7
"""Probabilities from which on the confidence is called so; by the reliability on held-out writers (docs/advise.md)."""
NOT_STATED = "(not stated)"


def advise(
    facts: Facts,
    limit: Thresholds,
    rules: Mapping[str, Rule],
    *,
    tool: str = "",
    parser: str = "rules",
    prices: Path | None = None,
    others: bool = True,
) -> Advice:
    """Return the advice for a project.

    rules: by id, as ``registry.working("rule")`` returns them. tool: align's version. parser: ``rules`` or
    ``llm:MODEL``. prices: the user's price file; without one no cost is computed. others: whether to list what was
    understood, and to search for changes that would flip to other options: these take longer than everything else.
    Raises AlignError for a price file that cannot be read.
    """
    decision = decide(facts, limit, rules)
    training = [step for step in decision.plan.steps if not step.optional]
    tuning = default_settings.planned_tuning(facts, limit, decision.plan)
    hardware, estimate, assumed = plan_fit(facts, training, limit, tuning, prices)
    known = replace(facts, plan=replace(decision.plan, hardware=hardware))
    outcomes = run_rules(known, limit, rules)
    asked = _questions(outcomes.questions)
    loose = unsteady(facts, limit, rules, decision)
    probability = _probability(facts, decision)
    return Advice(
        schema="align.advice/1",
        primary=decision.plan.primary,
        confidence=_confidence(facts, decision, probability, asked, loose),
        probability=probability,
        other_readings=list(facts.reading.others) if facts.reading and probability is not None else [],
        understood=understood(facts) if others else [],
        summary=summary(facts, decision),
        plan=list(decision.plan.steps),
        companions=list(decision.plan.companions),
        first_try=first_experiment(facts, limit, decision.plan),
        alternatives=alternatives(facts, limit, rules, decision) if others else [],
        reasons=[_reason(facts, vote) for vote in _ordered(decision)],
        assumptions=[*assumptions(facts, limit, loose), *assumed],
        missing=asked,
        data=data_requirements(facts, limit, decision.plan),
        algorithms=default_settings.algorithms(facts, limit, decision.plan, hardware),
        hardware=hardware,
        estimate=estimate,
        warnings=_warned(facts, outcomes.warnings),
        evals=plan_evals(facts, limit, decision.plan),
        requested=requested(facts, decision),
        conflicts=[_disagreement(conflict) for conflict in facts.conflicts],
        not_understood=[*_unsupported(facts, parser), *facts.rejected, *decision.failed],
        provenance=input_hashes.hash_inputs(facts, limit, rules, tool, parser),
    )


def _ordered(decision: Decision) -> list[Vote]:
    """Sort votes: those for the advised options by weight, then all others, vetoes last."""
    options = decision.choice.options
    weight = ("hard", "soft", "veto")

    def place(vote: Vote) -> tuple[int, int, int, str]:
        advised = vote.option in options and vote.weight != "veto"
        at = options.index(vote.option) if advised else len(options)
        return (not advised, at, weight.index(vote.weight), vote.rule)

    return sorted(decision.votes, key=place)


def _reason(facts: Facts, vote: Vote) -> Reason:
    return Reason(
        rule=vote.rule,
        rubric=vote.rubric,
        option=vote.option,
        weight=vote.weight,
        because=vote.because,
        quotes=_quotes(facts, vote.fields) or [Quote(fact="nothing", quote=NOT_STATED, source="description")],
        flips_if=vote.flips_if,
    )


def _quotes(facts: Facts, fields: Sequence[str]) -> list[Quote]:
    """Return the quotes behind fields: the strongest evidence of each, and of a data set every size that is given."""
    found: list[Evidence] = []
    for name in fields:
        quoted = [e for e in facts.all(name) if e.quote]
        if name.startswith("data.") and name.count(".") == 1:
            quoted = [e for e in quoted if e.field == name or e.field.rpartition(".")[2] in Size.model_fields]
        counted = [e for e in quoted if e.status in ("asserted", "negated", "done", "tried")] or quoted
        strongest = {e.field: e for e in reversed(counted)}
        found += [e for e in counted if strongest[e.field] is e and not any(e is other for other in found)]
    return [quote_of(e) for e in found]


def _disagreement(conflict: Conflict) -> Disagreement:
    taken, dropped = _describe(conflict.taken), _describe(conflict.dropped)
    if conflict.dropped.field != conflict.field:
        dropped = f"{conflict.dropped.field} = {dropped}"
    return Disagreement(fact=conflict.field, taken=taken, dropped=dropped)


def _describe(e: Evidence) -> str:
    source = f"{source_of(e)}: {e.quote}" if e.quote else source_of(e)
    return f"{value_of(e)} ({source})"


def _questions(found: Sequence[Ask]) -> list[OpenQuestion]:
    """One question for each id, deciding ones first."""
    order = [*DECIDING, *(ask.id for ask in found)]
    first = {ask.id: ask for ask in reversed(found)}
    return [
        OpenQuestion(id=ask.id, field=ask.field, question=ask.question, would_change=ask.would_change)
        for ask in sorted(first.values(), key=lambda ask: order.index(ask.id))
    ]


def _warned(facts: Facts, found: Sequence[Warn]) -> list[AdviceWarning]:
    """One warning for each id, the graver of two; errors first."""
    grave = ("error", "warning", "note")
    graver = sorted(found, key=lambda w: (grave.index(w.level), w.id, w.rule))
    first = {w.id: w for w in reversed(graver)}
    return [
        AdviceWarning(id=w.id, level=w.level, text=w.text, rule=w.rule, quotes=_quotes(facts, w.fields))
        for w in graver
        if first[w.id] is w
    ]


def _confidence(
    facts: Facts,
    decision: Decision,
    probability: float | None,
    asked: Sequence[OpenQuestion],
    loose: Sequence[Evidence],
) -> Confidence:
    """Return the confidence: by the probability where free words decide, else by the votes.

    By the votes it is high for undisputed hard ones, medium for soft or disputed ones, low where an answer may flip it.
    """
    if probability is not None:
        sure = probability >= HIGH and not facts.rejected and not _doubtful(facts, decision)
        return "high" if sure else "medium" if probability >= MEDIUM else "low"
    if decision.plan.primary == "insufficient" or loose:
        return "low"
    resting = {name for f in decision.votes if f.option == decision.choice.option for name in f.fields}
    disputed = any(c.field == name or c.field.startswith(f"{name}.") for c in facts.conflicts for name in resting)
    if decision.choice.weight == "hard":
        return "medium" if disputed or facts.rejected else "high"
    return "low" if disputed or any(q.id in DECIDING for q in asked) else "medium"


def _probability(facts: Facts, decision: Decision) -> float | None:
    """Return the probability of the answer where it rests on free words alone, else None."""
    reading = facts.reading
    if reading is None or reading.primary != decision.plan.primary:
        return None
    resting = [e for vote in decision.votes for name in vote.fields for e in facts.all(name)]
    if any(e.source not in PROSE for e in resting):
        return None
    return round(reading.probability[reading.primary], 3)


def _doubtful(facts: Facts, decision: Decision) -> bool:
    """Return whether the words as a whole make a stage improbable, or the answer rests on guesses alone."""
    if facts.reading is None:
        return False
    votes = (vote for vote in decision.votes if vote.option == decision.choice.option and vote.weight != "veto")
    resting = [e for vote in votes for name in vote.fields for e in facts.all(name)]
    guessed = bool(resting) and all(e.guess for e in resting)
    return guessed or not facts.reading.doubtful.isdisjoint(decision.plan.stages)


def _unsupported(facts: Facts, parser: str) -> list[str]:
    also = " (--parser llm reads any)" if parser == "rules" else ""
    taken = "only its numbers were" if parser == "rules" else "in addition to its numbers only what the model found was"
    return [
        f"the language {name.removesuffix('?')!r} is not read: {taken} taken from the description{also}"
        for name in facts.languages
        if name.endswith("?")
    ]
