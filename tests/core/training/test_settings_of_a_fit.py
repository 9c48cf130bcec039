"""What single settings of a fit do: clipping, learning rates, precision, dropout, loggers, the bar."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from align.core.engine import checkpoint
from align.core.training.launch import train
from align.core.training.run_directory import training_settings
from align.plugins.loggers.csv.file import CSVFile
from tests.core.runs import run_for, write_rows

ONE_STEP: dict[str, dict[str, Any]] = {
    "data": {"validation_fraction": 0.0},
    "checkpoint": {"save_steps": 1},
    "schedule": {"type": "constant", "warmup_steps": 0.0},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def one_step(weights: Path, tmp_path: Path, name: str, algorithm: str = "sft", **sections: Any) -> dict[str, Any]:
    """Train one step; its row of the log and its checkpoint's optimizer state."""
    rows = write_rows(algorithm, tmp_path / f"{algorithm}.jsonl")
    settings = ONE_STEP | sections
    settings["train"] = {"max_steps": 1, **sections.get("train", {})}
    train(run_for(algorithm, weights, rows, tmp_path / name, **settings), progress=False)
    with open(tmp_path / name / "only" / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    (optimizer,) = checkpoint.load(tmp_path / name / "only" / "checkpoints" / "step-00000001")["optimizer_states"]
    return {"row": row, "optimizer": optimizer}


def moment_norm(optimizer: dict[str, Any]) -> float:
    """Norm of AdamW's first moment; after one step it is (1 - beta1) = 0.1 times that of the gradient it saw."""
    return float(torch.cat([state["exp_avg"].flatten() for state in optimizer["state"].values()]).norm())


def test_clipping_scales_the_gradient_to_the_norm(tiny_model_dir: Path, tmp_path: Path) -> None:
    free = one_step(tiny_model_dir, tmp_path, "free", train={"max_grad_norm": None})
    clipped = one_step(tiny_model_dir, tmp_path, "clipped", train={"max_grad_norm": 0.25})
    assert free["row"]["grad_norm"] == clipped["row"]["grad_norm"], "the norm that is logged is the one before clipping"
    assert moment_norm(free["optimizer"]) == pytest.approx(0.1 * float(free["row"]["grad_norm"]), rel=1e-4)
    assert moment_norm(clipped["optimizer"]) == pytest.approx(0.1 * 0.25, rel=1e-4)


def test_a_step_is_adamws_with_the_settings_given(tiny_model_dir: Path, tmp_path: Path) -> None:
    """After the first step m = (1 − β1) g, v = (1 − β2) g², and θ moved by −lr g / (|g| + ε): 1711.05101, no decay."""
    beta1, beta2, epsilon, rate = 0.8, 0.95, 0.01, 0.02
    settings = {"adam_beta1": beta1, "adam_beta2": beta2, "adam_epsilon": epsilon, "learning_rate": rate}
    one_step(tiny_model_dir, tmp_path, "run", optimizer=settings, train={"max_grad_norm": None})
    saved = checkpoint.load(tmp_path / "run" / "only" / "checkpoints" / "step-00000001")
    (optimizer,) = saved["optimizer_states"]
    start = load_file(tiny_model_dir / "model.safetensors")
    weights = {name.removeprefix("policy.model."): value for name, value in saved["state_dict"].items()}
    # The states are in the optimizer's order: matrices first, then norms, each in the model's order.
    names = [n for n in weights if weights[n].ndim >= 2] + [n for n in weights if weights[n].ndim < 2]
    states = [state for _, state in sorted(optimizer["state"].items())]
    assert len(names) == len(states) and weights.keys() <= start.keys()
    for name, state in zip(names, states, strict=True):
        gradient = state["exp_avg"] / (1 - beta1)
        torch.testing.assert_close(state["exp_avg_sq"], (1 - beta2) * gradient**2, rtol=1e-5, atol=1e-12)
        moved = -rate * gradient / (gradient.abs() + epsilon)
        torch.testing.assert_close(weights[name] - start[name], moved, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("section", ["optimizer", "schedule", "reference"])
def test_a_run_does_not_go_on_with_another(section: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Every setting of these sections decides the weights, so resuming compares it."""
    rows = write_rows("dpo", tmp_path / "dpo.jsonl")
    (stage,) = run_for("dpo", tiny_model_dir, rows, tmp_path / "run").stages
    before = training_settings(stage)
    other = {"type": "constant", "mode": "copy", "ref_model_sync_steps": 7}
    mine = getattr(stage, section)
    for name in type(mine).model_fields:
        old = getattr(mine, name)
        new = (
            other[name]
            if name in other
            else 0.5
            if old is None
            else old / 2
            if isinstance(old, float) and old
            else 0.25
        )
        changed = stage.model_copy(update={section: mine.model_copy(update={name: new})})
        assert old != new and training_settings(changed) != before, f"{section}.{name}"


def test_rows_are_not_made_by_two_models(tiny_model_dir: Path, tmp_path: Path) -> None:
    """What answers behind an endpoint is compared; where it listens and how it is asked are not."""
    settings = {"url": "http://127.0.0.1:8000/v1", "model": "a", "concurrency": 4}
    rows = write_rows("best_of_n", tmp_path / "rows.jsonl")

    def learned(**other: Any) -> dict[str, Any]:
        rollout = {"rewards": ["repetition"], "generator": {"type": "endpoint", **settings, **other}}
        run = run_for("best_of_n", tiny_model_dir, rows, tmp_path / "run", rollout=rollout)
        return training_settings(run.stages[0])

    assert learned(model="b") != learned()
    assert learned(extra={"top_k": 3}) != learned()
    assert learned(url="http://127.0.0.1:8001/v1", concurrency=8) == learned()


def test_the_vetted_rate_and_ten_times_it_for_an_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    full = one_step(tiny_model_dir, tmp_path, "full", optimizer={"learning_rate": None})
    lora = one_step(tiny_model_dir, tmp_path, "lora", optimizer={"learning_rate": None}, model={"adapter": {"r": 2}})
    assert float(full["row"]["learning_rate"]) == pytest.approx(2e-5)
    assert float(lora["row"]["learning_rate"]) == pytest.approx(2e-4)
    frozen_aside = len(lora["optimizer"]["state"])
    assert 0 < frozen_aside != len(full["optimizer"]["state"])


def test_decay_is_on_matrices_only(tiny_model_dir: Path, tmp_path: Path) -> None:
    groups = one_step(tiny_model_dir, tmp_path, "run", optimizer={"weight_decay": 0.1})["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert len(groups[1]["params"]) == 5, "two norms a layer and the last"


def test_true_16_bits_hold_weights_and_moments_in_16_bits(tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = one_step(tiny_model_dir, tmp_path, "whole", "dpo")
    half = one_step(tiny_model_dir, tmp_path, "half", "dpo", train={"precision": "bf16-true"})
    assert {state["exp_avg"].dtype for state in half["optimizer"]["state"].values()} == {torch.bfloat16}
    saved = checkpoint.load(tmp_path / "half" / "only" / "checkpoints" / "step-00000001")["state_dict"]
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    loss, exact = (float(run["row"]["loss"]) for run in (half, whole))
    assert loss == pytest.approx(exact, abs=0.02) and loss == pytest.approx(0.6931, abs=0.02)


def test_mixed_precision_keeps_float32_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    exact = one_step(tiny_model_dir, tmp_path, "exact", "dpo")
    mixed = one_step(tiny_model_dir, tmp_path, "mixed", "dpo", train={"precision": "bf16-mixed"})
    assert float(mixed["row"]["loss"]) == pytest.approx(float(exact["row"]["loss"]), abs=0.02)
    assert mixed["row"]["grad_norm"] != exact["row"]["grad_norm"], "nothing was computed in bfloat16"
    (state, *_) = mixed["optimizer"]["state"].values()
    assert state["exp_avg"].dtype == torch.float32


def test_gradient_checkpointing_changes_no_bit(tiny_model_dir: Path, tmp_path: Path) -> None:
    plain = one_step(tiny_model_dir, tmp_path, "plain")
    saved = one_step(tiny_model_dir, tmp_path, "saved", model={"gradient_checkpointing": True})
    assert plain["row"] == saved["row"]


def test_tensorboard_gets_what_the_file_gets(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = one_step(tiny_model_dir, tmp_path, "run", loggers=[{"type": "csv"}, {"type": "tensorboard"}])
    events = EventAccumulator(str(tmp_path / "run" / "only" / "tensorboard"))
    events.Reload()
    (scalar,) = events.Scalars("loss")
    assert (scalar.step, scalar.value) == (1, pytest.approx(float(found["row"]["loss"])))


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_loss_and_speed_and_on_a_terminal_memory(
    terminal: bool,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On stderr: a bar on a terminal, elsewhere lines, which leave out what changes little."""
    for module in ("align.core.util.progress", "align.core.engine.callbacks"):
        monkeypatch.setattr(f"{module}.on_terminal", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    train(run_for("sft", tiny_model_dir, rows, tmp_path / "run", **ONE_STEP), progress=True)
    shown = capsys.readouterr()
    assert not shown.out
    for fact in ("only", "loss ", "tok/s", *(("scored/s", "GiB") if terminal else ("18/18",))):
        assert fact in shown.err


def test_a_csv_log_goes_back_to_the_resumed_step(tmp_path: Path) -> None:
    """Rows after the checkpoint are cut off, a half-written last line too; names seen later widen the header."""
    path = tmp_path / "metrics.csv"
    before = CSVFile(path, resume_step=0)
    for step in (1, 2, 3):
        before.log_metrics({"epoch": step / 4, "loss": 1.0 / step}, step)
    with open(path, "a") as file:
        file.write("4,1.0,0.")
    after = CSVFile(path, resume_step=2)
    after.log_metrics({"epoch": 0.75, "val/loss": 7.0}, 3)
    assert path.read_text().splitlines() == [
        "step,epoch,loss,val/loss",
        "1,0.25,1.0,",
        "2,0.5,0.5,",
        "3,0.75,,7.0",
    ]
