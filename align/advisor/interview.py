"""The interview: ask for the facts that could flip the advice, the most telling first, and stop when none could."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from align.advisor.counterfactuals import NEUTRAL
from align.advisor.data_budget import denied
from align.advisor.fact_settings import suppose
from align.advisor.fact_words import DATA, clause
from align.advisor.form_fields import fields, value_at
from align.advisor.interview_questions import (
    GOAL,
    Answer,
    Choice,
    InterviewQuestion,
    answer_evidence,
    fact_evidence,
    questions,
    table,
)
from align.advisor.merge_evidence import PROSE, gather
from align.advisor.project_facts import Evidence, Facts, from_form
from align.advisor.thresholds import Thresholds
from align.schemas.advice import Advice, OtherReading
from align.schemas.project import Project, Size

MAX_QUESTIONS = 9
"""Most questions in one interview."""
SURE = 0.9
"""Least probability at which a fact that was read is not asked for."""
VAGUE = 0.7
"""Probability that a rough reading without one is right."""
READING = "reading"
"""The name of the question between two readings of the description."""
WEIGHTS = {"primary": 4, "plan": 2, "blocking": 2}
"""The parts of advice that are compared, and their weights. Other warnings and settings are no reason to ask."""

Decide = Callable[[Sequence[Evidence]], Advice]


def interview(
    evidence: Sequence[Evidence],
    decide: Decide,
    limit: Thresholds,
    answer: Callable[[InterviewQuestion], Answer],
    readings: Sequence[OtherReading] = (),
) -> list[Evidence]:
    """Ask until no answer could flip the advice, at most ``MAX_QUESTIONS`` times; return the answers as evidence.

    Deterministic: the same evidence and answers ask the same questions. ``answer`` may raise EOFError to stop.
    readings: other readings of the description, the likeliest first; it is asked about before anything else.
    """
    answered: list[Evidence] = []
    closed: set[str] = set()
    first: tuple[str, ...] = ()  # questions that the goal leaves open come first while nothing can be advised
    for _ in range(MAX_QUESTIONS):
        known = [*evidence, *answered]
        question = between_readings(known, readings) if READING not in closed else None
        question = question or next_question(known, decide, limit, closed, first)
        if question is None:
            break
        try:
            value = answer(question)
        except EOFError:
            break
        closed |= {READING, GOAL, question.field}
        if question.field == GOAL and value is not None:
            first = next(choice.asks for choice in question.choices if choice.value == value)
            closed |= {field for choice in question.choices for field in _about(choice)} - set(first)
        answered += answer_evidence(question, value)
    return answered


def _about(choice: Choice) -> Iterator[str]:
    yield from choice.asks
    yield from (field for field, _ in choice.settings)


def next_question(
    evidence: Sequence[Evidence],
    decide: Decide,
    limit: Thresholds,
    closed: Iterable[str] = (),
    first: Sequence[str] = (),
) -> InterviewQuestion | None:
    """Return the question to ask next; None where no answer to an open question could flip the advice.

    closed: questions that were asked already, by name. first: those that are asked before others while nothing can be
    advised.
    """
    listed = questions(limit)
    facts = gather(evidence)
    undecided = decide(evidence).primary == "insufficient"
    if undecided and GOAL not in closed and not _goal_known(facts, listed):
        return listed[0]
    unasked = [question for question in listed[1:] if question.field not in closed]
    open = [_of_unknown(facts, q) for q in unasked if q.settled_by is None or not _known(facts, q.settled_by)]
    preferred = [question for question in open if undecided and question.field in first]
    to_confirm = [question for question in confirmations(facts, listed) if question.field not in closed]
    return (
        most_informative(evidence, decide, preferred)
        or most_informative(evidence, decide, [*open, *to_confirm])
        or _with_another(evidence, decide, open)
    )


def _goal_known(facts: Facts, listed: Sequence[InterviewQuestion]) -> bool:
    goal, *others = listed
    named = {field for choice in goal.choices for field in _about(choice)}
    stated = {field for question in others if question.field in named for field in question.states}
    return any(_known(facts, field) for field in stated | {field for field in named if "." in field})


def _of_unknown(facts: Facts, question: InterviewQuestion) -> InterviewQuestion:
    """Return a question of several facts without those that are known."""
    if not question.several:
        return question
    open = tuple(choice for choice in question.choices if not all(_known(facts, field) for field, _ in choice.settings))
    values = tuple(choice.value for choice in open)
    return replace(question, choices=open, tried=((), *((value,) for value in values), values) if values else ())


def most_informative(
    evidence: Sequence[Evidence], decide: Decide, open: Iterable[InterviewQuestion]
) -> InterviewQuestion | None:
    """Return the question whose possible answers disagree most about the advice; None where none changes it."""
    facts, now = gather(evidence), _compared(decide(evidence))
    best, most = None, 0.0
    for question in open:
        outcomes = [_compared(decide([*evidence, *tried])) for tried in _possible(facts, question)]
        if question.confirms is None:
            apart = disagreement([now, *outcomes])
        else:
            # A fact that was read is worth a question only where the answer itself hangs on it.
            apart = disagreement([{"primary": each["primary"]} for each in (now, *outcomes)])
        if apart * question.weight > most:
            best, most = question, apart * question.weight
    return best


def _with_another(
    evidence: Sequence[Evidence], decide: Decide, open: Sequence[InterviewQuestion]
) -> InterviewQuestion | None:
    """Return the question that would flip the answer together with one other unknown fact; None where none does."""
    facts = gather(evidence)
    for together in table()["together"]:
        unknown = [field for field in together if not _known(facts, field)]
        assumed = [e for field in unknown for e in fact_evidence(field, together[field])]
        own = [question for question in open if not set(question.states) & set(together)]
        if assumed and any(set(question.states) & set(unknown) for question in open):
            # Weakest source, so that an answer that is tried beats what is assumed.
            supposed = [replace(e, source="text") for e in assumed]
            found = most_informative([*evidence, *supposed], _primary_alone(decide), own)
            if found is not None:
                return found
    return None


def _primary_alone(decide: Decide) -> Decide:
    def primary(evidence: Sequence[Evidence]) -> Advice:
        return decide(evidence).model_copy(update={"plan": [], "warnings": [], "requested": None})

    return primary


def _possible(facts: Facts, question: InterviewQuestion) -> Iterator[list[Evidence]]:
    """Yield what each answer would add to the facts. What is known already is no reason to ask."""
    for value in question.tried:
        stated = question.settings(value)
        if question.confirms is None:
            stated = [(field, one) for field, one in stated if not _known(facts, field)]
        if stated:
            yield [e for field, one in stated for e in fact_evidence(field, one)]


def disagreement(answers: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean weighted difference over all pairs of answers (0 where all agree)."""
    pairs = list(itertools.combinations(answers, 2))
    differences = (sum(WEIGHTS[key] for key in a if a[key] != b[key]) for a, b in pairs)
    return sum(differences) / max(1, len(pairs))


