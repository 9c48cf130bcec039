"""The questions of the interview: their words and choices, parsed answers, and answers as evidence."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from align.advisor.form_fields import fields
from align.advisor.project_facts import Evidence
from align.advisor.thresholds import Floor, Thresholds
from align.schemas.errors import AlignError, Problem, did_you_mean

GOAL = "goal"
"""The name of the opening question."""

Answer = Any
"""A value of a choice, a tuple of them where several may be taken, a number; None for unknown, always possible."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One possible answer. value: given back as the answer. words, example: for people.

    settings: the facts that it states, by field of the form. asks: of the goal's, the fields that remain open.
    """

    value: Any
    words: str
    example: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    asks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InterviewQuestion:
    """A question of the interview.

    field: a field of the form, or the question's own name where an answer states several facts (``prompt``).
    text: in plain words. choices: the possible answers; empty for a number. example: of a number as one types it.
    several: any number of choices may be taken; the facts of the others are false. tried: answers whose effect on the
    advice ranks the question. weight: how likely an answer is to be news, 0 to 1. confirms: the answer as it was read,
    where the question confirms a reading. settled_by: a field that makes the question needless once it is known.
    """

    field: str
    text: str
    choices: tuple[Choice, ...] = ()
    tried: tuple[Any, ...] = ()
    example: str = ""
    several: bool = False
    weight: float = 1.0
    confirms: Any = None
    settled_by: str | None = None

    @property
    def states(self) -> tuple[str, ...]:
        """The fields of the form that answers state."""
        stated = dict.fromkeys(field for choice in self.choices for field, _ in choice.settings)
        return tuple(stated) or (self.field,)

    def settings(self, value: Answer) -> list[tuple[str, Any]]:
        """Return the facts that an answer other than unknown states, as (field, value)."""
        if self.several:
            taken = {setting for choice in self.choices if choice.value in value for setting in choice.settings}
            return [(field, (field, True) in taken) for choice in self.choices for field, _ in choice.settings]
        chosen = next((choice for choice in self.choices if choice.value == value), None)
        if chosen is not None and (chosen.settings or self.states != (self.field,)):
            return list(chosen.settings)
        return [(self.field, value)]


def questions(limit: Thresholds) -> list[InterviewQuestion]:
    """Return all questions, in the order that breaks ties; the goal's is the first."""
    return [_question(raw, limit) for raw in table()["questions"]]


def _question(raw: Mapping[str, Any], limit: Thresholds) -> InterviewQuestion:
    choices = tuple(
        Choice(
            value,
            given["words"],
            given["example"],
            tuple(given.get("set", {}).items()),
            tuple(given.get("asks", ())),
        )
        for value, given in raw.get("choices", {}).items()
    )
    several = raw.get("several", False)
    values = tuple(choice.value for choice in choices)
    numbers = sorted({*raw.get("try", ()), *_around(raw.get("at", ()), limit)})
    tried = ((), *((value,) for value in values), values) if several else values or tuple(numbers)
    return InterviewQuestion(
        raw["field"],
        raw["ask"],
        choices,
        tried,
        example=raw.get("example", ""),
        several=several,
        weight=raw.get("weight", 1.0),
        settled_by=raw.get("settled_by"),
    )


def _around(names: Iterable[str], limit: Thresholds) -> Iterator[int]:
    """Yield numbers on both sides of a threshold."""
    for name in names:
        threshold = getattr(limit, name)
        if isinstance(threshold, Floor):
            yield from (0, max(1, threshold.below - 1), threshold.below, threshold.warn, threshold.comfortable)
        else:
            yield from (threshold - 1, threshold, threshold + 1)


# Answers as evidence


def answer_evidence(question: InterviewQuestion, value: Answer) -> list[Evidence]:
    """Turn an answer into evidence; unknown is none."""
    if value is None:
        return []
    words = f"{question.text} {_written(question, value)}"
    return [e for field, stated in question.settings(value) for e in fact_evidence(field, stated, words)]


def fact_evidence(field: str, value: Any, quote: str = "") -> list[Evidence]:
    """Return a fact as an answer's evidence; 0 rows of a kind of data mean that there are none."""
    if field.startswith("data.") and field.count(".") == 2:
        held = field.rpartition(".")[0]
        there = Evidence(held, value != 0, quote=quote, source="answer", place="answers")
        return [there, Evidence(field, value, quote=quote, source="answer", place="answers")] if value else [there]
    return [Evidence(field, value, quote=quote, source="answer", place="answers")]


