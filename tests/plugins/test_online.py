"""Algorithms that learn from rewards: credit and loss against loops of their own, and what they refuse.

RLOO and GRPO against TRL are in test_parity_online.py, the law in test_law.py, the equations in tests/core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from align.core.algorithm.contract import Algorithm, Experience, Group, LossOutput, LossTerm, Online
from align.core.data.batch import Batch, collate
from align.core.data.examples import Example
from align.plugins.algorithms.best_of_n import BestOfN
from align.plugins.algorithms.dpo import DPO
from align.plugins.algorithms.grpo import GRPO
from align.plugins.algorithms.online_dpo import OnlineDPO
from align.plugins.algorithms.ppo import PPO, value_loss
from align.plugins.algorithms.reinforce import Reinforce
from align.plugins.algorithms.rloo import RLOO
from align.schemas.errors import AlignError
from align.schemas.run import Rollout
from align.testing import step_gradients, toy_experience, toy_policy


def made(algorithm: type[Online], **settings: Any) -> Any:
    """An algorithm that was told its rollout settings."""
    it = algorithm(algorithm.Config(**settings))
    it.configure(Rollout.model_validate({"rewards": ["toy"], "sampling": {"max_completion_length": 10}}))
    return it


def answer(reward: float | None, *log_ratio: float, value: Sequence[float] = (), finish: Any = "stop") -> Experience:
    """An answer whose tokens have these log π − log π_ref and values."""
    n = len(log_ratio)
    tokens, ref = np.arange(5, 5 + n, dtype=np.int32), np.full(n, -2, np.float32)
    logp = (ref + log_ratio).astype(np.float32)
    one = Experience("toy", np.array([1, 2], np.int32), tokens, finish, logp, reward, {}, logp, ref)
    one.value = np.array(value, np.float32) if len(value) else None
    return one


def advantages_of(algorithm: Online, *groups: Group) -> list[list[float]]:
    return [
        [round(float(a), 6) for a in token_data]
        for token_data in algorithm.compute_advantages(groups).token_data["advantage"]
    ]


# --- at the weights that sampled ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "settings", "per"),
    [
        (RLOO, {"beta": 0.0}, "answer"),
        (Reinforce, {"beta": 0.0}, "token"),
        (Reinforce, {"beta": 0.0, "averaging": "constant"}, "constant"),
        (GRPO, {}, "token"),
        (GRPO, {"averaging": "sequence"}, "mean"),
        (GRPO, {"averaging": "constant", "scale_rewards": "none"}, "constant"),
        (GRPO, {"averaging": "sequence", "importance_sampling_level": "sequence"}, "mean"),
        (GRPO, {"objective": "cispo"}, "token"),
        (GRPO, {"delta": 3.0}, "token"),
        (PPO, {"beta": 0.0}, "token"),
    ],
    ids=str,
)
def test_without_kl_the_first_gradient_is_that_of_reinforce(
    algorithm: type[Online], settings: dict[str, Any], per: str
) -> None:
    """∇ −Σ A log π, over tokens, or over answers of their tokens' sum, mean, or sum / max_completion_length."""

    class Plain(Algorithm):
        name = "plain"

        def loss(self, batch: Batch) -> LossOutput:
            """Over tokens or answers."""
            x_T = -batch.token_data["advantage"] * batch.logp_T
            terms = {
                "token": LossTerm(x_T, "token"),
                "answer": LossTerm(batch.sum_per_sequence(x_T), "sequence"),
                "mean": LossTerm(batch.mean_per_sequence(x_T), "sequence"),
                "constant": LossTerm(batch.sum_per_sequence(x_T) / 256, "sequence"),
            }
            return LossOutput([terms[per]], {})

    policy, critic = toy_policy().double(), toy_policy("value", seed=2).double()
    it = algorithm(algorithm.Config(**settings))
    examples = [first_step(example) for example in toy_experience(it, policy)]
    _, mine = step_gradients(it, policy, None, examples, [range(3), range(3, 8)], critic=critic if it.critic else None)
    _, plain = step_gradients(Plain(Algorithm.Config()), policy, None, examples, [range(8)])
    # In float64 but for old_logp, which is kept in float32: the ratio is 1 to float32's rounding of log-probabilities
    # of size 8, and its error weighs tokens of either sign.
    near = 64 * np.finfo(np.float32).eps
    for name, gradient in plain.items():
        assert float((mine[name] - gradient).norm()) <= near * float(gradient.norm()), name


