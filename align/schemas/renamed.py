"""Keys, metrics and options that had another name: the only place that knows the old ones, to refuse them by name.

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