def _written(question: InterviewQuestion, value: Answer) -> str:
    words = {choice.value: choice.words for choice in question.choices}
    if question.several:
        return ", ".join(words[one] for one in value) or "none of them"
    if question.choices:
        return words.get(value, str(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


# Answers as they are typed


def parse_answer(question: InterviewQuestion, words: str) -> tuple[Answer, str]:
    """Parse a typed answer: (value, "") or (None, fault). Empty, ``?`` and ``unknown`` give (None, "").

    Choices are given by number or by name, several with commas between them, and 0 for none of several.
    """
    word = words.strip().lower()
    if word in ("", "?", "unknown"):
        return None, ""
    if question.several:
        return _parse_several(question, word)
    if question.choices:
        found = _by_name(question).get(word.replace(" ", "_"))
        return found, "" if found is not None else f"one of: {', '.join(_names(question))}; or its number"
    number = re.fullmatch(r"(\d{1,18}(?:\.\d+)?|\d{1,3}(?:,\d{3}){1,5})\s*([kmb]?)", word)
    if number is None:
        return None, "a number: 27, 14000, 14k, 2.5b"
    value = float(number[1].replace(",", "")) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[number[2]]
    whole = round(value) if value == round(value) else value
    fault = fields()[question.field].fault(whole)
    return (None, fault) if fault else (whole, "")


def _parse_several(question: InterviewQuestion, word: str) -> tuple[Answer, str]:
    if word in ("0", "none"):
        return (), ""
    by_name = _by_name(question)
    found = [by_name.get(name) for name in re.findall(r"\w+", word)]
    if not found or None in found:
        return None, f"some of: {', '.join(_names(question))}; or their numbers, as 1,3; 0 for none of them"
    return tuple(dict.fromkeys(found)), ""


def _names(question: InterviewQuestion) -> list[str]:
    return [{True: "yes", False: "no"}.get(choice.value, str(choice.value)) for choice in question.choices]


def _by_name(question: InterviewQuestion) -> dict[str, Any]:
    values = [choice.value for choice in question.choices]
    named = dict(zip(_names(question), values, strict=True))
    short = {"y": True, "n": False} if values == [True, False] else {}
    return {str(number): value for number, value in enumerate(values, 1)} | short | named


# Answers in a file


def read_answers(values: Any, where: str, limit: Thresholds) -> list[Evidence]:
    """Return the answers of a file, ``NAME: VALUE`` each, null for unknown. Raises AlignError with all faults.

    A name is a question's or a field of the form; of questions with several answers the value is a list.
    """
    if not isinstance(values, dict):
        raise AlignError("is not a mapping of fields to answers", "write behaviour.rules_count: 27", where=where)
    named = {question.field: question for question in questions(limit)}
    problems, found = [], list[Evidence]()
    for field, value in values.items():
        question = named.get(field)
        if question is None and field in fields():
            question = InterviewQuestion(field, f"{field}:")
        if question is None:
            problems.append(
                Problem(f"{where}: {field}", "is no question", did_you_mean(str(field), {*named, *fields()}))
            )
        elif value is not None and (fault := _fault(question, value)):
            problems.append(Problem(f"{where}: {field}", f"is {value!r}", fault))
        elif value is not None:
            found += answer_evidence(question, tuple(value) if question.several else value)
    if problems:
        raise AlignError.gather(problems)
    return found


def _fault(question: InterviewQuestion, value: Any) -> str:
    """Return the fault of an answer in a file; "" where it has none."""
    values = [str(choice.value) for choice in question.choices]
    if question.several:
        wrong = value if not isinstance(value, list) else [one for one in value if one not in values]
        return f"write a list of some of: {', '.join(values)}" if wrong or not isinstance(value, list) else ""
    if question.field in fields():
        return fields()[question.field].fault(value)
    return "" if value in values else did_you_mean(str(value), values)


@functools.cache
def table() -> dict[str, Any]:
    """Return the table of questions, as ``questions.yaml`` has it."""
    read: dict[str, Any] = yaml.load((files("align.advisor") / "questions.yaml").read_text("utf-8"), yaml.CSafeLoader)
    return read
