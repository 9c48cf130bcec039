"""The conformance kit: what every plugin must keep to, ours and strangers', as one call in a test.

from align.testing import check_algorithm, check_reward

def test_my_algorithm() -> None:
    check_algorithm(MyAlgorithm)
    check_algorithm(MyAlgorithm, {"beta": 0.5})

def test_my_reward() -> None:
    check_reward(my_reward, [{"prompt": "2+2?", "completion": "4", "solution": "4"}, ...])
"""

from align.testing.algorithms import (
    CUTS,
    LENGTHS,
    VOCABULARY,
    Cut,
    Scorer,
    check_algorithm,
    check_description,
    step_gradients,
    step_statistics,
    toy_examples,
    toy_experience,
    toy_policy,
)
from align.testing.rewards import check_reward

__all__ = [
    "CUTS",
    "LENGTHS",
    "VOCABULARY",
    "Cut",
    "Scorer",
    "check_algorithm",
    "check_description",
    "check_reward",
    "step_gradients",
    "step_statistics",
    "toy_examples",
    "toy_experience",
    "toy_policy",
]
