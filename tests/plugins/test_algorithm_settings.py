"""Every setting of every built-in algorithm does something: change it, and the step or what the engine asks changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import Tensor

from align.core.algorithm.contract import Algorithm, Group, Online
from align.core.data.batch import MicroBatch
from align.core.plugin_system.registry import registry
from align.schemas.run import Rollout
from align.testing import step, toy_examples, toy_policy
from align.testing.online_algorithms import toy_groups

ALGORITHMS = (
    *("sft", "pretrain", "reward_model", "dpo", "simpo", "cpo", "orpo", "kto"),
    *("rloo", "reinforce", "grpo", "ppo", "online_dpo"),
)

UNDER: dict[tuple[str, str], dict[str, Any]] = {
    ("dpo", "label_smoothing"): {"loss_type": "robust"},
    ("dpo", "f_alpha"): {"f_divergence_type": "alpha_divergence"},
    ("dpo", "discopop_tau"): {"loss_type": "discopop"},
    ("reinforce", "baseline"): {"normalize_advantages": False},
    ("reinforce", "decay"): {"baseline": "moving", "normalize_advantages": False},
    ("grpo", "kl_estimator"): {"beta": 0.1},
    ("grpo", "kl_in"): {"beta": 0.1},
    ("grpo", "use_bias_correction_kl"): {"beta": 0.1},
    ("ppo", "kl_target"): {"beta": 0.1},
    ("ppo", "kl_horizon"): {"beta": 0.1, "kl_target": 0.5},
}
"""What else must be set for a setting to be read."""

OTHER: dict[tuple[str, str], Any] = {
    ("dpo", "loss_type"): "ipo",
    ("dpo", "ld_alpha"): 0.5,
    ("rloo", "epsilon_high"): 5.0,
    ("reinforce", "baseline"): "batch",
    ("grpo", "epsilon_high"): 0.05,
    ("grpo", "delta"): 1.3,
    ("grpo", "use_bias_correction_kl"): False,
    ("reinforce", "epsilon_high"): 0.05,
    ("ppo", "epsilon"): 0.6,
    ("ppo", "epsilon_high"): 0.05,
    ("ppo", "delta"): 1.3,
    ("ppo", "cliprange_value"): None,
    ("ppo", "kl_target"): 0.5,
    ("ppo", "critic"): "elsewhere",
}
"""Another value, where neither the type nor the default gives one."""

FOR_THE_ENGINE = {"num_generations", "num_iterations", "critic", "critic_learning_rate", "critic_warmup"}
"""Settings that the engine reads from the algorithm, and no equation."""


def another(name: str, setting: str, annotation: Any, value: Any) -> Any:
    """A value that the setting does not have by default."""
    if (name, setting) in OTHER:
        return OTHER[name, setting]
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2
    if isinstance(value, float):
        return value / 2 if value else 0.3
    raise AssertionError(f"give {name}.{setting} another value in OTHER")


SETTINGS = [(name, setting) for name in ALGORITHMS for setting in registry.get("algorithm", name).Config.model_fields]


def made(name: str, chosen: Mapping[str, Any]) -> Algorithm:
    cls = registry.get("algorithm", name)
    algorithm: Algorithm = cls(cls.Config(**chosen))
    if isinstance(algorithm, Online):
        algorithm.configure(Rollout.model_validate({"rewards": ["toy"], "sampling": {"max_completion_length": 10}}))
    return algorithm


def answers(algorithm: Online) -> list[Group]:
    """Toy answers of which some were cut off, of ratios and values far enough from the old ones to be clipped."""
    draw = np.random.default_rng(5)
    groups = toy_groups(algorithm, toy_policy())
    for number, experience in enumerate(e for group in groups for e in group):

        def near(spread: float, like: Any = experience.sampled_logp) -> Any:
            return (like + spread * draw.normal(size=len(like))).astype(np.float32)

        experience.finish = "length" if number % 3 == 0 else "stop"
        experience.logp, experience.ref_logp, experience.value = near(0.5), near(0.5), near(1.0)
    return groups


class Reference:
    """Another toy policy."""

    def __init__(self) -> None:
        self.policy = toy_policy(seed=1)

    def logp(self, micro: MicroBatch) -> Tensor:
        with torch.no_grad():
            return self.policy(micro).logp_T


def seen(algorithm: Algorithm, groups: list[Group]) -> dict[str, Any]:
    """The loss of a step of the third phase, its metrics, and each parameter's gradient."""
    critic = None
    if isinstance(algorithm, Online):
        groups = copy.deepcopy(groups)
        flat = [e for group in groups for e in group]
        for experience in flat:
            experience.ref_logp = experience.ref_logp if algorithm.uses_reference else None
        algorithm.compute_advantages(groups[:4])  # a controller or a moving mean shows in the next phases
        algorithm.compute_advantages(groups[4:])
        advantages = algorithm.compute_advantages(groups)
        token_data = {"old_logp": [e.logp for e in flat], "weight": [np.exp(e.logp - e.sampled_logp) for e in flat]}
        examples = [
            e
            for group in algorithm.examples(
                groups, replace(advantages, token_data={**advantages.token_data, **token_data})
            )
            for e in group
        ]
        critic = toy_policy("value", seed=2) if algorithm.critic is not None else None
    else:
        examples = toy_examples(algorithm.learns_from[0], scores_prompt=algorithm.scores_prompt)
    reference = Reference() if algorithm.uses_reference else None
    whole = [range(len(examples))]
    done = step(algorithm, toy_policy(algorithm.head), reference, examples, whole, critic=critic)
    found: dict[str, Any] = {
        "loss": done.loss,
        **{f"gradient of {name}": g.tolist() for name, g in done.gradients.items()},
    }
    return found | {f"metric {name}": value for name, value in done.metrics.items()}


def test_the_tables_are_complete() -> None:
    """best_of_n learns nothing: it makes rows."""
    assert {*ALGORITHMS, "best_of_n"} == set(registry.names("algorithm"))
    assert UNDER.keys() | OTHER.keys() <= set(SETTINGS)


@pytest.mark.parametrize(("name", "setting"), SETTINGS, ids=str)
def test_a_setting_changes_the_gradient(name: str, setting: str) -> None:
    """Everything else is the same: answers, rewards, log-probabilities, weights."""
    under = UNDER.get((name, setting), {})
    field = registry.get("algorithm", name).Config.model_fields[setting]
    plain = made(name, under)
    value = another(name, setting, field.annotation, getattr(plain.config, setting))
    changed = made(name, under | {setting: value})
    if setting in FOR_THE_ENGINE:
        assert isinstance(plain, Online) and isinstance(changed, Online)
        assert tells(plain) != tells(changed) and value in tells(changed)
        return
    groups = answers(plain) if isinstance(plain, Online) else []
    before, after = seen(plain, groups), seen(changed, groups)
    moved = {what for what in before if what.startswith("gradient") and before[what] != after.get(what)}
    assert moved, f"{name}.{setting} = {value} changes no gradient"


def tells(algorithm: Online) -> tuple[Any, ...]:
    """What the engine asks an algorithm before the first answer."""
    critic = algorithm.critic
    return (
        algorithm.num_generations,
        algorithm.num_iterations,
        *((critic.path, critic.learning_rate, critic.warmup) if critic else ()),
    )