def first_step(example: Example) -> Example:
    """As in a phase of one step: nothing was measured, and no correction."""
    (one,) = example.sequences
    token_data = {name: values for name, values in one.token_data.items() if name not in ("old_logp", "weight")}
    return replace(example, sequences=(replace(one, token_data=token_data),))


# --- rloo, reinforce, grpo ------------------------------------------------------------------------------------------


def test_rloo_prices_the_kl_of_whole_answers() -> None:
    """Rewards 1 − 0.5·(0.2 + 0.4) = 0.7 and 0 − 0.5·(−0.2) = 0.1: each against the other."""
    it = made(RLOO, num_generations=2, beta=0.5)
    assert advantages_of(it, [answer(1.0, 0.2, 0.4), answer(0.0, -0.2)]) == [[0.6, 0.6], [-0.6]]
    assert it.uses_reference and it.measures_logp and not made(RLOO, beta=0.0).uses_reference


def test_grpo_prices_the_kl_in_the_reward_too() -> None:
    """The same rewards, less their mean 0.4; and the phase's deviation, over two groups with rewards 0.7, 0.1, 1, 1."""
    group = [answer(1.0, 0.2, 0.4), answer(0.0, -0.2)]
    it = made(GRPO, num_generations=2, beta=0.5, kl_estimator="k1", kl_in="reward", scale_rewards="none")
    assert it.measures_logp
    assert advantages_of(it, group) == [[0.3, 0.3], [-0.3]]
    it = made(GRPO, num_generations=2, beta=0.5, kl_estimator="k1", kl_in="reward", scale_rewards="batch")
    deviation = float(np.std([0.7, 0.1, 1, 1], ddof=1)) + 1e-4
    assert advantages_of(it, group, [answer(1.0, 0), answer(1.0, 0)])[1:] == [
        pytest.approx([-0.3 / deviation], abs=1e-5),
        [0.0],
        [0.0],
    ]


@pytest.mark.parametrize("algorithm", [RLOO, GRPO, Reinforce, PPO])
def test_the_upper_clip_is_the_lower_one_unless_given(algorithm: Any) -> None:
    assert algorithm.Config(epsilon=0.1).high == 0.1
    assert algorithm.Config(epsilon=0.1, epsilon_high=0.3).high == 0.3


@pytest.mark.parametrize("algorithm", [RLOO, GRPO, Reinforce])
def test_answers_cut_off_leave_the_loss_and_not_the_baseline(algorithm: type[Online]) -> None:
    group = {"num_generations": 2, "baseline": "group"} if algorithm is Reinforce else {"num_generations": 2}
    it = made(algorithm, **group, beta=0.0, mask_truncated_completions=True)
    advantages = it.compute_advantages(
        [[answer(1.0, 0, 0), answer(0.0, 0, finish="length")], [answer(1.0, 0), answer(0.5, 0)]]
    )
    assert advantages.keep.tolist() == [True, False, True, True]
    assert advantages.token_data["advantage"][0][0] > 0
    assert [len(each) for each in it.examples([[answer(1.0, 0, 0), answer(0.0, 0)]], advantages)] == [1]


