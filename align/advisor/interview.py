"""The interview: ask for the facts that could change the advice most, and stop when none could."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, get_args

import yaml

from align.advisor.form_fields import fields
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Facts
from align.advisor.thresholds import Floor, Thresholds
from align.schemas.advice import Advice
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.project import DataKind

MAX_QUESTIONS = 9
"""Most questions in one interview."""

GOAL = "goal"
"""The field of the opening question; no field of the form."""

Decide = Callable[[Sequence[Evidence]], Advice]
Answer = Any
"""A value of the field, or None for unknown, which is always possible."""


@dataclass(frozen=True, slots=True)
class InterviewQuestion:
    """A question about one field.

    choices: the possible answers; empty for numbers. tried: values whose effect on the advice ranks the question.
    """

    field: str
    text: str
    choices: tuple[Any, ...]
    tried: tuple[Any, ...]


def questions(limit: Thresholds) -> list[InterviewQuestion]:
    """Return all questions, in the order that breaks ties."""
    return [_question(raw, limit) for raw in _table()["questions"]]


def interview(
    evidence: Sequence[Evidence], decide: Decide, limit: Thresholds, answer: Callable[[InterviewQuestion], Answer]
) -> list[Evidence]:
    """Ask until no answer could change the advice, at most ``MOST`` times; what was answered, as evidence.

    Deterministic: the same evidence and answers ask the same questions. ``answer`` may raise EOFError to stop.
    """
    answered: list[Evidence] = []
    closed: set[str] = set()
    goal: list[str] = []  # fields of the goal: they come first while nothing can be advised
    for _ in range(MAX_QUESTIONS):
        known = [*evidence, *answered]
        question = opening(known, decide) if GOAL not in closed else None
        if question is None:
            open = [q for q in questions(limit) if q.field not in closed]
            own = [q for q in open if q.field in goal] if goal and _undecided(decide(known)) else []
            question = most_informative(known, decide, own) or most_informative(known, decide, open)
        if question is None:
            break
        try:
            value = answer(question)
        except EOFError:
            break
        closed |= {question.field, GOAL}
        if question.field == GOAL and value is not None:
            words = _table()["opening"]["words"]
            goal = words[value]["fields"]
            closed |= {field for word in words if word != value for field in words[word]["fields"]}
        answered += [] if value is None else answer_evidence(question.field, value, question.text)
    return answered


def opening(evidence: Sequence[Evidence], decide: Decide) -> InterviewQuestion | None:
    """Return the question for the goal, where the goal is unknown and nothing can be advised; else None."""
    facts, words = gather(evidence), _table()["opening"]["words"]
    known = any(_known(facts, field) for word in words.values() for field in word["fields"])
    return None if known or not _undecided(decide(evidence)) else _goal()


def _goal() -> InterviewQuestion:
    return InterviewQuestion(GOAL, _table()["opening"]["ask"], tuple(_table()["opening"]["words"]), ())


def _undecided(advice: Advice) -> bool:
    return advice.primary == "insufficient"


def most_informative(
    evidence: Sequence[Evidence], decide: Decide, open: Iterable[InterviewQuestion]
) -> InterviewQuestion | None:
    """Return the question whose possible answers disagree most about the advice; None where none changes it.

    While nothing can be advised, likely values of other fields are assumed too: a single answer changes little then.
    """
    facts, now = gather(evidence), decide(evidence)
    assumed = _scenarios(evidence, facts) if _undecided(now) else ()
    scenarios = [(scenario, _answer_of(decide(scenario))) for scenario in assumed]
    best, most = None, 0.0
    for question in open:
        if not _known(facts, question.field):
            apart = _answers_disagreement(question.field, question.tried, evidence, _answer_of(now), decide)
            extremes = (question.tried[0], question.tried[-1])
            for scenario, in_scenario in scenarios:
                apart += _answers_disagreement(question.field, extremes, scenario, in_scenario, decide)
            if apart > most:
                best, most = question, apart
    return best


def _answers_disagreement(
    field: str, values: Iterable[Any], evidence: Sequence[Evidence], unknown: Mapping[str, Any], decide: Decide
) -> float:
    """Return the disagreement of the advice over a question's possible answers, ``unknown`` included."""
    return disagreement(
        [unknown, *(_answer_of(decide([*evidence, *answer_evidence(field, value)])) for value in values)]
    )


def _scenarios(evidence: Sequence[Evidence], facts: Facts) -> Iterator[list[Evidence]]:
    """Yield the evidence with likely values of unknown fields; their source is the weakest, so that answers beat it."""
    for scenario in _table()["scenarios"]:
        settings = [answer_evidence(field, value) for field, value in scenario.items() if not _known(facts, field)]
        if settings:
            yield [*evidence, *(replace(e, source="text") for each in settings for e in each)]


