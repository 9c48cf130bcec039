"""Decisions are state: a run that is killed before it has acted on one acts on it when it is resumed."""

from __future__ import annotations

import csv
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from align.core.engine import checkpoint
from align.core.training.launch import train
from align.core.util import atomic_files
from align.schemas.errors import AlignError
from align.schemas.run import Run
from tests.core.runs import run_for, write_rows

RISING: dict[str, Any] = {
    "optimizer": {"learning_rate": 0.05},
    "schedule": {"type": "constant", "warmup_steps": 0.0},
    "train": {"num_train_epochs": 20},
    "validation": {"eval_steps": 1, "early_stopping_patience": 3},
    "checkpoint": {"save_steps": 100, "export": "best"},
}
"""A rate far too high: the held-out loss rises, and the run stops early."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def drifting(action: str, weights: Path, tmp_path: Path) -> Run:
    """An online run whose alarm goes off as soon as answers are a little longer or shorter than at first."""
    rows = write_rows("grpo", tmp_path / "rows.jsonl", 24)
    return run_for(
        "grpo",
        weights,
        rows,
        tmp_path / action,
        train={"max_steps": 24, "batch_size": 8},
        validation={"eval_steps": 4},
        checkpoint={"save_steps": 4, "save_total_limit": 99},
        rollout={"watch": {"action": action, "warmup": 1, "patience": 1, "length": 1.0001, "kl": None}},
    )


def kill_before_done(run: Run) -> dict[str, bytes]:
    """Take away what is written last, as if the process had been killed before; what it was."""
    place = Path(run.output) / "only"
    kept = {name: (place / name).read_bytes() for name in ("done.json", "metrics.csv", "export/model.safetensors")}
    (place / "done.json").unlink()
    shutil.rmtree(place / "export")
    return kept


def same(run: Run, kept: dict[str, bytes]) -> bool:
    return all((Path(run.output) / "only" / name).read_bytes() == content for name, content in kept.items())


def last_logged(run: Run) -> int:
    with open(Path(run.output) / "only" / "metrics.csv", newline="", encoding="utf-8") as file:
        return max(int(row["step"]) for row in csv.DictReader(file))


@pytest.mark.parametrize("export", ["best", "last"])
def test_an_early_stop(export: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    settings = RISING | {"checkpoint": {"save_steps": 100, "export": export}}
    run = run_for("sft", tiny_model_dir, rows, tmp_path / "run", **settings)
    train(run, progress=False)
    stopped = last_logged(run)
    assert stopped < 100
    kept = kill_before_done(run)
    train(run, resume=True, progress=False)
    assert same(run, kept) and last_logged(run) == stopped


def test_a_rollback(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = drifting("rollback", tiny_model_dir, tmp_path)
    train(run, progress=False)
    stopped = last_logged(run)
    assert stopped < 24, "no alarm went off"
    best = atomic_files.read_json(Path(run.output) / "manifest.json")["stages"]["only"]["rolled_back_to"]
    kept = kill_before_done(run)
    train(run, resume=True, progress=False)
    assert same(run, kept) and last_logged(run) == stopped
    weights = checkpoint.load(checkpoint.at(Path(run.output) / "only" / "checkpoints", best))["state_dict"]
    exported = load_file(Path(run.output) / "only" / "export" / "model.safetensors")
    assert all((weights["policy.model." + name] == value).all() for name, value in exported.items())


def test_a_pause_is_told_before_anything_is_trained_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Killed after the checkpoint and before the message: the next start tells it, the one after goes on."""
    run = drifting("pause", tiny_model_dir, tmp_path)
    with pytest.raises(AlignError, match="is paused and saved"):
        train(run, progress=False)
    paused = last_logged(run)
    manifest = Path(run.output) / "manifest.json"
    noted = atomic_files.read_json(manifest)
    assert noted["stages"]["only"].pop("paused_at") == f"step-{paused:08d}"
    atomic_files.write_json(manifest, noted)
    with pytest.raises(AlignError, match="is paused and saved"):
        train(run, resume=True, progress=False)
    assert last_logged(run) == paused
    with suppress(AlignError):  # the next alarm may pause it once more
        train(run, resume=True, progress=False)
    assert last_logged(run) > paused


def test_the_best_checkpoint_is_verified(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_for("sft", tiny_model_dir, write_rows("sft", tmp_path / "rows.jsonl"), tmp_path / "run", **RISING)
    train(run, progress=False)
    place = tmp_path / "run" / "only"
    kill_before_done(run)
    last, best = checkpoint.steps(place / "checkpoints")
    state = checkpoint.at(place / "checkpoints", best) / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    for harm in (
        lambda: state.write_bytes(content),
        lambda: state.unlink(),
        lambda: shutil.rmtree(state.parent),
    ):
        harm()
        with pytest.raises(AlignError, match="the best checkpoint is damaged") as caught:
            train(run, resume=True, progress=False)
        assert f"step-{best:08d}" in str(caught.value) and "checkpoint.export=last" in str(caught.value)
        assert not (place / "done.json").exists() and not (place / "export").exists()
    settings = RISING | {"checkpoint": {"save_steps": 100, "export": "last"}}  # as it says
    train(
        run_for("sft", tiny_model_dir, tmp_path / "rows.jsonl", tmp_path / "run", **settings),
        resume=True,
        progress=False,
    )
    weights = checkpoint.load(checkpoint.at(place / "checkpoints", last))["state_dict"]
    exported = load_file(place / "export" / "model.safetensors")
    assert all((weights["policy.model." + name] == value).all() for name, value in exported.items())


def test_a_last_checkpoint_that_is_damaged_is_not_exported_as_an_older_one(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged between its writing and the export; resuming trains its steps again."""
    run = run_for("sft", tiny_model_dir, write_rows("sft", tmp_path / "rows.jsonl"), tmp_path / "run")
    (whole,) = train(run.model_copy(update={"output": str(tmp_path / "whole")}), progress=False)
    save = checkpoint.save

    def save_badly(directory: Path, *rest: Any) -> None:
        save(directory, *rest)
        if directory.name == "step-00000018":
            (directory / "state.pt").write_bytes(b"")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_badly)
        with pytest.raises(AlignError, match="the checkpoint to export is damaged"):
            train(run, progress=False)
    (result,) = train(run, resume=True, progress=False)
    assert (result.export / "model.safetensors").read_bytes() == (whole.export / "model.safetensors").read_bytes()
