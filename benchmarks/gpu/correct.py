"""Does training on a GPU learn what training on a CPU learns? Tiny models, every algorithm, whole runs with exports."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from making import run_of, save_model, write_rows
from recording import Bench, spread
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from align.core.config import run_file
from align.core.engine.callbacks import MetricsCallback
from align.core.engine.module import AlignModule
from align.core.generation.decode import Decoder
from align.core.generation.generator_base import Request
from align.core.training.launch import train
from align.core.util.stopping import Interrupted
from align.schemas.run import Run, Sampling

STEPS = 12
OFFLINE = {name: {"type": name} for name in ("sft", "dpo", "kto", "reward_model")}
ONLINE = {
    "grpo": {"type": "grpo", "num_generations": 4, "num_iterations": 2, "beta": 0.05},
    "rloo": {"type": "rloo", "num_generations": 4},
    "ppo": {"type": "ppo", "num_generations": 2, "num_iterations": 2, "critic_learning_rate": 3e-3},
    "online_dpo": {"type": "online_dpo", "num_generations": 4},
}
MIXED = {"train": {"precision": "bf16-mixed"}}
LORA = {"adapter": {"type": "lora", "r": 8}}

VARIANTS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    # name: (algorithm, sections, how far its losses may lie from the plain run's; None: it learns something else)
    "padded again": ("sft", {}, 1e-4),
    "one example at a time": ("sft", {"train": {"micro_batch_size": 1}}, 1e-4),
    "packed, sdpa": ("sft", {"train": {"layout": "packed"}}, 1e-4),
    "packed, eager": ("sft", {"train": {"layout": "packed"}, "model": {"attn_implementation": "eager"}}, 1e-4),
    "packed, flex": ("sft", {"train": {"layout": "auto"}, "model": {"attn_implementation": "flex_attention"}}, 1e-3),
    "gradient checkpointing": ("sft", {"model": {"gradient_checkpointing": True}}, 1e-4),
    "dpo packed, sdpa": ("dpo", {"train": {"layout": "packed"}}, 1e-4),
    "dpo, reference a copy": ("dpo", {"reference": {"type": "copy"}}, 1e-4),
    "dpo, reference an average": ("dpo", {"reference": {"type": "moving-average", "ref_model_sync_steps": 4}}, None),
    "lora": ("sft", {"model": LORA}, None),
    "lora, bf16-mixed": ("sft", {"model": LORA, **MIXED}, None),
    "dora": ("sft", {"model": {"adapter": {"type": "dora", "r": 8}}}, None),
    "dpo lora, bf16-mixed": ("dpo", {"model": LORA, **MIXED}, None),
    "grpo lora, bf16-mixed": ("grpo", {"model": LORA, **MIXED}, None),
    "lora, checkpointing, bf16-mixed": ("sft", {"model": {**LORA, "gradient_checkpointing": True}, **MIXED}, None),
    "16-mixed": ("sft", {"train": {"precision": "16-mixed"}}, None),
    "bf16-true": ("sft", {"train": {"precision": "bf16-true"}, "model": {"dtype": "bfloat16"}}, None),
    "dpo bf16-true": ("dpo", {"train": {"precision": "bf16-true"}, "model": {"dtype": "bfloat16"}}, None),
    "grpo bf16-true": ("grpo", {"train": {"precision": "bf16-true"}, "model": {"dtype": "bfloat16"}}, None),
    "bfloat16 weights": ("sft", {"model": {"dtype": "bfloat16"}}, None),
    "grpo, bfloat16 weights": ("grpo", {"model": {"dtype": "bfloat16"}}, None),
    "bf16-true over float32 weights": ("sft", {"train": {"precision": "bf16-true"}}, None),
}


class Correct:
    """The runs of one group, each under its own name."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.place = bench, bench.work
        self.model = save_model(self.place / "model", "tiny")
        self.losses: dict[str, list[float]] = {}

    def train(self, name: str, algorithm: str, device: str, **sections: Any) -> Path:
        """A whole run; returns the stage's directory."""
        run = self.run(name, algorithm, device, **sections)
        return train(run, progress=False)[0].directory

    def run(self, name: str, algorithm: str, device: str, **sections: Any) -> Run:
        """The run of an algorithm over 48 rows of varied length."""
        rows = self.place / f"{algorithm}.jsonl"
        if not rows.exists():
            write_rows(rows, algorithm, [(3 + 5 * i % 17, 1 + 7 * i % 13) for i in range(48)])
        train_ = {"max_steps": STEPS, "batch_size": 8, "micro_batch_size": 4, **sections.pop("train", {})}
        devices = {"accelerator": device, "count": 1, **sections.pop("devices", {})}
        output = self.place / "runs" / name.replace(" ", "-").replace(",", "")
        given = {"train": train_, "devices": devices, **sections}
        return run_of((OFFLINE | ONLINE)[algorithm], self.model, rows, output, **given)

    def algorithm(self, name: str) -> dict[str, Any]:
        """On the CPU and the device in float32, and on the device in mixed precision."""
        device = self.bench.device
        first = self.train(f"{name} cpu", name, "cpu")
        second = self.train(f"{name} device", name, device)
        mixed = self.train(f"{name} mixed", name, device, **MIXED)
        losses = [losses_of(place) for place in (first, second, mixed)]
        self.losses[name] = losses[1]
        found: dict[str, Any] = {
            "cpu_to_device": spread(losses[0], losses[1])._asdict(),
            "device_to_mixed": spread(losses[1], losses[2])._asdict(),
            "weights": apart(self.model, first, second, name),
            "moved": _moved(second, name),
        }
        for place in (second, mixed):
            _loads(place / "export", name, device)
        expect(found["cpu_to_device"]["first"] < 1e-4, f"the first losses differ: {losses[0][0]}, {losses[1][0]}")
        expect(found["device_to_mixed"]["first"] < 0.1, f"mixed precision begins at {losses[2][0]}")
        expect(all(math.isfinite(x) for series in losses for x in series), "a loss is not finite")
        found["losses"] = {"cpu": losses[0], "device": losses[1], "mixed": losses[2]}
        return {"first": found["cpu_to_device"]["first"], "most": found["cpu_to_device"]["most"], **found}

    def variant(self, name: str) -> dict[str, Any]:
        """Another way to the same losses, or one that must merely work."""
        algorithm, sections, tolerance = VARIANTS[name]
        place = self.train(f"variant {name}", algorithm, self.bench.device, **sections)
        losses = losses_of(place)
        _loads(place / "export", algorithm, self.bench.device)
        expect(all(map(math.isfinite, losses)), "a loss is not finite")
        found: dict[str, Any] = {"losses": losses, **_moved(place, algorithm)}
        if tolerance is not None:
            found |= spread(losses, self.losses[algorithm])._asdict()
            expect(found["most"] < tolerance, f"losses lie {found['most']} from the plain run's")
        return found

    def resumed(self, algorithm: str) -> dict[str, Any]:
        """Stopped by a signal after step 5 and resumed: the same losses as without."""
        run = self.run(f"resumed {algorithm}", algorithm, self.bench.device)
        write = MetricsCallback.on_train_batch_end

        def and_stop(self: MetricsCallback, trainer: Any, module: Any, *rest: Any) -> None:
            write(self, trainer, module, *rest)
            if trainer.global_step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            with patch.object(MetricsCallback, "on_train_batch_end", and_stop):
                train(run, progress=False)
        except Interrupted as stop:
            stopped = stop.step
        else:
            raise AssertionError("nothing stopped it")
        (done,) = train(run, resume=True, progress=False)
        found = spread(losses_of(done.directory), self.losses[algorithm])._asdict()
        expect(found["most"] < 1e-4, f"losses lie {found['most']} from those of a run that nothing stopped")
        return {"stopped_after": stopped, **found}

    def waits(self, algorithm: str) -> dict[str, Any]:
        """How often the host waits for the device in an optimizer step, as CUDA reports it, after the first one."""
        counts: list[int] = []
        step = AlignModule.optimizer_step

        def watched(module: AlignModule, *args: Any, **kwargs: Any) -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                _report_waits(self.bench.device, True)
                try:
                    step(module, *args, **kwargs)
                finally:
                    _report_waits(self.bench.device, False)
            counts.append(sum("synchronizing" in str(warning.message) for warning in caught))

        with patch.object(AlignModule, "optimizer_step", watched):
            self.train(f"waits {algorithm}", algorithm, self.bench.device, train={"layout": "packed"})
        micros = 2  # of 4 of the step's 8 examples; transformers' mask makes the host wait once or twice for each
        allowed = 1 + (algorithm == "kto") + 2 * micros * (1 + (algorithm == "kto"))
        expect(max(counts[1:]) <= allowed, f"a step waits {max(counts[1:])} times; {allowed} are allowed")
        return {"waits": counts, "allowed": allowed}

    def answers(self) -> dict[str, Any]:
        """The same random numbers on CPU and device: how many tokens come out alike, drawn in every way there is."""
        model = AutoModelForCausalLM.from_pretrained(str(self.export("sft"))).eval()
        prompts = [np.arange(4 + n, 20 + 2 * n, dtype=np.int32) for n in range(8)]
        requests = [Request(prompt, tuple(range(4 * n, 4 * n + 4))) for n, prompt in enumerate(prompts)]
        ways = {
            "plain": Sampling(max_completion_length=32),
            "greedy": Sampling(max_completion_length=32, temperature=0.0),
            "cut": Sampling(
                max_completion_length=32, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2, temperature=0.8
            ),
        }
        found: dict[str, Any] = {}
        for name, sampling in ways.items():
            said = []
            for device in ("cpu", self.bench.device):
                decoder = Decoder(model.to(device), None, (3,), 512, 512)  # type: ignore[arg-type]  # no stop strings
                said.append([sample for group in decoder.generate(requests, sampling) for sample in group])
            pairs = list(zip(*said, strict=True))
            found[name] = sum(a.tokens.tolist() == b.tokens.tolist() for a, b in pairs) / len(pairs)
            found[f"{name}: logp"] = max(float(np.abs(a.logp[:1] - b.logp[:1]).max()) for a, b in pairs)
            expect(found[name] > 0.9, f"of the answers only {found[name]:.0%} are the same")
        return found

    def harvest(self) -> dict[str, Any]:
        """best_of_n on the device, scored by the reward model that was trained there."""
        rows = write_rows(self.place / "asked.jsonl", "best_of_n", [(3 + n % 9, 1) for n in range(16)])
        reward = {"type": "reward_model", "path": str(self.export("reward_model"))}
        algorithm, rollout = (
            {"type": "best_of_n", "num_generations": 4},
            {"rewards": [reward], "sampling": {"max_completion_length": 24}},
        )
        devices = {"accelerator": self.bench.device}
        run = run_of(algorithm, self.export("sft"), rows, self.place / "best", rollout=rollout, devices=devices)
        (done,) = train(run, progress=False)
        expect(done.metrics["rows"] > 0, "no rows")
        return dict(done.metrics)

    def export(self, algorithm: str) -> Path:
        """What the device's own run of an algorithm left."""
        return self.place / "runs" / f"{algorithm}-device" / "only" / "export"

    def sampled(self) -> dict[str, Any]:
        """``align sample`` as a user starts it; it takes a GPU where there is one."""
        rows = write_rows(self.place / "asked.jsonl", "best_of_n", [(3 + n % 9, 1) for n in range(16)])
        told = _align("sample", str(self.export("sft")), str(rows), "-n", "2", "--max-completion-length", "16")
        return {"told": told[:200]}

    def commanded(self, run: Run) -> Path:
        """``align train`` as a user starts it; returns the stage's directory."""
        file = Path(run.output).with_suffix(".yaml")
        file.write_text(run_file.dump(run))
        _align("train", str(file))
        return Path(run.output) / "only"

    def command(self, strategy: str) -> dict[str, Any]:
        """A strategy for several devices on one."""
        run = self.run(f"command {strategy}", "sft", self.bench.device, devices={"strategy": strategy}, **MIXED)
        losses = losses_of(self.commanded(run))
        return {"losses": losses, **spread(losses, losses_of(self.place / "runs" / "sft-mixed" / "only"))._asdict()}


