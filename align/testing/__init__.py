"""The conformance kit: what every plugin must keep to, ours and strangers', as one call in a test.

from align.testing import check_algorithm, check_reward

def test_my_algorithm() -> None:
    check_algorithm(MyAlgorithm)
    check_algorithm(MyAlgorithm, {"beta": 0.5})

def test_my_reward() -> None:
    check_reward(my_reward, [{"prompt": "2+2?", "completion": "4", "solution": "4"}, ...])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.testing.algorithm_checks import check_algorithm as check_algorithm
    from align.testing.algorithm_checks import check_description as check_description
    from align.testing.eval_runs import run_eval as run_eval
    from align.testing.online_algorithms import check_online as check_online
    from align.testing.online_algorithms import toy_experience as toy_experience
    from align.testing.optimizer_step import CUTS as CUTS
    from align.testing.optimizer_step import Cut as Cut
    from align.testing.optimizer_step import ReferenceLike as ReferenceLike
    from align.testing.optimizer_step import StepResult as StepResult
    from align.testing.optimizer_step import step as step
    from align.testing.optimizer_step import step_gradients as step_gradients
    from align.testing.optimizer_step import step_statistics as step_statistics
    from align.testing.reward_checks import check_reward as check_reward
    from align.testing.rule_checks import advise_with as advise_with
    from align.testing.scripted_model import ScriptedModel as ScriptedModel
    from align.testing.toys import LENGTHS as LENGTHS
    from align.testing.toys import VOCABULARY as VOCABULARY
    from align.testing.toys import toy_examples as toy_examples
    from align.testing.toys import toy_policy as toy_policy

_HOMES = {
    "algorithm_checks": ("check_algorithm", "check_description"),
    "online_algorithms": ("check_online", "toy_experience"),
    "eval_runs": ("run_eval",),
    "scripted_model": ("ScriptedModel",),
    "reward_checks": ("check_reward",),
    "rule_checks": ("advise_with",),
    "optimizer_step": ("CUTS", "Cut", "ReferenceLike", "StepResult", "step", "step_gradients", "step_statistics"),
    "toys": ("LENGTHS", "VOCABULARY", "toy_examples", "toy_policy"),
}
_HOME = {name: f"align.testing.{home}" for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a name from its home on first use: rewards are checked without torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'align.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
