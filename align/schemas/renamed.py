"""Keys, metrics and options by their old names and by other libraries': the only place that knows them.

They are refused with the name or the place that they have here.

The new ones are TRL's (of an adapter PEFT's, of a generator vLLM's), so that nobody has to learn them twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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

OTHER_KEYS: Mapping[str, str] = {
    "output_dir": "output",
    "report_to": "loggers",
    "wandb_project": "loggers: [{type: wandb, project: ...}]",
    "data_seed": "seed",
    # The algorithm
    "rl": "algorithm, by its name (dpo, kto, grpo)",
    "advantage_estimator": "algorithm, by its name (ppo, rloo, grpo, reinforce)",
    "adv_estimator": "algorithm, by its name (ppo, rloo, grpo, reinforce)",
    # The model
    "base_model": "model.path",
    "model_name_or_path": "model.path",
    "pretrain": "model.path",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "flash_attention": "model.attn_implementation: flash_attention_2",
    "gradient_checkpointing_kwargs": "model.gradient_checkpointing",
    "chat_template_path": "model.chat_template",
    "use_peft": "model.adapter",
    "peft_config": "model.adapter",
    "lora_r": "model.adapter.r",
    "lora_rank": "model.adapter.r",
    "lora_alpha": "model.adapter.lora_alpha",
    "lora_dropout": "model.adapter.lora_dropout",
    "lora_target_modules": "model.adapter.target_modules",
    "lora_target_linear": "model.adapter.target_modules: all-linear",
    "load_in_4bit": "model.adapter.quantize: nf4",
    "load_in_8bit": "model.adapter.quantize: int8",
    # The data
    "dataset_name": "data.train",
    "datasets": "data.train",
    "train_dataset": "data.train",
    "eval_dataset": "data.validation",
    "val_set_size": "data.validation_fraction",
    "dataset_text_field": "data.train: [{path: ..., columns: {text: ...}}]",
    "max_seq_length": "data.max_length",
    "max_prompt_length": "data.max_length, with data.truncation_mode for what is longer",
    "prompt_max_len": "data.max_length, with data.truncation_mode for what is longer",
    "max_len": "data.max_length",
    "sequence_len": "data.max_length",
    # The steps
    "packing": "train.layout",
    "padding_free": "train.layout",
    "sample_packing": "train.layout",
    "per_device_train_batch_size": "train.batch_size, which counts all devices and accumulated micro-batches",
    "gradient_accumulation_steps": "train.batch_size, which counts all devices and accumulated micro-batches",
    "train_batch_size": "train.batch_size, which counts answers where they are sampled",
    "per_device_eval_batch_size": "train.micro_batch_size, which changes speed and memory only",
    "num_epochs": "train.num_train_epochs",
    "max_epochs": "train.num_train_epochs",
    "gradient_clipping": "train.max_grad_norm",
    "max_norm": "train.max_grad_norm",
    "disable_dropout": "train.dropout: false",
    "bf16": "train.precision: bf16-mixed",
    "fp16": "train.precision: 16-mixed",
    "lr": "optimizer.learning_rate",
    "actor_learning_rate": "optimizer.learning_rate",
    "lr_scheduler_type": "schedule.type",
    "lr_scheduler": "schedule.type",
    "lr_scheduler_kwargs": "schedule.min_lr_rate",
    "warmup_ratio": "schedule.warmup_steps, which below 1 is a share of the steps",
    "lr_warmup_ratio": "schedule.warmup_steps, which below 1 is a share of the steps",
    # Evaluating, saving, devices
    "eval_strategy": "validation.eval_steps",
    "greater_is_better": "validation.mode: max",
    "save_strategy": "checkpoint.save_steps",
    "load_best_model_at_end": "checkpoint.export: best",
    "deepspeed": "devices.strategy: fsdp",
    "zero_stage": "devices.strategy: fsdp",
    "fsdp": "devices.strategy: fsdp",
    "fsdp_config": "devices.strategy: fsdp",
    "use_cpu": "devices.accelerator: cpu",
    "ddp_timeout": "devices.timeout",
    # The reference
    "precompute_ref_log_probs": "reference.type: precomputed",
    "sync_ref_model": "reference.type: moving-average",
    # Sampling and rewards
    "reward_funcs": "rollout.rewards",
    "reward_weights": "rollout.rewards, each with its weight",
    "reward_pretrain": "rollout.rewards: [{type: reward_model, path: ...}]",
    "max_completion_length": "rollout.sampling.max_completion_length",
    "max_new_tokens": "rollout.sampling.max_completion_length",
    "generate_max_len": "rollout.sampling.max_completion_length",
    "temperature": "rollout.sampling.temperature",
    "top_k": "rollout.sampling.top_k",
    "top_p": "rollout.sampling.top_p",
    "min_p": "rollout.sampling.min_p",
    "repetition_penalty": "rollout.sampling.repetition_penalty",
    "steps_per_generation": "rollout.batches, which counts optimizer steps",
    "generation_batch_size": "rollout.batches, which counts optimizer steps",
    "rollout_batch_size": "rollout.batches, which counts optimizer steps",
    "dynamic_filtering": "rollout.zero_std_groups: refill",
    "use_vllm": "rollout.generator: vllm",
    "vllm_mode": "rollout.generator: {type: vllm, mode: ...}",
    "vllm_server_base_url": "rollout.generator: {type: vllm, mode: server, url: ...}",
    "vllm_server_host": "rollout.generator: {type: vllm, mode: server, url: ...}",
    "vllm_gpu_memory_utilization": "rollout.generator: {type: vllm, gpu_memory_utilization: ...}",
    "vllm_tensor_parallel_size": "rollout.generator: {type: vllm, tensor_parallel: ...}",
    "vllm_importance_sampling_correction": "rollout.importance_sampling_correction.type",
    "vllm_importance_sampling_mode": "rollout.importance_sampling_correction.level",
    "vllm_importance_sampling_clip_max": "rollout.importance_sampling_correction.clip_max",
    "log_completions": "rollout.samples",
}
"""Keys of TRL's flat configs and trainers, of axolotl, OpenRLHF and veRL that have another name here, or stand deeper
than in a section, and what to write: docs/coming_from.md has the rest and what differs."""

OTHER_ALGORITHM_KEYS: Mapping[str, Mapping[str, str]] = {
    "kl_coef": {"beta": "beta"},
    "init_kl_coef": {"beta": "beta"},
    "kl_loss_coef": {"beta": "beta"},
    "loss_type": {
        "objective": "averaging (dapo and bnpo: token; grpo: sequence; dr_grpo: constant), or for cispo as objective"
    },
    "loss_agg_mode": {"averaging": "averaging (token-mean: token; seq-mean-token-mean: sequence)"},
    "loss_weights": {"ld_alpha": "loss_type: {LOSS: WEIGHT, ...}"},
    "rpo_alpha": {"ld_alpha": "loss_type: {sigmoid: 1.0, sft: RPO_ALPHA}"},
    "f_alpha_divergence_coef": {"f_alpha": "f_alpha, which is 1 - f_alpha_divergence_coef"},
    "simpo_gamma": {"gamma_beta_ratio": "gamma_beta_ratio, which is simpo_gamma / beta"},
    "n_samples_per_prompt": {"num_generations": "num_generations"},
    "group_size": {"num_generations": "num_generations"},
    "num_ppo_epochs": {"num_iterations": "num_iterations"},
    "ppo_epochs": {"num_iterations": "num_iterations"},
    "max_epochs": {"num_iterations": "num_iterations"},
    "cliprange": {"epsilon": "epsilon, and epsilon_high where it differs"},
    "clip_range": {"epsilon": "epsilon, and epsilon_high where it differs"},
    "eps_clip": {"epsilon": "epsilon, and epsilon_high where it differs"},
    "clip_ratio_low": {"epsilon": "epsilon"},
    "clip_ratio_high": {"epsilon_high": "epsilon_high"},
    "clip_ratio_c": {"delta": "delta"},
    "lambd": {"lam": "lam"},
    "gae_lambda": {"lam": "lam"},
    "no_advantage_std_norm": {"scale_rewards": "scale_rewards: none"},
    "norm_adv_by_std_in_grpo": {"scale_rewards": "scale_rewards"},
    "use_kl_loss": {"kl_in": "kl_in: loss"},
    "use_kl_in_reward": {"kl_in": "kl_in: reward"},
}
"""Keys of other libraries that are a setting of some algorithms here: by the setting that tells that the algorithm at
hand is one of them (``ld_alpha`` is dpo's only, ``objective`` grpo's), what to write."""

NOT_NEEDED: Mapping[str, str] = {
    "logging_steps": "remove it: every step is logged",
    "logging_strategy": "remove it: every step is logged",
    "logging_first_step": "remove it: every step is logged",
    "optim": "remove it: the optimizer is AdamW",
    "remove_unused_columns": "remove it: columns that nothing reads do no harm, and rewards get those that they name",
    "resume_from_checkpoint": "remove it, and start with `align train RUN --resume`",
    "push_to_hub": "remove it: the stage's export is a directory that `hf upload` takes",
    "hub_model_id": "remove it: the stage's export is a directory that `hf upload` takes",
}
"""Keys of other libraries for what needs no setting here, and the fix."""


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


def fixes_for_other_keys() -> dict[str, str]:
    """Return the fix for each key of another library and each old key, wherever in a run file it is written."""
    homes = dict(OTHER_KEYS) | old_homes()
    return {key: f"write it as {home}" for key, home in homes.items()} | dict(NOT_NEEDED)


def fixes_for_settings(settings: Collection[str]) -> dict[str, str]:
    """Return the fix for each key that is one of an algorithm's ``settings``, or one of them by another name."""
    homes = {key: key for key in settings}
    for key, here in OTHER_ALGORITHM_KEYS.items():
        for setting, home in here.items():
            if setting in settings and key not in settings:
                homes[key] = home
    return {key: f"write it as algorithm.{home}" for key, home in homes.items()}
