"""Every setting of a stage has an effect: change it alone, and what a run leaves behind differs where it should.

A setting whose effect a small run on one CPU cannot show names the test that shows it.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import pytest
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from align.core.data.batch import collate
from align.core.engine import checkpoint, steps
from align.core.training.launch import train
from align.core.training.sample_log import read_samples
from align.schemas.errors import AlignError
from align.schemas.run import Choice, RewardChoice, Run, Stage
from tests.core.runs import ONLINE, REWARDS, rows
from tests.tiny import CHAT_TEMPLATE, save_tiny

TESTS = Path(__file__).parents[2]


class Change(NamedTuple):
    """A setting changed to ``value`` in a run by ``algorithm``. under: what else is set, in both runs.

    differs: what must differ, every one of ``Left``'s fields named.
    """

    algorithm: str
    value: Any
    differs: str
    under: Mapping[str, Any] = {}


class Left(NamedTuple):
    """What a run leaves: bytes of the weights, training rows of the log, held-out rows, steps of the checkpoints.

    passes: shapes of its forward passes. answers: what was sampled. files: names. shown: what it printed. error: the
    message that it stopped with.
    """

    weights: bytes = b""
    log: tuple[dict[str, str], ...] = ()
    held_out: tuple[dict[str, str], ...] = ()
    checkpoints: tuple[int, ...] = ()
    passes: tuple[tuple[int, ...], ...] = ()
    answers: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    shown: str = ""
    error: str = ""


def reward(name: str, **settings: Any) -> dict[str, Any]:
    return {"type": "python", "file": str(REWARDS), "function": name, **settings}


WHOLE = ("data.train.", "data.validation.", "rollout.rewards.", "validation.rewards.")
"""Lists: a setting inside is changed with the list."""
LORA = {"model.adapter": {"r": 4}}
AVERAGE = {"reference.type": "moving-average", "reference.ref_model_sync_steps": 1}
RISING = {"optimizer.learning_rate": 0.1, "train.max_steps": 6, "validation.eval_steps": 1, "checkpoint.export": "best"}
STREAM = {"data.stream": True, "data.stream_window": 8, "data.validation_fraction": 0.0}
ASIDE = {"data.validation_fraction": 0.0, "data.validation": "<other rows>"}
NAN = {"model.path": "<nan>", "data.validation_fraction": 0.0, "train.layout": "padded", "train.on_nonfinite": "skip"}
DEAD = {"rollout.rewards": [reward("by_prompt")]}
GREEDY = {"validation.generate": True, "validation.sampling.max_completion_length": 6}
DRAWN = GREEDY | {"validation.sampling.temperature": 1.0}
ONE, TWO = reward("low_ids"), [reward("low_ids"), reward("first_most", weight=0.5)]

CHANGES: dict[str, Change] = {
    "model.path": Change("sft", "<other>", "weights log held_out"),
    "model.dtype": Change("sft", "bfloat16", "weights log"),
    "model.adapter": Change("sft", {"r": 4}, "weights files"),
    "model.adapter.type": Change("sft", "dora", "weights", LORA),
    "model.adapter.r": Change("sft", 2, "weights", LORA),
    "model.adapter.lora_alpha": Change("sft", 4, "weights log", LORA),
    "model.adapter.lora_dropout": Change("sft", 0.5, "weights log", LORA),
    "model.adapter.target_modules": Change("sft", ["q_proj"], "weights", LORA),
    "model.adapter.modules_to_save": Change("sft", ["lm_head"], "weights log", LORA),
    "model.chat_template": Change("sft", "<template>", "weights log held_out"),
    "data.train": Change("sft", "<other rows>", "weights log"),
    "data.train.weight": Change("sft", [{"path": "<rows>", "weight": 3}, {"path": "<other rows>"}], "weights log"),
    "data.train.columns": Change(
        "pretrain", [{"path": "<rows>", "columns": {"text": "note", "note": "text"}}], "weights log"
    ),
    "data.validation": Change("sft", "<other rows>", "held_out", {"data.validation_fraction": 0.0}),
    "data.validation.name": Change("sft", [{"path": "<other rows>", "name": "other"}], "held_out", ASIDE),
    "data.validation_fraction": Change("sft", 0.5, "held_out"),
    "data.max_length": Change("sft", 12, "error"),
    "data.truncation_mode": Change("sft", "drop", "error", {"data.max_length": 16}),
    "data.on_bad_rows": Change("sft", "skip", "error", {"data.train": "<bad rows>"}),
    "data.special_tokens": Change("pretrain", ["<|bos|>"], "passes log"),
    "data.stream": Change("pretrain", True, "log", {"data.validation_fraction": 0.0}),
    "data.stream_window": Change("pretrain", 4, "log", STREAM),
    "optimizer.learning_rate": Change("sft", 0.005, "weights log"),
    "optimizer.weight_decay": Change("sft", 0.5, "weights log"),
    "optimizer.adam_beta1": Change("sft", 0.5, "weights log"),
    "optimizer.adam_beta2": Change("sft", 0.5, "weights log"),
    "optimizer.adam_epsilon": Change("sft", 0.01, "weights log"),
    "schedule.type": Change("sft", "cosine", "weights log"),
    "schedule.warmup_steps": Change("sft", 2, "weights log"),
    "schedule.min_lr_rate": Change("sft", 0.5, "weights log"),
    "train.num_train_epochs": Change("sft", 2, "weights log checkpoints", {"train.max_steps": None}),
    "train.max_steps": Change("sft", 2, "weights log checkpoints"),
    "train.batch_size": Change("sft", 2, "weights log"),
    "train.micro_batch_tokens": Change("sft", 40, "passes"),
    "train.micro_batch_size": Change("sft", 1, "passes"),
    "train.layout": Change("sft", "packed", "passes"),
    "train.shared_prefix": Change("dpo", False, "passes"),
    "train.max_grad_norm": Change("sft", 0.01, "weights log"),
    "train.precision": Change("sft", "bf16-mixed", "weights log"),
    "train.on_nonfinite": Change("sft", "stop", "error", NAN | {"train.max_skipped": 2}),
    "train.max_skipped": Change("sft", 1, "error", NAN | {"train.max_skipped": 2}),
    "train.dropout": Change("sft", False, "weights log", {"model.path": "<dropout>"}),
    "validation.eval_steps": Change("sft", 2, "held_out"),
    "validation.metric_for_best_model": Change("sft", "entropy", "weights", RISING),
    "validation.mode": Change("sft", "max", "weights", RISING),
    "validation.early_stopping_patience": Change("sft", 1, "log held_out checkpoints", RISING),
    "validation.generate": Change("sft", True, "held_out answers files"),
    "validation.rewards": Change("sft", [ONE], "held_out", GREEDY),
    "validation.rewards.weight": Change(
        "sft", [ONE, reward("short", weight=2)], "held_out", GREEDY | {"validation.rewards": [ONE, reward("short")]}
    ),
    "validation.max_prompts": Change("sft", 2, "answers", GREEDY),
    "validation.sampling.max_completion_length": Change("sft", 3, "answers", GREEDY),
    "validation.sampling.temperature": Change("sft", 1.0, "answers", GREEDY | {"validation.sampling.temperature": 0.0}),
    "validation.sampling.top_k": Change("sft", 3, "answers", DRAWN),
    "validation.sampling.top_p": Change("sft", 0.3, "answers", DRAWN),
    "validation.sampling.min_p": Change("sft", 0.5, "answers", DRAWN),
    "validation.sampling.repetition_penalty": Change("sft", 5.0, "answers", DRAWN),
    "validation.sampling.stop": Change("sft", [*"aeiou"], "answers", DRAWN),
    "validation.sampling.stop_token_ids": Change("sft", list(range(4, 160)), "answers", DRAWN),
    "checkpoint.save_steps": Change("sft", 2, "checkpoints"),
    "checkpoint.save_total_limit": Change("sft", 3, "checkpoints", {"checkpoint.save_steps": 1, "train.max_steps": 4}),
    "checkpoint.export": Change("sft", "last", "weights", RISING),
    "reference.type": Change("dpo", "moving-average", "weights log", {"reference.ref_model_sync_steps": 1}),
    "reference.ref_model_mixup_alpha": Change("dpo", 0.1, "weights log", AVERAGE),
    "reference.ref_model_sync_steps": Change("dpo", 2, "weights log", AVERAGE),
    "loggers": Change("sft", ["tensorboard"], "files"),
    "seed": Change("sft", 1, "weights log"),
    "rollout.sampling.max_completion_length": Change("grpo", 3, "answers weights"),
    "rollout.sampling.temperature": Change("grpo", 0.5, "answers weights"),
    "rollout.sampling.top_k": Change("online_dpo", 3, "answers weights"),
    "rollout.sampling.top_p": Change("online_dpo", 0.3, "answers weights"),
    "rollout.sampling.min_p": Change("online_dpo", 0.5, "answers weights"),
    "rollout.sampling.repetition_penalty": Change("online_dpo", 5.0, "answers weights"),
    "rollout.sampling.stop": Change("online_dpo", [*"aeiou"], "answers weights"),
    "rollout.sampling.stop_token_ids": Change("online_dpo", list(range(4, 160)), "answers weights"),
    "rollout.rewards": Change("grpo", [reward("first_most")], "weights log"),
    "rollout.rewards.weight": Change(
        "grpo", [ONE, reward("first_most", weight=2)], "weights log", {"rollout.rewards": TWO}
    ),
    "rollout.rewards.normalize": Change(
        "grpo", [reward("low_ids", normalize=True)], "weights log", {"algorithm.scale_rewards": "none"}
    ),
    "rollout.gold": Change("grpo", reward("short"), "log"),
    "rollout.batches": Change("grpo", 2, "answers weights"),
    "rollout.zero_std_groups": Change("grpo", "drop", "weights log", DEAD),
    "rollout.refill_tokens": Change("grpo", 1, "answers", DEAD | {"rollout.zero_std_groups": "refill"}),
    "rollout.importance_sampling_correction.type": Change("grpo", "mask", "log"),
    "rollout.samples": Change("grpo", "none", "files"),
    "rollout.num_completions_to_print": Change("grpo", 1, "shown"),
}

ELSEWHERE: dict[str, str] = {
    "name": "core/engine/test_engine.py",
    "algorithm": "plugins/test_algorithm_settings.py",
    "model.revision": "core/models/test_load.py",
    "model.attn_implementation": "core/models/test_load.py",
    "model.gradient_checkpointing": "core/models/test_load.py",
    "model.trust_remote_code": "core/models/test_load.py",
    "model.adapter.target_parameters": "core/models/test_adapter_settings.py",
    "model.adapter.trainable_token_indices": "core/models/test_adapter_settings.py",
    "model.adapter.quantize": "core/models/test_load.py",
    "data.train.split": "core/data/test_read.py",
    "data.train.subset": "core/data/test_read.py",
    "data.train.format": "core/data/test_formats.py",
    "data.train.documents": "core/data/test_sources.py",
    "data.allow": "core/data/test_template_checks.py",
    "data.dataset_num_proc": "core/data/test_datasets.py",
    "validation.rewards.normalize": "core/training/test_held_out_generation.py",
    "validation.rewards.timeout": "core/rewards/test_workers.py",
    "validation.rewards.overlap": "online/test_overlap.py",
    "validation.suite": "core/training/test_held_out_generation.py",
    **dict.fromkeys(
        ["gate.suite", "gate.policy", "gate.baseline", "gate.on_regression", "gate.on_inconclusive"],
        "core/evaluation/test_gate_of_a_stage.py",
    ),
    "devices.strategy": "core/engine/test_strategy.py",
    "devices.count": "core/engine/test_strategy.py",
    "devices.nodes": "core/engine/test_strategy.py",
    "devices.accelerator": "core/engine/test_strategy.py",
    "devices.timeout": "core/training/test_faults_ranks.py",
    "devices.stop_timeout": "core/training/test_faults_ranks.py",
    "devices.heartbeat": "core/training/test_faults_ranks.py",
    "rollout.generator": "plugins/test_endpoint.py",
    "rollout.rewards.timeout": "core/rewards/test_workers.py",
    "rollout.rewards.overlap": "online/test_overlap.py",
    "rollout.importance_sampling_correction.level": "core/algorithm/test_importance_weights.py",
    "rollout.importance_sampling_correction.length_normalized": "core/algorithm/test_importance_weights.py",
    "rollout.importance_sampling_correction.clip_max": "core/algorithm/test_importance_weights.py",
    "rollout.sync_tolerance": "online/test_phases.py",
    "rollout.max_staleness": "online/test_overlap.py",
    "rollout.watch.action": "online/test_alarms.py",
    "rollout.watch.warmup": "core/online/test_monitor.py",
    "rollout.watch.patience": "core/online/test_monitor.py",
    "rollout.watch.entropy": "core/online/test_monitor.py",
    "rollout.watch.kl": "core/online/test_monitor.py",
    "rollout.watch.length": "core/online/test_monitor.py",
    "rollout.watch.gold": "core/online/test_monitor.py",
}
"""The files of tests that show the effect of the other settings."""

BASE: dict[str, Any] = {
    "algorithm": "<algorithm>",
    "model.path": "<model>",
    "data.train": "<rows>",
    "data.dataset_num_proc": 1,
    "train.max_steps": 3,
    "train.batch_size": 4,
}
OFFLINE = {"data.validation_fraction": 0.25, "optimizer.learning_rate": 0.01}
SAMPLED = {"rollout.rewards": [ONE], "rollout.sampling.max_completion_length": 6, "algorithm.num_generations": 4}
SAMPLED |= {"train.max_steps": 2, "train.batch_size": 8, "optimizer.learning_rate": 0.01}


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of a model's fields, those of the models inside it too; a plugin's own settings are its own."""
    for name, field in model.model_fields.items():
        inner = [each for each in models(field.annotation) if not issubclass(each, Choice) or each is RewardChoice]
        if not inner or any(f"{prefix}{name}" in table for table in (CHANGES, ELSEWHERE)):
            yield prefix + name
        for each in inner:
            own = set(Choice.model_fields) if issubclass(each, Choice) else set()
            yield from (found for found in settings(each, f"{prefix}{name}.") if found.rpartition(".")[2] not in own)


