"""Bare functions as rewards, called as TRL calls them."""

from __future__ import annotations

import asyncio
import functools
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

from align.core.rewards.reward_base import STATE, Answer, Score, from_function
from align.schemas.errors import AlignError

ANSWERS = [
    Answer("2+2?", "4", "4", (1, 2), columns={"solution": "4", "level": 1}, group=0),
    Answer("2+3?", "6", "6", (3,), columns={"solution": "5", "level": None}, group=1),
]


def values(scores: Any) -> list[float | None]:
    return [score.value for score in scores]


def test_it_is_given_lists_by_name_and_only_what_it_takes() -> None:
    seen: dict[str, Any] = {}

    def narrow(completions: list[str], solution: list[str]) -> list[float]:
        return [float(c == s) for c, s in zip(completions, solution, strict=True)]

    def wide(**everything: Any) -> list[float]:
        seen.update(everything)
        return [0.0, 0.0]

    assert values(from_function(narrow, "narrow").score(ANSWERS)) == [1.0, 0.0]
    from_function(wide, "wide").score(ANSWERS)
    helpers = {"trainer_state", "log_extra", "log_metric"}
    assert {name: value for name, value in seen.items() if name not in helpers} == {
        "prompts": ["2+2?", "2+3?"],
        "completions": ["4", "6"],
        "completion_ids": [[1, 2], [3]],
        "solution": ["4", "5"],
        "level": [1, None],
    }
    assert seen["trainer_state"] is STATE and STATE.global_step == 0


def test_trl_s_own_functions_are_taken_as_they_are() -> None:
    texts = [r"<think>a</think>\boxed{4}", r"\boxed{5}"]
    said = [[{"role": "assistant", "content": text}] for text in texts]
    asked = [{"role": "user", "content": "2+2?"}]
    answers = [
        Answer(asked, completion, text, (7,) * 90, columns={"solution": "$4$"})
        for completion, text in zip(said, texts, strict=True)
    ]
    assert values(from_function(accuracy_reward, "accuracy").score(answers)) == [1.0, 0.0]
    assert values(from_function(think_format_reward, "think").score(answers)) == [1.0, 0.0]
    assert values(from_function(get_soft_overlong_punishment(100, 20), "overlong").score(answers)) == [-0.5, -0.5]


def test_an_async_function_keeps_its_event_loop_and_may_be_asked_from_within_another() -> None:
    loops = []

    async def slow(completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return [float(len(c)) for c in completions]

    reward = from_function(slow, "slow")
    assert values(reward.score(ANSWERS)) == [1.0, 1.0]

    async def within() -> list[float | None]:
        return values(reward.score(ANSWERS))

    assert asyncio.run(within()) == [1.0, 1.0]
    assert loops[0] is loops[1]
    reward.close()
    reward.close()
    assert loops[0].is_closed()


def test_calls_of_an_async_function_may_be_under_way_at_once() -> None:
    """On one event loop: an ``asyncio.Barrier`` that both have to reach belongs to the loop it was first used on."""
    both = asyncio.Barrier(2)

    async def meets(completions: list[str]) -> list[float]:
        async with asyncio.timeout(60):
            await both.wait()
        return [float(len(c)) for c in completions]

    reward = from_function(meets, "meets")
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(reward.score, ANSWERS) for _ in range(2)]
        assert [values(call.result()) for call in calls] == [[1.0, 1.0]] * 2
    reward.close()


@pytest.mark.parametrize("within", [False, True])
def test_an_async_function_that_exits_ends_its_own_call_alone(within: bool) -> None:
    """Python has such an exception leave the event loop, that of a task within the function too."""
    exited = threading.Event()

    async def leaves() -> float:
        exited.set()
        sys.exit(3)

    async def f(completions: list[str], leave: list[bool]) -> list[float]:
        if leave[0]:
            return [await asyncio.create_task(leaves())] if within else [await leaves()]
        while not exited.is_set():
            await asyncio.sleep(0.01)
        return [1.0]

    reward = from_function(f, "f")
    stays, goes = ([Answer("q", "a", "a", columns={"leave": leave})] for leave in (False, True))
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(reward.score, stays)
        with pytest.raises(SystemExit):
            reward.score(goes)
        assert values(call.result(60)) == [1.0]
    reward.close()


@pytest.mark.parametrize(
    "gave", [[1, True], np.array([1.0, 1.0]), torch.tensor([1.0, 1.0]), [np.float32(1), torch.tensor(1.0)], (1, 1)]
)
def test_numbers_of_all_sorts(gave: Any) -> None:
    assert values(from_function(lambda completions: gave, "f").score(ANSWERS)) == [1.0, 1.0]


def test_none_abstains_and_what_is_not_finite_is_an_error() -> None:
    said = from_function(lambda completions: [None, math.inf], "f").score(ANSWERS)
    assert said == [Score(None, "abstained"), Score(None, "error", why="its score was inf")]


@pytest.mark.parametrize("gave", [[1.0], [1.0, 2.0, 3.0], 1.0, None, "ab", ["1", "2"], [1.0, [2.0]], [1.0, object()]])
def test_what_is_no_list_of_numbers_is_refused_under_the_reward_s_name(gave: Any) -> None:
    with pytest.raises(AlignError, match=r"reward mine\n    gave"):
        from_function(lambda completions: gave, "mine").score(ANSWERS)


def test_a_column_that_it_needs_and_no_row_has() -> None:
    def f(completions: list[str], gold: list[str]) -> list[float]:
        return [0.0] * len(completions)

    reward = from_function(f, "f")
    assert reward.required_columns == ("gold",)
    assert reward.unfit({"solution": "4"}) == "has no 'gold'"
    assert reward.unfit({"gold": None}) is None
    with pytest.raises(AlignError, match="takes 'gold', which no row has\n    the rows' columns: solution, level"):
        reward.score(ANSWERS)


def test_settings_are_bound_and_go_before_columns_of_their_name() -> None:
    def f(completions: list[str], *, level: int = 0) -> list[float]:
        return [float(level)] * len(completions)

    assert values(from_function(functools.partial(f, level=7), "f").score(ANSWERS)) == [7.0, 7.0]


def test_what_it_logs_is_kept_beside_the_scores() -> None:
    def f(completions: list[str], log_extra: Any = None, log_metric: Any = None) -> list[float]:
        log_extra("gold", ["four", "five"])
        log_extra("characters", [1, 2])
        log_metric("accuracy", 0.5)
        return [1.0, 0.0]

    reward = from_function(f, "f")
    assert reward.score(ANSWERS)[1] == Score(0.0, "scored", {"characters": 2.0}, "gold: five")
    assert reward.counts() == {"accuracy": 0.5}


def test_what_it_logs_is_a_part_only_where_json_has_a_number_for_it() -> None:
    def f(completions: list[str], log_extra: Any) -> list[float]:
        log_extra("ratio", [math.nan, 0.5])
        log_extra("size", [math.inf, 10**400])
        return [1.0, 0.0]

    first, second = from_function(f, "f").score(ANSWERS)
    assert first == Score(1.0, "scored", {}, "ratio: nan; size: inf")
    assert second.parts == {"ratio": 0.5} and second.why.startswith("size: 1000")


def test_a_nameless_argument_is_refused_at_once() -> None:
    def f(completions: list[str], /) -> list[float]:
        return [0.0]

    with pytest.raises(AlignError, match="'completions' cannot be given by name"):
        from_function(f, "f")


def test_no_answers() -> None:
    assert list(from_function(lambda gold: [1.0], "f").score([])) == []
