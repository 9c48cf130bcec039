"""Win rates: alpaca-eval's and Arena-Hard's numbers, fits of other libraries, judges that love length, and laws."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.evaluation import gate
from align.core.evaluation import win_rates as w
from align.core.evaluation.ratings import battles, bradley_terry
from tests.core.evaluation.lc_data import annotations

DATA = annotations()
GAMED = w.Gamed(DATA["gamed_preference"], DATA["gamed_length"], np.tile(DATA["difficulty"], 2))


def controlled(rows: int = 805, **changes: Any) -> w.LengthControlled:
    data = {name: DATA[name][:rows] for name in ("preference", "baseline_length", "model_length")}
    return w.length_controlled_win_rate(**{"repeats": 0, **data, **changes})  # type: ignore[arg-type]


# --- AlpacaEval 2 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rate", "inverse_penalty"),
    [
        ({"difficulty": DATA["difficulty"], "gamed": GAMED}, 54.0430777, 2.7825594),
        ({"difficulty": DATA["difficulty"]}, 54.2701702, 2.7825594),
        ({}, 54.4061060, 21.5443469),
    ],
)
def test_alpaca_eval(changes: dict[str, Any], rate: float, inverse_penalty: float) -> None:
    """alpaca-eval 0.6.6's length_controlled_v1, _noreg and _minimal on these rows with scikit-learn 1.9.1, whose solver
    was given a tolerance of 1e-12; its default of 1e-4 gives 54.0436, 54.2705 and 54.4089."""
    got = controlled(**changes)
    assert 100 * got.win_rate == pytest.approx(rate, abs=1e-6)
    assert got.inverse_penalty == pytest.approx(inverse_penalty) and 100 * got.raw == pytest.approx(59.1579095)


def test_the_coefficients_of_alpaca_eval() -> None:
    got = controlled(difficulty=DATA["difficulty"], gamed=GAMED)
    assert (got.length, got.difficulty, got.constant) == pytest.approx((-0.86562047, 0.4360588, 0.19774469), abs=1e-7)


def test_length_alone_is_taken_out() -> None:
    """A judge who prefers the longer answer and nothing else: the raw rate is 62 %, the controlled one 50 %."""
    rng = np.random.default_rng(0)
    baseline = rng.integers(500, 1500, 2000).astype(float)
    model = baseline * rng.uniform(0.8, 1.5, 2000)
    length = (baseline - model) / np.std(baseline - model, ddof=1)
    liking = 1 / (1 + np.exp(1.5 * np.tanh(length)))
    got = w.length_controlled_win_rate(liking, baseline, model, repeats=100, seed=1)
    assert (
        got.raw > 0.6 and got.win_rate == pytest.approx(0.5, abs=1e-4) and got.length == pytest.approx(-1.5, abs=0.01)
    )
    assert got.low <= got.win_rate <= got.high and not got.extreme
    assert got == w.length_controlled_win_rate(liking, baseline, model, repeats=100, seed=1)


def test_a_model_against_itself_and_answers_of_one_length() -> None:
    same = w.length_controlled_win_rate(np.full(50, 0.5), np.full(50, 300.0), np.full(50, 300.0), repeats=10)
    assert (same.win_rate, same.raw, same.discrete, same.extreme) == (0.5, 0.5, 0.5, False)
    shifted = w.length_controlled_win_rate(DATA["preference"], np.full(805, 300.0), np.full(805, 900.0), repeats=0)
    assert shifted.win_rate == pytest.approx(shifted.raw, abs=1e-3) and shifted.length == 0.0


def test_invalid_verdicts_are_counted() -> None:
    preference = DATA["preference"].copy()
    preference[::50] = math.nan
    got = controlled(preference=preference)
    assert (got.rows, got.invalid) == (805, 17) and got.raw == pytest.approx(np.nanmean(preference))
    assert got.win_rate == pytest.approx(controlled().win_rate, abs=0.02)


def test_the_interval_repeats_and_is_wider_for_whole_clusters() -> None:
    rows = np.repeat(np.arange(200), 3)
    data = {name: DATA[name][rows] for name in ("preference", "baseline_length", "model_length")}
    naive = w.length_controlled_win_rate(**data, repeats=200)
    whole = w.length_controlled_win_rate(**data, repeats=200, clusters=rows)
    assert whole.win_rate == naive.win_rate and whole.high - whole.low > 1.4 * (naive.high - naive.low)


def test_preferences_and_their_discrete_form() -> None:
    got = w.length_controlled_win_rate([0.9, 0.5, 0.1, 0.6], [1, 2, 3, 4], [2, 3, 4, 4], repeats=0)
    assert got.discrete == (1 + 0.5 + 0 + 1) / 4 and got.raw == pytest.approx(0.525)
    assert got.raw_standard_error == pytest.approx(np.std([0.9, 0.5, 0.1, 0.6], ddof=1) / 2)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"preference": np.full(805, 1.5)}, "outside"),
        ({"preference": np.full(805, math.nan)}, "no preference is valid"),
        ({"model_length": np.full(804, 1.0)}, "804"),
        ({"model_length": np.full(805, math.inf)}, "not finite"),
        ({"difficulty": np.full(805, math.nan)}, "not finite"),
    ],
)
def test_rows_that_cannot_be_fitted(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        controlled(**changes)


def test_the_gate_takes_the_metric() -> None:
    """A candidate that is the baseline model made 1.3 times as verbose for a judge who likes that: raw up, controlled
    unchanged."""
    rows = np.stack([DATA["preference"], DATA["baseline_length"], DATA["model_length"], DATA["difficulty"]], axis=1)
    metric = w.length_controlled_metric(2.782559402207126, GAMED)
    assert metric(rows) == pytest.approx(controlled(difficulty=DATA["difficulty"], gamed=GAMED).win_rate, abs=1e-9)
    assert w.length_controlled_metric(21.54434690031882)(rows[:, :3]) == pytest.approx(controlled().win_rate, abs=1e-9)
    case = gate.Benchmark("chat", rows, rows, 0.05, metric=metric)
    got = gate.compare(case, gate.Rules(bootstrap=5))
    assert (got.difference, got.low, got.high) == (0.0, 0.0, 0.0)


# --- Arena-Hard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "as_a", "as_b", "weight"),
    [
        ("A>B", 1.0, 0.0, 1),
        ("A>>B", 1.0, 0.0, 3),
        ("A=B", 0.5, 0.5, 1),
        ("B=A", 0.5, 0.5, 1),
        ("B>A", 0.0, 1.0, 1),
        ("B>>A", 0.0, 1.0, 3),
        ("A<B", 0.0, 1.0, 1),
        ("A<<B", 0.0, 1.0, 3),
        ("B<A", 1.0, 0.0, 1),
        ("B<<A", 1.0, 0.0, 3),
    ],
)
def test_labels(label: str, as_a: float, as_b: float, weight: int) -> None:
    assert w.outcome(label, True) == (as_a, weight) and w.outcome(label, False) == (as_b, weight)


@pytest.mark.parametrize("label", ["A>A", "A>>>B", "a>b", "", "A>B ", "A==B"])
def test_what_is_no_label(label: str) -> None:
    with pytest.raises(ValueError, match="no label"):
        w.outcome(label, True)


ITEMS = [
    w.ArenaItem("q1", "m", ("A>B", "A>>B")),
    w.ArenaItem("q2", "m", ("B>>A", "A=B")),
    w.ArenaItem("q3", "m", (None, "B>A")),
]


def test_scores_by_hand() -> None:
    """q1: lost, won three times; q2: won three times, tie; q3: lost: 6.5 of 9."""
    got = w.arena_hard_scores(ITEMS)["m"]
    assert got.win_rate == pytest.approx(6.5 / 9) and (got.items, got.invalid) == (3, 1)
    assert got.low <= got.win_rate <= got.high


def test_without_style_v01_is_bradley_terry() -> None:
    items = arena(60)
    votes = []
    for item in items:
        for game, label in enumerate(item.verdicts):
            won, weight = w.outcome(str(label), game == 1)
            votes += [(item.model, "baseline", won)] * weight
    rated = bradley_terry(battles(votes), ("baseline", 1000.0))
    got = w.arena_hard_scores(items, version="v0.1")
    for name, score in got.items():
        assert score.win_rate == pytest.approx(1 / (1 + 10 ** ((1000 - rated[name]) / 400)), abs=1e-9)
    narrow = w.arena_hard_scores(items)
    assert all(got[name].low <= narrow[name].low <= narrow[name].high <= got[name].high for name in got)


def arena(count: int = 120, liking: float = 1.5) -> list[w.ArenaItem]:
    """Games of two models with equal answers, the second twice as long, before a judge who likes length by so much."""
    items = []
    for i in range(count):
        for number, longer in enumerate((1.0, 2.0)):
            noise = [math.sin(12.9898 * (i + 1) * (k + 1) + 78.233 * number) * 43758.5453 % 1 for k in range(6)]
            b = w.Style(int(200 + 400 * noise[0]), int(4 * noise[1]), int(9 * noise[2]), int(6 * noise[3]))
            m = w.Style(int(longer * b.tokens * (0.7 + 0.6 * noise[4])), b.headers + number, b.lists, int(7 * noise[5]))
            length = (m.tokens - b.tokens) / (m.tokens + b.tokens)
            labels = []
            for game in range(2):
                draw = math.sin(3.7 * (i + 1) + 31.1 * game + 5.3 * number) * 43758.5453 % 1
                margin = 1 / (1 + math.exp(-liking * 4 * length)) - draw
                strength = ">>" if abs(margin) > 0.5 else ">" if abs(margin) > 0.08 else "="
                model, baseline = ("A", "B") if game else ("B", "A")
                labels.append(f"{model}{strength}{baseline}" if margin > 0 else f"{baseline}{strength}{model}")
            items.append(w.ArenaItem(i, f"m{number}", (labels[0], labels[1]), m, b))
    return items


def exploded(items: list[w.ArenaItem]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of games, strict ones three times: model number, item number, outcome, features."""
    rows = []
    for number, item in enumerate(items):
        assert item.style is not None and item.baseline_style is not None
        features = w.style_features(item.style, item.baseline_style)
        for game, label in enumerate(item.verdicts):
            won, weight = w.outcome(str(label), game == 1)
            rows += [(int(item.model[1:]), number, won, *features)] * weight
    table = np.array(rows)
    return table[:, 0].astype(int), table[:, 1], table[:, 2], table[:, 3:]


