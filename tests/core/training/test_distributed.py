"""Real gloo processes on this machine: the law over ranks, signals, killed ranks, sharding.

Whole runs of every algorithm over several ranks: test_same_numbers.py.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.core.config import run_file
from align.core.engine import checkpoint
from align.core.training.launch import train
from align.core.training.sample_log import read_samples
from align.schemas.run import Run
from tests.core.ranks import LAW, ONE_STEP, alive, environment, finish, torchrun, wait_for_step, workers_of
from tests.core.runs import REWARDS, run_for, write_rows


def command(output: Path, algorithm: str, model: Path, **sections: dict[str, Any]) -> list[str]:
    """``align train`` for a small run."""
    rows = write_rows(algorithm, output.parent / f"{algorithm}.jsonl")
    run = run_for(algorithm, model, rows, output, **sections)
    file = output.parent / f"{output.name}.yaml"
    file.write_text(run_file.dump(run))
    return [sys.executable, "-W", "ignore", "-m", "align", "train", str(file), "--quiet"]


def gradients_of_first_step(stage: Path) -> torch.Tensor:
    """AdamW's first moment after one step is (1 - beta1) times the gradient."""
    (optimizer,) = checkpoint.load(stage / "checkpoints" / "step-00000001")["optimizer_states"]
    return torch.cat([(state["exp_avg"] / 0.1).flatten() for _, state in sorted(optimizer["state"].items())])


