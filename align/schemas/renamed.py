"""Keys, metrics and options by their old names and by TRL's: the only place that knows them, to refuse them by name.

The new ones are TRL's (of an adapter PEFT's, of a generator vLLM's), so that nobody has to learn them twice.
"""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, Mapping[str, str]] = {
    "algorithm": {
        "group": "num_generations",
        "passes": "num_iterations",
        "eps_low": "epsilon",
        "eps_high": "epsilon_high",
        "dual_clip": "delta",
        "scale": "scale_rewards",
        "ratio": "importance_sampling_level",
        "mask_truncated": "mask_truncated_completions",
        "normalize": "normalize_advantages",
        "whiten": "normalize_advantages",
        "kl": "kl_estimator",
        "kl_corrected": "use_bias_correction_kl",
        "value_clip": "cliprange_value",
        "value_coefficient": "vf_coef",
        "loss": "loss_type",
        "f_divergence": "f_divergence_type",
    },
    "model": {"attention": "attn_implementation"},
    "model.adapter": {
        "rank": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "targets": "target_modules",
    },
    "data": {"truncation": "truncation_mode", "workers": "dataset_num_proc"},
    "reference": {"mixing": "ref_model_mixup_alpha", "every": "ref_model_sync_steps"},
    "optimizer": {"beta1": "adam_beta1", "beta2": "adam_beta2", "epsilon": "adam_epsilon"},
    "schedule": {"warmup": "warmup_steps", "floor": "min_lr_rate"},
    "train": {"epochs": "num_train_epochs", "clip_norm": "max_grad_norm"},
    "validation": {
        "every": "eval_steps",
        "metric": "metric_for_best_model",
        "patience": "early_stopping_patience",
    },
    "checkpoint": {"every": "save_steps", "keep": "save_total_limit"},
    "rollout": {
        "mismatch": "importance_sampling_correction",
        "dead_groups": "zero_std_groups",
        "show": "num_completions_to_print",
    },
    "rollout.importance_sampling_correction": {"limit": "clip_max"},
    "rollout.sampling": {
        "max_tokens": "max_completion_length",
        "stop_tokens": "stop_token_ids",
    },
}
"""By section of a stage, the old key and the new one. ``algorithm`` holds the settings of all algorithms: an old one is
recognised only where the algorithm at hand has the new one."""

RENAMED_METRICS: Mapping[str, str] = {"rollout/dead_groups": "rollout/zero_std_groups"}
"""Old and new names of metrics, without the prefix ``val/``."""

RENAMED_OPTIONS: Mapping[str, str] = {"--max-tokens": "--max-completion-length"}
"""Old and new names of the commands' options."""

FROM_TRL: Mapping[str, str] = {
    "output_dir": "output",
    "report_to": "loggers",
    "model_name_or_path": "model.path",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "chat_template_path": "model.chat_template",
    "use_peft": "model.adapter",
    "peft_config": "model.adapter",
    "lora_r": "model.adapter.r",
    "lora_alpha": "model.adapter.lora_alpha",
    "lora_dropout": "model.adapter.lora_dropout",
    "lora_target_modules": "model.adapter.target_modules",
    "load_in_4bit": "model.adapter.quantize: nf4",
    "load_in_8bit": "model.adapter.quantize: int8",
    "dataset_name": "data.train",
    "train_dataset": "data.train",
    "eval_dataset": "data.validation",
    "max_seq_length": "data.max_length",
    "packing": "train.layout",
    "padding_free": "train.layout",
    "per_device_train_batch_size": "train.batch_size, which counts all devices and accumulated micro-batches",
    "gradient_accumulation_steps": "train.batch_size, which counts all devices and accumulated micro-batches",
    "bf16": "train.precision: bf16-mixed",
    "fp16": "train.precision: 16-mixed",
    "lr_scheduler_type": "schedule.type",
    "warmup_ratio": "schedule.warmup_steps, which below 1 is a share of the steps",
    "eval_strategy": "validation.eval_steps",
    "load_best_model_at_end": "checkpoint.export: best",
    "precompute_ref_log_probs": "reference.type: precomputed",
    "sync_ref_model": "reference.type: moving-average",
    "reward_funcs": "rollout.rewards",
    "reward_weights": "rollout.rewards, each with its weight",
    "max_completion_length": "rollout.sampling.max_completion_length",
    "max_new_tokens": "rollout.sampling.max_completion_length",
    "temperature": "rollout.sampling.temperature",
    "use_vllm": "rollout.generator: vllm",
    "vllm_mode": "rollout.generator: {type: vllm, mode: ...}",
    "log_completions": "rollout.samples",
}
"""Keys of TRL's flat configs and of its trainers that have another name here, or stand deeper than in a section, and
what to write: docs/coming_from.md has the rest and what differs."""


def new_name(section: str, key: str) -> str | None:
    """Return what an old key of a section (``train``, ``rollout.sampling``) is called now; None if it is no old key."""
    return RENAMED.get(section, {}).get(key)


def fix_for(section: str, key: str) -> str:
    """Return the fix for an old key: the new one, and where a section was renamed the keys that changed in it too."""
    new = RENAMED[section][key]
    inside = RENAMED.get(f"{section}.{new}", {})
    also = ", ".join(f"{old} as {now}" for old, now in inside.items())
    return f"write it as {new}" + (f", and in it {also}" if also else "")


def old_homes() -> dict[str, str]:
    """Return where keys belong today that were written in the wrong section and by their old name.

    Only of names that one section had: ``epochs`` is ``train.num_train_epochs``, ``every`` was in three.
    """
    found: dict[str, list[str]] = {}
    for section, names in RENAMED.items():
        for old, new in names.items():
            found.setdefault(old, []).append(f"{section}.{new}")
    # ``epsilon`` was Adam's and is now the clipping's: alone, it cannot tell which is meant.
    reused = {new for names in RENAMED.values() for new in names.values()}
    return {old: homes[0] for old, homes in found.items() if len(homes) == 1 and old not in reused}
