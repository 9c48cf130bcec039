"""The promises of algorithms that sample their own answers, checked on toy answers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from align.core.algorithm import contract
from align.core.algorithm.contract import Advantages, Experience, Group, Online, example_of
from align.core.data.batch import collate
from align.core.data.examples import Example
from align.core.generation.generator_base import Floats, Tokens
from align.core.models.policy import Policy
from align.schemas.run import Rollout
from align.testing.optimizer_step import fails
from align.testing.toys import LENGTHS, VOCABULARY

ROLLOUT = {"rewards": ["toy"]}
"""The rollout settings of a toy stage: everything else at its default."""
Make = Callable[[], Online]
"""Makes the algorithm anew, as a process that starts does."""


def toy_experience(
    algorithm: Online,
    policy: Policy,
    lengths: Sequence[tuple[int, int, int]] = LENGTHS,
    *,
    seed: int = 0,
    everything: bool = True,
    far: float = 0.0,
) -> list[Example]:
    """Return as many examples as ``lengths`` has rows, made by the algorithm from random answers and rewards.

    The answers' log-probabilities are the policy's but for a little noise, so that ratios are near 1 and not 1. One
    more prompt has answers that nobody scored. everything: also what is measured only in phases of several steps or of
    another engine's answers, ``old_logp`` and ``weight``. far: nats a token by which the reference finds the answers
    less likely than the policy. (Not more likely: the policy has drawn them.)
    """
    algorithm.configure(Rollout.model_validate(ROLLOUT))
    groups = toy_groups(algorithm, policy, lengths, seed=seed, far=far)
    for experience in groups[-1]:
        experience.reward = None
    with fails():
        advantages = contract.compute_advantages(algorithm, groups)
    answers = [e for group in groups for e in group]
    logp = [(e.logp if e.logp is not None else e.sampled_logp, e.sampled_logp) for e in answers]
    measured = {"old_logp": [old for old, _ in logp], "weight": [np.exp(old - sampled) for old, sampled in logp]}
    if not everything:
        measured = {"old_logp": measured["old_logp"]} if algorithm.num_iterations > 1 else {}
    with fails():
        made = contract.examples(
            algorithm, groups, replace(advantages, token_data={**advantages.token_data, **measured})
        )
    examples = [example for group in made for example in group]
    return examples[:: max(1, len(examples) // len(lengths))][: len(lengths)]


def toy_groups(
    algorithm: Online,
    policy: Policy,
    lengths: Sequence[tuple[int, int, int]] = LENGTHS,
    *,
    seed: int = 0,
    far: float = 0.0,
) -> list[Group]:
    """Return a group of answers for each row of ``lengths`` and one more, with what the engine measures for credit."""
    draw = np.random.default_rng(seed)
    widths = [width for _, *answers in lengths for width in answers]
    groups: list[Group] = []
    for number, (prompt, *_) in enumerate((*lengths, lengths[0])):
        head = draw.integers(1, VOCABULARY, prompt).astype(np.int32)
        answers = (draw.integers(1, VOCABULARY, widths[i % len(widths)]) for i in range(algorithm.num_generations))
        source = f"toy:{number}"
        groups.append(
            [_experience(algorithm, policy, source, head, each.astype(np.int32), draw, far) for each in answers]
        )
        widths = widths[1:] + widths[:1]
    return groups


def check_online(make: Make, policy: Policy, lengths: Sequence[tuple[int, int, int]] = LENGTHS) -> None:
    """Check what ``compute_advantages`` promises.

    - One finite number for each token of each answer, made only of what the engine measures.
    - The same for the same answers: nothing random, and all that moves from phase to phase is in ``state_dict``.
    - What was measured stays as it is.
    - An answer that no reward scored carries no loss, and counts for nothing in the others' credit.

    make: makes the algorithm anew. Raises AssertionError with what is wrong.
    """
    algorithm = _fresh(make)
    first, second = (toy_groups(algorithm, policy, lengths, seed=seed) for seed in (1, 2))
    before = copy.deepcopy(first)
    advantages = _advantages(algorithm, first)
    again = _advantages(_fresh(make), before)
    assert _equal(advantages, again), (
        f"{algorithm.name}: credit differs from run to run on the same answers: is it random?"
    )
    _check_state(make, algorithm, first, second)
    if algorithm.num_generations > 1:
        _check_abstaining(make, policy, lengths)


def _check_state(make: Make, algorithm: Online, first: Sequence[Group], second: Sequence[Group]) -> None:
    """Check that an algorithm that is made anew after a phase and given ``state_dict`` goes on as this one does."""
    with fails(), contract.calling(algorithm, "state_dict"):
        kept = algorithm.state_dict()
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    buffer.seek(0)
    try:
        loaded = torch.load(buffer, weights_only=True)
    except Exception as error:
        what = f"{algorithm.name}: state_dict has more than plain values and tensors, so no checkpoint can hold it"
        raise AssertionError(f"{what}: {error}") from None
    resumed = _fresh(make)
    with fails(), contract.calling(algorithm, "load_state_dict"):
        resumed.load_state_dict(loaded)
    assert _equal(_advantages(algorithm, second), _advantages(resumed, copy.deepcopy(second))), (
        f"{algorithm.name}: credit after resuming differs from credit without it: "
        "keep what moves from phase to phase in state_dict and take it back in load_state_dict"
    )


def _check_abstaining(make: Make, policy: Policy, lengths: Sequence[tuple[int, int, int]]) -> None:
    """Check that an answer that no reward scored counts for nothing: without it the others' credit is the same."""
    groups = toy_groups(_fresh(make), policy, lengths, seed=3)
    groups[0][0].reward = None
    whole = _advantages(_fresh(make), groups)
    assert not whole.keep[0]
    without = [list(groups[0][1:]), *groups[1:]]
    algorithm = _fresh(make)
    try:
        alone = _advantages(algorithm, without)
    except AssertionError:  # it takes whole groups only, which is all that the engine gives
        alone = None
    others = range(1, len(whole.keep))
    for name, values in whole.token_data.items():
        rest = [values[i] for i in others]
        if alone is not None:
            same = all(
                np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(rest, alone.token_data[name], strict=True)
            )
        else:
            same = not _counts_as_zero(make, policy, lengths, name, rest)
        assert same, (
            f"{algorithm.name}: an answer that no reward scored changes the {name} of the others: leave it out of "
            "means and deviations, for abstaining is not a reward of 0"
        )


