"""Arithmetic with the math verifier: every online algorithm makes held-out answers better, on three seeds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from align.core.training.launch import train
from align.schemas.run import Run
from tests.online.conftest import Novice

MARGIN = 0.25
"""How much the share of right answers to held-out sums must rise at least."""

ALGORITHMS: dict[str, tuple[int, float, dict[str, Any]]] = {
    "rloo": (12, 3e-4, {"num_generations": 8}),
    "reinforce": (12, 3e-4, {"num_generations": 8, "baseline": "group"}),
    "grpo": (12, 3e-4, {}),
    "ppo": (48, 1e-4, {"critic_learning_rate": 1e-3, "critic_warmup": 8}),
    "online_dpo": (16, 1e-4, {"num_generations": 4}),
}
"""Optimizer steps, learning rate, settings."""


def arithmetic(novice: Novice, name: str, output: Path, seed: int, **rollout: Any) -> Run:
    """One stage that learns sums from the verifier."""
    steps, rate, settings = ALGORITHMS[name]
    stage = {
        "name": "only",
        "model": {"path": str(novice.model)},
        "data": {"train": str(novice.train), "validation": str(novice.held_out), "dataset_num_proc": 1},
        "algorithm": {"type": name, **settings},
        "optimizer": {"learning_rate": rate, "adam_beta2": 0.98},
        "schedule": {"type": "constant"},
        "train": {"batch_size": 128, "max_steps": steps},
        "validation": {"eval_steps": steps},
        "seed": seed,
        "rollout": {"rewards": ["math"], "sampling": {"max_completion_length": 16}, "samples": "none", **rollout},
    }
    return Run.model_validate({"output": str(output), "stages": [stage]})


def held_out(stage: Path) -> list[float]:
    """Mean reward of the likeliest answers, before the first step first."""
    with open(stage / "metrics.csv", newline="") as file:
        return [float(row["val/reward"]) for row in csv.DictReader(file) if row["val/reward"]]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_held_out_answers_get_better(
    name: str, seed: int, novice: Novice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    train(arithmetic(novice, name, tmp_path / "run", seed), progress=False)
    before, after = held_out(tmp_path / "run" / "only")
    assert after >= before + MARGIN


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learning_from_the_best_of_eight_answers(
    seed: int, novice: Novice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rejection sampling: best_of_n makes rows of right answers only, and sft learns them."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    common = {"model": {"path": str(novice.model)}, "seed": seed}
    sampled = {"rewards": ["math"], "sampling": {"max_completion_length": 16}}
    stages = [
        {
            "name": "best",
            "data": {"train": str(novice.train), "dataset_num_proc": 1},
            "algorithm": {"type": "best_of_n", "num_generations": 8, "minimum": 1.0},
            "rollout": sampled,
            "train": {"batch_size": 128},
            **common,
        },
        {
            "name": "sft",
            "data": {"train": "stage:best", "dataset_num_proc": 1},
            "algorithm": "sft",
            "optimizer": {"learning_rate": 3e-4, "adam_beta2": 0.98},
            "train": {"batch_size": 16, "num_train_epochs": 6},
            **common,
        },
        {
            "name": "asked",  # how often the first answer is right, to held-out sums
            "model": {"path": "stage:sft"},
            "data": {"train": str(novice.held_out), "dataset_num_proc": 1},
            "algorithm": {"type": "best_of_n", "num_generations": 8},
            "rollout": sampled,
            "train": {"batch_size": 128},
            "seed": seed,
        },
    ]
    before = {**stages[2], "name": "before", **common}
    results = train(Run.model_validate({"output": str(tmp_path / "run"), "stages": [*stages, before]}), progress=False)
    found = {result.name: result.metrics for result in results}
    assert found["best"]["pass@8"] > found["best"]["pass@4"] > found["best"]["pass@1"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "best" / "export" / "rows.jsonl").open()]
    assert len(rows) == round(64 * found["best"]["pass@8"]) == found["best"]["rows"]
    assert found["asked"]["pass@1"] >= found["before"]["pass@1"] + 0.15
