"""The conformance kit: what every plugin must keep to, ours and strangers', as one call in a test.

from align.testing import check_algorithm, check_reward

def test_my_algorithm() -> None:
    check_algorithm(MyAlgorithm)
    check_algorithm(MyAlgorithm, {"beta": 0.5})

def test_my_reward() -> None:
    check_reward(my_reward, [{"prompt": "2+2?", "completion": "4", "solution": "4"}, ...])
"""

from align.testing.algorithms import check_algorithm, check_description
from align.testing.online import check_online, toy_experience
from align.testing.rewards import check_reward
from align.testing.steps import CUTS, Cut, Scorer, Step, step, step_gradients, step_statistics
from align.testing.toys import LENGTHS, VOCABULARY, toy_examples, toy_policy

__all__ = [
    "CUTS",
    "LENGTHS",
    "VOCABULARY",
    "Cut",
    "Scorer",
    "Step",
    "check_algorithm",
    "check_description",
    "check_online",
    "check_reward",
    "step",
    "step_gradients",
    "step_statistics",
    "toy_examples",
    "toy_experience",
    "toy_policy",
]