@pytest.mark.parametrize("center", [False, True])
def test_style_control_is_the_regression_of_statsmodels(center: bool) -> None:
    items = arena()
    model, _, outcomes, features = exploded(items)
    features = features - features.mean(axis=0) * center
    design = np.concatenate([np.eye(2)[model], features], axis=1)
    fitted = sm.GLM(outcomes, design, family=sm.families.Binomial()).fit(tol=1e-13)
    got = w.arena_hard_scores(items, style_control=True, center=center, repeats=5)
    for number in range(2):
        assert got[f"m{number}"].win_rate == pytest.approx(1 / (1 + math.exp(-fitted.params[number])), abs=1e-5)


def test_the_score_of_arena_hard() -> None:
    """Arena-Hard's fit_pairwise_model (commit 196f6b8, 2025-06-20) nears these scores as its steps grow in number:
    0.8006 and 0.7996 after its 50, 0.8193 and 0.7889 after 500."""
    got = w.arena_hard_scores(arena(300), style_control=True, center=True, repeats=5)
    assert {name: each.win_rate for name, each in got.items()} == pytest.approx({"m0": 0.8193, "m1": 0.7889}, abs=5e-4)


def test_style_control_takes_length_out() -> None:
    items = arena(400)
    raw, fair = (w.arena_hard_scores(items, style_control=control, repeats=40) for control in (False, True))
    assert raw["m1"].win_rate > 0.7
    assert fair["m1"].win_rate < 0.65 and fair["m1"].low < 0.5 + 0.1
    assert fair == w.arena_hard_scores(items, style_control=True, repeats=40)


