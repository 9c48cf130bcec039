"""Format, length, repetition, exact: against TRL's functions and numbers by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import (
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    think_format_reward,
)

from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import Answer, RewardContext, Score
from align.core.rewards.scorer import RunningReward
from align.plugins.rewards.length import cosine, near, overlong
from align.plugins.rewards.repetition import repeated
from align.schemas.errors import AlignError
from align.schemas.run import Choice, RewardChoice


def answer(text: str, tokens: Sequence[int] = (), **columns: Any) -> Answer:
    return Answer("asked", text, text, tuple(tokens), columns=columns)


def made(name: str, **settings: Any) -> Any:
    return registry.build("reward", Choice(type=name, settings=settings))


def scores(name: str, answers: Sequence[Answer], **settings: Any) -> list[Score]:
    return list(made(name, **settings).score(answers))


def refused(name: str, **settings: Any) -> str:
    with pytest.raises(AlignError) as caught:
        made(name, **settings)
    return str(caught.value)


@given(st.integers(0, 130), st.integers(1, 100), st.integers(0, 60))
def test_overlong_is_trl_s(length: int, longest: int, cache: int) -> None:
    cache = min(cache, longest)
    assert overlong(length, longest, cache) == get_soft_overlong_punishment(longest, cache)([[1] * length])[0]


def test_overlong_by_hand() -> None:
    """M = 100, cache 20: nothing up to 80, half at 90, all at 100 and beyond."""
    said = scores(
        "length", [answer("x" * n, [1] * n) for n in (0, 80, 90, 100, 101)], shape="overlong", max=100, cache=20
    )
    assert [s.value for s in said] == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert said[2].parts == {"length": 90.0}


@given(st.integers(0, 130), st.booleans())
def test_cosine_is_trl_s(length: int, right: bool) -> None:
    said = [[{"role": "assistant", "content": r"\boxed{4}" if right else r"\boxed{5}"}]]
    expected = get_cosine_scaled_reward(100)(said, ["$4$"], [[1] * length])[0]
    assert cosine(length, 100, *((1.0, 0.5) if right else (-1.0, -0.5))) == pytest.approx(expected, abs=1e-12)


def test_cosine_asks_another_reward_what_is_right(tmp_path: Path) -> None:
    """Half of max: the middle of both ends, 0.75 and -0.75; where the judge has nothing to say, neither has this."""
    settings = {"shape": "cosine", "max": 100, "correct": {"type": "exact"}}
    reward = RunningReward(RewardChoice(type="length", settings=settings), RewardContext(tmp_path))
    half = [1] * 50
    said = reward.score([answer("4", half, solution="4"), answer("5", half, solution="4"), answer("5", half)])
    assert [(s.value, s.outcome) for s in said] == [(0.75, "right"), (-0.75, "wrong"), (None, "error")]
    assert reward.reward.unfit({}) == "has no 'solution'"
    reward.close()


def test_a_reward_with_a_limit_does_not_ask_another_with_its_own(tmp_path: Path) -> None:
    settings = {"shape": "cosine", "max": 100, "correct": {"type": "exact", "timeout": 1}}
    with pytest.raises(AlignError, match=r"reward exact\n    has a time limit of its own.*\n    leave timeout out"):
        RunningReward(RewardChoice(type="length", settings=settings, timeout=5), RewardContext(tmp_path))
    reward = RunningReward(RewardChoice(type="length", settings=settings), RewardContext(tmp_path))
    assert reward.score([answer("4", [1] * 50, solution="4")])[0].value == 0.75
    reward.close()


def test_target_by_hand() -> None:
    assert [near(n, 4) for n in (0, 3, 4, 6, 8, 99)] == [-1.0, -0.25, 0.0, -0.5, -1.0, -1.0]


@pytest.mark.parametrize(("unit", "length"), [("words", 2.0), ("characters", 7.0)])
def test_length_in_other_units(unit: str, length: float) -> None:
    said = scores("length", [answer("one two")], shape="target", target=3, unit=unit)
    assert said[0].parts == {"length": length}


def test_unknown_tokens_are_no_length_of_zero() -> None:
    for name, settings in (("length", {"shape": "target", "target": 3}), ("repetition", {})):
        said = scores(name, [answer("some text"), answer("")], **settings)
        assert [s.outcome for s in said] == ["error", "scored"]


def test_a_shape_refuses_what_it_does_not_read_and_asks_for_what_it_needs() -> None:
    said = refused("length", shape="overlong", max=10, target=5)
    assert "target" in said and "is not read where shape is overlong" in said
    assert "cache" in said and "is missing" in said
    assert "longer than max" in refused("length", shape="overlong", max=10, cache=11)


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 4))
def test_repetition_is_trl_s(tokens: list[int], n: int) -> None:
    expected = get_repetition_penalty_reward(n, -1.0)([tokens])[0]
    assert scores("repetition", [answer("x" if tokens else "", tokens)], n=n)[0].value == pytest.approx(expected)


def test_repetition_by_hand() -> None:
    """5 5 5 5 5 has four pairs of which one is unique: 3/4."""
    assert repeated([5] * 5, 2) == 0.75
    assert scores("repetition", [answer("a b a b a b")], n=2, unit="words", penalty=2)[0].value == pytest.approx(-1.2)


THOUGHTS = ["<think>a</think>b", "<think>a</think>", "b<think>a</think>", "<think>a", "<think>a<think></think>", ""]


def test_tags_agree_with_trl_s_think_format() -> None:
    """Where the closing tag stands once; TRL lets it stand several times."""
    said = scores("format", [answer(text) for text in THOUGHTS], tags=["think"], outside="after")
    assert [s.value for s in said] == think_format_reward([[{"content": text}] for text in THOUGHTS])


@pytest.mark.parametrize(
    ("text", "outside", "why"),
    [
        ("<think>a</think>\n<answer>4</answer>", "nothing", ""),
        ("<think>a</think> so <answer>4</answer>", "nothing", "has text before <answer>"),
        ("<think>a</think> so <answer>4</answer>", "anywhere", ""),
        ("<think>a</think><answer>4</answer>!", "nothing", "has text after </answer>"),
        ("<think>a</think><answer>4</answer>!", "after", ""),
        ("<answer>4</answer><think>a</think>", "anywhere", "has <answer> too early"),
        ("<think>a<answer>4</answer></think>", "anywhere", "has <answer> too early"),
        ("<think>a</think><answer>4</answer><answer>5</answer>", "anywhere", "has <answer> 2 times"),
        ("</think><think><answer>4</answer>", "anywhere", "has </think> too early"),
    ],
)
def test_tags(text: str, outside: str, why: str) -> None:
    (said,) = scores("format", [answer(text)], tags=["think", "answer"], outside=outside)
    assert said == Score(float(not why), "wrong" if why else "right", {"tags": float(not why)}, why)


def test_regex_matches_all_or_anywhere() -> None:
    texts = [answer("a1"), answer("a1\n")]
    assert [s.value for s in scores("format", texts, regex=r"a\d")] == [1.0, 0.0]
    assert [s.value for s in scores("format", texts, regex=r"\d", search=True)] == [1.0, 1.0]


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "default": 3}}}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"a": 1}', True),
        ('{"a": "1"}', False),
        ("{}", False),  # a default is not filled in
        ("{'a': 1}", False),
        ('{"a": NaN}', False),
        ("[" * 100_000, False),
        ('Here: {"a": 1}', False),
    ],
)
def test_json(text: str, right: bool) -> None:
    assert scores("format", [answer(text)], json_schema=SCHEMA)[0].value == float(right)


def test_json_in_the_last_fence_and_no_fetching() -> None:
    text = 'x\n```json\n{}\n```\n```json\n{"a": 2}\n```'
    assert scores("format", [answer(text), answer("{}")], json_schema=SCHEMA, json_in="fenced")[0].value == 1.0
    assert "refers to" in refused("format", json_schema={"$ref": "http://example.invalid/s.json"})


def test_format_s_settings() -> None:
    assert "asks for nothing: give regex, tags or json_schema" in refused("format")
    assert "outside" in refused("format", regex="a", outside="after")
    assert "is not a regular expression" in refused("format", regex="(")
    assert made("format", tags=["a"]).seconds is None and made("format", regex="a").seconds == 2.0


def test_catastrophic_backtracking_costs_one_answer(tmp_path: Path) -> None:
    reward = RunningReward(
        RewardChoice(type="format", settings={"regex": "(a+)+b"}, timeout=0.3), RewardContext(tmp_path)
    )
    said = reward.score([answer("aab"), answer("a" * 60), answer("aab")])
    assert [s.outcome for s in said] == ["right", "timeout", "right"]
    reward.close()


@pytest.mark.parametrize(
    ("text", "settings", "value", "outcome"),
    [
        (" Par  is\n", {}, 1.0, "right"),
        ("par is", {"case": True}, 0.0, "wrong"),
        ("Par  is", {"whitespace": True}, 0.0, "wrong"),
        ("ＰＡＲ is", {}, 1.0, "right"),
        ("Par is.", {}, 0.0, "wrong"),
        ("Par is.", {"punctuation": False}, 1.0, "right"),
        ("so #### no\n#### Par is\nyes", {"after": "####"}, 1.0, "right"),
        ("Par is", {"after": "####"}, 0.0, "unparsed"),
        ("[no] then [Par is]", {"pattern": r"\[(.*?)\]"}, 1.0, "right"),
        ("", {}, 0.0, "wrong"),
    ],
)
def test_exact(text: str, settings: dict[str, Any], value: float, outcome: str) -> None:
    (said,) = scores("exact", [answer(text, solution="Par is")], **settings)
    assert (said.value, said.outcome) == (value, outcome)


def test_exact_takes_gsm8k_s_golds_and_lists_and_another_column() -> None:
    assert scores("exact", [answer("#### 18", solution="9 * 2 = 18\n#### 18")], after="####")[0].value == 1.0
    assert scores("exact", [answer("b", gold=["a", "b"])], column="gold")[0].value == 1.0
    assert made("exact", column="gold").unfit({"solution": "a"}) == "has no 'gold'"
    assert scores("exact", [answer("b")])[0].outcome == "error"
