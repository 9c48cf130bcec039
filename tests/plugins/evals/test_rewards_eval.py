"""The eval ``rewards`` on prompts of our own, with models whose scores are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align import AlignError
from align.plugins.evals.rewards import RewardsEval
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals.judged import always, user, write_jsonl

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi"}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    rows = [{"prompt": f"Capital of {land}?", "solution": city} for land, city in CAPITALS.items()]
    return {"data": write_jsonl(tmp_path / "capitals.jsonl", rows), "rewards": ["exact"]}


def knows(prompt: Any, _seed: int) -> str:
    text = prompt if isinstance(prompt, str) else user(prompt)
    return next(city for land, city in CAPITALS.items() if land in text)


def scored(tmp_path: Path, body: str) -> dict[str, Any]:
    file = tmp_path / "own.py"
    file.write_text(f"def reward(completions, **columns):\n    return [{body} for text in completions]\n")
    return {"type": "python", "file": str(file), "function": "reward"}


def test_right_answers_score_one_and_wrong_ones_zero(settings: dict[str, Any]) -> None:
    rows, metrics = run_eval("rewards", settings, ScriptedModel(knows))
    assert metrics == {"score": 1.0, "exact": 1.0, "exact/right": 1.0}
    assert all(row.valid for row in rows) and {row.target["solution"] for row in rows} == set(CAPITALS.values())
    rows, metrics = run_eval("rewards", settings, always("Rome"))
    assert metrics == {"score": 0.0, "exact": 0.0, "exact/wrong": 1.0}
    assert all(row.valid for row in rows)


def test_messages_and_columns_of_other_names(tmp_path: Path) -> None:
    rows = [
        {"id": land, "chat": [{"role": "user", "content": f"Capital of {land}?"}], "answer": city}
        for land, city in CAPITALS.items()
    ]
    settings = {
        "data": write_jsonl(tmp_path / "other.jsonl", rows),
        "columns": {"prompt": "chat", "solution": "answer"},
        "rewards": [{"type": "exact"}],
    }
    found, metrics = run_eval(RewardsEval, settings, ScriptedModel(knows))
    assert metrics["score"] == 1.0 and {row.item_id for row in found} == set(CAPITALS)


def test_an_answer_without_anything_to_judge_is_not_valid_and_counted(settings: dict[str, Any]) -> None:
    settings["rewards"] = [{"type": "exact", "after": "Answer:"}]
    rows, metrics = run_eval("rewards", settings, always("I cannot help with that."))
    assert metrics == {"score": 0.0, "exact": 0.0, "exact/unparsed": 1.0}
    assert not any(row.valid for row in rows) and rows[0].error.startswith("exact: unparsed")
    half = ScriptedModel(lambda prompt, seed: f"Answer: {knows(prompt, seed)}" if "a" in str(prompt)[-4:] else "no")
    rows, metrics = run_eval("rewards", settings, half)
    assert metrics["exact/right"] + metrics["exact/unparsed"] == 1.0


def test_weights_are_those_of_training_and_padding_costs_what_the_length_reward_says(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    short = scored(tmp_path, "float(len(text.split()) <= 3)")
    settings["rewards"] = [{"type": "exact", "weight": 0.75, "pattern": "^\\w+"}, {**short, "weight": 0.25}]
    assert run_eval("rewards", settings, ScriptedModel(knows))[1]["score"] == 1.0
    padded = ScriptedModel(lambda prompt, seed: knows(prompt, seed) + " as everybody knows")
    _, metrics = run_eval("rewards", settings, padded)
    assert (metrics["score"], metrics["exact"], metrics["python"]) == (0.75, 1.0, 0.0)


def test_a_reward_that_abstains_is_left_out_and_the_row_is_not_valid(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["rewards"] = ["exact", scored(tmp_path, "None")]
    rows, metrics = run_eval("rewards", settings, ScriptedModel(knows))
    assert metrics == {"score": 1.0, "exact": 1.0, "exact/right": 1.0, "python/abstained": 1.0}
    assert not any(row.valid for row in rows)
    settings["rewards"] = [scored(tmp_path, "None")]
    assert run_eval("rewards", settings, ScriptedModel(knows))[1]["score"] == 0.0


def test_a_reward_that_fails_stops_the_run_above_a_share(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["rewards"] = [scored(tmp_path, "float('nan')")]
    with pytest.raises(AlignError, match="rewards failed on 4 of 4 answers; the first: python: error"):
        run_eval("rewards", settings, ScriptedModel(knows))
    rows, metrics = run_eval("rewards", settings | {"max_failed": 1}, ScriptedModel(knows))
    assert metrics["python/error"] == 1.0 and not any(row.valid for row in rows)


def test_scores_outside_of_the_range_are_refused_and_a_range_of_its_own_accepted(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["rewards"] = [scored(tmp_path, "-float(len(text))")]
    with pytest.raises(AlignError, match="scored -4"):
        run_eval("rewards", settings, always("four"))
    assert run_eval("rewards", settings | {"score_range": [-100, 0]}, always("four"))[1]["score"] == -4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": []}, "at least 1"),
        ({"rewards": [{"type": "exact", "weight": 0}]}, "weight 0"),
        ({"rewards": [{"type": "exact", "normalize": True}]}, "normalize"),
        ({"score_range": [1, 0]}, "must rise"),
        ({"sampling": {"temprature": 0}}, "temprature"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardsEval.Config.model_validate(settings | change)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "?", "solution": "1"}], "has no 'prompt'"),
        ([{"prompt": "?", "answer": "1"}], "has no 'solution', which reward exact needs"),
        ([{"prompt": [{"role": "user"}], "solution": "1"}], "has no 'prompt'"),
        ([{"prompt": "?", "solution": "1"}] * 2, "is the same row as"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    settings = {"data": write_jsonl(tmp_path / "bad.jsonl", rows), "rewards": ["exact"]}
    with pytest.raises(AlignError, match=message):
        run_eval("rewards", settings, always("1"))
