"""The math verifier: cases judged by hand, hostile text in its own workers, and laws over random numbers.

``math_cases.jsonl`` holds gold, response and the verdict that mathematics asks for, set before the verifier was run.
"""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from align.core.rollout.reward import Answer, Place
from align.core.rollout.workers import Workers
from align.plugins.rewards.math import Math
from align.schemas.rollout import RewardChoice

CASES = [json.loads(line) for line in Path(__file__).with_name("math_cases.jsonl").read_text().splitlines()]

INTERVALS = r"\cup".join(f"({i},{i + 1})" for i in range(-300, 300))
ROWS = r"\\".join("&".join(str(i + j) for j in range(40)) for i in range(40))
IN_BOX = [
    "9^{9^{9^{9}}}",
    "1" + "0" * 1400,
    r"\sqrt{1+" * 300 + "1" + "}" * 300,
    "x\\cdot y+" * 5000 + "1",
    r"\sin(\cos(" * 60 + "x" + "))" * 60,
    rf"\begin{{pmatrix}}{ROWS}\end{{pmatrix}}",
    rf"\sqrt[3]{{{'9' * 4000}}}",
    INTERVALS,
    "{" * 700 + "1" + "}" * 700,
    "(" * 300 + "1" + ")" * 300,
    "1" + "+1-1" * 300,
    r"\overline{" * 200 + "1" + "}" * 200,
]
BOMBS = [rf"The answer is $\boxed{{{text}}}$." for text in IN_BOX] + [
    r"\boxed{" * 5000 + "1" + "}" * 5000,
    r"\boxed{" * 20_000,
    r"\boxed{1} or " * 5000 + r"\boxed{2}",
    "the answer is " * 20_000,
    "#### " * 20_000 + "1 or 2",
    "$" * 50_000 + "1",
    "=" * 30_000 + "1",
    r"\frac" * 5000,
    "<answer>" * 20_000,
    "<think>" * 10_000 + "</think>" * 10_000,
    "1" * 100_000,
    "{" * 100_000,
    r"\boxed{1}" + " " * 2_000_000,
]
GOLDS = ["1", r"\frac{1}{2}", "x+1", "(1,2)", r"\{1,2\}", "[0,1)", "A", r"5 \text{ km}", "x=2", r"\sqrt{2}"]


@pytest.fixture(scope="module")
def verifier() -> Math:
    math = Math(Math.Config())
    math.open(Place(Path()))
    return math


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    made = Workers(RewardChoice(type="math"), 3.0, count=2, memory=2**30, place=Place(tmp_path_factory.mktemp("cache")))
    yield made
    made.close()


def answer(gold: str, text: str) -> Answer:
    return Answer("q", text, text, columns={"solution": gold})


def test_cases_in_workers(workers: Workers) -> None:
    said = workers.score([answer(case["gold"], case["response"]) for case in CASES])
    differ = [
        (case["gold"], case["response"], case["want"], score)
        for case, score in zip(CASES, said, strict=True)
        if (score.outcome == "right") != (case["want"] == "right")
        or score.outcome == "error"
        or (score.outcome == "timeout" and case["want"] != "wrong_or_abstain")
    ]
    assert differ == []
    values = {"right": 1.0, "wrong": 0.0, "unparsed": 0.0, "timeout": None}
    assert all(score.value == values[score.outcome] for score in said)


def test_bombs_are_never_right_and_harm_nobody(workers: Workers) -> None:
    said = workers.score([answer("1", text) for bomb in BOMBS for text in (bomb, r"\boxed{1}")])
    assert [score.outcome for score in said[1::2]] == ["right"] * len(BOMBS)
    assert {score.outcome for score in said[::2]} <= {"wrong", "unparsed", "timeout"}


PIECES = (
    r"\boxed{ } { ( ) [ ] ^ _ , ; = < + - * / ! . % $ & | 0 1 2 9 10 x y A e i \frac \sqrt \pi \text \infty \cup "
    r"\pm \in \le \begin{pmatrix} \end{pmatrix} \\ \{ \} \left \right answer is #### or and km"
)
LATEX = st.lists(
    st.sampled_from([*PIECES.split(), " ", "\n", "²", "½", "−", "\u200b", "\x00", "\ud800"]), max_size=30
).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gold=st.sampled_from(GOLDS), text=st.one_of(st.text(max_size=60), LATEX))
def test_any_text_has_an_outcome(workers: Workers, gold: str, text: str) -> None:
    said = workers.score([answer(gold, form) for form in (text, rf"\boxed{{{text}}}", f"The answer is {text}")])
    assert {score.outcome for score in said} <= {"right", "wrong", "unparsed", "timeout"}, said


@settings(max_examples=60, deadline=None)
@given(gold=st.one_of(st.text(max_size=40), LATEX))
def test_any_gold_is_fit_or_says_why(workers: Workers, verifier: Math, gold: str) -> None:
    (said,) = workers.score([answer(gold, r"\boxed{1}")])
    if said.outcome != "timeout":
        assert (verifier.unfit({"solution": gold}) is None) == (said.outcome != "error")