def _compared(advice: Advice) -> dict[str, Any]:
    return {
        "primary": advice.primary,
        "plan": [(step.stage, step.optional) for step in advice.plan],
        "blocking": sorted(advice.blocking),
    }


# What was read only probably


def confirmations(facts: Facts, listed: Sequence[InterviewQuestion]) -> Iterator[InterviewQuestion]:
    """Yield a question for each fact that was read from free words and is not sure, with the words it was read from.

    It is the field's own question where there is one, else yes or no.
    """
    own = {question.field: question for question in listed}
    for field in dict.fromkeys(e.field for e in facts.evidence if e.source in PROSE):
        value = _value(facts, field) if field in fields() else None
        e = _unsure(facts, field, value)
        deniable = isinstance(value, bool) or NEUTRAL.get(field, "null") != "null"
        if e is None or not (field in own or deniable):
            continue
        probability = VAGUE if e.probability is None else e.probability
        text = f'I read: {_clause(field, value, e.vague)} ("{e.quote}").'
        weight = 4 * probability * (1 - probability)
        if field in own:
            bounds = [bound for bound in (e.low, e.high) if bound is not None]
            tried = tuple(map(round, bounds)) or own[field].tried
            asked = replace(own[field], text=f"{text} {own[field].text}", tried=tried, weight=weight, confirms=value)
        else:
            asked = _yes_or_no(field, value, text, weight)
        yield asked