def log(output: Path) -> list[dict[str, str]]:
    with open(output / "only" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_law_over_ranks(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step's gradient is the same on one rank and on two, whatever the micro-batches; torchrun works as it is.

    Four stages in one torchrun, so that it also shows a pipeline of stages in one group of processes.
    """
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    algorithms = ("sft", "dpo", "kto", "reward_model")

    def stages(micro: int, count: int) -> Run:
        sections = ONE_STEP | {
            "train": ONE_STEP["train"] | {"micro_batch_size": micro},
            "devices": {"count": count},
        }
        rows = [write_rows(name, tmp_path / f"{name}.jsonl") for name in algorithms]
        made = [
            run_for(name, tiny_model_dir, file, tmp_path / f"{count}", **sections)
            for name, file in zip(algorithms, rows, strict=True)
        ]
        named = [run.stages[0].model_copy(update={"name": name}) for name, run in zip(algorithms, made, strict=True)]
        return made[0].model_copy(update={"stages": named})

    train(stages(8, 1), progress=False)
    file = tmp_path / "two.yaml"
    file.write_text(run_file.dump(stages(3, 2)))
    done = torchrun("-m", "align", "train", str(file), "--quiet", tmp=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in algorithms:
        one, two = (gradients_of_first_step(tmp_path / ranks / name) for ranks in ("1", "2"))
        whole, gap = one.norm(), (one - two).norm()
        assert whole > 1e-4
        assert gap / whole < LAW, name


def test_sharded_as_whole(tiny_model_dir: Path, tmp_path: Path) -> None:
    """FSDP2 over two ranks logs what one process logs, resumes, and exports the same model."""
    finish(command(tmp_path / "one", "sft", tiny_model_dir), tmp_path)
    sharded = command(tmp_path / "two", "sft", tiny_model_dir, devices={"count": 2, "strategy": {"type": "fsdp"}})
    started = subprocess.Popen(sharded, env=environment(tmp_path))
    wait_for_step(started, tmp_path / "two", 4)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 128 + signal.SIGTERM
    finish([*sharded, "--resume"], tmp_path)
    for name in ("loss", "grad_norm", "val/loss"):
        one, two = ([float(row[name]) for row in log(tmp_path / run) if row[name]] for run in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-4)
    weights = [load_file(tmp_path / run / "only" / "export" / "model.safetensors") for run in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)


def test_signals_and_deaths_on_any_rank_lose_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    """SIGTERM to rank 0, to rank 1, to the supervisor, then SIGKILL to rank 1, each time resumed.

    After a SIGTERM all ranks stop at one step, which is saved, and the exit status is 143; no process is ever left
    over, and the rank that was killed is named; log and weights are in the end those of the run that was left alone,
    to the bit. ALIGN_SIGNAL_ROUNDS=4 does it four times over: twelve SIGTERMs.
    """
    rounds = int(os.environ.get("ALIGN_SIGNAL_ROUNDS", "1"))
    sections: dict[str, dict[str, Any]] = {"devices": {"count": 2}, "train": {"num_train_epochs": 12 * rounds}}
    finish(command(tmp_path / "quiet", "dpo", tiny_model_dir, **sections), tmp_path)
    arguments = command(tmp_path / "disturbed", "dpo", tiny_model_dir, **sections)
    root = tmp_path / "disturbed" / "only" / "checkpoints"
    for target in ("rank 0", "rank 1", "supervisor", "killed") * rounds:
        before = (checkpoint.steps(root) or [0])[0]
        started = subprocess.Popen(arguments, env=environment(tmp_path), stderr=subprocess.PIPE)
        wait_for_step(started, tmp_path / "disturbed", before + 2)
        workers = workers_of(started.pid)
        victim = {"rank 0": workers[0], "supervisor": started.pid}.get(target, workers[1])
        os.kill(victim, signal.SIGKILL if target == "killed" else signal.SIGTERM)
        said = started.communicate(timeout=120)[1].decode()
        status = started.returncode
        assert status == 128 + signal.SIGTERM if target != "killed" else status not in (0, 128 + signal.SIGTERM)
        assert not [pid for pid in workers if alive(pid)]
        if target == "killed":  # the other lost its connection to it, and is not the one to name
            assert f"rank 1 on {socket.gethostname()} (" in said
            assert "\n    was killed by SIGKILL: memory may have run out\n" in said
            assert said.endswith(f"step {checkpoint.steps(root)[0]} is saved\n    --resume goes on from there\n")
            assert "rank 0 " not in said and "Traceback" not in said
        else:
            assert checkpoint.steps(root)[0] == max(int(row["step"]) for row in log(tmp_path / "disturbed"))
        arguments = arguments if "--resume" in arguments else [*arguments, "--resume"]
    finish(arguments, tmp_path)
    for file in ("metrics.csv", "export/model.safetensors"):
        quiet, disturbed = ((tmp_path / run / "only" / file).read_bytes() for run in ("quiet", "disturbed"))
        assert quiet == disturbed, file


def test_held_out_answers_and_suites_do_not_depend_on_the_ranks(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Held-out prompts and a suite's items are shared among the ranks; log, samples and scores are one rank's.

    Under fsdp too, where ranks with other prompts, and other numbers of items, gather the weights together.
    """
    reward = {"type": "python", "file": str(REWARDS), "function": "low_ids"}
    words = ["the sea", "a cat sat on the mat", "two", "the wind is cold and wide", "five"]
    for name, column in (("prompts", "prompt"), ("texts", "text")):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({column: text}) + "\n" for text in words))
    sampling = {"temperature": 1.0, "max_completion_length": 6}
    sampled = {
        "type": "rewards",
        "data": str(tmp_path / "prompts.jsonl"),
        "rewards": [dict(reward, function="constant")],
        "sampling": sampling,
    }
    suite = {"evals": [sampled, {"type": "perplexity", "data": str(tmp_path / "texts.jsonl")}]}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))  # which is YAML too
    validation = {
        "eval_steps": 4,
        "generate": True,
        "rewards": [reward],
        "sampling": sampling,
        "max_prompts": 7,
        "suite": str(tmp_path / "suite.yaml"),
    }
    metrics = ("val/reward", "val/rewards/score", "val/perplexity/score")
    logs, samples, answered = [], [], []
    for ranks, strategy in ((1, "auto"), (2, "ddp"), (2, "fsdp")):
        output = tmp_path / f"{strategy}-{ranks}"
        devices = {"count": ranks, "accelerator": "cpu", "strategy": {"type": strategy}}
        train = {"max_steps": 4, "num_train_epochs": 1}
        finish(command(output, "sft", tiny_model_dir, validation=validation, devices=devices, train=train), tmp_path)
        first = output / "only" / "samples" / "held-out-000000.parquet"
        samples.append([(row["source"], row["completion"], row["reward"]) for row in read_samples(first)])
        rows = [json.loads(row) for row in (output / "only" / "evals" / "step-000004.jsonl").read_text().splitlines()]
        answered.append([row["outputs"] for row in rows if row["eval"] == "rewards"])
        logs.append([float(row[name]) for row in log(output) if row["val/reward"] for name in metrics])
    assert len(samples[0]) == 7 and len(answered[0]) == len(words)
    assert len(logs[0]) == 2 * len(metrics)
    for other, answers, logged in zip(samples[1:], answered[1:], logs[1:], strict=True):
        assert other == samples[0] and answers == answered[0]
        assert logged == pytest.approx(logs[0], rel=1e-5)
