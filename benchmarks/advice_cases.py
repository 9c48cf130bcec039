"""Grade advice on the labelled descriptions of ``data/advice``, by what was read or by the labelled facts themselves.

    python -m benchmarks.advice_cases learn            # the words are read, then the rules decide
    python -m benchmarks.advice_cases learn --labels   # the rules decide on the labelled facts

The second measures the rules alone: what is wrong there, no better reading can put right.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import yaml

from align.advisor import model_parser
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Status
from align.advisor.thresholds import Thresholds
from align.api.advising import weigh
from align.schemas.advice import Advice

DATA = Path(__file__).parents[1] / "data/advice"
REPLIES = Path(__file__).parents[1] / "tests/advisor/recorded/unseen.yaml"
ROOMS = ("learn", "unseen")
GROUPS: dict[str, set[str]] = {"preference": {"dpo", "kto"}, "online_rl": {"grpo", "rloo", "ppo"}}
"""Stages as the labels name them, with the stages of a plan that each stands for."""
TRAINED = {"sft", "reward_model"}.union(*GROUPS.values())
"""Stages that are post-training."""
SIZES = ("rows", "tokens", "docs", "bytes")
STANDING: dict[str, Status] = {
    "asserted": "asserted",
    "could": "planned",
    "planned": "planned",
    "absent": "negated",
    "hearsay": "attributed",
    "past": "done",
}
"""The standing of evidence by the label's status. Another project's facts (``other``) are evidence of nothing."""


@dataclass(frozen=True, slots=True)
class Read:
    """One labelled clause: its words, the field that it states, the value, and its status."""

    quote: str
    field: str
    value: Any
    status: str


@dataclass(frozen=True, slots=True)
class Case:
    """A labelled description; the fields are those of data/advice/README.md. file: the stem of its YAML file."""

    file: str
    id: str
    lang: str
    style: str
    adversarial: tuple[str, ...]
    text: str
    primary: str
    accept: tuple[str, ...]
    combine: tuple[str, ...]
    algorithm: tuple[str, ...]
    stages: tuple[str, ...] | None
    warn: tuple[str, ...]
    must_not: tuple[str, ...]
    ask: str | None
    reads: tuple[Read, ...]


class Grade(TypedDict):
    """The grades of one advice. None: the label does not check it."""

    primary: bool
    combine: bool | None
    algorithm: bool | None
    stages: bool | None
    warn: tuple[int, int]
    """Warnings that were given of those that must be, and the number that must be."""
    forbidden: list[str]


class Summary(TypedDict):
    """Counts over many cases: (right, checked) of each part, and the number of cases with a forbidden outcome."""

    cases: int
    primary: tuple[int, int]
    combine: tuple[int, int]
    algorithm: tuple[int, int]
    stages: tuple[int, int]
    warn: tuple[int, int]
    forbidden: int


def load(room: str) -> list[Case]:
    """Return the cases of a room, ``learn`` or ``unseen``, in the order of its files."""
    return [
        _case(path.stem, body)
        for path in sorted((DATA / room).glob("*.yaml"))
        for body in yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["cases"]
    ]


def _case(file: str, body: dict[str, Any]) -> Case:
    return Case(
        file=file,
        id=body["id"],
        lang=body["lang"],
        style=body["style"],
        adversarial=tuple(body["adversarial"] or ()),
        text=body["text"],
        primary=body["primary"],
        accept=tuple(body["accept"] or ()),
        combine=tuple(body["combine"] or ()),
        algorithm=tuple(body["algorithm"] or ()),
        stages=None if body["stages"] is None else tuple(body["stages"]),
        warn=tuple(body["warn"] or ()),
        must_not=tuple(body["must_not"] or ()),
        ask=body["ask"],
        reads=tuple(Read(*each) for each in body["reads"]),
    )


# Labels as evidence


def evidence_of_labels(case: Case) -> list[Evidence]:
    """Return the labelled facts as the evidence that a perfect reader would find, each with its place in the text."""
    found = [e for read in case.reads if read.status != "other" for e in _evidence(case.text, read)]
    # "14k thumbs" and "they are all about the loading time": what is of no use is not there to learn from.
    useless = {read.field for read in case.reads if read.status == "asserted" and read.value is False}
    kinds = {name for name in useless if name.startswith("data.")}
    return [e for e in found if not any(e.field == k or e.field.startswith(f"{k}.") for k in kinds) or e.value is False]


def _evidence(text: str, read: Read) -> Iterator[Evidence]:
    start = text.find(read.quote)
    span = (start, start + len(read.quote))
    status, value = STANDING[read.status], _number(read.value)

    def found(field: str, value: Any, status: Status = "asserted") -> Evidence:
        return Evidence(field, value, status, read.quote, span, "text")

    if read.field == "goal":
        yield from (found(field, value) for field, value in _goal(value, read))
    elif read.field == "requested":
        yield from (found(*each) for each in _requested(value, status))
    elif read.field.startswith("data."):
        yield from (found(*each) for each in _data(read.field, value, status))
    elif status == "negated":
        yield found(read.field, "none" if read.field == "reward.kind" else False)
    elif status != "done":
        # A scorer or a clause that is only planned does not hold yet; of all else a plan says what is wanted.
        yield found(read.field, value, status if status == "attributed" or read.field == "reward.kind" else "asserted")


def _number(value: Any) -> Any:
    """Return a number that YAML reads as a word (``3e9``) as a number, and everything else as it is."""
    if isinstance(value, dict):
        return {unit: _number(amount) for unit, amount in value.items()}
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _goal(value: str, read: Read) -> Iterator[tuple[str, Any]]:
    if read.status in ("absent", "past"):
        if value == "knowledge":
            yield "knowledge.source", "none"
        return
    if value == "unclear" or read.status == "hearsay":
        return
    yield "task.description", read.quote
    if value == "style":
        yield "behaviour.style_or_persona", True
    if value == "domain":
        yield "task.type", "domain_model"
    if value == "knowledge":
        yield "knowledge.source", "proprietary"


def _requested(value: Any, status: Status) -> Iterator[tuple[str, Any, Status]]:
    """A method that was used is one that was tried; a model that was fine-tuned also answers since."""
    if status != "done":
        yield "requested", value, status
        return
    yield "requested", value, "tried"
    if value not in ("rag", "prompting", "best_of_n", "continual_pretraining"):
        yield "requested", value, "done"


def _data(field: str, value: Any, status: Status) -> Iterator[tuple[str, Any, Status]]:
    """Yield that there are such data, and how many: a bare number counts the kind's own unit.

    Data that are gone are not on hand.
    """
    if field.count(".") > 1:
        yield field, value, status
    elif status == "negated" or value in (False, 0):
        yield field, False, "asserted"
    elif status != "done":
        yield field, True, status
        unit = {"data.corpus": "tokens", "data.documents": "docs"}.get(field, "rows")
        sizes = value if isinstance(value, dict) else {} if value is True else {unit: value}
        for unit, amount in sizes.items():
            if unit in SIZES and isinstance(amount, int | float):
                yield f"{field}.{unit}", int(amount), status


# A model's replies


@functools.cache
def recorded_replies() -> dict[str, str]:
    """Return the recorded replies of a model to ``align.advisor.model_parser``'s prompt, by the cases' ids."""
    cases = yaml.load(REPLIES.read_text(encoding="utf-8"), yaml.CSafeLoader)
    keys = ("field", "value", "quote", "status")
    facts = {case["id"]: [dict(zip(keys, fact, strict=True)) for fact in case["facts"]] for case in cases}
    return {name: json.dumps({"facts": found}, ensure_ascii=False) for name, found in facts.items()}


def recorded_facts(case: Case) -> list[Evidence]:
    """Return the evidence of a case's recorded reply that its text confirms, as ``--parser llm`` takes it.

    Raises KeyError for a case without one: ``recorded_replies`` names those that have one.
    """
    reply = recorded_replies()[case.id]
    return model_parser.read(case.text, lambda prompt, schema: reply)[0]


# Grades


def grade(case: Case, advice: Advice) -> Grade:
    """Grade an advice by the labels of its case."""
    stages = [step.stage for step in advice.plan]
    reached = {advice.primary, *advice.companions, *stages}
    if reached & (TRAINED | {"best_of_n"}):
        reached.add("post_training")
    warned = {warning.id for warning in advice.warnings}
    banned = set(case.must_not).union(*(GROUPS.get(name, set()) for name in case.must_not))
    banned |= TRAINED if "post_training" in banned else set()
    return Grade(
        primary=advice.primary in (case.primary, *case.accept),
        combine=all(GROUPS.get(name, {name}) & reached for name in case.combine) if case.combine else None,
        algorithm=bool(set(case.algorithm) & set(stages)) if case.algorithm else None,
        stages=None if case.stages is None else _in_order(case.stages, stages),
        warn=(sum(name in warned for name in case.warn), len(case.warn)),
        forbidden=[name for name in (advice.primary, *stages) if name in banned],
    )


def _in_order(wanted: Sequence[str], stages: Sequence[str]) -> bool:
    """Return whether the wanted stages are a subsequence of a plan's."""
    rest = iter(stages)
    return all(any(stage in GROUPS.get(name, {name}) for stage in rest) for name in wanted)


