"""The accuracy of `align advise` on descriptions that nobody tuned it on, its calibration, and what each part adds.

    python -m benchmarks.advice            # writes benchmarks/results/advice.json, prints the tables of docs/advise.md
    python -m benchmarks.advice --tables   # prints the tables of the results that are there

Two parts of the results are kept as they are, since they need other code: ``before``, by the commit it names, and
``lexicon``, what each group of phrases is worth once all that combines the two readers is fitted anew without it.

Measured are the 330 descriptions of ``data/advice/unseen``, and for comparison the 90 of
``tests/advisor/cases/held_out.yaml``. The intervals are Wilson's, 95 %, and treat descriptions as independent.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence
from align.advisor.reading import arbitration
from align.advisor.reading.answers import answer_inputs
from align.advisor.reading.linear import weights
from align.advisor.text import Extraction, read
from align.advisor.thresholds import Thresholds
from align.api.advising import AdviceCase, weigh
from align.api.input_types import as_brief
from align.core.evaluation.statistics import wilson
from align.schemas.advice import Advice
from benchmarks.advice_cases import (
    Case,
    Grade,
    advise_on_words,
    evidence_of_labels,
    grade,
    load,
    recorded_facts,
    recorded_replies,
    summary,
)
from tests.advisor import grading

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/advice.json"
HELD_OUT = ROOT / "tests/advisor/cases/held_out.yaml"
LIMIT = Thresholds.load()
PARTS = ("primary", "warn", "algorithm", "stages", "combine")
BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
LENGTHS = (200, 600, 1500)
"""Characters at which one group of lengths ends and the next begins."""
Advise = Callable[[Case], Advice]


# Ways to read


def by_both(case: Case) -> Advice:
    """Return the advice as `align advise` gives it, without the search for alternatives."""
    return advise_on_words(case, LIMIT)


def by_lexicon(case: Case) -> Advice:
    """Return the advice on what the lexicon reads."""
    return _on(read(case.text).evidence)


def by_learned(case: Case) -> Advice:
    """Return the advice on what the learned reader reads without the lexicon's evidence and the votes that it leads to.

    Where the shipped weights have a place for those, they get their mean over the texts to learn from.
    """
    with _without_lexicon():
        return by_both(case)


def by_facts(case: Case) -> Advice:
    """Return the advice on the facts that are likely by themselves, whatever answer they lead to."""
    alone = {"OF_ANSWER": 0.0, "OF_PARTS": 0.0, "NEARLY": float("inf")}
    with mock.patch.multiple(arbitration, **alone):
        return by_both(case)


def by_both_and_model(case: Case) -> Advice:
    """Return the advice on what both readers and a language model read, by its recorded reply."""
    return weigh(AdviceCase.of(as_brief(case.text), LIMIT, recorded_facts(case)).facts(), LIMIT, others=False)


def by_model(case: Case) -> Advice:
    """Return the advice on what a language model reads alone, by its recorded reply."""
    return _on(recorded_facts(case))


def by_labels(case: Case) -> Advice:
    """Return the advice on the labelled facts: what the rules alone get wrong."""
    return _on(evidence_of_labels(case))


def _on(evidence: Sequence[Evidence]) -> Advice:
    return weigh(gather(evidence), LIMIT, others=False)


@contextmanager
def _without_lexicon() -> Iterator[None]:
    """Make the learned reader read alone."""

    def nothing(text: str) -> Extraction:
        return replace(read(text), evidence=[])

    def inputs(scored: Any, primary: str, voted: Iterable[str], votes: Sequence[str]) -> Any:
        """Return the inputs of the answers with the mean in place of what the lexicon decides."""
        found = answer_inputs(scored, primary, voted, votes)
        learned = len(scored.text) + len(scored.best_sentence) + 2 * len(scored.best_number)
        return np.concatenate([found[:learned], weights().combined["mean"][learned:]])

    with ExitStack() as stack:
        stack.enter_context(mock.patch("align.advisor.reading.read", nothing))
        stack.enter_context(mock.patch("align.advisor.reading.answer_inputs", inputs))
        yield


# Figures


def share(right: int, checked: int) -> dict[str, Any]:
    """Return a share in percent with its interval."""
    if not checked:
        return {"right": 0, "of": 0}
    low, high = (round(100 * end, 1) for end in wilson(right, checked))
    return {"right": right, "of": checked, "percent": round(100 * right / checked, 1), "low": low, "high": high}


def figures(grades: Sequence[Grade]) -> dict[str, Any]:
    """Return the figures of some graded advice."""
    counts = summary(grades)
    return {
        "cases": counts["cases"],
        **{part: share(*counts[part]) for part in PARTS},  # type: ignore[literal-required]
        "forbidden": counts["forbidden"],
    }


def by_group(cases: Sequence[Case], grades: Sequence[Grade], groups_of: Callable[[Case], Sequence[str]]) -> Any:
    """Return the figures of each group of cases; a case may be in several."""
    members: dict[str, list[Grade]] = {}
    for case, marks in zip(cases, grades, strict=True):
        for name in groups_of(case):
            members.setdefault(name, []).append(marks)
    return {name: figures(members[name]) for name in sorted(members)}


def length(case: Case) -> list[str]:
    """Return the group of a case's length, in characters."""
    below = [f"below {end}" for end in LENGTHS if len(case.text) < end]
    return [below[0] if below else f"from {LENGTHS[-1]}"]