def test_reinforce_plus_plus_by_hand() -> None:
    """r = −0.1·0.5 then 1 − 0.1·1, to go: 0.85, 0.9; and 0 + 0.1·1 = 0.1. Mean 0.616667, then one standard for all."""
    plain = made(Reinforce, beta=0.1, normalize_advantages=False)
    groups = [[answer(1.0, 0.5, 1.0)], [answer(0.0, -1.0)]]
    assert advantages_of(plain, *groups) == [[0.85, 0.9], [0.1]]
    raw = np.array([0.85, 0.9, 0.1])
    wanted = (raw - raw.mean()) / raw.std(ddof=1)
    standard = advantages_of(made(Reinforce, beta=0.1), *groups)
    assert [*standard[0], *standard[1]] == pytest.approx(wanted, abs=1e-5)
    discounted = made(Reinforce, beta=0.0, normalize_advantages=False, gamma=0.5)
    assert advantages_of(discounted, [answer(1.0, 0, 0, 0)]) == [[0.25, 0.5, 1.0]]


def test_reinforce_baselines_by_hand() -> None:
    groups = [[answer(1.0, 0), answer(0.0, 0)], [answer(2.0, 0), answer(None, 0)]]
    plain = {"normalize_advantages": False, "beta": 0.0}
    assert advantages_of(made(Reinforce, num_generations=2, baseline="group", **plain), *groups) == [
        [0.5],
        [-0.5],
        [0.0],
        [0.0],
    ]
    assert advantages_of(made(Reinforce, num_generations=2, baseline="none", **plain), *groups) == [
        [1.0],
        [0.0],
        [2.0],
        [0.0],
    ]
    assert advantages_of(made(Reinforce, num_generations=2, baseline="batch", **plain), *groups) == [
        [0.0],
        [-1.0],
        [1.0],
        [0.0],
    ]


def test_the_moving_baseline_is_of_the_phases_before_and_survives_a_restart() -> None:
    """The first phase has only its own mean, 1; the second is compared with that, and moves it to 0.9·1 + 0.1·3."""
    it = made(Reinforce, baseline="moving", normalize_advantages=False, beta=0.0)
    assert advantages_of(it, [answer(1.0, 0)]) == [[0.0]]
    assert advantages_of(it, [answer(3.0, 0)]) == [[2.0]]
    again = made(Reinforce, baseline="moving", normalize_advantages=False, beta=0.0)
    again.load_state_dict(it.state_dict())
    for each in (it, again):
        advantages = each.compute_advantages([[answer(0.0, 0)]])
        assert advantages.metrics["baseline"] == pytest.approx(1.2) == -advantages.token_data["advantage"][0][0]
        assert advantages_of(each, [answer(None, 0)]) == [[0.0]]
    assert it.state_dict() == again.state_dict() == {"moving": pytest.approx(1.08)}


def test_grpo_s_defaults_that_depend_on_other_settings() -> None:
    def high(**chosen: Any) -> float:
        return GRPO.Config(**chosen).high

    assert (high(), high(epsilon=0.1), high(epsilon_high=0.5), high(objective="cispo")) == (0.2, 0.1, 0.5, 4.0)
    corrected = {kind: GRPO.Config(beta=0.1, kl_estimator=kind).corrected for kind in ("k1", "k2", "k3")}
    assert corrected == {"k1": True, "k2": False, "k3": True}
    for given in (True, False):
        assert GRPO.Config(beta=0.1, kl_estimator="k2", use_bias_correction_kl=given).corrected is given


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("algorithm", [GRPO, Reinforce])
def test_the_kl_beside_the_loss_is_a_price(algorithm: type[Online], estimator: str) -> None:
    """Where no answer is better than another, the loss is β times the mean of k over tokens: ρ is 1."""
    settings = {"num_generations": 2, "beta": 0.3, "kl_in": "loss", "kl_estimator": estimator}
    settings |= {"baseline": "group", "normalize_advantages": False} if algorithm is Reinforce else {}
    it, policy = made(algorithm, **settings), toy_policy().double()
    groups = [[answer(1.0, 0.3, -0.2, 0.5), answer(1.0, 0.1)]]
    examples = [e for group in it.examples(groups, it.compute_advantages(groups)) for e in group]
    loss, _ = step_gradients(it, policy, None, examples, [[0], [1]])
    micro = collate(examples, "padded", 0)
    gaps = [float(p - q) for p, q in zip(policy(micro).logp_T.tolist(), micro.ref_logp_T.tolist(), strict=True)]
    price = {"k1": lambda x: x, "k2": lambda x: x * x / 2, "k3": lambda x: math.exp(-x) - 1 + x}[estimator]
    assert loss == pytest.approx(0.3 * sum(map(price, gaps)) / 4, rel=1e-6)


