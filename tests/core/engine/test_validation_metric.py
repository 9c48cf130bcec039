"""A metric that nothing measures would silently make every checkpoint the last best one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from align.core.data.batch import collate
from align.core.engine import checkpoint
from align.core.training.launch import stage_runner, train
from align.core.training.run_directory import RunDirectory
from align.schemas.errors import AlignError
from tests.core.runs import run_for, write_rows


def test_a_validation_metric_that_is_not_there_stops_before_the_first_step(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    rows = write_rows("dpo", tmp_path / "rows.jsonl")
    run = run_for(
        "reward_model", tiny_model_dir, rows, tmp_path / "run", validation={"metric_for_best_model": "acuracy"}
    )
    with pytest.raises(
        AlignError, match=r"validation\.metric_for_best_model\n.*is 'acuracy'[\s\S]*did you mean 'accuracy'"
    ):
        train(run, progress=False)
    assert checkpoint.steps(tmp_path / "run" / "only" / "checkpoints") == []


def test_the_held_out_loss_is_the_mean_over_all_held_out_tokens(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step it is −log p of the starting weights, over every scored token of the set at once.

    In steps of 5, of which the last is short; steps hold unlike numbers of tokens, so neither a mean of means nor
    the last step's count gives this number.
    """
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    sections = {"data": {"validation_fraction": 0.4}, "train": {"batch_size": 5, "max_steps": 1}}
    run = run_for("sft", tiny_model_dir, rows, tmp_path / "run", **sections)
    train(run, progress=False)
    with open(tmp_path / "run" / "only" / "metrics.csv", newline="", encoding="utf-8") as file:
        logged = [row for row in csv.DictReader(file) if row["step"] == "0"]
    ready = stage_runner(RunDirectory(run), run.stages[0], progress=False).prepare()
    (held_out,) = ready.data.held_out
    examples = [held_out.examples[i] for i in range(len(held_out.examples))]
    assert len(examples) > 10 and len(examples) % 5
    with torch.no_grad():
        logp_T = ready.model.policy.eval()(collate(examples, "padded", 0)).logp_T
    assert float(logged[0]["val/loss"]) == pytest.approx(-float(logp_T.double().mean()), rel=1e-5)
