"""Ratings: the golden votes, FastChat's numbers, other fits of the same likelihood, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from align.core.evaluation import ratings
from align.core.evaluation.logistic import fit_lasso, fit_ridge, soft_log_loss

GOLDEN = [
    *[("x", "y", 1.0)] * 3,
    ("x", "y", 0.0),
    *[("y", "z", 1.0)] * 2,
    *[("y", "z", 0.5)] * 2,
    *[("x", "z", 1.0)] * 2,
    ("x", "z", 0.0),
]


def arena(count: int = 600) -> list[tuple[str, str, float]]:
    """Votes between five models of rising strength, from sines so that any library's random numbers give the same."""
    votes = []
    for i in range(count):
        a, b = i % 5, (i // 5 + 1 + i) % 5
        if a == b:
            continue
        draw = math.sin(12.9898 * i + 4.1) * 43758.5453 % 1
        chance = 1 / (1 + math.exp(-0.35 * (a - b)))
        votes.append((f"m{a}", f"m{b}", 0.5 if abs(draw - chance) < 0.1 else float(draw < chance)))
    return votes


def test_the_golden_votes() -> None:
    votes = ratings.battles(GOLDEN)
    online = ratings.elo(votes)
    assert {name: round(rating, 3) for name, rating in online.items()} == {"x": 1005.660, "y": 1000.110, "z": 994.229}
    fitted = ratings.bradley_terry(votes)
    assert {name: round(rating, 3) for name, rating in fitted.items()} == {"x": 1114.234, "y": 1000.0, "z": 885.766}


FASTCHAT_ELO = {"m0": 917.61742, "m1": 977.864051, "m2": 977.617483, "m3": 1031.194252, "m4": 1095.706794}
FASTCHAT_BRADLEY_TERRY = {"m0": 886.1411, "m1": 964.2348, "m2": 967.3186, "m3": 1050.3795, "m4": 1131.926}
"""Of fschat 0.2.36's compute_elo and compute_elo_mle_with_tie on `arena`, the latter's logistic regression without its
default penalty (C = 1e12, tolerance 1e-12)."""


def test_fastchat() -> None:
    votes = ratings.battles(arena())
    assert ratings.elo(votes) == pytest.approx(FASTCHAT_ELO, abs=1e-6)
    assert ratings.bradley_terry(votes) == pytest.approx(FASTCHAT_BRADLEY_TERRY, abs=2e-4)


def test_ratings_add_up_and_an_anchor_only_shifts() -> None:
    votes = ratings.battles(arena())
    plain, anchored = ratings.bradley_terry(votes), ratings.bradley_terry(votes, ("m2", 1114.0))
    assert np.mean(list(plain.values())) == pytest.approx(1000) and anchored["m2"] == pytest.approx(1114)
    assert {name: anchored[name] - plain[name] for name in plain} == pytest.approx(
        dict.fromkeys(plain, 1114 - plain["m2"])
    )
    assert np.mean(list(ratings.elo(votes).values())) == pytest.approx(1000)
    with pytest.raises(ValueError, match="anchor mixtral"):
        ratings.bradley_terry(votes, ("mixtral", 1114.0))


@given(st.randoms(use_true_random=False))
def test_bradley_terry_knows_no_order_and_no_side(random: object) -> None:
    rows = arena(150)
    order = np.random.default_rng(random.randrange(2**32)).permutation(len(rows))  # type: ignore[attr-defined]
    turned = [(b, a, 1 - score) if index % 3 else (a, b, score) for index, (a, b, score) in enumerate(rows)]
    plain = ratings.bradley_terry(ratings.battles(rows))
    assert ratings.bradley_terry(ratings.battles([turned[i] for i in order])) == pytest.approx(plain, abs=1e-6)


def test_two_models_have_the_log_odds_of_their_score() -> None:
    """3 of 4 points: 400 log10(3) apart."""
    rated = ratings.bradley_terry(ratings.battles([("a", "b", 1.0), ("a", "b", 0.5), ("a", "b", 1.0), ("b", "a", 0.5)]))
    assert rated["a"] - rated["b"] == pytest.approx(400 * math.log10(3))


@pytest.mark.parametrize(
    ("votes", "losers"),
    [
        ([("a", "b", 1.0), ("a", "b", 1.0)], "b"),
        ([*GOLDEN, ("w", "x", 0.0)], "w"),
        ([("a", "b", 0.5), ("c", "d", 0.5)], "a, b"),
        ([("a", "b", 0.5), ("c", "d", 0.5), ("a", "c", 1.0)], "c, d"),
    ],
)
def test_models_without_a_finite_rating_are_named(votes: list[tuple[str, str, float]], losers: str) -> None:
    with pytest.raises(ValueError, match=f"^{losers} took no point"):
        ratings.bradley_terry(ratings.battles(votes))
    assert all(map(math.isfinite, ratings.bradley_terry(ratings.battles(votes), ridge=1e-3).values()))


@pytest.mark.parametrize(
    ("votes", "why"), [([], "no votes"), ([("a", "a", 1.0)], "vote 0"), ([("a", "b", 2.0)], "vote 0")]
)
def test_votes_that_are_none(votes: list[tuple[str, str, float]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ratings.battles(votes)


def test_intervals_hold_the_rating_repeat_and_widen_with_clusters() -> None:
    votes = ratings.battles(arena())

    def soft(taken: ratings.Battles) -> dict[str, float]:
        return ratings.bradley_terry(taken, ridge=1e-6)

    rated = ratings.with_intervals(ratings.bradley_terry, votes, redraw=soft, repeats=60, seed=1)
    assert rated == ratings.with_intervals(ratings.bradley_terry, votes, redraw=soft, repeats=60, seed=1)
    assert list(rated) == ["m4", "m3", "m2", "m1", "m0"] and sum(each.battles for each in rated.values()) == 2 * len(
        votes.score
    )
    assert all(each.low < each.rating < each.high for each in rated.values())
    thrice = ratings.battles([row for row in arena() for _ in range(3)])
    labels = np.repeat(np.arange(len(votes.score)), 3)
    naive = ratings.with_intervals(ratings.bradley_terry, thrice, redraw=soft, repeats=60, seed=1)["m2"]
    whole = ratings.with_intervals(ratings.bradley_terry, thrice, labels, redraw=soft, repeats=60, seed=1)["m2"]
    assert whole.high - whole.low > 1.4 * (naive.high - naive.low)


def test_a_model_that_a_resample_misses_is_left_out_of_it() -> None:
    rated = ratings.with_intervals(ratings.elo, ratings.battles([*GOLDEN, ("w", "x", 1.0)]), repeats=50, seed=0)
    assert math.isfinite(rated["w"].low) and rated["w"].battles == 1


@pytest.mark.parametrize(("winner", "score"), [("model_a", 1), ("model_b", 0), ("tie", 0.5), ("tie (bothbad)", 0.5)])
def test_the_winners_of_arena_files(winner: str, score: float) -> None:
    assert ratings.VOTES[winner] == score


# --- HELM ----------------------------------------------------------------------------------------------------------


def test_mean_win_rates_by_hand() -> None:
    """acc: a beats b and c, which tie; loss: c alone beats; speed has no direction, alone one model."""
    scores = {
        "a": {"acc": 0.9, "loss": 3.0, "speed": 1.0, "alone": 1.0},
        "b": {"acc": 0.5, "loss": 3.0, "speed": 2.0},
        "c": {"acc": 0.5, "loss": 1.0},
        "d": {"speed": 9.0},
    }
    got = ratings.mean_win_rates(scores, {"acc": True, "loss": False, "speed": None, "alone": True})
    assert got == {"a": (1 + 0.25) / 2, "b": (0.25 + 0.25) / 2, "c": (0.25 + 1) / 2, "d": None}


def test_mean_win_rates_depend_on_the_other_models_and_refuse_nan() -> None:
    two = {"a": {"acc": 0.9}, "b": {"acc": 0.5}}
    three = {**two, "c": {"acc": 0.1}}
    both = [ratings.mean_win_rates(table, {"acc": True})["b"] for table in (two, three)]
    assert both == [0.0, 0.5]
    with pytest.raises(ValueError, match="acc: a score is not finite"):
        ratings.mean_win_rates({"a": {"acc": math.nan}, "b": {"acc": 0.5}}, {"acc": True})


# --- logistic regression -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_coefficients_of_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, w = rng.normal(size=(80, 3)), rng.choice([0, 0.3, 0.5, 1], 80), rng.uniform(0.5, 3, 80)
    fitted = sm.GLM(y, x, family=sm.families.Binomial(), freq_weights=w).fit(tol=1e-13)
    assert fit_ridge(x, y, w) == pytest.approx(fitted.params, abs=1e-8)
    assert fit_lasso(x, y, w, 1e12) == pytest.approx(fitted.params, abs=1e-6)


@pytest.mark.parametrize("inverse_penalty", [0.001, 0.05, 0.3, 5.0, 1e4])
def test_a_lasso_meets_the_conditions_of_its_least(inverse_penalty: float) -> None:
    """Subgradients: C gradient_j = -sign(c_j) where c_j is not 0, and within 1 of 0 elsewhere."""
    rng = np.random.default_rng(1)
    x, y, w = rng.normal(size=(60, 4)), rng.random(60), rng.uniform(0.5, 2, 60)
    c = fit_lasso(x, y, w, inverse_penalty)
    gradient = inverse_penalty * x.T @ (w * (1 / (1 + np.exp(-x @ c)) - y))
    there = c != 0
    assert gradient[there] == pytest.approx(-np.sign(c[there]), abs=1e-6)
    assert (np.abs(gradient[~there]) <= 1 + 1e-9).all()


def test_a_ridge_keeps_separated_outcomes_finite_and_meets_its_gradient() -> None:
    c = fit_ridge([[1.0], [2.0]], [1.0, 1.0], [1.0, 1.0], 0.01)
    gradient = -1 / (1 + math.exp(c[0])) - 2 / (1 + math.exp(2 * c[0])) + 0.01 * c[0]
    assert gradient == pytest.approx(0, abs=1e-9)
    assert soft_log_loss(np.array([0.0, 800.0, -800.0]), np.array([0.3, 1.0, 0.0])) == pytest.approx(
        [math.log(2), 0, 0]
    )
