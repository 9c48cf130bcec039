"""Low-rank adapters: made new, continued from a directory, merged, and their frozen base in 4 or 8 bits.

A directory that holds an adapter (``adapter_config.json``) names its base model. Without ``model.adapter`` in the
run file that very adapter is trained on; with it, the old adapter is merged into its base and a new one is trained
on the result.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from align.core.model.source import LOADING_FAULTS, not_loadable
from align.schemas.errors import AlignError
from align.schemas.run import Adapter

Head = Literal["language", "reward"]
TASKS: dict[Head, TaskType] = {"language": TaskType.CAUSAL_LM, "reward": TaskType.SEQ_CLS}
REWARD_HEAD = "score"
"""What every decoder for sequence classification in transformers calls its head."""


class Origin(NamedTuple):
    """Where a model can be had: a path, or a hub id and its revision."""

    path: str
    revision: str | None = None


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and not a whole model."""
    return (directory / "adapter_config.json").is_file()


def base_of(directory: Path) -> Origin:
    """The base model that an adapter's directory names."""
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, AttributeError) as error:
        raise AlignError(f"adapter_config.json cannot be read: {error}", where=str(directory)) from error
    if not base:
        raise AlignError(
            "the adapter does not say which model it belongs to",
            "set base_model_name_or_path in its adapter_config.json",
            where=str(directory),
        )
    near = directory / base  # a relative path is relative to the adapter; an absolute one is itself
    return Origin(str(near)) if near.is_dir() else Origin(base, revision)


def add_adapter(network: PreTrainedModel, spec: Adapter, head: Head, base: Origin | None) -> PeftModel:
    """A new adapter that changes nothing yet (B = 0); a reward head is trained whole beside it.

    base: where the network's weights can be had, for the adapter's own config; None when they are nowhere on disk.
    A is drawn from torch's global generator.
    """
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # peft divides by the rank; any number serves
        lora_dropout=spec.dropout,
        use_dora=spec.type == "dora",
        target_modules=spec.targets,
        modules_to_save=[REWARD_HEAD] if head == "reward" else None,
        task_type=TASKS[head],
    )
    try:
        adapted = get_peft_model(network, config)
    except ValueError as error:
        linear = sorted({name.rsplit(".", 1)[-1] for name, m in network.named_modules() if isinstance(m, nn.Linear)})
        raise AlignError(
            f"model.adapter.targets: {error}", f"linear layers of this model: {', '.join(linear)}"
        ) from error
    _record(config, base)
    return adapted


def read_adapter(network: PreTrainedModel, directory: Path, head: Head) -> PeftModel:
    """The adapter of a directory on its base, to be trained on; safetensors only, nothing missing, nothing over."""
    weights = directory / "adapter_model.safetensors"
    if not weights.is_file():
        raise AlignError(
            "holds no adapter_model.safetensors (pickled weights such as adapter_model.bin are never loaded)",
            "convert it where you trust it: load it with peft and call save_pretrained",
            where=str(directory),
        )
    base = base_of(directory)
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (*LOADING_FAULTS, TypeError) as error:
        raise not_loadable(error, directory, "adapter's config") from error
    if not isinstance(config, LoraConfig) or config.task_type not in (TASKS[head], None):
        raise AlignError(
            f"holds an adapter of type {config.peft_type} for {config.task_type}; needed: LORA for {TASKS[head].value}",
            "merge it into its model first and give the merged directory as model.path",
            where=str(directory),
        )
    config.inference_mode, config.task_type, config.base_model_name_or_path = False, TASKS[head], None
    config.megatron_config = None  # with it peft imports whatever module the config names
    try:
        adapted = get_peft_model(network, config)
        result: Any = set_peft_model_state_dict(adapted, load_file(weights))
    except LOADING_FAULTS as error:
        raise AlignError(f"does not fit its base model {base.path}: {error}", where=str(directory)) from error
    _record(config, base)
    own = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    wrong = sorted(own & set(result.missing_keys)) + sorted(result.unexpected_keys)
    if wrong:
        raise AlignError(
            f"does not fit its base model {base.path}: {len(wrong)} tensors missing or left over, such as {wrong[0]}",
            "the adapter belongs to another model",
            where=str(directory),
        )
    return adapted


def merge(adapted: PeftModel) -> PreTrainedModel:
    """The base with the adapter added to its weights; ``adapted`` is used up. Raises AlignError on overflow."""
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # peft looked at the sums before it kept them
        raise AlignError(
            f"merging the adapter gives weights that are not finite: {error}",
            "hold the weights in float32 or bfloat16 (model.dtype)",
        ) from error
    return merged


def _record(config: LoraConfig, base: Origin | None) -> None:
    """Let the adapter's config say where its base is, and its targets always in one order."""
    config.base_model_name_or_path, config.revision = base or (None, None)
    if not isinstance(config.target_modules, str | None):
        config.target_modules = sorted(config.target_modules)  # peft keeps a set, whose order is chance


def quantisation(kind: Literal["nf4", "int8"], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that hold the frozen base in 4 bits (QLoRA, 2305.14314 section 3) or 8."""
    what = f"model.adapter.quantize: {kind}"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise AlignError(f"{what} needs bitsandbytes", "pip install 'align-llm[quant]', or leave quantize out")
    if not torch.cuda.is_available():
        raise AlignError(f"{what} needs a CUDA GPU; none is visible", "leave quantize out to train on this machine")
    return {
        "quantization_config": BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=kind == "nf4",
            load_in_8bit=kind == "int8",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        "device_map": {"": torch.cuda.current_device()},
    }
