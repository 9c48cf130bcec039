"""TRL's side of a comparison: one trainer, a meter beside it.

``padded`` is TRL's default, one padded batch a step, but for its gradient checkpointing, which costs time, and its
bfloat16, under which curves cannot be compared (``--bf16`` takes it for both sides). ``best`` is the fastest setting
found that keeps the mathematics: micro-batches of one or two rows by accumulation, which need no padding, and reference
log-probabilities computed beforehand. (KTO keeps whole batches, since in TRL its KL estimate depends on the division.)
Where completions are sampled all have about the same length, and the default is the fastest.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Literal

import datasets
import torch
import transformers
import trl
from align_side import RATE, Task, fingerprint
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from turns import Meter, Turn
from workload import arithmetic, in_order_of_align

from align.core.util.profile import profiled, profiling

Setting = Literal["padded", "best"]
TRAINERS = {
    "sft": (trl.SFTConfig, trl.SFTTrainer),
    "dpo": (trl.DPOConfig, trl.DPOTrainer),
    "kto": (trl.KTOConfig, trl.KTOTrainer),
    "reward_model": (trl.RewardConfig, trl.RewardTrainer),
    "grpo": (trl.GRPOConfig, trl.GRPOTrainer),
    "rloo": (trl.RLOOConfig, trl.RLOOTrainer),
}
MICRO = {512: 2}
"""Rows of a micro-batch of ``best`` by the model's vocabulary, 1 for all others."""


def measure(task: Task, setting: Setting, turn: Turn) -> dict[str, Any]:
    """Train, and return what the meter saw."""
    datasets.disable_caching()
    transformers.logging.set_verbosity_error()
    transformers.set_seed(0)
    with profiling(None, "cpu") as profile:
        meter = Meter(turn, profile)
        trainer = _trainer(task, setting, meter)
        _name_parts(trainer, task)
        _watch_rows(trainer, task, meter)
        trainer.train()
    meter.rows = [sorted(row) for row in meter.rows[: task.steps]]
    return meter.facts()


def _trainer(task: Task, setting: Setting, meter: Meter) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    if task.algorithm == "reward_model":
        model = AutoModelForSequenceClassification.from_pretrained(task.model, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    whole = setting == "padded" or task.algorithm == "kto"  # whose KL estimate is TRL's mean over a micro-batch
    micro = task.batch if whole else MICRO.get(model.config.vocab_size, 1)
    arguments: dict[str, Any] = {
        "output_dir": str(task.work / f"trl-{setting}"),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": task.batch // micro,
        "max_steps": task.steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "seed": 0,
        "logging_steps": 1,
        "bf16": task.bf16,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    if task.beta is not None:
        arguments["beta"] = task.beta
    rows = [json.loads(line) for line in task.rows.read_text().splitlines()]
    ordered = list(in_order_of_align(rows, len(rows) if task.online else task.batch))
    if task.online:
        arguments |= {"num_generations": task.group, "max_completion_length": task.longest, "shuffle_dataset": False}
    else:
        arguments |= {"max_length": 1024, "train_sampling_strategy": "sequential"}
    if task.algorithm in ("dpo", "kto") and setting == "best":
        arguments["precompute_ref_log_probs"] = True
    if task.algorithm == "kto":
        arguments.pop("train_sampling_strategy")
    config, trainer = TRAINERS[task.algorithm]
    if hasattr(trainer, "_precompute_ref_logps"):
        trainer._precompute_ref_logps = profiled("reference")(trainer._precompute_ref_logps)
    return trainer(
        model,
        args=config(**arguments),
        train_dataset=datasets.Dataset.from_list(ordered),
        processing_class=tokenizer,
        callbacks=[_Steps(meter)],
        **({"reward_funcs": arithmetic} if task.online else {}),
    )


class _Steps(TrainerCallback):
    """Step boundaries; the log of a step is written in the next one, and counted there."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Setup ends here."""
        self.meter.ready()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step ends here."""
        self.meter.step()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """Keep the curve."""
        if logs and "loss" in logs:
            self.meter.curve.append({name: float(logs[name]) for name in ("loss", "grad_norm") if name in logs})


def _name_parts(trainer: Any, task: Task) -> None:
    """Name the parts of TRL's step as ``align train --profile`` names align's. Its head is part of its forward."""

    def name(owner: Any, method: str, part: str) -> None:
        setattr(owner, method, profiled(part)(getattr(owner, method)))

    name(trainer, "compute_loss", "forward")
    name(trainer, "get_batch_samples", "data")
    name(trainer, "log", "logging")
    name(trainer.accelerator, "backward", "backward")
    name(trainer.accelerator, "clip_grad_norm_", "optimizer")
    create = trainer.create_optimizer

    @functools.wraps(create)
    def create_optimizer(*arguments: Any, **named: Any) -> Any:
        fresh = trainer.optimizer is None
        optimizer = create(*arguments, **named)
        if fresh:
            name(optimizer, "step", "optimizer")
        return optimizer

    trainer.create_optimizer = create_optimizer
    reference = getattr(trainer, "ref_model", None)
    if reference is not None:
        name(reference, "forward", "reference")
    if task.online:
        name(trainer, "_generate", "generation")
        name(trainer, "_calculate_rewards", "reward")
        measured = trainer._get_per_token_logps_and_entropies

        def per_token(*arguments: Any, **named: Any) -> Any:
            with profiled("forward" if torch.is_grad_enabled() else "reference"):
                return measured(*arguments, **named)

        trainer._get_per_token_logps_and_entropies = per_token


def _watch_rows(trainer: Any, task: Task, meter: Meter) -> None:
    """Note the token ids of what each step learns from, as align's side does."""
    compute = trainer.compute_loss
    places = ("prompt_ids", "prompt_mask") if task.online else ("input_ids", "attention_mask")

    def compute_loss(model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        step = len(meter.cpu)
        if step == len(meter.rows):
            meter.rows.append([])
            meter.tokens.append(0)
            meter.scored.append(0)
        ids, mask = (inputs[place] for place in places)
        meter.rows[step] += [fingerprint(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True)]
        meter.tokens[step] += int(mask.sum())
        if task.online:
            completions = int(inputs["completion_mask"].sum())
            meter.tokens[step] += completions
            meter.scored[step] += completions
        return compute(model, inputs, *arguments, **named)

    trainer.compute_loss = compute_loss