def confidence(advices: Sequence[Advice], grades: Sequence[Grade]) -> dict[str, Any]:
    """Return how often each confidence is given, how often it is right, and with how many forbidden outcomes."""
    given = {}
    for level in ("high", "medium", "low"):
        marks = [g for advice, g in zip(advices, grades, strict=True) if advice.confidence == level]
        right = share(sum(g["primary"] for g in marks), len(marks))
        given[level] = {**right, "forbidden": sum(bool(g["forbidden"]) for g in marks)}
    return given


def reliability(advices: Sequence[Advice], grades: Sequence[Grade]) -> list[dict[str, Any]]:
    """Return for each bin of the probability its mean, and the share that was right."""
    pairs = list(zip(advices, grades, strict=True))
    known = [(advice.probability, marks["primary"]) for advice, marks in pairs if advice.probability is not None]
    rows = []
    for low, high in itertools.pairwise(BINS):
        inside = [one for one in known if low <= one[0] < high or one[0] == high == 1.0]
        mean = round(100 * sum(p for p, _ in inside) / len(inside), 1) if inside else None
        rows.append({"from": low, "to": high, "mean": mean, **share(sum(right for _, right in inside), len(inside))})
    return rows


def unseen(cases: Sequence[Case], pool: Executor) -> tuple[dict[str, Any], list[Grade]]:
    """Return all figures on the unseen cases, and their grades."""
    advices = list(pool.map(by_both, cases))
    grades = [grade(case, advice) for case, advice in zip(cases, advices, strict=True)]
    found = {
        **figures(grades),
        "confidence": confidence(advices, grades),
        "reliability": reliability(advices, grades),
        "language": by_group(cases, grades, lambda case: [case.lang]),
        "style": by_group(cases, grades, lambda case: [case.style]),
        "adversarial": by_group(cases, grades, lambda case: case.adversarial or ("none",)),
        "adversarial or not": by_group(cases, grades, lambda case: ["yes" if case.adversarial else "no"]),
        "characters": by_group(cases, grades, length),
        "wrong": _wrong(cases, advices, grades),
    }
    return found, grades


def _wrong(cases: Sequence[Case], advices: Sequence[Advice], grades: Sequence[Grade]) -> Any:
    """Return the cases whose primary answer is wrong or that have a forbidden outcome."""
    return {
        case.id: {
            "wanted": case.primary,
            "given": advice.primary,
            "confidence": advice.confidence,
            "probability": advice.probability,
            "forbidden": marks["forbidden"],
        }
        for case, advice, marks in zip(cases, advices, grades, strict=True)
        if marks["forbidden"] or not marks["primary"]
    }


def held_out() -> dict[str, Any]:
    """Return the figures on the project's older held-out cases, which have labels of another form."""
    cases = [case for case in grading.cases(HELD_OUT) if case["kind"] == "prose"]
    right: dict[str, int] = dict.fromkeys(PARTS, 0)
    checked, forbidden, levels = dict(right), 0, dict[str, list[bool]]()
    names = {"primary": "primary", "algorithm": "algorithm", "stages": "pipeline", "combine": "combine"}
    for case in cases:
        facts = AdviceCase.of(as_brief(case["description"]), LIMIT).facts()
        advice = weigh(facts, LIMIT, others=False)
        missed, want = grading.grade_advice(case, advice), case["expected"]
        for part, name in names.items():
            wanted = bool(want[name])
            checked[part] += wanted
            right[part] += wanted and name not in missed
        checked["warn"] += len(want["must_warn"])
        right["warn"] += len(want["must_warn"]) - len(missed.get("must_warn", []))
        forbidden += "must_not" in missed
        levels.setdefault(advice.confidence, []).append("primary" not in missed)
    return {
        "cases": len(cases),
        **{part: share(right[part], checked[part]) for part in PARTS},
        "forbidden": forbidden,
        "confidence": {name: share(sum(marks), len(marks)) for name, marks in sorted(levels.items())},
    }