# --- ppo ------------------------------------------------------------------------------------------------------------


def test_ppo_against_loops_of_its_own() -> None:
    """Credit and loss, token by token in plain Python: β 0.2, γ 0.9, λ 0.8, all clips at 0.2, dual clip at 2."""
    settings = {"beta": 0.2, "gamma": 0.9, "lam": 0.8, "delta": 2.0, "missing_eos_penalty": 0.5, "num_generations": 1}
    it, policy, critic = made(PPO, **settings), toy_policy().double(), toy_policy("value", seed=2).double()
    answers = [
        answer(1.0, 0.3, -0.2, 0.5, value=[0.1, 0.4, -0.3]),
        answer(-0.5, 0.1, 0.2, value=[0.2, 0.0], finish="length"),
        answer(None, 0.1, value=[5.0]),
        answer(2.0, -0.4, value=[1.5]),
    ]
    groups = [[each] for each in answers]
    advantages = it.compute_advantages(groups)
    assert advantages.keep.tolist() == [True, True, False, True]

    advantage, returns = [], []
    for e in (answers[0], answers[1], answers[3]):
        rewards = [-0.2 * float(p - q) for p, q in zip(e.logp, e.ref_logp, strict=True)]
        rewards[-1] += e.reward - (0.5 if e.finish == "length" else 0.0)
        values, after, found = [*map(float, e.value), 0.0], 0.0, []
        for t in range(len(rewards) - 1, -1, -1):
            after = rewards[t] + 0.9 * values[t + 1] - values[t] + 0.9 * 0.8 * after
            found.insert(0, after)
        advantage += found
        returns += [a + v for a, v in zip(found, values, strict=False)]
    centre = sum(advantage) / len(advantage)
    variance = sum((a - centre) ** 2 for a in advantage) / (len(advantage) - 1)
    advantage = [(a - centre) / math.sqrt(variance + 1e-8) for a in advantage]
    kept = [0, 1, 3]
    assert np.concatenate([advantages.token_data["advantage"][i] for i in kept]) == pytest.approx(advantage, abs=1e-5)
    assert np.concatenate([advantages.token_data["return"][i] for i in kept]) == pytest.approx(returns, abs=1e-5)

    draw = np.random.default_rng(0)
    old = [np.float32(-4.2 + 0.3 * draw.normal(size=len(e.tokens))) for e in answers]
    examples = [
        e
        for group in it.examples(groups, replace(advantages, token_data={**advantages.token_data, "old_logp": old}))
        for e in group
    ]
    loss, gradients = step_gradients(it, policy, None, examples, [[0], [1, 2]], critic=critic)
    micro = collate(examples, "padded", 0)
    logp, value = policy(micro).logp_T.tolist(), critic(micro).value_T.tolist()
    before = [float(x) for i in kept for x in old[i]]
    old_value = [float(x) for i in kept for x in answers[i].value]
    total = 0.0
    for t in range(len(before)):
        rho, a, v = math.exp(float(logp[t]) - before[t]), advantage[t], float(value[t])
        objective = min(rho * a, min(max(rho, 0.8), 1.2) * a)
        total -= max(objective, 2.0 * a) if a < 0 else objective
        near = old_value[t] + min(max(v - old_value[t], -0.2), 0.2)
        total += 0.1 * 0.5 * max((v - returns[t]) ** 2, (near - returns[t]) ** 2)
    assert loss == pytest.approx(total / len(before), rel=1e-5)
    assert any(name.startswith("critic.") for name in gradients)


