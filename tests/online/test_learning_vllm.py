"""GRPO and PPO learn arithmetic with answers sampled by the real vLLM, which follows the weights phase by phase.

vLLM, align and pytest must share an interpreter: where this one has no vLLM, the one that ALIGN_VLLM_PYTHON names runs
this file (.ci/vllm-cpu makes one).
"""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from align.core.engine import checkpoint
from align.core.training.launch import train
from align.schemas.run import Run
from tests.online.conftest import Novice
from tests.online.test_learning import MARGIN, arithmetic, held_out

HERE = importlib.util.find_spec("vllm") is not None
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def test_all_of_this_where_vllm_is() -> None:
    python = os.environ.get("ALIGN_VLLM_PYTHON")
    if HERE or python is None:
        return
    command = [python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-5000:]


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_held_out_answers_get_better(
    name: str, novice: Novice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not HERE:
        pytest.skip("this interpreter has no vllm; set ALIGN_VLLM_PYTHON to one that has it and align")
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    generator = {"type": "vllm", "kv_cache": 0.125}
    train(arithmetic(novice, name, tmp_path / "run", seed=0, generator=generator), progress=False)
    before, after = held_out(tmp_path / "run" / "only")
    assert after >= before + MARGIN
    with open(tmp_path / "run" / "only" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert max(float(row["sampling/sampling_logp_difference/max"]) for row in rows) < 1e-3


def test_a_phase_ahead_learns_and_resumes(novice: Novice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server samples the next phase while this one is learned from; a resumed run goes on as the whole one did."""
    if not HERE:
        pytest.skip("this interpreter has no vllm; set ALIGN_VLLM_PYTHON to one that has it and align")
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    generator = {"type": "vllm", "mode": "server", "kv_cache": 0.125}
    correction = {"type": "truncate"}
    made = arithmetic(
        novice,
        "grpo",
        tmp_path / "run",
        seed=0,
        generator=generator,
        max_staleness=1,
        importance_sampling_correction=correction,
    )
    plain = made.model_dump()
    plain["stages"][0]["checkpoint"]["save_steps"] = 6
    made = type(made).model_validate(plain)
    train(made, progress=False)
    stage = tmp_path / "run" / "only"
    before, after = held_out(stage)
    assert after >= before + MARGIN

    def rewards() -> list[float]:
        with open(stage / "metrics.csv", newline="") as file:
            return [float(row["reward"]) for row in csv.DictReader(file) if row["loss"]]

    whole = rewards()
    (stage / "done.json").unlink()
    for step in (s for s in checkpoint.steps(stage / "checkpoints") if s > 6):
        shutil.rmtree(checkpoint.at(stage / "checkpoints", step))
    train(made, resume=True, progress=False)
    # The seventh phase is in the checkpoint. Later ones are the server's, whose rounding depends on what it batches.
    assert rewards()[:7] == whole[:7]
    assert rewards() == pytest.approx(whole, abs=0.1)


def test_an_adapter_on_shards_is_followed(novice: Novice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA under fsdp on two ranks: one server gets the adapter that the ranks gather, phase by phase.

    The gate would stop the run at the second phase if anything but the trained adapter arrived.
    """
    if not HERE:
        pytest.skip("this interpreter has no vllm; set ALIGN_VLLM_PYTHON to one that has it and align")
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    generator = {"type": "vllm", "mode": "server", "lora": "adapter", "kv_cache": 0.125}
    made = arithmetic(novice, "grpo", tmp_path / "run", seed=0, generator=generator).model_dump()
    stage = made["stages"][0]
    stage["model"]["adapter"] = {"r": 32}
    stage["optimizer"]["learning_rate"] = 3e-3
    stage["train"]["max_steps"] = stage["validation"]["eval_steps"] = 3
    stage["devices"] = {"count": 2, "accelerator": "cpu", "strategy": {"type": "fsdp"}}
    train(Run.model_validate(made), progress=False)
    with open(tmp_path / "run" / "only" / "metrics.csv", newline="") as file:
        gaps = [float(row["sampling/sync_gap"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(gaps) == 3 and max(gaps) < 1e-3