def _counts_as_zero(
    make: Make, policy: Policy, lengths: Sequence[tuple[int, int, int]], name: str, rest: Sequence[Floats]
) -> bool:
    """Return whether the others' credit is what it would be had the answer a reward of 0, and would be other at 1."""
    found = []
    for reward in (0.0, 1.0):
        groups = toy_groups(_fresh(make), policy, lengths, seed=3)
        groups[0][0].reward = reward
        found.append(_advantages(_fresh(make), groups).token_data[name][1:])
    zero, one = (all(np.allclose(a, b) for a, b in zip(rest, each, strict=True)) for each in found)
    return zero and not one


def _fresh(make: Make) -> Online:
    algorithm = make()
    algorithm.configure(Rollout.model_validate(ROLLOUT))
    return algorithm


def _advantages(algorithm: Online, groups: Sequence[Group]) -> Advantages:
    with fails():
        return contract.compute_advantages(algorithm, groups)


def _equal(one: Advantages, other: Advantages) -> bool:
    return (
        one.token_data.keys() == other.token_data.keys()
        and np.array_equal(one.keep, other.keep)
        and all(
            np.array_equal(a, b)
            for n in one.token_data
            for a, b in zip(one.token_data[n], other.token_data[n], strict=True)
        )
    )


def _experience(
    algorithm: Online,
    policy: Policy,
    source: str,
    prompt: Tokens,
    tokens: Tokens,
    draw: np.random.Generator,
    far: float,
) -> Experience:
    made = Experience(source, prompt, tokens, "stop", np.zeros(0, np.float32), reward=float(draw.normal()))
    with torch.no_grad():
        logp: Floats = policy(collate([example_of(made, {})], "padded", 0)).logp_T.float().numpy()

    def near(spread: float) -> Floats:
        return logp + spread * draw.normal(size=len(tokens)).astype(np.float32)

    made.sampled_logp, old = near(0.05), near(0.05)
    made.logp = old if algorithm.measures_logp or algorithm.num_iterations > 1 else None
    made.ref_logp = near(0.5) - far * draw.random(len(tokens)).astype(np.float32) if algorithm.uses_reference else None
    made.value = draw.normal(size=len(tokens)).astype(np.float32) if algorithm.critic else None
    return made