def test_ppo_value_loss_by_hand() -> None:
    """V 1, V_old 0, clip 0.2. R = 2: clipped 0.2 is farther, ½·1.8²; R = 0.9: ½·0.7²; R = 0: V is farther, ½·1."""
    value = torch.ones(3, dtype=torch.float64).requires_grad_()
    returns = torch.tensor([2.0, 0.9, 0.0], dtype=torch.float64)
    found = value_loss(value, torch.zeros_like(value), returns, 0.2)
    assert found.tolist() == pytest.approx([1.62, 0.245, 0.5])
    (gradient,) = torch.autograd.grad(found.sum(), value)
    assert gradient.tolist() == pytest.approx([0, 0, 1])
    assert value_loss(value, torch.zeros_like(value), returns, None).tolist() == pytest.approx([0.5, 0.005, 0.5])


def test_ppo_tells_and_controls_the_kl_and_survives_a_restart() -> None:
    """Two answers of 0.6 and 0.2 nats, target 0.1: the error is 3, counts as 0.2; β 0.05·(1 + 0.2·2/10)."""
    settings = {"kl_target": 0.1, "kl_horizon": 10.0}
    it = made(PPO, **settings)
    groups = [[answer(1.0, 0.2, 0.4, value=[0, 0])], [answer(0.0, 0.2, value=[0])], [answer(None, 9.0, value=[0])]]
    metrics = it.compute_advantages(groups).metrics
    assert metrics == pytest.approx(
        {
            "objective/kl": 0.4,
            "objective/kl_coef": 0.05,
            "objective/scores": 0.5,
            "objective/non_score_reward": -0.02,
            "objective/rlhf_reward": 0.48,
        },
        abs=1e-6,
    )
    assert it.beta == pytest.approx(0.052)
    again = made(PPO, **settings)
    again.load_state_dict(it.state_dict())
    assert again.compute_advantages(groups).metrics == it.compute_advantages(groups).metrics
    assert again.state_dict() == it.state_dict() == {"beta": pytest.approx(0.05408)}
    fixed = made(PPO)
    fixed.compute_advantages(groups)
    assert fixed.beta == 0.05
    assert made(PPO).compute_advantages([[answer(None, 0.1, value=[1.0])]]).metrics == {}


def test_ppo_asks_for_its_critic() -> None:
    it = made(PPO, critic="stage:rm", critic_learning_rate=2e-5, critic_warmup=7)
    assert (it.critic.path, it.critic.learning_rate, it.critic.warmup) == ("stage:rm", 2e-5, 7)
    assert made(PPO).critic.path is None and made(GRPO).critic is None


# --- online dpo -----------------------------------------------------------------------------------------------------


def test_the_best_and_the_worst_make_a_pair() -> None:
    it = made(OnlineDPO, num_generations=4)
    groups = [
        [answer(0.5, 0), answer(2.0, 0, 0), answer(None, 0, 0, 0), answer(-1.0, 0, 0, 0, 0)],
        [answer(1.0, 0), answer(1.0, 0, 0), answer(1.0, 0), answer(None, 0)],
        [answer(None, 0), answer(3.0, 0), answer(None, 0), answer(None, 0)],
        [answer(None, 0)] * 4,
    ]
    made_of = it.examples(groups, it.compute_advantages(groups))
    assert [len(each) for each in made_of] == [1, 0, 0, 0]
    best, worst = made_of[0][0].sequences
    assert (best.role, int(best.scored.sum()), worst.role, int(worst.scored.sum())) == ("chosen", 2, "rejected", 4)


def test_online_dpo_learns_as_dpo_does() -> None:
    policy = toy_policy().double()
    it = made(OnlineDPO, beta=0.3)
    examples = toy_experience(it, policy)
    wanted = step_gradients(DPO(DPO.Config(beta=0.3)), policy, None, examples, [range(8)])
    loss, gradients = step_gradients(it, policy, None, examples, [range(5), range(5, 8)])
    assert loss == pytest.approx(wanted[0])
    assert all(torch.allclose(gradients[name], g, atol=1e-12) for name, g in wanted[1].items())


# --- best of n ------------------------------------------------------------------------------------------------------


