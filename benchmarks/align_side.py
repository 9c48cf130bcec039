"""align's side of a comparison: one run of ``align.core.training.launch.train``, a meter beside it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from turns import Meter, Turn

from align.core.engine.module import AlignModule
from align.core.engine.steps import MicroBatcher, StepBatch
from align.core.training.launch import train
from align.core.util.profile import profiling
from align.schemas.run import Run

RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Task:
    """What all sides do. batch: rows, pairs or completions of a step. steps: measured and warm-up ones together."""

    algorithm: str
    model: Path
    rows: Path
    work: Path
    batch: int
    steps: int
    beta: float | None = None
    group: int = 8
    longest: int = 64
    bf16: bool = False

    @property
    def online(self) -> bool:
        """Whether completions are sampled."""
        return self.algorithm in ("grpo", "rloo", "ppo")


def run_of(task: Task) -> Run:
    """Return align's run file of a task: its defaults, but for what makes the sides equal."""
    algorithm: dict[str, Any] = {"type": task.algorithm}
    if task.beta is not None:
        algorithm["beta"] = task.beta
    sections: dict[str, Any] = {
        "name": "only",
        "model": {"path": str(task.model)},
        "data": {"train": [{"path": str(task.rows)}], "max_length": 1024, "dataset_num_proc": 1},
        "algorithm": algorithm,
        "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
        "schedule": {"type": "constant"},
        # One step more than is measured: its end writes a checkpoint, which the other side does not.
        "train": {"batch_size": task.batch, "max_steps": task.steps + 1}
        | ({"precision": "bf16-mixed"} if task.bf16 else {}),
        "checkpoint": {"save_steps": 1_000_000},
        "devices": {"accelerator": "cpu"},
    }
    if task.online:
        if task.algorithm != "ppo":
            algorithm["num_generations"] = task.group
        reward = {"type": "python", "file": str(Path(__file__).parent / "workload.py"), "function": "arithmetic"}
        sections["rollout"] = {"rewards": [reward], "sampling": {"max_completion_length": task.longest}}
    return Run.model_validate({"output": str(task.work / "align"), "stages": [sections]})


def measure(task: Task, turn: Turn) -> dict[str, Any]:
    """Train, and return what the meter saw."""
    os.environ["ALIGN_CACHE"] = str(task.work / "cache")
    with profiling(None, "cpu") as profile:
        meter = Meter(turn, profile)

        starts = AlignModule.on_train_start

        def start(module: AlignModule) -> None:
            starts(module)
            meter.ready()

        def step(module: AlignModule, *_: Any) -> None:
            if len(meter.cpu) < task.steps:
                meter.step(loss=module.metrics["loss"], grad_norm=module.metrics["grad_norm"])

        # Lightning calls the module's hooks after those of all callbacks.
        started = patch.object(AlignModule, "on_train_start", start)
        stepped = patch.object(AlignModule, "on_train_batch_end", step)
        with started, stepped, _watching_rows(meter, task):
            train(run_of(task), progress=False)
    meter.rows, meter.tokens, meter.scored = (each[: task.steps] for each in (meter.rows, meter.tokens, meter.scored))
    return meter.facts()


def _watching_rows(meter: Meter, task: Task) -> Any:
    """Note the token ids of what each step learns from: whole sequences, of online algorithms the prompts."""
    plain = MicroBatcher.step

    def step(self: MicroBatcher, index: int, examples: Any) -> StepBatch:
        sequences = [sequence for example in examples for sequence in example.sequences]
        meter.tokens.append(sum(len(sequence) for sequence in sequences))
        meter.scored.append(sum(int(sequence.scored.sum()) for sequence in sequences))
        kept = [
            sequence.tokens[: int(sequence.scored.argmax())] if task.online else sequence.tokens
            for sequence in sequences
        ]
        meter.rows.append(sorted(fingerprint(tokens.tolist()) for tokens in kept))
        return plain(self, index, examples)

    return patch.object(MicroBatcher, "step", step)


def fingerprint(tokens: list[int]) -> str:
    """Return a short hash of token ids."""
    return hashlib.sha256(str(tokens).encode()).hexdigest()[:12]
