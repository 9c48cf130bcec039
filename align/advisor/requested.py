"""The method requested against the method advised, and the answer in a sentence."""

from __future__ import annotations

import itertools

from align.advisor.decision import Decision
from align.advisor.fact_words import METHODS
from align.advisor.predicates import DATA_OF, FITS_WEIGHTS, ONLINE, requested_by_user
from align.advisor.project_facts import Facts
from align.schemas.advice import Requested


def requested(facts: Facts, decision: Decision) -> Requested | None:
    """Return the request against the advice, and whether a difference stops a launch; None without a request.

    It does where the user's own request is ruled out, has no data, or another option has a hard vote.
    """
    wanted = facts.project.requested
    if wanted is None:
        return None
    stages = decision.plan.stages
    advised = ", then ".join(dict.fromkeys(stages)) or "first settling what is not known"
    if _met(wanted, decision):
        return Requested(
            requested=wanted, recommended=advised, agrees=True, blocking=False, because="the facts support it as well"
        )
    option = wanted if wanted in ("prompting", "rag", "continual_pretraining", "best_of_n") else "post_training"
    against = [f for f in decision.votes if f.option == option and f.weight == "veto"]
    instead = [f for f in decision.votes if f.option == decision.choice.option and f.weight != "veto"]
    unfed = wanted in DATA_OF and not facts.coming(DATA_OF[wanted])
    differs = bool(against or unfed or decision.choice.weight == "hard")
    blocking = differs and wanted != "prompting" and requested_by_user(facts)
    reasons = [*against, *sorted(instead, key=lambda f: (f.weight != "hard", f.rule))]
    because = reasons[0].because if reasons else "no known fact supports it"
    return Requested(requested=wanted, recommended=advised, agrees=False, blocking=blocking, because=because)


def _met(wanted: str, decision: Decision) -> bool:
    plan = decision.plan
    if wanted == "rlhf":
        return any(stage in (*ONLINE, "reward_model") for stage in plan.stages)
    return wanted in plan.stages or wanted in (plan.primary, *plan.companions)


def summary(facts: Facts, decision: Decision) -> str:
    """Return the answer and the first reason for it, in a sentence or two."""
    plan, choice = decision.plan, decision.choice
    supporting = [f for f in decision.votes if f.option == choice.option and f.weight != "veto"]
    supporting = sorted(supporting, key=lambda f: (f.weight != "hard", f.rule))
    because = supporting[0].because if supporting else "no known fact supports any option"
    if plan.primary == "insufficient":
        return f"Not enough is known to advise anything: {because}."
    steps = list(dict.fromkeys(step.stage for step in plan.steps if not step.optional))
    before = list(itertools.takewhile(lambda stage: stage not in FITS_WEIGHTS, steps))
    parts = {
        "Start without training": before,
        "Then train" if before else "Training is the answer": steps[len(before) :],
    }
    sentences = [
        f"{lead}: {', then '.join(METHODS[stage] for stage in stages)}. " for lead, stages in parts.items() if stages
    ]
    return f"{''.join(sentences)}{because[:1].upper()}{because[1:]}."
