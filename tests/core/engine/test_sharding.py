"""What fsdp splits over real gloo processes: the same gradients under every setting, and 1/N of the bytes on each."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from align.core.config import run_file
from align.core.engine import checkpoint
from align.core.training.launch import train
from align.schemas.run import Run
from tests.core.runs import run_for, write_rows

RANKS = 2
ONE_STEP: dict[str, dict[str, Any]] = {
    "train": {"max_steps": 1, "max_grad_norm": None},
    "checkpoint": {"save_steps": 1},
    "data": {"validation_fraction": 0.0},
    "schedule": {"type": "constant", "warmup_steps": 0.0},
    "model": {"dtype": "float64"},
}
LAW = 1e-10
"""Most that two gradients may differ, over the norm of one: float64's rounding is 1e-16."""
CLIPPED = 0.01
"""``train.max_grad_norm`` of the runs on several ranks, far below every norm here."""

SETTINGS: dict[str, dict[str, Any]] = {
    "ddp": {"type": "ddp"},
    "zero3": {"type": "fsdp"},
    "zero2": {"type": "fsdp", "reshard_after_forward": False},
    "offload": {"type": "fsdp", "offload": True},
    "hybrid": {"type": "fsdp", "shard_size": 1},
}
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}

MEASURE = """
import json, os, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from align.core.config import run_file
from align.core.engine.module import AlignModule
from align.core.engine.processes import rank
from align.core.training.launch import train

configure, step = AlignModule.configure_model, AlignModule.optimizer_step


def here(tensors):
    tensors = list(tensors)
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local), sum(t.numel() * t.element_size() for t in tensors)


def measured(module, *args, **kwargs):
    step(module, *args, **kwargs)
    state = module.optimizers().optimizer.state
    found = {}
    for name, network in module.networks.items():
        learned = [p for p in network.parameters() if p.requires_grad]
        found[name] = here(network.parameters())
        found[name + " gradients"] = here([p.grad for p in learned])
        found[name + " moments"] = here([state[p][k] for p in learned for k in ("exp_avg", "exp_avg_sq")])
    values = getattr(module.reference, "values", None)
    if values is not None:
        found["reference"] = here(values.values())
        assert found["reference"][0] == module.reference.copied_bytes
    write(module, found)


def write(module, found):
    Path(sys.argv[2], f"{module.stage.name}-{rank()}.json").write_text(json.dumps(found))


def configured(module):
    configure(module)
    if module.critic is not None:  # nothing is sampled for it: what it learns from is no matter here
        write(module, {name: here(network.parameters()) for name, network in module.networks.items()})
        os._exit(0)


AlignModule.configure_model, AlignModule.optimizer_step = configured, measured
train(run_file.load(sys.argv[1]), progress=False)
"""


def on_ranks(run: Run, file: Path, script: Path | None = None) -> None:
    """Train a run under torchrun; with a script by that, which is given the run file and its directory."""
    file.write_text(run_file.dump(run))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    own = ["-m", "align", "train", str(file), "--quiet"] if script is None else [str(script), str(file), file.parent]
    environment = os.environ | {"ALIGN_CACHE": str(file.parent / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *own], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr


def stages(model: Path, output: Path, chosen: dict[str, tuple[str, dict[str, dict[str, Any]]]]) -> Run:
    """A run with one stage for each entry: name -> (algorithm, sections)."""
    made = []
    for name, (algorithm, sections) in chosen.items():
        rows = write_rows(algorithm, output.parent / f"{algorithm}.jsonl")
        merged = {key: ONE_STEP.get(key, {}) | sections.get(key, {}) for key in ONE_STEP | sections}
        run = run_for(algorithm, model, rows, output, **merged)
        made.append(run.stages[0].model_copy(update={"name": name}))
    return run.model_copy(update={"stages": made})


def gradient(stage: Path) -> torch.Tensor:
    """AdamW's first moment after one step is (1 - beta1) times the gradient, after clipping."""
    (optimizer,) = checkpoint.load(stage / "checkpoints" / "step-00000001")["optimizer_states"]
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    return torch.cat([optimizer["state"][name]["exp_avg"].flatten() / 0.1 for name in names])


def logged_norm(stage: Path) -> float:
    with open(stage / "metrics.csv", newline="") as file:
        return float(next(csv.DictReader(file))["grad_norm"])


def test_gradients_and_their_norm_are_those_of_one_process(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ddp and every setting of fsdp, full and LoRA: the norm over all ranks' parts, and what clipping leaves.

    The oracle is one process's gradient without clipping: its norm, and the gradient times limit / norm. A part that a
    rank leaves out of the norm makes it smaller, and the clipped gradient larger.
    """
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    tunings: dict[str, dict[str, Any]] = {"full": {}, "lora": {"adapter": LORA}}
    alone = {kind: ("sft", {"model": model}) for kind, model in tunings.items()}
    train(stages(tiny_model_dir, tmp_path / "one", alone), progress=False)
    clipped, several = {"train": {"max_grad_norm": CLIPPED}}, dict[str, Any]()
    for name, choice in SETTINGS.items():
        devices = {"count": RANKS, "strategy": choice}
        for kind in ("full", "lora") if name in ("ddp", "zero3") else ("full",):
            several[f"{name}-{kind}"] = ("sft", clipped | {"devices": devices, "model": tunings[kind]})
    on_ranks(stages(tiny_model_dir, tmp_path / "two", several), tmp_path / "two.yaml")
    for name in several:
        whole = gradient(tmp_path / "one" / name.partition("-")[2])
        norm = float(whole.norm())
        assert norm > 10 * CLIPPED
        assert logged_norm(tmp_path / "two" / name) == pytest.approx(norm, rel=LAW), name
        found = gradient(tmp_path / "two" / name)
        assert (found - whole * (CLIPPED / (norm + 1e-6))).norm() < LAW * CLIPPED, name


def test_every_network_that_is_held_is_split(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Policy, adapter and its frozen base, critic, reward model, reference copy: each byte is on one rank alone."""
    fsdp = {"devices": {"count": RANKS, "strategy": {"type": "fsdp"}}}
    chosen: dict[str, tuple[str, dict[str, Any]]] = {
        "lora": ("sft", fsdp | {"model": {"adapter": LORA}}),
        "reward": ("reward_model", fsdp),
        "copy": ("dpo", fsdp | {"reference": {"type": "copy"}}),
        "snapshot": ("dpo", fsdp | {"reference": {"type": "moving-average"}}),
        "critic": ("ppo", fsdp),
    }
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    on_ranks(stages(tiny_model_dir, tmp_path / "run", chosen), tmp_path / "run.yaml", script)
    for name in chosen:
        ranks = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(RANKS)]
        assert len(ranks[0]) >= {"lora": 3, "reward": 3, "copy": 4, "snapshot": 4, "critic": 2}[name]
        for part, (_, whole) in ranks[0].items():
            local = [held[part][0] for held in ranks]
            assert sum(local) == whole, (name, part)
            assert max(local) < 0.55 * whole, (name, part)