def test_a_single_model_is_controlled_too_but_not_if_centred() -> None:
    alone = [item for item in arena(400) if item.model == "m1"]
    raw = w.arena_hard_scores(alone, repeats=5)["m1"].win_rate
    fair = w.arena_hard_scores(alone, style_control=True, repeats=5)["m1"].win_rate
    centred = w.arena_hard_scores(alone, style_control=True, center=True, repeats=5)["m1"].win_rate
    assert raw - fair > 0.1 and abs(raw - centred) < 0.03


def test_v01_style_control_has_a_ridge_and_its_own_features() -> None:
    items = arena()
    v01 = w.arena_hard_scores(items, version="v0.1", style_control=True, repeats=5)
    assert all(0 < score.win_rate < 1 for score in v01.values())
    won = [replace(item, verdicts=("B>>A", "A>>B")) for item in items]
    beaten = [
        w.arena_hard_scores(won, version=version, style_control=True, repeats=5)["m0"] for version in ("v0.1", "v2")
    ]
    assert 0.9 < beaten[0].win_rate < beaten[1].win_rate <= 1


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_items_does_not_matter(seed: int) -> None:
    items = arena(20)
    order = np.random.default_rng(seed).permutation(len(items))
    plain = w.arena_hard_scores(items, style_control=True, repeats=1)
    moved = w.arena_hard_scores([items[i] for i in order], style_control=True, repeats=1)
    assert {name: each.win_rate for name, each in moved.items()} == pytest.approx(
        {name: each.win_rate for name, each in plain.items()}, abs=1e-6
    )


