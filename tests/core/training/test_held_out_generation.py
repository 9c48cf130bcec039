"""Held-out prompts completed while a stage learns from rows: what is scored, what is logged, what is undisturbed."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModelForCausalLM

from align import AlignError, Eval, read_samples
from align.core.engine import checkpoint
from align.core.plugin_system.registry import Offer, registry
from align.core.report.read import read_run
from align.core.report.samples import before_and_after
from align.core.training.held_out_generation import prompt_of
from align.core.training.launch import train
from align.core.util.stopping import Interrupted
from align.evals import Episode, Generate, Item, Result, Row
from align.schemas.records import Record
from align.settings import Sampling
from tests.core.runs import REWARDS, run_for, write_rows

SCORED = {
    "eval_steps": 6,
    "generate": True,
    "rewards": [{"type": "python", "settings": {"file": str(REWARDS), "function": "low_ids"}}],
    "sampling": {"temperature": 0.0, "max_completion_length": 6},
    "max_prompts": 5,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache nothing between tests."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def log(output: Path) -> list[dict[str, str]]:
    with open(output / "only" / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)


@pytest.mark.parametrize(
    ("record", "prompt", "answer"),
    [
        (Record("completion", "r", prompt="q", completion="a"), "q", "a"),
        (Record("text", "r", text=[USER, BAD, USER, GOOD]), [USER, BAD, USER], "a"),
        (Record("preference", "r", prompt=[USER], chosen=[GOOD], rejected=[BAD]), [USER], "a"),
        (Record("preference", "r", chosen=[USER, GOOD], rejected=[USER, BAD]), [USER], "a"),
        (Record("unpaired", "r", prompt="q", completion="a", label=True), "q", "a"),
    ],
)
def test_a_rows_own_answer_is_a_column_and_no_part_of_its_prompt(record: Record, prompt: Any, answer: str) -> None:
    found = prompt_of(record)
    assert found is not None
    assert (found.kind, found.prompt, found.columns["completion"]) == ("prompt", prompt, answer)


def test_a_row_without_a_prompt_has_none_to_complete() -> None:
    assert prompt_of(Record("text", "r", text="plain text")) is None
    assert prompt_of(Record("text", "r", text=[USER])) is None


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "kto"])
def test_completions_are_scored_and_logged_and_training_is_the_same(
    algorithm: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = write_rows(algorithm, tmp_path / "rows.jsonl")
    train(run_for(algorithm, tiny_model_dir, rows, tmp_path / "plain", validation={"eval_steps": 6}), progress=False)
    train(run_for(algorithm, tiny_model_dir, rows, tmp_path / "scored", validation=SCORED), progress=False)
    plain, scored = log(tmp_path / "plain"), log(tmp_path / "scored")
    assert [row["loss"] for row in plain] == [row["loss"] for row in scored]
    assert [row["val/loss"] for row in plain] == [row["val/loss"] for row in scored]
    evaluated = [row for row in scored if row["val/loss"]]
    assert len(evaluated) > 2
    for row in evaluated:
        samples = read_samples(tmp_path / "scored" / "only" / "samples" / f"held-out-{int(row['step']):06d}.parquet")
        assert len(samples) == 5
        assert float(row["val/reward"]) == pytest.approx(sum(each["reward"] for each in samples) / 5, rel=1e-5)
        assert all(each["length"] <= 6 for each in samples)
    last = int(evaluated[-1]["step"])
    shown = before_and_after(read_run(tmp_path / "scored"))
    steps = {tuple(answer.stage.rpartition(" · ")[0] for answer in each.answers) for each in shown}
    assert len(shown) == 5 and steps == {("only · step 0", f"only · step {last}")}


def test_a_resumed_run_logs_what_a_whole_one_does_and_keeps_the_best_by_reward(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    settings = {**SCORED, "eval_steps": 3, "metric_for_best_model": "reward"}
    whole = run_for("sft", tiny_model_dir, rows, tmp_path / "whole", validation=settings, checkpoint={"export": "best"})
    (result,) = train(whole, progress=False)
    rewards = {int(row["step"]): float(row["val/reward"]) for row in log(tmp_path / "whole") if row["val/reward"]}
    best = max((step for step in rewards if step), key=lambda step: rewards[step])
    saved = checkpoint.load(checkpoint.at(tmp_path / "whole" / "only" / "checkpoints", best))["state_dict"]
    exported = AutoModelForCausalLM.from_pretrained(result.export).state_dict()
    assert all(torch.equal(value, saved[f"policy.model.{name}"]) for name, value in exported.items())

    class Stop(Callback):
        """Stops after the seventh step."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            """Send the signal."""
            if trainer.global_step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    broken = run_for(
        "sft", tiny_model_dir, rows, tmp_path / "broken", validation=settings, checkpoint={"export": "best"}
    )
    monkeypatch.setattr(registry, "collect", lambda hook, **_: [Stop()] if hook == "make_callbacks" else [])
    with pytest.raises(Interrupted):
        train(broken, progress=False)
    monkeypatch.undo()
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    train(broken, resume=True, progress=False)
    timed = {"tokens_per_second", "step_seconds"}
    kept = [{k: v for k, v in row.items() if k not in timed} for row in log(tmp_path / "broken")]
    assert kept == [{k: v for k, v in row.items() if k not in timed} for row in log(tmp_path / "whole")]


def test_settings_that_nothing_reads_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    from align.core.config import run_file

    def load(validation: str, algorithm: str = "sft", more: str = "") -> None:
        text = f"""