def notations(value: Fraction) -> list[str]:
    sign, top, bottom = "-" * (value < 0), abs(value.numerator), value.denominator
    forms = [
        rf"{sign}\frac{{{top}}}{{{bottom}}}",
        rf"\dfrac{{{sign}{3 * top}}}{{{3 * bottom}}}",
        f"{sign}{top}/{bottom}",
        rf"x = {sign}\tfrac{{{top}}}{{{bottom}}}",
        f"{sign}{2 * top}/{2 * bottom}",
    ]
    if top > bottom and top % bottom:
        forms.append(rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}")
    if (10_000 * value).denominator == 1:
        forms += [f"{float(value):.4f}", f"{float(100 * value):.2f}\\%"]
    if bottom == 1:
        forms += [str(value), f"{value.numerator:,}", f"{value}.0", "".join(chr(0xFF10 + int(c)) for c in f"{top}")][
            : 4 if value >= 0 else 3
        ]
    return forms


RATIONALS = st.builds(
    Fraction, st.integers(-10_000_000, 10_000_000), st.one_of(st.integers(1, 400), st.sampled_from([1, 2, 4, 25, 1000]))
)


@settings(max_examples=150, deadline=None)
@given(value=RATIONALS, shift=st.fractions(max_denominator=1000).filter(bool))
@example(value=Fraction(10_000), shift=Fraction(1, 11))
@example(value=Fraction(123_456), shift=Fraction(1, 11))
def test_a_rational_is_right_in_every_notation_and_no_other_is(
    verifier: Math, value: Fraction, shift: Fraction
) -> None:
    for gold in notations(value):
        for form in notations(value):
            assert verifier.verdict(gold, rf"So \boxed{{{form}}}.").outcome == "right", (gold, form)
        for form in notations(value + shift):
            assert verifier.verdict(gold, rf"So \boxed{{{form}}}.").outcome != "right", (gold, form)


@settings(max_examples=30, deadline=None)
@given(points=st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True))
def test_order_counts_in_tuples_and_not_in_sets(verifier: Math, points: list[int]) -> None:
    mixed = points[1:] + points[:1]
    a, b = ", ".join(map(str, points)), ",".join(map(str, mixed))
    assert verifier.verdict(rf"\{{{a}\}}", rf"\boxed{{\{{{b}\}}}}").outcome == "right"
    assert verifier.verdict(a, rf"\boxed{{{b}}}").outcome == "right"
    assert verifier.verdict(f"({a})", rf"\boxed{{({a})}}").outcome == "right"
    assert verifier.verdict(f"({a})", rf"\boxed{{({b})}}").outcome == "wrong"
    assert verifier.verdict(f"({a})", rf"\boxed{{{a}}}").outcome == "wrong"
    assert verifier.verdict(str(points[0]), rf"\boxed{{{a}}}").outcome == "wrong"


@pytest.mark.parametrize(
    ("gold", "why"),
    [
        (None, "has no 'solution'"),
        ("", "empty"),
        (r"\frac{0}{0}", "divides by zero"),
        ("1/0", "divides by zero"),
        (r"\foo{bar}", "not understood"),
        (r"\boxed{7} or \boxed{8}", "several answers"),
        ("(1,2", "do not close"),
        ("9^{9^{9^9}}", "power"),
    ],
)
def test_a_gold_answer_that_is_none_is_refused(verifier: Math, gold: str | None, why: str) -> None:
    said = verifier.unfit({"solution": gold})
    assert said is not None and why in said
    if gold is not None:
        score = verifier.verdict(gold, rf"\boxed{{{gold}}}")
        assert (score.value, score.outcome) == (None, "error")


@pytest.mark.parametrize("gold", [7, 0.5, "#### 7", r"long work, \boxed{7}", "3^{200000000}", "x", "Monday", "(0,1]"])
def test_a_gold_answer_in_every_place_is_found(verifier: Math, gold: object) -> None:
    assert verifier.unfit({"solution": gold}) is None


def test_settings() -> None:
    strict = Math(Math.Config(column="answer", boxed=True, unparsed=None))
    assert strict.unfit({"solution": "7"}) == "has no 'answer'" and strict.needs == ("answer",)
    free, boxed = (Answer("q", text, text, columns={"answer": "7"}) for text in ("The answer is 7.", r"\boxed{7}"))
    assert [(s.value, s.outcome) for s in strict.score([free, boxed])] == [(None, "unparsed"), (1.0, "right")]


def test_memory_stays_flat(verifier: Math) -> None:
    def verify(start: int, stop: int) -> int:
        for i in range(start, stop):
            verifier.verdict(str(i), rf"\boxed{{{2 * i}/2}}")
            if i % 5 == 0:
                verifier.verdict(rf"{i}\sqrt{{2}}", rf"\boxed{{\sqrt{{2}}\cdot {i}}}")
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = verify(10_000, 10_500)
    assert verify(10_500, 13_000) - before < 40 * 2**20


def test_it_leaves_the_alarm_alone(verifier: Math) -> None:
    signal.setitimer(signal.ITIMER_REAL, 600)
    try:
        verifier.verdict(r"x^2+\sqrt{2}", r"\boxed{\sqrt{2}+x\cdot x}")
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
