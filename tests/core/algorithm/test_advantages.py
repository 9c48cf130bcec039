"""Rewards to advantages: numbers by hand, independent loops, and laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.algorithm import pass_at_k, policy_gradient
from align.core.algorithm.contract import Experience
from align.core.algorithm.kl import KL, estimate

numbers = st.floats(-5, 5).map(lambda x: round(x, 3))
maybe = st.one_of(st.none(), numbers)
lists = st.lists(numbers, min_size=1, max_size=8)


def answer(reward: float | None = 0.0, logp: Sequence[float] = (-1.0,), ref: Sequence[float] = (-1.0,)) -> Experience:
    """An answer of as many tokens as it has log-probabilities."""
    made = Experience("toy", np.array([1], np.int32), np.arange(len(logp), dtype=np.int32), "stop", np.float32([0]))
    made.reward, made.logp, made.ref_logp = reward, np.array(logp, np.float32), np.array(ref, np.float32)
    return made


def array(rewards: Sequence[float | None]) -> policy_gradient.Numbers:
    return policy_gradient.rewards([answer(reward) for reward in rewards])


# --- baselines and scales ------------------------------------------------------------------------------------------


def test_each_answer_against_its_siblings_by_hand() -> None:
    """1 against the mean of 0 and 0.5, 0 against that of 1 and 0.5, 0.5 against that of 1 and 0."""
    assert policy_gradient.leave_one_out(array([1, 0, 0.5])) == pytest.approx([0.75, -0.75, 0.0])
    assert policy_gradient.leave_one_out(array([1, None, 0.5])) == pytest.approx([0.5, math.nan, -0.5], nan_ok=True)
    assert policy_gradient.leave_one_out(array([None, 3.0])) == pytest.approx([math.nan, 0.0], nan_ok=True)


def test_scaled_by_the_unbiased_deviation_by_hand() -> None:
    """Rewards 1 and 0: mean 1/2, variance (1/4 + 1/4) / 1."""
    reward = array([1, 0])
    assert policy_gradient.divide_by_std(policy_gradient.center(reward), reward) == pytest.approx(
        [0.5 / (math.sqrt(0.5) + 1e-4)] * 2 * np.array([1, -1])
    )
    same = array([2, 2, 2])
    assert policy_gradient.divide_by_std(policy_gradient.center(same), same).tolist() == [0, 0, 0]
    assert policy_gradient.nanstd(array([7.0, None])) == 0.0


def test_the_kl_in_the_reward_by_hand() -> None:
    """Two tokens, log-ratios 0.2 and −0.1: k1 sums to 0.1, k2 to 0.025, k3 to e^(−0.2) − 0.8 + e^(0.1) − 1.1."""
    group = [answer(1.0, [-1.0, -2.0], [-1.2, -1.9]), answer(None, [-1.0], [-3.0])]
    assert policy_gradient.rewards(group, 0.5, "k1") == pytest.approx([0.95, math.nan], nan_ok=True)
    assert policy_gradient.rewards(group, 0.5)[0] == pytest.approx(0.95)
    assert policy_gradient.rewards(group, 0.5, "k2")[0] == pytest.approx(1 - 0.5 * 0.025)
    k3 = math.exp(-0.2) - 0.8 + math.exp(0.1) - 1.1
    assert policy_gradient.rewards(group, 0.5, "k3")[0] == pytest.approx(1 - 0.5 * k3)


def test_without_a_price_the_reward_is_as_it_was_given() -> None:
    """Whatever the KL, and where it was not measured."""
    far, unmeasured = answer(1.0, [-1.0], [-3.0]), answer(0.5)
    unmeasured.logp = None
    assert policy_gradient.rewards([far, unmeasured]).tolist() == [1.0, 0.5]


def test_equal_rewards_have_no_advantage_to_the_last_bit() -> None:
    """0.1 three times has the mean 0.10000000000000002."""
    assert policy_gradient.center(array([0.1, 0.1, None, 0.1]))[[0, 1, 3]].tolist() == [0, 0, 0]
    assert policy_gradient.leave_one_out(array([0.1, 0.1, 0.1])).tolist() == [0, 0, 0]


def test_nothing_known_is_not_a_number_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert math.isnan(policy_gradient.nanmean(array([None, None]))) and policy_gradient.nanstd(array([None])) == 0.0
    assert not recwarn.list


@given(st.lists(maybe, min_size=1, max_size=8))
def test_advantages_of_a_group_sum_to_zero(rewards: list[float | None]) -> None:
    for advantage in (policy_gradient.center(array(rewards)), policy_gradient.leave_one_out(array(rewards))):
        assert np.nansum(advantage) == pytest.approx(0, abs=1e-9)
        assert [a != a for a in advantage] == [r is None for r in rewards]


@given(st.lists(numbers, min_size=2, max_size=8))
def test_siblings_and_mean_differ_by_a_factor(rewards: list[float]) -> None:
    n = len(rewards)
    loop = [r - sum(rewards[:i] + rewards[i + 1 :]) / (n - 1) for i, r in enumerate(rewards)]
    assert policy_gradient.leave_one_out(array(rewards)) == pytest.approx(loop, abs=1e-9)
    assert policy_gradient.leave_one_out(array(rewards)) == pytest.approx(
        n / (n - 1) * policy_gradient.center(array(rewards)), abs=1e-9
    )


@given(lists, numbers)
def test_a_constant_added_to_all_rewards_changes_nothing(rewards: list[float], shift: float) -> None:
    moved = array(rewards) + shift
    for rule in (policy_gradient.center, policy_gradient.leave_one_out):
        assert rule(moved) == pytest.approx(rule(array(rewards)), abs=1e-9)
    assert policy_gradient.nanstd(moved) == pytest.approx(policy_gradient.nanstd(array(rewards)), abs=1e-9)


@given(st.lists(maybe, min_size=1, max_size=8), st.randoms())
def test_the_order_of_answers_is_not_seen(rewards: list[float | None], random: object) -> None:
    order = list(range(len(rewards)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for rule in (policy_gradient.center, policy_gradient.leave_one_out):
        assert rule(array(rewards)[order]) == pytest.approx(rule(array(rewards))[order], abs=1e-9, nan_ok=True)


@given(st.lists(numbers, min_size=2, max_size=6))
def test_abstaining_leaves_the_others_as_they_were_and_is_not_a_zero(rewards: list[float]) -> None:
    for rule, compared in ((policy_gradient.center, rewards), (policy_gradient.leave_one_out, rewards[1:])):
        assert rule(array([*rewards, None]))[:-1] == pytest.approx(rule(array(rewards)), abs=1e-9)
        if abs(np.mean(compared)) > 1e-2:
            assert rule(array([*rewards, 0.0]))[0] != pytest.approx(rule(array(rewards))[0], abs=1e-6)
    assert policy_gradient.nanstd(array([*rewards, None])) == pytest.approx(policy_gradient.nanstd(array(rewards)))


def test_the_credit_of_whole_answers() -> None:
    """An advantage for each token. An answer that nobody scored has 0 and is left out, and on demand one cut off."""
    groups = [[answer(1.0, [-1, -1]), answer(None), answer(0.0)], [answer(None)]]
    groups[0][2].finish = "length"
    made = policy_gradient.broadcast_to_tokens(
        groups, [policy_gradient.center(policy_gradient.rewards(group)) for group in groups]
    )
    assert [a.tolist() for a in made.token_data["advantage"]] == [[0.5, 0.5], [0.0], [-0.5], [0.0]]
    assert all(a.dtype == np.float32 for a in made.token_data["advantage"])
    assert made.keep.tolist() == [True, False, True, False]
    assert policy_gradient.loss_mask(groups).tolist() == [True, False, True, False]
    assert policy_gradient.loss_mask(groups, mask_truncated_completions=True).tolist() == [True, False, False, False]
    masked = policy_gradient.broadcast_to_tokens(
        groups, [np.zeros(len(group)) for group in groups], mask_truncated_completions=True
    )
    assert masked.keep.tolist() == [True, False, False, False]
    assert policy_gradient.loss_mask([]).dtype == bool
    assert policy_gradient.broadcast_to_tokens([], []).keep.tolist() == []


# --- tokens --------------------------------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    """γ = 0.9, λ = 0.8. δ = 0.9·0.6 − 0.5, 0.9·0.7 − 0.6, 1 − 0.7; then A_t = δ_t + 0.72 A_{t+1}."""
    advantage, returns = policy_gradient.gae(np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.6, 0.7]), 0.9, 0.8)
    assert advantage == pytest.approx([0.21712, 0.246, 0.3])
    assert returns == pytest.approx([0.71712, 0.846, 1.0])


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_sum_that_defines_it(steps: list[tuple[float, float]], gamma: float, lam: float) -> None:
    """A_t = Σ_l (γλ)^l δ_{t+l}: 1506.02438 Eq 16. λ = 1 makes returns rewards-to-go, λ = 0 makes advantages δ."""
    reward, value = (np.array(x) for x in zip(*steps, strict=True))
    n = len(steps)
    delta = [reward[t] + gamma * (value[t + 1] if t + 1 < n else 0.0) - value[t] for t in range(n)]
    wanted = [sum((gamma * lam) ** i * delta[t + i] for i in range(n - t)) for t in range(n)]
    advantage, returns = policy_gradient.gae(reward, value, gamma, lam)
    assert advantage == pytest.approx(wanted, abs=1e-9)
    assert returns == pytest.approx(np.array(wanted) + value, abs=1e-9)
    to_go = [sum(gamma**i * reward[t + i] for i in range(n - t)) for t in range(n)]
    assert policy_gradient.gae(reward, value, gamma, 1.0)[1] == pytest.approx(to_go, abs=1e-9)
    assert policy_gradient.reward_to_go(reward, gamma) == pytest.approx(to_go, abs=1e-9)
    assert policy_gradient.reward_to_go(reward) == pytest.approx(np.cumsum(reward[::-1])[::-1], abs=1e-9)
    assert policy_gradient.gae(reward, value, gamma, 0.0)[0] == pytest.approx(delta, abs=1e-9)


def test_rewards_of_tokens_by_hand() -> None:
    assert policy_gradient.token_rewards(2.0, np.array([0.5, -1.0, 0.25]), 0.1) == pytest.approx([-0.05, 0.1, 1.975])
    assert policy_gradient.token_rewards(2.0, np.zeros(1), 0.0) == pytest.approx([2.0])


def test_whitening_is_over_all_tokens_and_passes_over_the_unscored() -> None:
    """1, 2, 3: mean 2, unbiased variance 1."""
    parts = [np.array([1.0, 2.0]), np.array([math.nan] * 3), np.array([3.0])]
    first, unscored, last = policy_gradient.whiten(parts)
    assert [*first, *last] == pytest.approx([-1, 0, 1], abs=1e-7)
    assert np.isnan(unscored).all()
    assert policy_gradient.nan_to_zero([unscored])[0].tolist() == [0, 0, 0]
    # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2.
    assert policy_gradient.whiten([np.array([1.0, 2.0, 6.0])])[0] == pytest.approx(np.array([-2, -1, 3]) / math.sqrt(7))
    assert policy_gradient.whiten([np.array([5.0])])[0].tolist() == [0.0]


def test_the_kl_controller_by_hand() -> None:
    """Far above the target the error counts as 0.2; a tenth below it as −0.1. 512 answers, horizon 10000."""
    assert policy_gradient.adapt_beta(0.05, 9.0, 6.0, 512, 10_000) == pytest.approx(0.05 * 1.01024)
    assert policy_gradient.adapt_beta(0.05, 5.4, 6.0, 512, 10_000) == pytest.approx(0.05 * 0.99488)
    assert policy_gradient.adapt_beta(0.05, -3.0, 6.0, 512, 10_000) == pytest.approx(0.05 * 0.98976)
    assert policy_gradient.adapt_beta(0.05, 6.0, 6.0, 512, 10_000) == 0.05


def test_each_estimator_averages_to_the_kl() -> None:
    """k1 and k3 exactly, over all outcomes; k2 to the third order."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.35, 0.25])
    x, kl = np.log(p / q), float((p * np.log(p / q)).sum())
    bounds: dict[KL, float] = {"k1": 1e-12, "k3": 1e-12, "k2": 1e-3}
    for kind, within in bounds.items():
        assert float((p * estimate(x, kind)).sum()) == pytest.approx(kl, abs=within)
    assert (estimate(x, "k3") >= 0).all() and (estimate(x, "k2") >= 0).all()