output: {tmp_path / "run"}
stages:
  - name: only
    model: {{path: {tiny_model_dir}}}
    data: {{train: rows.jsonl, validation_fraction: 0.2}}
    algorithm: {algorithm}
    validation: {{{validation}}}
{more}"""
        run_file.parse(text, "run.yaml")

    with pytest.raises(AlignError, match=r"is read with validation\.generate: true only"):
        load("rewards: [exact]")
    with pytest.raises(AlignError, match="an online stage completes and scores held-out prompts anyway"):
        load("generate: true", "grpo", "    rollout: {rewards: [exact]}\n")
    with pytest.raises(AlignError, match="nothing is learned from this reward"):
        load("generate: true, rewards: [{type: exact, normalize: true}]")
    with pytest.raises(AlignError, match="no reward is called 'exct'"):
        load("generate: true, rewards: [exct]")
    load("generate: true, rewards: [exact]")


class FirstWords(Eval):
    """Asks for the first word, as the rows teach it."""

    name: ClassVar[str] = "first_words"

    class Config(Eval.Config):
        """Settings."""

    def load(self) -> Sequence[Item]:
        """Make six items."""
        return [Item(f"{word} {word}", word) for word in ("the", "cat", "sat", "on", "mat", "dog")]

    def run(self, item: Item) -> Episode:
        """Ask."""
        prompt = [{"role": "user", "content": item.id}]
        (reply,) = yield [Generate(prompt, Sampling(temperature=0, max_completion_length=4))]
        return Result(float(reply.text.split()[:1] == [item.target]), extracted=reply.text)


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a suite of an eval that is registered for the test."""
    offers = dict(registry.offers("eval"))
    offers["first_words"] = [Offer("eval", "first_words", registry.hooks.plugins()[0], FirstWords)]
    monkeypatch.setitem(registry._offers, "eval", offers)
    path = tmp_path / "suite.yaml"
    path.write_text("evals: [first_words]\n", encoding="utf-8")
    yield path


def test_a_suite_is_measured_at_each_evaluation_and_picks_the_best(
    suite: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    validation = {"eval_steps": 9, "suite": str(suite), "metric_for_best_model": "first_words/score"}
    (result,) = train(
        run_for("sft", tiny_model_dir, rows, tmp_path / "run", validation=validation, checkpoint={"export": "best"}),
        progress=False,
    )
    for row in log(tmp_path / "run"):
        if row["val/loss"]:
            path = tmp_path / "run" / "only" / "evals" / f"step-{int(row['step']):06d}.jsonl"
            stored = [Row.parsed(line) for line in path.read_text(encoding="utf-8").splitlines()]
            assert len(stored) == 6
            assert float(row["val/first_words/score"]) == pytest.approx(
                sum(each.score for each in stored) / 6, rel=1e-5
            )
    assert "val/first_words/score" in result.metrics


def test_a_suite_that_cannot_be_used_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    path = tmp_path / "suite.yaml"
    path.write_text("evals: [nonsense]\n", encoding="utf-8")
    run = run_for("sft", tmp_path / "no-model", rows, tmp_path / "run", validation={"suite": str(path)})
    from align.core.training.check import check

    with pytest.raises(AlignError, match="no eval is called 'nonsense'"):
        check(run, progress=False)


def test_a_completion_that_no_position_is_left_for_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    limit = json.loads((tiny_model_dir / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    long = {**SCORED, "sampling": {"max_completion_length": limit}}
    with pytest.raises(AlignError, match=r"validation\.sampling\.max_completion_length"):
        train(run_for("sft", tiny_model_dir, rows, tmp_path / "run", validation=long), progress=False)