def _report_waits(device: str, on: bool) -> None:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn" if on else "default")


def _align(*arguments: str) -> str:
    command = [sys.executable, "-m", "align", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    expect(done.returncode == 0, (done.stderr or done.stdout)[-1500:])
    return done.stdout


def losses_of(stage: Path) -> list[float]:
    """Return the losses of a stage, a step each."""
    with open(stage / "metrics.csv") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row.get("loss")]


def _column(stage: Path, name: str) -> list[float]:
    with open(stage / "metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def _moved(stage: Path, algorithm: str) -> dict[str, float]:
    """What should go down or up: the loss, or the reward, at its first and last thirds."""
    name = "reward" if algorithm in ONLINE else "loss"
    series = _column(stage, name)
    third = max(1, len(series) // 3)
    return {f"{name}_at_first": sum(series[:third]) / third, f"{name}_at_last": sum(series[-third:]) / third}


def apart(model: Path, first: Path, second: Path, algorithm: str) -> dict[str, float]:
    """How far two exports lie apart, as a share of how far training moved the first."""
    start, a, b = (load_file(place / "model.safetensors") for place in (model, first / "export", second / "export"))
    apart = math.sqrt(sum(float((a[n].double() - b[n].double()).square().sum()) for n in a))
    moved = math.sqrt(sum(float((a[n].double() - start[n].double()).square().sum()) for n in a if n in start))
    return {"apart": apart, "moved": moved, "share": apart / moved}


def _loads(export: Path, algorithm: str, device: str) -> None:
    auto: Any = AutoModelForSequenceClassification if algorithm == "reward_model" else AutoModelForCausalLM
    model = auto.from_pretrained(str(export)).to(device)
    with torch.no_grad():
        expect(bool(model(torch.arange(4, 20, device=device)[None]).logits.isfinite().all()), "an export is not finite")


def expect(holds: bool, otherwise: str) -> None:
    """Fail the check with the message unless ``holds``."""
    if not holds:
        raise AssertionError(otherwise)


def main(bench: Bench) -> None:
    """Algorithms first, then what must not change their losses, then what need only work."""
    work = Correct(bench)
    for name in OFFLINE | ONLINE:
        bench.check(name, partial(work.algorithm, name))
    compiled = [name for name in VARIANTS if "flex" in name]
    for name in VARIANTS:
        if name not in compiled:
            bench.check(name, partial(work.variant, name))
    for name in ("sft", "grpo", "ppo"):
        bench.check(f"{name} resumed", partial(work.resumed, name))
    for name in OFFLINE:
        bench.check(f"{name} waits", partial(work.waits, name))
    bench.check("answers", work.answers)
    bench.check("best_of_n with a reward model", work.harvest)
    bench.check("command, sample", work.sampled)
    for strategy in ("ddp", "fsdp"):
        bench.check(f"command, {strategy}", partial(work.command, strategy))
    for name in compiled if not bench.quick else ():  # slow to begin, and without a backward on a CPU
        bench.check(name, partial(work.variant, name))
