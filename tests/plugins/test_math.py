"""The math verifier: cases judged by hand, hostile text in its own workers, and laws over random numbers.

``math_cases.jsonl`` holds gold, response and the verdict that mathematics asks for, set before the verifier was run.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from align.core.rewards.reward_base import Answer, RewardContext
from align.core.rewards.worker_pool import Workers
from align.plugins.rewards.math import Math
from align.plugins.rewards.math.equality import equal, separation, sign
from align.plugins.rewards.math.grammar import parse
from align.plugins.rewards.math.notation import Unparsed, clean
from align.plugins.rewards.math.reals import Reals
from align.schemas.run import RewardChoice

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
    math.open(RewardContext(Path()))
    return math


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    made = Workers(
        RewardChoice(type="math"), 3.0, count=2, memory=2**30, place=RewardContext(tmp_path_factory.mktemp("cache"))
    )
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
        (r"1/2\sqrt3", "ambiguous"),
        (r"\sin x/2", "ambiguous"),
        (r"2\frac{3}{2}", "ambiguous"),
        (r"\sin(x)^2", "ambiguous"),
        (r"\arcsin 2", "no value"),
        (r"\frac{1}{\sqrt{2}\sqrt{3}-\sqrt{6}}", "divides by zero"),
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


@pytest.mark.parametrize(
    ("gold", "response", "outcome"),
    [
        (r"\{1,1,2\}", r"\{1,3\}", "wrong"),  # a value that the gold repeats is no licence to skip another
        ("1,1,2", r"\{1,3\}", "wrong"),
        (r"\{1,1,2\}", r"\{1\}", "wrong"),
        (r"\{1\}", r"\{1,2\}", "wrong"),
        (r"\{1,1,2\}", r"\{2,1\}", "right"),  # a set has each element once, however often it is written
        (r"\{1,1,2\}", r"\{1,2,2\}", "right"),
        ("1,1,2", "2,1,1", "right"),  # a list as often as it is written
        ("1,1,2", "1,2,2", "wrong"),
        ("1,1,2", "1,2", "wrong"),
    ],
)
def test_repeated_elements(verifier: Math, gold: str, response: str, outcome: str) -> None:
    assert verifier.verdict(gold, rf"\boxed{{{response}}}").outcome == outcome


def test_settings() -> None:
    strict = Math(Math.Config(column="answer", boxed=True, unparsed=None))
    assert strict.unfit({"solution": "7"}) == "has no 'answer'" and strict.required_columns == ("answer",)
    free, boxed = (Answer("q", text, text, columns={"answer": "7"}) for text in ("The answer is 7.", r"\boxed{7}"))
    assert [(s.value, s.outcome) for s in strict.score([free, boxed])] == [(None, "unparsed"), (1.0, "right")]


def test_a_bare_number_is_its_percentage_only_where_the_run_says_so() -> None:
    strict, loose = Math(Math.Config()), Math(Math.Config(bare_percent=True))
    for gold, said in ((r"28\%", "28"), ("28", r"28\%"), ("28", "28 percent")):
        assert strict.verdict(gold, rf"\boxed{{{said}}}").outcome == "wrong"
        assert loose.verdict(gold, rf"\boxed{{{said}}}").outcome == "right"
    assert loose.verdict("28", r"\boxed{29\%}").outcome == loose.verdict("0.28", r"\boxed{28\%}").outcome == "wrong"


SURDS = st.lists(st.integers(2, 60), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(inside=SURDS, whole=st.integers(-20, 20), digits=st.integers(1, 90))
def test_roots_are_compared_exactly(inside: list[int], whole: int, digits: int) -> None:
    """The square of a sum of roots, by hand: both sides are one number, and a difference of 10^-90 is seen."""
    made = "+".join([str(whole), *(rf"\sqrt{{{n}}}" for n in inside)])
    squares = [f"({whole})^{{2}}", *map(str, inside)]
    twice = [rf"2 \cdot ({whole}) \cdot \sqrt{{{n}}}" for n in inside]
    mixed = [rf"2\sqrt{{{a * b}}}" for i, a in enumerate(inside) for b in inside[:i]]
    gold, answer = f"({made})^{{2}}", "+".join([*squares, *twice, *mixed])
    assert equal(parse(gold), parse(answer))
    assert not equal(parse(gold), parse(f"{answer}+10^{{-{digits}}}"))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(10, 10**12))
def test_near_equal_roots_are_told_apart(n: int) -> None:
    r"""\sqrt{n-1} + \sqrt{n+1} < 2\sqrt{n} by about n^{-3/2} / 4."""
    near = rf"\sqrt{{{n - 1}}}+\sqrt{{{n + 1}}}"
    assert not equal(parse(rf"2\sqrt{{{n}}}"), parse(near))
    assert sign(parse(rf"{near}-2\sqrt{{{n}}}")) == -1


POLYNOMIALS = st.lists(st.tuples(st.integers(-9, 9).filter(bool), st.integers(-9, 9)), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(factors=POLYNOMIALS, at=st.integers(0, 7), off=st.integers(1, 3))
def test_a_product_is_its_expansion_and_no_other(factors: list[tuple[int, int]], at: int, off: int) -> None:
    coefficients = [1]
    for a, b in factors:  # times a x + b
        shifted = [*(a * c for c in coefficients), 0]
        coefficients = [x + b * c for x, c in zip(shifted, [0, *coefficients], strict=True)]
    degree = len(factors)

    def written(values: list[int]) -> str:
        return "".join(f"{c:+d}x^{{{degree - i}}}" for i, c in enumerate(values))

    product = "".join(f"({a}x{b:+d})" for a, b in factors)
    assert equal(parse(product), parse(written(coefficients)))
    changed = list(coefficients)
    changed[at % (degree + 1)] += off
    assert not equal(parse(product), parse(written(changed)))


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.integers(100, 999), min_size=1, max_size=3), first=st.integers(1, 999))
def test_a_list_is_never_paid_for_a_number(verifier: Math, parts: list[int], first: int) -> None:
    value = int("".join(map(str, [first, *parts])))
    together = [sep.join(map(str, [first, *parts])) for sep in (",", r",\!", r",\! ", "{,}", r"\,", " ", "")]
    apart = [sep.join(map(str, [first, *parts])) for sep in (", ", ",~", "; ", ";", r" \text{ and } ", ",\\ ", " or ")]
    for gold in [str(value), *together]:
        for said in together:
            assert verifier.verdict(gold, rf"\boxed{{{said}}}").outcome == "right", (gold, said)
        for said in [*apart, *(f"({said})" for said in apart[:4]), rf"\{{{apart[0]}\}}"]:
            assert verifier.verdict(gold, rf"\boxed{{{said}}}").outcome != "right", (gold, said)


INTERVALS_OF_REALS = st.lists(
    st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.booleans(), st.booleans()), min_size=1, max_size=3
)


@settings(max_examples=80, deadline=None)
@given(first=INTERVALS_OF_REALS, second=INTERVALS_OF_REALS)
def test_sets_of_reals_are_those_of_sympy(first: list[tuple[int, ...]], second: list[tuple[int, ...]]) -> None:
    import sympy

    ours, theirs = [], []
    for parts in (first, second):
        made = [Reals.interval(parse(str(a)), parse(str(b)), c, d) for a, b, c, d in map(tuple, parts)]
        ours.append(Reals.union(made))
        theirs.append(sympy.Union(*(sympy.Interval(a, b, not c, not d) for a, b, c, d in parts)))
    assert ours[0].same(ours[1]) == (theirs[0] == theirs[1])
    assert ours[0].without(ours[1]).same(Reals.union([])) == (theirs[0] - theirs[1] == sympy.EmptySet)
    assert ours[0].without(ours[0].without(ours[1])).same(Reals.intersection(ours))


def test_a_separation_bound_is_below_the_value() -> None:
    """(\\sqrt{2} - 1)^{40}, about 2^-50.9, and 10^{-30} are above their bounds; what is zero is found so."""
    for text, exponent in ((r"(\sqrt{2}-1)^{40}", 51), (r"10^{-30}", 100), (r"\sqrt{10^{20}+1}-10^{10}", 35)):
        bits = separation(parse(text))
        assert bits is not None and bits >= exponent
    assert separation(parse(r"\ln 2")) is None
    assert sign(parse(r"\sqrt{2}\sqrt{3}-\sqrt{6}")) == 0


@settings(max_examples=30, deadline=None)
@given(a=st.integers(-99, 99), gap=st.integers(1, 9))
def test_a_root_of_a_square_is_an_absolute_value_everywhere(a: int, gap: int) -> None:
    """(x-a)(x-b) is negative between a and b alone, however narrow the gap."""
    inside = f"(x-({a}))(x-({a + gap}))"
    gold = rf"\sqrt{{({inside})^{{2}}}}"
    assert equal(parse(gold), parse(f"|{inside}|"))
    assert not equal(parse(gold), parse(inside))
    assert not equal(parse(f"|{inside}|"), parse(f"-{inside}"))


def test_what_cannot_be_decided_is_not_judged() -> None:
    r"""\arctan(1/2) + \arctan(1/3) is \pi/4; that no digit tells them apart proves nothing."""
    with contextlib.suppress(Unparsed):
        assert equal(parse(r"\frac{\pi}{4}"), parse(r"\arctan\frac{1}{2}+\arctan\frac{1}{3}"))
    assert not equal(parse(r"\frac{\pi}{4}"), parse(r"\arctan\frac{1}{2}+\arctan\frac{1}{3}+10^{-200}"))


TEX = [
    (r"\frac1{2}\pi", r"\frac{1}{2}\pi"),
    (r"\sqrt[3]2", r"\sqrt[3]{2}"),
    (r"{1\over 2}", r"\frac{1}{2}"),
    (r"x^{a\over b}", r"x^{\frac{a}{b}}"),
    (r"\frac \pi4", r"\frac{\pi}{4}"),
    (r"\sqrt{\frac\sqrt2 2}", r"\sqrt{\frac{\sqrt{2}}{2}}"),
    (r"\dbinom52", r"\binom{5}{2}"),
    (r"\operatorname{arcsin} x", r"\arcsin x"),
    (r"1-\mathrm{e}", "1-e"),
    (r"11,\! 111", "11111"),
    (r"14{,}912", "14912"),
]


@pytest.mark.parametrize(("written", "form"), TEX)
def test_arguments_are_taken_as_tex_takes_them(written: str, form: str) -> None:
    assert clean(written) == form


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
