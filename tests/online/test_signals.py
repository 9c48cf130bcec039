"""Signals outside of the steps: while torch is imported, before the first step, in best_of_n, in the last step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.core.engine import checkpoint
from align.core.training.launch import train
from align.schemas.run import Run

REWARD = """
import os, time

def held(completion_ids):
    with open("calls", "a") as file:
        file.write("x")
    while os.path.exists("hold") and os.path.getsize("calls") >= int(open("hold").read()):
        time.sleep(0.01)
    return [sum(token < 160 for token in ids) / len(ids) for ids in completion_ids]
"""
"""A reward that is held at the call whose number the file ``hold`` has, until that file is gone."""


@pytest.fixture
def place(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.py").write_text(REWARD)
    rows = [{"prompt": f"the sea {i}"} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model").symlink_to(tiny_model_dir)
    return tmp_path


def stage(algorithm: str, name: str = "only", **sections: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"path": "model"},
        "data": {"train": "prompts.jsonl", "dataset_num_proc": 1, **sections.pop("data", {})},
        "algorithm": {"type": algorithm, "num_generations": 4},
        "train": {"batch_size": 16, **sections.pop("train", {})},
        "rollout": {
            "rewards": [{"type": "python", "file": "mine.py", "function": "held"}],
            "sampling": {"max_completion_length": 6, "stop": ["e"]},
        },
    }


def stopped(
    number: int, when: Callable[[int], bool], output: str, *stages: dict[str, Any], goes_on: bool = False
) -> str:
    """Start a run, send it a signal at a moment, and give what it says; it must end as documented."""
    Path("run.yaml").write_text(json.dumps({"output": output, "stages": stages}))
    command = [sys.executable, "-W", "ignore", "-m", "align", "train", "run.yaml", "--quiet"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not when(running.pid):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        running.send_signal(number)
        if goes_on:
            Path("hold").unlink()
        _, told = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 128 + number, told
    assert "Traceback" not in told and "go on with: align train run.yaml --resume" in told, told
    return told


def calls(count: int) -> Callable[[int], bool]:
    return lambda pid: Path("calls").exists() and Path("calls").stat().st_size >= count


def importing(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def hold(at: int) -> None:
    Path("hold").write_text(str(at))


@pytest.mark.usefixtures("place")
def test_while_torch_is_imported() -> None:
    told = stopped(signal.SIGINT, importing, "run", stage("grpo", train={"max_steps": 1}))
    assert "stopped by SIGINT" in told and not Path("run/only/checkpoints").exists()


@pytest.mark.usefixtures("place")
def test_in_the_evaluation_before_the_first_step() -> None:
    hold(1)
    made = stage("grpo", data={"validation": "prompts.jsonl"}, train={"max_steps": 1})
    assert "stopped by SIGTERM" in stopped(signal.SIGTERM, calls(1), "run", made)
    assert not checkpoint.steps(Path("run/only/checkpoints"))


@pytest.mark.usefixtures("place")
def test_in_best_of_n_and_resumed() -> None:
    """In the second of two phases: the first is kept, and the rows are those of a run that was never stopped."""
    hold(2)
    stopped(signal.SIGTERM, calls(2), "run", stage("best_of_n"))
    assert [path.name for path in Path("run/only/phases").iterdir()] == ["phase-000001.json"]
    Path("hold").unlink()
    made = [stage("best_of_n")]
    train(Run.model_validate({"output": "run", "stages": made}), resume=True, progress=False)
    assert Path("calls").stat().st_size == 3, "the first phase is not asked again"
    train(Run.model_validate({"output": "quiet", "stages": made}), progress=False)
    rows = [Path(output, "only", "export", "rows.jsonl").read_bytes() for output in ("run", "quiet")]
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("place")
def test_in_the_last_step_of_a_stage() -> None:
    """The stage is finished, the next is not begun."""
    hold(1)
    stages = [stage("grpo", name, train={"max_steps": 1}) for name in ("first", "second")]
    told = stopped(signal.SIGUSR1, calls(1), "run", *stages, goes_on=True)
    assert "stopped by SIGUSR1 after step 1, which is saved" in told
    assert Path("run/first/done.json").exists() and not Path("run/second/metrics.csv").exists()
