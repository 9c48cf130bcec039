"""Changes of the answer: alternatives with the settings that would flip to them, and a comparison of two advices.

Every flip that is reported was tried: the rules ran again with the setting applied to the facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from align.advisor.counterfactuals import describe, neutral, reasons_for
from align.advisor.decision import Decision, decide
from align.advisor.fact_settings import suppose
from align.advisor.predicates import ONLINE
from align.advisor.project_facts import Facts
from align.advisor.rule import Rule
from align.advisor.select import LADDER
from align.advisor.thresholds import Thresholds
from align.schemas.advice import Advice, Alternative
from align.schemas.errors import AlignError, did_you_mean

CLASSES = ("prompting", "rag", "continual_pretraining", "post_training")
OPTIONS = (*CLASSES, "sft", "dpo", "kto", "reward_model", *ONLINE, "best_of_n")
"""The values of ``--why-not``: an answer, or an algorithm within one."""


# Alternatives


@dataclass(frozen=True, slots=True)
class WhyNot:
    """The reasons for and against an option, and the least change of facts that would make it the answer."""

    option: str
    chosen: bool
    supported_by: tuple[str, ...]
    opposed_by: tuple[str, ...]
    what_if: tuple[str, ...]
    flips_if: str


def why_not(facts: Facts, limit: Thresholds, rules: Mapping[str, Rule], option: str) -> WhyNot:
    """Return the rules for and against an option (``grpo``, ``rag``), and the least change that would flip to it.

    Raises AlignError for an unknown option.
    """
    if option not in OPTIONS:
        raise AlignError(
            f"{option!r} is no option",
            did_you_mean(option, OPTIONS),
            where="--why-not (from Python AdviceCase.why_not)",
        )
    decision = decide(facts, limit, rules)
    within = option if option in CLASSES else "best_of_n" if option == "best_of_n" else "post_training"
    votes = decision.votes
    chosen = reached(decision, option)
    settings = () if chosen else flip(facts, limit, rules, option, decision)
    return WhyNot(
        option,
        chosen,
        tuple(f"{f.rule}: {f.because}" for f in votes if f.option == within and f.weight != "veto"),
        tuple(f"{f.rule}: {f.because}" for f in votes if (f.option == within) == (f.weight == "veto")),
        settings or (),
        "it is advised" if chosen else describe(settings, facts) if settings else NOTHING_NEAR,
    )


MANY = 12
"""Most settings in one change that is tried: a reader could not weigh more at a time."""
NOTHING_NEAR = "no small change of the facts makes it the better option"


def alternatives(facts: Facts, limit: Thresholds, rules: Mapping[str, Rule], decision: Decision) -> list[Alternative]:
    """Return the options that are not advised: by the number of facts that would have to change, then by cost."""
    listed = []
    for option in CLASSES:
        if option in (decision.plan.primary, *decision.plan.companions):
            continue
        settings = flip(facts, limit, rules, option, decision)
        distance = len(settings) if settings else 99
        listed.append((distance, LADDER.index(option), option, settings))
    return [
        Alternative(
            option=option,
            rank=rank,
            because=_because(decision, option),
            flips_if=describe(settings, facts) if settings else NOTHING_NEAR,
            what_if=list(settings or ()),
        )
        for rank, (_, _, option, settings) in enumerate(sorted(listed, key=lambda each: each[:2]), start=2)
    ]


def _because(decision: Decision, option: str) -> str:
    of_it = [f for f in decision.votes if f.option == option]
    against = [f.because for f in of_it if f.weight == "veto"]
    supporting = [f.because for f in of_it if f.weight != "veto"]
    if against:
        return f"ruled out: {against[0]}"
    if supporting:
        return f"{supporting[0]}; but the reasons for what is advised are stronger"
    return "no known fact supports it"


def reached(decision: Decision, option: str) -> bool:
    """Return whether an option is what is advised: the answer itself, or an algorithm among its stages."""
    return decision.plan.primary == option if option in CLASSES else option in decision.plan.stages


def flip(
    facts: Facts, limit: Thresholds, rules: Mapping[str, Rule], option: str, decision: Decision
) -> tuple[str, ...] | None:
    """Return the fewest settings found that make an option the answer, or None.

    Tries each reason for the option by itself, then together with the removal of the reasons for the present answer.
    Settings that turn out not to be needed are dropped from the first combination that works.
    """

    def works(settings: Sequence[str]) -> bool:
        return reached(decide(suppose(facts, settings), limit, rules), option)

    taken_away = neutral(facts, limit, decision, option)
    tries = [[], *reasons_for(option, facts, limit)]
    for settings in chain(tries[1:], ([*taken_away, *reason] for reason in tries)):
        if settings and len(settings) <= MANY and works(settings):
            return _least(settings, works)
    return None


def _least(settings: Sequence[str], works: Any) -> tuple[str, ...]:
    needed = list(settings)
    for setting in settings:
        without = [s for s in needed if s != setting]
        gaps = setting.startswith("data.") and setting.split("=")[0].endswith(".kind")
        if without and not gaps and works(without):
            needed = without
    return tuple(needed)


# Two advices


def compare(before: Advice, after: Advice) -> list[tuple[str, str, str]]:
    """Return the differences between two advices as (item, before, after), in the order of the advice."""
    rows = [
        ("primary", before.primary, after.primary),
        ("confidence", before.confidence, after.confidence),
        ("plan", _listed(s.stage for s in before.plan), _listed(s.stage for s in after.plan)),
        ("companions", _listed(before.companions), _listed(after.companions)),
        ("rules", _listed(r.rule for r in before.reasons), _listed(r.rule for r in after.reasons)),
        ("warnings", _listed(w.id for w in before.warnings), _listed(w.id for w in after.warnings)),
        ("missing", _listed(q.id for q in before.missing), _listed(q.id for q in after.missing)),
        ("blocking", _listed(before.blocking), _listed(after.blocking)),
    ]
    return [row for row in rows if row[1] != row[2]]


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"