def disagreement(answers: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean weighted difference over all pairs of answers (0 where all agree)."""
    pairs = list(itertools.combinations(answers, 2))
    return sum(sum(WEIGHTS[key] for key in WEIGHTS if a[key] != b[key]) for a, b in pairs) / max(1, len(pairs))


WEIGHTS = {"primary": 4, "plan": 2, "companions": 2, "blocking": 2, "strategy": 1}
"""The parts of advice that are compared, and their weights. Warnings that stop nothing are no reason to ask."""


def _answer_of(advice: Advice) -> dict[str, Any]:
    chosen = advice.hardware.chosen if advice.hardware else None
    return {
        "primary": advice.primary,
        "plan": [(step.stage, step.optional, bool(step.needs)) for step in advice.plan],
        "companions": advice.companions,
        "blocking": sorted(advice.blocking),
        "strategy": (chosen.strategy, chosen.verdict) if chosen else None,
    }


def answer_evidence(field: str, value: Any, question: str = "") -> list[Evidence]:
    """Turn an answer into evidence; 0 rows of a kind of data mean that there are none."""
    words = f"{question or field + ':'} {_written(value)}"
    if field == GOAL:
        meant = _table()["opening"]["words"][value].get("set", {})
        return [replace(e, quote=words) for key, inner in meant.items() for e in answer_evidence(key, inner)]
    head = field.rpartition(".")[0]
    if not head.startswith("data."):
        return [Evidence(field, value, quote=words, source="answer", place="answers")]
    there = Evidence(head, value != 0, quote=words, source="answer", place="answers")
    return [there, Evidence(field, value, quote=words, source="answer", place="answers")] if value else [there]


def parse_answer(question: InterviewQuestion, words: str) -> tuple[Answer, str]:
    """Parse a typed answer: (value, "") or (None, fault). Empty, ``?`` and ``unknown`` give (None, "")."""
    word = words.strip().lower().replace(" ", "_")
    if word in ("", "?", "unknown"):
        return None, ""
    if question.choices:
        named = {str(_yes_or_no(choice)): choice for choice in question.choices}
        by_number = {str(number): choice for number, choice in enumerate(question.choices, 1)}
        found = {**by_number, **named}.get({"y": "yes", "n": "no"}.get(word, word))
        return found, "" if found is not None else f"one of: {', '.join(named)}; or its number"
    number = re.fullmatch(r"(\d{1,18}(?:\.\d+)?|\d{1,3}(?:,\d{3}){1,5})([kmb]?)", word)
    if number is None:
        return None, "a number: 27, 14000, 14k, 2.5b"
    value = float(number[1].replace(",", "")) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[number[2]]
    whole = round(value) if value == round(value) else value
    fault = fields()[question.field].fault(whole)
    return (None, fault) if fault else (whole, "")


def _yes_or_no(choice: Any) -> Any:
    return {True: "yes", False: "no"}[choice] if isinstance(choice, bool) else choice


def read_answers(values: Any, where: str, limit: Thresholds) -> list[Evidence]:
    """Return the answers of a file, ``field: value`` each, null for unknown. Raises AlignError with all faults."""
    if not isinstance(values, dict):
        raise AlignError("is not a mapping of fields to answers", "write behaviour.rules_count: 27", where=where)
    goal = _goal()
    known = {question.field: question for question in (goal, *questions(limit))}
    problems, found = [], list[Evidence]()
    for field, value in values.items():
        if field not in known:
            problems.append(Problem(f"{where}: {field}", "is no question", did_you_mean(str(field), known)))
        elif field == GOAL and value not in (None, *goal.choices):
            problems.append(Problem(f"{where}: {field}", f"is {value!r}", did_you_mean(str(value), goal.choices)))
        elif field != GOAL and value is not None and (fault := fields()[field].fault(value)):
            problems.append(Problem(f"{where}: {field}", f"is {value!r}: {fault}"))
        elif value is not None:
            found += answer_evidence(field, value, known[field].text)
    if problems:
        raise AlignError.gather(problems)
    return found


def _known(facts: Facts, field: str) -> bool:
    """Return whether the field has a value already, or its data are known not to exist."""
    if field.startswith("data."):
        kind = field.split(".")[1]
        assert kind in get_args(DataKind)
        denied = any(e.field == f"data.{kind}" and not e.value for e in facts.all(f"data.{kind}", "asserted"))
        held = facts.data(kind)  # type: ignore[arg-type]
        return denied or (held is not None and getattr(held.size, field.rpartition(".")[2]) is not None)
    if field.startswith("tried."):
        return bool(facts.all(field))
    value: Any = facts.project
    for key in field.split("."):
        value = getattr(value, key)
    return value is not None


def _question(raw: Mapping[str, Any], limit: Thresholds) -> InterviewQuestion:
    of = fields()[raw["field"]]
    choices = tuple(raw.get("words", of.choices))
    numbers = sorted({*raw.get("try", ()), *_around(raw.get("at", ()), limit)})
    return InterviewQuestion(raw["field"], raw["ask"], choices, choices or tuple(numbers))


def _around(names: Iterable[str], limit: Thresholds) -> Iterator[int]:
    """Yield numbers on both sides of a threshold."""
    for name in names:
        threshold = getattr(limit, name)
        if isinstance(threshold, Floor):
            yield from (0, max(1, threshold.below - 1), threshold.below, threshold.warn, threshold.comfortable)
        else:
            yield from (threshold - 1, threshold, threshold + 1)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


@functools.cache
def _table() -> dict[str, Any]:
    read: dict[str, Any] = yaml.load((files("align.advisor") / "questions.yaml").read_text("utf-8"), yaml.CSafeLoader)
    return read
