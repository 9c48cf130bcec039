"""The conformance kit passes rewards that keep to the contract, and names what the others break."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from align.core.plugin_system.registry import registry
from align.testing import check_reward

ROWS: list[dict[str, Any]] = [
    {"prompt": "2+2?", "completion": "The answer is 4.", "solution": "4"},
    {"prompt": "2+2?", "completion": "The answer is 5.", "solution": "4"},
    {"prompt": "1+2?", "completion": "", "solution": "3"},
]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("math", {}),
        ("exact", {"column": "solution"}),
        ("length", {"shape": "target", "target": 9, "unit": "characters"}),
        ("repetition", {"unit": "words"}),
        ("format", {"regex": ".*4.*"}),
    ],
)
def test_align_keeps_to_its_own_contract(name: str, settings: dict[str, Any]) -> None:
    assert len(check_reward(registry.get("reward", name), ROWS, settings)) == 3


def test_a_function_with_settings_and_opinions_of_its_own() -> None:
    def wordy(completions: Sequence[str], *, most: int = 4) -> list[float | None]:
        return [min(most, len(said.split())) / most if said else None for said in completions]

    assert [score.value for score in check_reward(wordy, ROWS, {"most": 8})] == [0.5, 0.5, None]


def hashing(completions: Sequence[str]) -> list[float]:
    return [float(hash(said) % 97) for said in completions]


def first_of_a_set(completions: Sequence[str]) -> list[float]:
    """No call of hash() in sight: the order of a set of letters follows it."""
    return [float(ord(next(iter({*"abcdefghijklmnopqrstuvwxyz"}))) + len(said)) for said in completions]


def test_what_breaks_the_contract_is_named() -> None:
    calls = count()

    def moody(completions: Sequence[str]) -> list[float]:
        return [float(next(calls)) for _ in completions]

    def rank(completions: Sequence[str]) -> list[float]:
        return [float(i) for i in range(len(completions))]

    def relative(completions: Sequence[str]) -> list[float]:
        mean = sum(map(len, completions)) / len(completions)
        return [len(said) - mean for said in completions]

    def infinite(completions: Sequence[str]) -> list[float]:
        return [float("inf")] * len(completions)

    def unknown(completions: Sequence[str]) -> list[float]:
        return [float("nan")] * len(completions)

    def hashing_tuples(completions: Sequence[str]) -> list[float]:
        return [float(hash((said, 1)) % 97) for said in completions]

    def meddling(completions: list[Any], columns: None = None) -> list[float]:
        for said in completions:
            said[0]["content"] = ""
        return [0.0] * len(completions)

    for reward, words in (
        (moody, "moody, computed again"),
        (rank, "rank, in reverse order"),
        (relative, "relative, without the other prompts"),
    ):
        with pytest.raises(AssertionError, match=words):
            check_reward(reward, ROWS)
    for reward, words in (
        (infinite, "failed on 'The answer is 4.': its score was inf; return None where it has no opinion"),
        (unknown, "failed on 'The answer is 4.': its score was nan"),
        (hashing, "hashing, in another process .hash"),
        (hashing_tuples, "hashing_tuples, in another process .hash"),
        (first_of_a_set, "first_of_a_set, in another process .hash"),
    ):
        with pytest.raises(AssertionError, match=words):
            check_reward(reward, ROWS)
    chats = [{**row, "completion": [{"role": "assistant", "content": row["completion"]}]} for row in ROWS]
    with pytest.raises(AssertionError, match="changed what it was given"):
        check_reward(meddling, chats)