# --- best of n -----------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]), min_size=1, max_size=7))
def test_best_of_k_and_pass_at_k_over_all_subsets(rewards: list[float]) -> None:
    n, right = len(rewards), sum(reward >= 1 for reward in rewards)
    for k in range(1, n + 1):
        subsets = list(combinations(rewards, k))
        assert pass_at_k.best_of_k(rewards, k) == pytest.approx(np.mean([max(subset) for subset in subsets]), abs=1e-9)
        passed = np.mean([any(reward >= 1 for reward in subset) for subset in subsets])
        assert pass_at_k.pass_at_k(n, right, k) == pytest.approx(passed, abs=1e-9)
        assert pass_at_k.best_of_k([1.0] * right + [0.0] * (n - right), k) == pytest.approx(passed, abs=1e-9)


@pytest.mark.parametrize("arguments", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_what_cannot_be_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="right answers among"):
        pass_at_k.pass_at_k(*arguments)
    with pytest.raises(ValueError, match="among 2 answers"):
        pass_at_k.best_of_k([1.0, 2.0], 3)


@pytest.mark.parametrize("n", [1, 2, 8, 16])
def test_the_kl_bound(n: int) -> None:
    """The best of n from m equally likely answers is the i-th with chance (i/m)^n − ((i−1)/m)^n: below it, and near."""
    kls = []
    for m in (3, 100, 10_000):
        edges = (np.arange(m + 1) / m) ** n
        p = np.diff(edges)
        kls.append(float((p[p > 0] * np.log(p[p > 0] * m)).sum()))
    assert sorted(kls) == pytest.approx(kls) and kls[-1] <= pass_at_k.kl_bound(n) + 1e-12
    assert kls[-1] == pytest.approx(pass_at_k.kl_bound(n), abs=1e-2)
    assert pass_at_k.kl_bound(8) == pytest.approx(math.log(8) - 7 / 8)


def test_the_curve_is_told_at_powers_of_two() -> None:
    assert [list(pass_at_k.powers_of_two(n)) for n in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]
