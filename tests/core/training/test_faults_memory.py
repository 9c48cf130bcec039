"""Memory that runs out: who, where, when, how much, and what to turn down."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from align import AlignError, train
from align.advisor.estimate.remedies import COSTS, REMEDIES
from align.core.engine import processes
from align.core.engine.module import AlignModule
from align.core.training.failures import OutOfMemory, explained_failures, worker_failed
from align.core.training.run_directory import StageDirectory
from align.core.util import signs_of_life, stopping
from align.core.util.system_errors import explain
from tests.core.runs import run_for, write_rows

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.25 GiB is "
    "free. Including non-PyTorch memory, this process has 77.88 GiB memory in use."
)


def test_a_step_that_runs_out_of_memory(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator really refuses; the message is the run's."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    step = AlignModule.training_step

    def hungry(module: AlignModule, *arguments: Any) -> Any:
        if module.global_step == 2:
            torch.empty(2**50)
        return step(module, *arguments)

    monkeypatch.setattr(AlignModule, "training_step", hungry)
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    run = run_for("sft", tiny_model_dir, rows, tmp_path / "run", checkpoint={"save_steps": 2})
    with pytest.raises(AlignError) as failed:
        train(run, progress=False)
    text = str(failed.value)
    assert f"rank 0 on {socket.gethostname()} (step 3" in text
    assert (
        f"memory ran out: {4 * 2**50 / 1e9:,.2f} GB more were asked for" in text and "of main memory are free" in text
    )
    assert "step 2 is saved" in text
    settings = [line.strip() for line in text.splitlines() if " (now " in line]
    assert settings[0].startswith("train.micro_batch_size=1 (now 3): ") and settings[0].endswith("with the same result")
    needed = [float(line.split(": ")[1].split(" GB")[0].replace(",", "")) for line in settings]
    assert needed == sorted(needed, reverse=True)


def test_a_gpu_says_how_much_it_had(tmp_path: Path) -> None:
    found = explain(torch.OutOfMemoryError(CUDA))
    assert found is not None
    assert found.problems[0].what == (
        "memory ran out: 2.00 GiB more were asked for, and 1.25 GiB of 79.15 GiB are free"
    )
    with pytest.raises(OutOfMemory) as failed, explained_failures(StageDirectory(tmp_path / "dpo")):
        raise torch.OutOfMemoryError(CUDA)
    assert failed.value.stage == "dpo" and failed.value.problems[0].where.startswith("rank 0 on ")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_whose_memory_ran_out(rank: int, tmp_path: Path) -> None:
    """The process that started the workers knows, and adds what to turn down."""
    stage = StageDirectory(tmp_path / "sft")
    place = stage.path / signs_of_life.RANKS / f"{rank}.json"
    place.parent.mkdir(parents=True)
    error = "rank 1 on gpu-7 (step 3)\\n    memory ran out: 2 GiB more were asked for"
    place.write_text(f'{{"host": "gpu-7", "pid": 1, "step": 3, "error": "{error}"}}')
    failure = worker_failed(processes.Ended(rank, stopping.FAILED, ""), stage)
    assert isinstance(failure, OutOfMemory) and failure.stage == "sft"
    assert isinstance(worker_failed(processes.Ended(3, 9, ""), stage), AlignError)


def test_every_remedy_has_a_price() -> None:
    assert {setting.partition("=")[0] for _, setting in REMEDIES} <= COSTS.keys()