def ablation(cases: Sequence[Case], both: Sequence[Grade], pool: Executor) -> dict[str, Any]:
    """Return the figures of other ways to read, on all cases and on those with a model's recorded reply."""

    def graded(way: Advise, some: Sequence[Case]) -> list[Grade]:
        return [grade(case, advice) for case, advice in zip(some, pool.map(way, some), strict=True)]

    ways = {"lexicon alone": by_lexicon, "learned alone": by_learned, "facts without the answer they lead to": by_facts}
    on_all = {**{name: graded(way, cases) for name, way in ways.items()}, "both": both}
    replies = recorded_replies()
    recorded = [case for case in cases if case.id in replies]
    on_recorded = {
        name: [marks for case, marks in zip(cases, every, strict=True) if case.id in replies]
        for name, every in on_all.items()
    }
    of_model = {"both and the model": by_both_and_model, "the model alone": by_model, "the labels": by_labels}
    on_recorded |= {name: graded(way, recorded) for name, way in of_model.items()}
    return {
        "all": {name: figures(grades) for name, grades in on_all.items()},
        "with a recorded reply": {name: figures(grades) for name, grades in on_recorded.items()},
    }


# Tables


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the tables of docs/advise.md, by what they show."""
    now, before, old = result["unseen"], result["before"], result["held_out"]
    names = ("answer", "warnings", "method", "stages", "forbidden")
    accuracy = [
        (f"{before['cases']} unseen, before there was a learned reader", *_cells(before)),
        (f"**{now['cases']} unseen, now**", *_cells(now)),
        (f"{old['cases']} held out, older", *_cells(old)),
    ]
    groups = [
        (title, each["cases"], _percent(before[kind][name]["primary"]), *_cells(each))
        for kind, titles in TITLES.items()
        for name, title in titles.items()
        for each in [now[kind][name]]
    ]
    levels = [
        (level, each["of"], f"{100 * each['of'] / now['cases']:.0f} %", _interval(each), each["forbidden"])
        for level, each in now["confidence"].items()
    ]
    bins = [
        (f"{row['from']:.2f} to {row['to']:.2f}", row["of"], f"{row['mean']} %", _interval(row))
        for row in now["reliability"]
        if row["of"]
    ]
    ways = [
        (f"{name}, {each['cases']} cases", *_cells(each))
        for part in result["ablation"].values()
        for name, each in part.items()
    ]
    lexicon = [
        (f"`{row['without']}`" if row["without"] else "none", *(f"{row[room]['primary']} %" for room in LEARNED))
        for row in _notable(result["lexicon"]["groups"])
    ]
    return {
        "accuracy": _table(("descriptions", *names), accuracy),
        "groups": _table(("of the unseen", "cases", "answer before", *names), groups),
        "confidence": _table(("confidence", "cases", "share", "answer right", "forbidden outcomes"), levels),
        "reliability": _table(("probability given", "cases", "its mean", "answer right"), bins),
        "ablation": _table(("read by", *names), ways),
        "lexicon": _table(("phrases left out", "answer right on texts to learn from", "on the unseen"), lexicon),
    }


TITLES = {
    "language": {"en": "English", "de": "German", "es": "Spanish", "zh": "Chinese"},
    "adversarial or not": {"yes": "adversarial", "no": "not adversarial"},
    "characters": {
        "below 200": "below 200 characters",
        "below 600": "200 to 599 characters",
        "below 1500": "600 to 1,499 characters",
        "from 1500": "1,500 characters and more",
    },
}
"""Groups of the table, by what they are grouped by and in their order."""


def _notable(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first row, without any loss, and those that lose most on the texts to learn from."""
    return [rows[0], *sorted(rows[1:], key=lambda row: [row[room]["primary"] for room in LEARNED])[:NOTABLE]]


LEARNED = ("learn", "unseen")
NOTABLE = 8
"""Groups of phrases in the table."""


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    return (*(_interval(found[part]) for part in PARTS[:-1]), str(found["forbidden"]))


def _interval(one: dict[str, Any]) -> str:
    return f"{one['percent']} % ({one['low']}-{one['high']})" if one["of"] else "-"


def _percent(one: dict[str, Any]) -> str:
    return f"{one['percent']} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


# The command


def measured() -> dict[str, Any]:
    """Return all results, with those that are kept."""
    kept = json.loads(RESULT.read_text())
    cases = load("unseen")
    with ProcessPoolExecutor() as pool:
        found, grades = unseen(cases, pool)
        others = ablation(cases, grades, pool)
    return {
        "command": "python -m benchmarks.advice",
        "date": datetime.now(UTC).date().isoformat(),
        "weights": weights().hash,
        "texts learned from": weights().about["texts"],
        "unseen": found,
        "held_out": held_out(),
        "ablation": others,
        "before": kept["before"],
        "lexicon": kept["lexicon"],
    }


def main() -> None:
    """Measure, write the results and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="measure nothing; print the tables of the results")
    if not parser.parse_args().tables:
        RESULT.write_text(json.dumps(measured(), indent=1, ensure_ascii=False) + "\n")
    for name, table in tables(json.loads(RESULT.read_text())).items():
        print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    main()