def _yes_or_no(field: str, value: Any, text: str, weight: float) -> InterviewQuestion:
    other = not value if isinstance(value, bool) else NEUTRAL[field]
    choices = (
        Choice(True, "yes", _clause(field, value), ((field, value),)),
        Choice(False, "no", _clause(field, other), ((field, other),)),
    )
    return InterviewQuestion(field, f"{text} Is that right?", choices, (False,), weight=weight, confirms=value)


def _clause(field: str, value: Any, rough: bool = False) -> str:
    """Return a fact in words; of a number of data with their kind: ``about 300 rows of labelled examples``."""
    words = clause(field, value, rough)
    kind = field.removeprefix("data.").partition(".")[0]
    sized = field.startswith("data.") and field.count(".") == 2
    return f"{words} of {DATA[kind]}" if sized else words  # type: ignore[index]


def _unsure(facts: Facts, field: str, value: Any) -> Evidence | None:
    """Return the evidence for a fact, the surest, where it was read only probably; None where it is sure or unknown."""
    if value is None:
        return None
    agreeing = [e for e in facts.evidence if e.field == field and _states(e, value)]
    # Rows of a kind of data state that there are such data.
    agreeing += [e for e in facts.evidence if e.field.startswith(f"{field}.") and value is True]
    if not agreeing or any(_sure(e) for e in agreeing):
        return None
    return max(agreeing, key=lambda e: VAGUE if e.probability is None else e.probability)


def _states(e: Evidence, value: Any) -> bool:
    return bool(e.value != value if e.status == "negated" else e.value == value)


def _sure(e: Evidence) -> bool:
    if e.source not in PROSE:
        return True
    return e.probability >= SURE if e.probability is not None else not e.vague


def _value(facts: Facts, field: str) -> Any:
    """Return the value of a field; of a kind of data, whether there are any; None where nothing is known."""
    if field.startswith("tried."):
        statements = facts.all(field)
        return field.removeprefix("tried.") in (facts.project.tried or ()) if statements else None
    if field.startswith("data."):
        kind, _, size = field.removeprefix("data.").partition(".")
        held = facts.data(kind)  # type: ignore[arg-type]
        if size:
            return getattr(held.size if size in Size.model_fields else held, size) if held is not None else None
        return True if held is not None else False if denied(facts, kind) else None  # type: ignore[arg-type]
    return value_at(facts.project, field)


def _known(facts: Facts, field: str) -> bool:
    """Return whether the field has a value already, its data are known not to exist, or are planned."""
    if field.startswith("data.") and field.count(".") == 1:
        return _value(facts, field) is not None or any(f"data.{planned.kind}" == field for planned in facts.planned)
    if field.startswith("data."):
        # The number is worth a question only once there are such data.
        return _value(facts, field) is not None or _value(facts, field.rpartition(".")[0]) is not True
    if field == "behaviour.prompt_falls_short" and facts.project.evals.baseline is not None:
        return True  # the baseline is the score of the best prompt
    return _value(facts, field) is not None


# Two readings


def between_readings(evidence: Sequence[Evidence], readings: Sequence[OtherReading]) -> InterviewQuestion | None:
    """Return the question between the description as it was read and the likeliest other reading; None without one."""
    if not readings:
        return None
    facts = gather(evidence)
    now, other = facts.project, suppose(facts, readings[0].settings).project
    as_read, otherwise = _differing(other, now), _differing(now, other)
    choices = (
        Choice("as_read", _listed(as_read), "as it was read", tuple(as_read)),
        Choice("other", _listed(otherwise), f"then {readings[0].primary} would be advised", tuple(otherwise)),
    )
    return InterviewQuestion(READING, readings[0].question, choices, ("as_read", "other"))


def _listed(settings: Iterable[tuple[str, Any]]) -> str:
    return "; ".join(_clause(field, value) for field, value in settings)


def _differing(one: Project, other: Project) -> list[tuple[str, Any]]:
    """Return the facts of the other form that the first has not; what only the first has is denied where it can be."""
    before, after = _facts_of(one), _facts_of(other)
    denied = {field: not value for field, value in before.items() if field not in after and isinstance(value, bool)}
    return [*((f, v) for f, v in after.items() if f not in before or before[f] != v), *denied.items()]


def _facts_of(project: Project) -> dict[str, Any]:
    return {e.field: not e.value if e.status == "negated" else e.value for e in from_form(project)}