def summary(grades: Sequence[Grade]) -> Summary:
    """Add up grades."""

    def count(marks: Sequence[bool | None]) -> tuple[int, int]:
        checked = [mark for mark in marks if mark is not None]
        return sum(checked), len(checked)

    return Summary(
        cases=len(grades),
        primary=count([g["primary"] for g in grades]),
        combine=count([g["combine"] for g in grades]),
        algorithm=count([g["algorithm"] for g in grades]),
        stages=count([g["stages"] for g in grades]),
        warn=(sum(g["warn"][0] for g in grades), sum(g["warn"][1] for g in grades)),
        forbidden=sum(bool(g["forbidden"]) for g in grades),
    )


def line(name: str, counts: Summary) -> str:
    """Return a summary as one line of text, shares in percent."""
    parts = {
        "primary": counts["primary"],
        "warn": counts["warn"],
        "algorithm": counts["algorithm"],
        "stages": counts["stages"],
        "combine": counts["combine"],
    }
    shares = [f"{part} {100 * right / max(checked, 1):.1f}%" for part, (right, checked) in parts.items()]
    return f"{name:12} {counts['cases']:5} cases  {'  '.join(shares)}  forbidden {counts['forbidden']}"


# The command


def advise_on_labels(case: Case, limit: Thresholds) -> Advice:
    """Return what the rules make of the labelled facts, without the search for alternatives."""
    return weigh(gather(evidence_of_labels(case)), limit, others=False)


def advise_on_words(case: Case, limit: Thresholds) -> Advice:
    """Return what the advice is when the text is read, without the search for alternatives."""
    from align.api.advising import AdviceCase
    from align.api.input_types import as_brief

    return weigh(AdviceCase.of(as_brief(case.text), limit).facts(), limit, others=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", choices=ROOMS, help="the cases to grade on")
    parser.add_argument("--labels", action="store_true", help="decide on the labelled facts instead of the words")
    chosen = parser.parse_args()
    advise, limit = advise_on_labels if chosen.labels else advise_on_words, Thresholds.load()
    cases = load(chosen.room)
    advices = [advise(case, limit) for case in cases]
    grades = [grade(case, advice) for case, advice in zip(cases, advices, strict=True)]
    print(line(chosen.room, summary(grades)))
    for name in sorted({case.file for case in cases}):
        print(line(name, summary([g for case, g in zip(cases, grades, strict=True) if case.file == name])))
    taken = Counter(
        (case.primary, advice.primary)
        for case, advice, marks in zip(cases, advices, grades, strict=True)
        if not marks["primary"]
    )
    for (wanted, given), count in taken.most_common():
        print(f"{count:5} {given} instead of {wanted}")


if __name__ == "__main__":
    main()