def models(annotation: Any) -> set[type[BaseModel]]:
    """The models that a field may hold."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return {annotation} if issubclass(annotation, BaseModel) else set()
    return set().union(*(models(each) for each in get_args(annotation))) if get_args(annotation) else set()


def test_every_setting_is_in_a_table() -> None:
    """Held-out sources have a source's settings, the gold reward a reward's; ``name`` is of held-out sources only."""
    twins = ("data.validation.", "rollout.gold.", "data.train.path", "data.train.name")
    known = {name for name in settings(Stage) if not name.startswith(twins) or name in CHANGES}
    assert known == CHANGES.keys() | ELSEWHERE.keys()
    assert not CHANGES.keys() & ELSEWHERE.keys()


@pytest.mark.parametrize(("setting", "file"), ELSEWHERE.items())
def test_what_is_shown_elsewhere_is_there(setting: str, file: str) -> None:
    assert setting.rpartition(".")[2] in (TESTS / file).read_text(encoding="utf-8")


class Runner:
    """Makes small runs; those that are the same once."""

    def __init__(self, place: Path, model: Path) -> None:
        self.place = place
        self.paths = {"model": model, "template": place / "template.jinja"}
        self.paths["template"].write_text(CHAT_TEMPLATE.replace("user", "asker") + "x", encoding="utf-8")
        for name, changed in (("other", {"seed": 1}), ("dropout", {"attention_dropout": 0.5})):
            self.paths[name] = save_tiny(place / name, **changed)
        self.paths["nan"] = save_tiny(place / "nan")
        weights = load_file(place / "nan" / "model.safetensors")
        weights["lm_head.weight"][3] = math.nan  # of the token that ends an answer
        save_file(weights, place / "nan" / "model.safetensors", {"format": "pt"})
        self.done: dict[str, Left] = {}

    def files(self, algorithm: str) -> dict[str, Path]:
        """Rows that the algorithm learns from, others, and the first ones with one that is none."""
        found = {}
        for name, seed in (("rows", 0), ("other rows", 1)):
            made = rows(algorithm, 16, seed)
            if algorithm in ONLINE:
                made = [{"prompt": f"the sea {i + 100 * seed}"} for i in range(8)]
            if algorithm == "pretrain":
                made = [{"text": f"{row['text']}<|bos|>", "note": f"no. {i}"} for i, row in enumerate(made)]
            found[name] = self.place / f"{algorithm} {name}.jsonl"
            found[name].write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        found["bad rows"] = self.place / f"{algorithm} bad rows.jsonl"
        found["bad rows"].write_text(found["rows"].read_text(encoding="utf-8") + '{"messages": 1}\n', encoding="utf-8")
        return found

    def stage(self, algorithm: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The stage, with ``<name>`` replaced by a path."""
        values = {f"<{name}>": str(path) for name, path in (self.paths | self.files(algorithm)).items()}
        flat = BASE | (SAMPLED if algorithm in ONLINE else OFFLINE) | chosen
        stage: dict[str, Any] = {"name": "only"}
        for name, value in flat.items():
            *way, last = name.split(".") if name != "algorithm" else ("algorithm", "type")
            section = stage
            for part in way:
                section = section.setdefault(part, {})
            section[last] = json.loads(replaced(json.dumps(value), values | {"<algorithm>": algorithm}))
        return stage

    def run(self, algorithm: str, chosen: Mapping[str, Any], capture: pytest.CaptureFixture[str]) -> Left:
        """What the run leaves."""
        stage = self.stage(algorithm, chosen)
        key = json.dumps(stage, sort_keys=True)
        if key not in self.done:
            self.done[key] = self._run(stage, self.place / f"run-{len(self.done)}", capture)
        return self.done[key]

    def _run(self, stage: dict[str, Any], output: Path, capture: pytest.CaptureFixture[str]) -> Left:
        passes: list[tuple[int, ...]] = []

        def watched(*arguments: Any, **named: Any) -> Any:
            micro = collate(*arguments, **named)
            passes.append(tuple(micro.input_ids_RL.shape))
            return micro

        error = ""
        capture.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "collate", watched)
            patch.setenv("ALIGN_CACHE", str(self.place / "cache"))
            try:
                train(Run.model_validate({"output": str(output), "stages": [stage]}), progress=False)
            except AlignError as stopped:
                error = str(stopped)
        home = output / "only"
        logged: list[dict[str, str]] = []
        if (home / "metrics.csv").exists():
            with open(home / "metrics.csv", newline="", encoding="utf-8") as file:
                logged = list(csv.DictReader(file))
        held_out = [row for row in logged if any(v for k, v in row.items() if k.startswith("val/") and "loss" in k)]
        return Left(
            b"".join(path.read_bytes() for path in sorted(home.glob("export/*.safetensors"))),
            tuple(row for row in logged if row not in held_out),
            tuple(held_out),
            tuple(checkpoint.steps(home / "checkpoints")),
            tuple(passes),
            tuple(row["completion"] for path in sorted(home.glob("samples/*")) for row in read_samples(path)),
            tuple(sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())),
            "".join(capture.readouterr()),
            error,
        )


def replaced(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Runner:
    return Runner(tmp_path_factory.mktemp("runs"), tiny_model_dir)


@pytest.mark.parametrize("setting", CHANGES)
def test_a_setting_has_an_effect(setting: str, runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    change = CHANGES[setting]
    part = ".".join(setting.split(".")[:2]) if setting.startswith(WHOLE) else setting
    plain = runner.run(change.algorithm, change.under, capsys)
    changed = runner.run(change.algorithm, {**change.under, part: change.value}, capsys)
    for what in change.differs.split():
        assert getattr(changed, what) != getattr(plain, what), f"{setting}: {what}"
    assert "error" in change.differs or not (plain.error or changed.error)