def test_prompts_are_resampled_whole() -> None:
    """Two strict games that agree are one prompt: as rows of their own their interval would be 2.4 times too narrow."""
    rng = np.random.default_rng(0)
    items = [w.ArenaItem(i, "m", ("B>>A", "A>>B") if rng.random() < 0.5 else ("A>>B", "B>>A")) for i in range(400)]
    got = w.arena_hard_scores(items, repeats=400)["m"]
    assert (got.high - got.low) / 2 == pytest.approx(1.645 * math.sqrt(0.25 / 400), rel=0.1)


@pytest.mark.parametrize(
    ("items", "control", "why"),
    [
        ([], False, "no items"),
        ([ITEMS[0], ITEMS[0]], False, "m has two items of the uid q1"),
        ([w.ArenaItem("q", "m", (None, None))], False, "m: no game has a verdict"),
        ([ITEMS[0]], True, "m on q1: style control needs"),
    ],
)
def test_items_that_cannot_be_scored(items: list[w.ArenaItem], control: bool, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        w.arena_hard_scores(items, style_control=control)


def test_markdown_outside_code_blocks() -> None:
    prose = "# Title\n\n1. one\n2. two\n- three\n  * four\n**bold** and __bold__\n"
    text = f"{prose}```python\n# no header\n- no item\n```\n## End\n"
    assert w.style(text, 42) == w.Style(42, 2, 4, 2)


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("```\n# a\n", 0),
        ("~~~\n# a\n~~~\n# b", 1),
        ("````\n```\n# a\n```\n````\n# b", 1),
        ("# a\n```py\nx = '`'\n# b\n```\n# a", 2),
        ("#no space", 0),
        ("####### seven", 0),
        ("use ``` inline # a", 0),
    ],
)
def test_fences(text: str, headers: int) -> None:
    assert w.style(text, 1).headers == headers


def test_hostile_text_takes_no_time() -> None:
    for text in ("\n" * 200_000, "`" * 200_000, "**" * 100_000, "```\n" * 50_000, " " * 200_000, "__a" * 70_000):
        w.style(text, 1)


def test_style_features_by_hand() -> None:
    """99 against 199 tokens, 2 against 1 headers: densities 0.02 and 0.005."""
    got = w.style_features(w.Style(99, 2, 0, 0), w.Style(199, 1, 0, 0))
    assert got == pytest.approx((-100 / 298, 0.015 / 1.025, 0, 0))
    old = w.style_features(w.Style(99, 2, 0, 0), w.Style(199, 1, 0, 0), "v0.1")
    assert old == pytest.approx((-100 / 299, 1 / 4, 0, 0))
    assert w.style_features(w.Style(0, 0, 0, 0), w.Style(0, 0, 0, 0)) == (0, 0, 0, 0)


def test_a_large_move_is_marked() -> None:
    """From 62 % by 12 points: not a quarter of the way to 0. From 90 % by 25 it is."""
    rng = np.random.default_rng(0)
    baseline = rng.integers(500, 1500, 2000).astype(float)
    model = baseline * rng.uniform(1.5, 2.5, 2000)
    length = (baseline - model) / np.std(baseline - model, ddof=1)
    got = w.length_controlled_win_rate(1 / (1 + np.exp(3 * np.tanh(length))), baseline, model, repeats=0)
    assert got.raw > 0.85 and got.win_rate < 0.6 and got.extreme