def test_rows_of_the_best() -> None:
    answers = [("a", 0.0), ("b", 1.0), ("c", None), ("d", 1.0), ("e", -1.0)]
    it = made(BestOfN, num_generations=5)
    assert it.rows("ask", answers) == [{"prompt": "ask", "completion": "b"}]
    asked = [{"role": "user", "content": "ask"}]
    assert it.rows(asked, answers) == [{"prompt": asked, "completion": [{"role": "assistant", "content": "b"}]}]
    assert it.rows("ask", [("a", None)]) == []
    strict = made(BestOfN, minimum=1.0)
    assert len(strict.rows("ask", answers)) == 1 and strict.rows("ask", answers[:1]) == []
    pairs = made(BestOfN, make="pairs")
    assert pairs.rows("ask", answers) == [{"prompt": "ask", "chosen": "b", "rejected": "e"}]
    assert pairs.rows("ask", [("a", 1.0), ("b", 1.0)]) == []


def test_curves_by_hand() -> None:
    """One right of 4, and two right of 2 scored: pass@2 is 1 − C(3,2)/C(4,2) = 1/2, and 1; pass@4 the first's alone."""
    curves = made(BestOfN, num_generations=4).curves([[1.0, 0.0, 0.0, 0.0], [1.0, 2.0, None, None]])
    assert curves == pytest.approx(
        {
            "kl_bound": math.log(4) - 0.75,
            "pass@1": (0.25 + 1) / 2,
            "pass@2": 0.75,
            "pass@4": 1.0,
            "best@1": (0.25 + 1.5) / 2,
            "best@2": (0.5 + 2.0) / 2,
            "best@4": 1.0,
        }
    )
    assert made(BestOfN, num_generations=4, success=2.0).curves([[1.0, 2.0]])["pass@1"] == 0.5
    assert made(BestOfN, num_generations=2).curves([]) == {"kl_bound": pytest.approx(math.log(2) - 0.5)}


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        (GRPO, {"delta": 1.1}, "delta must be above 1 \\+ epsilon_high, 1.2"),
        (GRPO, {"objective": "cispo", "epsilon": 0.1}, "epsilon is not read by objective 'cispo'"),
        (GRPO, {"kl_estimator": "k1"}, "kl_estimator is not read where beta is 0"),
        (GRPO, {"num_generations": 1}, "greater than or equal to 2"),
        (Reinforce, {"baseline": "group"}, "num_generations must be at least 2"),
        (Reinforce, {"decay": 0.5}, "decay is not read by baseline 'none'"),
        (Reinforce, {"beta": 0, "kl_estimator": "k2"}, "kl_estimator is not read where beta is 0"),
        (PPO, {"beta": 0, "kl_target": 6.0}, "kl_target is not read where beta is 0"),
        (PPO, {"kl_horizon": 5.0}, "kl_horizon is not read without kl_target"),
        (RLOO, {"num_generations": 1}, "greater than or equal to 2"),
        (OnlineDPO, {"num_generations": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_that_do_not_go_together(algorithm: type[Online], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm.Config(**settings)


@pytest.mark.parametrize("algorithm", [RLOO, Reinforce, GRPO, PPO])
def test_truncated_sampling_is_refused_where_ratios_matter(algorithm: type[Online]) -> None:
    rollout = Rollout.model_validate({"rewards": ["toy"], "sampling": {"top_p": 0.9}})
    with pytest.raises(AlignError, match="weighs tokens by their probability"):
        algorithm(algorithm.Config()).configure(rollout)
    for free in (OnlineDPO, BestOfN):
        free(free.Config()).configure(rollout)


def test_rloo_refuses_to_weigh_single_tokens() -> None:
    rollout = Rollout.model_validate({"rewards": ["toy"], "importance_sampling_correction": {"type": "truncate"}})
    with pytest.raises(AlignError, match="rloo weighs whole answers"):
        RLOO(RLOO.Config()).configure(rollout)
    GRPO(GRPO.Config()).configure(rollout)
    RLOO(RLOO.Config()).configure(
        Rollout.model_validate(
            {"rewards": ["toy"], "importance_sampling_correction": {"type": "truncate", "level": "sequence"}}
        )
    )
