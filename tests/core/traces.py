"""Made-up metrics of online stages, healthy and failing, to measure alarms on. All numbers follow from the seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Failure = Literal["entropy", "kl", "longer", "shorter", "gold_falls", "gold_turns", "frac_reward_zero_std"]
FAILURES: tuple[Failure, ...] = (
    "entropy", "kl", "longer", "shorter", "gold_falls", "gold_turns", "frac_reward_zero_std",
)  # fmt: skip
ALARM = {"longer": "length", "shorter": "length", "gold_falls": "gold", "gold_turns": "gold"}
"""The alarm that a failure must raise, where it is not of the same name."""
SPREAD = 0.4
"""Standard deviation of a group's mean reward, gold or not."""


def trace(
    seed: int, phases: int, failure: Failure | None = None, onset: int = 30, **options: float
) -> list[dict[str, float]]:
    """Metrics of each phase. Levels, speeds and noise are drawn per seed; ``failure`` sets in after ``onset`` phases.

    Options: ``fall`` of gold in standard errors of one phase (10), ``groups`` in a phase (32), ``wander`` of gold's
    true level in standard errors (0), ``gain`` of gold in a healthy run, in standard errors (drawn from 0 to 8),
    ``reported`` standard errors as a share of the true ones (1).
    """
    random = np.random.default_rng(seed)
    time = np.arange(phases, dtype=float)
    settled = 1 - np.exp(-time / random.uniform(15, 80))
    ramp = np.clip((time - onset) / random.uniform(5, 25), 0, 1)

    entropy = random.uniform(0.2, 3) * (1 - random.uniform(-0.1, 0.55) * settled) * _noise(random, phases, 0.06)
    kl = random.uniform(0.002, 0.2) * settled * _noise(random, phases, 0.15)
    length = random.uniform(20, 2000) * (1 + random.uniform(-0.35, 0.5) * settled) * _noise(random, phases, 0.08)
    dead = np.clip(random.uniform(0.1, 0.6) + random.normal(0, 0.05, phases), 0, 1)
    cut = np.clip(random.uniform(0, 0.2) + random.normal(0, 0.02, phases), 0, 1)

    groups = int(options.get("groups", 32))
    error, fall = SPREAD / np.sqrt(groups), options.get("fall", 10.0)
    reward = 0.3 + random.uniform(0.2, 0.6) * settled
    gold = 0.3 + error * options.get("gain", random.uniform(0, 8)) * settled
    match failure:
        case "entropy":
            entropy = entropy * (1 - random.uniform(0.85, 1) * ramp)
        case "kl":
            kl = kl + random.uniform(0.8, 20) * ramp
        case "longer":
            length = length * (1 + random.uniform(3.5, 10) * ramp)
        case "shorter":
            length = length * (1 - random.uniform(0.75, 0.98) * ramp)
        case "gold_falls":
            reward, gold = reward + 0.5 * ramp, 0.3 - error * fall * ramp
        case "gold_turns":
            reward = reward + 0.5 * ramp
            gold = 0.3 + error * (8 * np.clip(time / onset, 0, 1) - fall * ramp)
        case "frac_reward_zero_std":
            dead = dead * (1 - ramp) + random.uniform(0.9, 1) * ramp
    gold = gold + error * options.get("wander", 0.0) * _slow(random, phases)
    share = options.get("reported", 1.0)
    both = *_measured(random, reward, groups, share), *_measured(random, gold, groups, share)
    rows = zip(entropy, kl, length, dead, cut, *both, strict=True)
    names = (
        "entropy", "kl", "completions/mean_length", "frac_reward_zero_std", "completions/clipped_ratio",
        "reward", "reward/std_error", "gold", "gold/std_error",
    )  # fmt: skip
    return [dict(zip(names, map(float, row), strict=True)) for row in rows]


def healthy(seeds: int, phases: int, **options: float) -> Iterator[list[dict[str, float]]]:
    """One trace a seed."""
    return (trace(seed, phases, **options) for seed in range(seeds))


def _noise(random: np.random.Generator, phases: int, size: float) -> Array:
    """A factor about 1, half of its variance from a slow wander."""
    both = random.normal(size=phases) + _slow(random, phases)
    return np.exp(size / np.sqrt(2) * both)


def _slow(random: np.random.Generator, phases: int) -> Array:
    """An autoregressive process of standard deviation 1 that forgets in ten phases."""
    fresh, level = random.normal(size=phases), np.zeros(phases)
    level[0] = fresh[0]
    for i in range(1, phases):
        level[i] = 0.9 * level[i - 1] + np.sqrt(1 - 0.81) * fresh[i]
    return level


def _measured(random: np.random.Generator, level: Array, groups: int, share: float) -> tuple[Array, Array]:
    """A mean over ``groups`` and its standard error, both as estimated from them."""
    seen = level + random.normal(0, SPREAD / np.sqrt(groups), len(level))
    return seen, share * SPREAD / np.sqrt(groups) * np.sqrt(random.chisquare(groups - 1, len(level)) / (groups - 1))
