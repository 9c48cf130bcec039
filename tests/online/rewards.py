"""Rewards of the probe environments and of the engine's tests, in TRL's signature."""

from __future__ import annotations

from collections.abc import Sequence


def constant(completions: Sequence[str]) -> list[float]:
    """1 for the one word that is always right."""
    return [float(text.split()[:1] == ["w3"]) for text in completions]


def shifted(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 for the word three places after the prompt's."""
    wanted = [f"w{(int(prompt[1:]) + 3) % 4}" for prompt in prompts]
    return [float(text.split()[:1] == [word]) for text, word in zip(completions, wanted, strict=True)]


def at_the_end(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 for an answer whose third word is the prompt's; nothing is said of those before it."""
    answers = [text.split() for text in completions]
    return [float(len(words) == 3 and words[2] == prompt) for prompt, words in zip(prompts, answers, strict=True)]


def low_ids(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """The share of tokens from the lower half of 320: dense, so that every group has something to say."""
    return [sum(token < 160 for token in ids) / len(ids) for ids in completion_ids]


def odd_abstains(prompts: Sequence[object], completion_ids: Sequence[Sequence[int]]) -> list[float | None]:
    """As ``low_ids``, but without opinion on answers that begin with an odd token."""
    return [None if ids[0] % 2 else score for ids, score in zip(completion_ids, low_ids(completion_ids), strict=True)]


def equal(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """The same for everybody: every group is dead."""
    return [0.5] * len(completion_ids)


def by_prompt(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """Groups whose prompt has an even number are dead."""
    scores = low_ids(completion_ids)
    return [0.0 if int(prompt.split()[-1]) % 2 == 0 else score for prompt, score in zip(prompts, scores, strict=True)]


def per_prompt(prompts: Sequence[str]) -> list[float]:
    """The same for all answers to a prompt, and for each prompt another."""
    return [float(prompt.split()[-1]) for prompt in prompts]


def not_a_number(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """A reward gone wrong."""
    return [float("nan")] * len(completion_ids)


def long(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """Pays by the token: the proxy that is gamed."""
    return [len(ids) / 48 for ids in completion_ids]


def short(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """What was wanted: an answer of a few tokens."""
    return [float(len(ids) <= 8) for ids in completion_ids]


def breaks(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], trainer_state: object) -> list[float]:
    """A judge that is there for three phases, and then not."""
    if getattr(trainer_state, "global_step", 0) >= 3:
        raise RuntimeError("the judge went home")
    return low_ids(completion_ids)


def silent(completion_ids: Sequence[Sequence[int]]) -> list[None]:
    """No opinion on anything."""
    return [None] * len(completion_ids)


def rounded(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """The same for everybody, rounded on two ways."""
    return [0.3 if i % 2 else 0.1 + 0.2 for i in range(len(completion_ids))]


def late(completion_ids: Sequence[Sequence[int]], trainer_state: object) -> list[float | None]:
    """Nothing in the first two phases, then something."""
    return [None if getattr(trainer_state, "global_step", 0) < 2 else score for score in low_ids(completion_ids)]


def first_most(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """Each answer less than the one before."""
    return [-float(i) for i in range(len(completion_ids))]


async def low_ids_by_server(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """As ``low_ids``, by a function that waits."""
    return low_ids(completion_ids)


async def server_breaks(
    prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], trainer_state: object
) -> list[float]:
    """As ``breaks``, by a function that waits."""
    return breaks(prompts, completion_ids, trainer_state)
