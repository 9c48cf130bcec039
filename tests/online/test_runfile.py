"""The run file's ``rollout``: short forms, what nothing would read, what does not go together, and round trips."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.core.config import run_file
from align.core.training.run_directory import located
from align.schemas.errors import AlignError
from align.schemas.run import Run

HEAD = "output: o\nmodel: {path: m}\ndata: {train: r.jsonl}\n"


def load(tmp_path: Path, text: str) -> Run:
    file = tmp_path / "run.yaml"
    file.write_text(HEAD + text)
    return run_file.load(file)


def said(tmp_path: Path, text: str) -> str:
    with pytest.raises(AlignError) as caught:
        load(tmp_path, text)
    return str(caught.value)


def test_short_and_long_forms_mean_the_same_and_come_back(tmp_path: Path) -> None:
    run = load(
        tmp_path,
        "algorithm: grpo\nrollout:\n"
        "  rewards: [math, {type: length, weight: 0.1, shape: target, target: 20, timeout: 2}]\n",
    )
    rollout = run.stages[0].rollout
    assert rollout is not None and rollout.generator.type == "local"
    math, length = rollout.rewards
    assert (math.type, math.weight, math.settings) == ("math", 1.0, {})
    assert (length.weight, length.timeout, length.settings) == (0.1, 2.0, {"shape": "target", "target": 20})
    (tmp_path / "again.yaml").write_text(run_file.dump(run))
    assert run_file.load(tmp_path / "again.yaml") == run


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("algorithm: grpo\n", ["line 1: rollout", "is missing: grpo samples its own answers", "rollout.rewards"]),
        ("algorithm: sft\nrollout: {rewards: [math]}\n", ["line 5: rollout", "is not read", "learns from rows"]),
        ("algorithm: grpo\nrollout: {rewards: []}\n", ["line 5: rollout.rewards"]),
        ("algorithm: grpo\nrollout: {rewards: [maht]}\n", ["rollout.rewards[0].type", "did you mean 'math'?"]),
        ("algorithm: grpo\nrollout: {rewards: [{type: math, colum: x}]}\n", ["did you mean 'column'?"]),
        (
            "algorithm: grpo\nrollout: {rewards: [math], refill_tokens: 9}\n",
            ["refill_tokens", "zero_std_groups: refill"],
        ),
        (
            "algorithm: grpo\nrollout: {rewards: [math], importance_sampling_correction: {clip_max: 3}}\n",
            ["rollout.importance_sampling_correction.clip_max"],
        ),
        ("algorithm: grpo\nrollout: {rewards: [math], watch: {gold: 2}}\n", ["without rollout.gold"]),
        (
            "algorithm: ppo\nrollout: {rewards: [{type: reward_model, path: 'stage:rm'}]}\n",
            ["rollout.rewards[0].path", "is 'stage:rm'; no stage has that name"],
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, words: list[str]) -> None:
    message = said(tmp_path, text)
    assert all(word in message for word in words), message


def test_a_stage_is_located_wherever_it_is_named(tmp_path: Path) -> None:
    run = load(
        tmp_path,
        "stages:\n"
        "  - {name: rm, algorithm: reward_model}\n"
        "  - name: ppo\n"
        "    algorithm: {type: ppo, critic: 'stage:rm'}\n"
        "    rollout: {rewards: [{type: reward_model, path: 'stage:rm'}]}\n"
        "  - {name: best, model: {path: 'stage:ppo'}, algorithm: best_of_n, rollout: {rewards: [math]}}\n"
        "  - {name: sft, model: {path: 'stage:ppo'}, data: {train: 'stage:best'}, algorithm: sft}\n",
    )
    found = [located(stage, lambda name, rows: f"{name}/{'rows' if rows else 'export'}") for stage in run.stages]
    rollout = found[1].rollout
    assert rollout is not None
    assert rollout.rewards[0].settings["path"] == "rm/export"
    assert found[1].algorithm.settings["critic"] == "rm/export"
    assert (found[3].model.path, found[3].data.train[0].path) == ("ppo/export", "best/rows")
