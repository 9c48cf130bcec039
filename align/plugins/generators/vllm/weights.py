"""A policy's weights as a checkpoint would name them: adapter merged, shards gathered, tied tensors once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

from align import AlignError
from align.models import Policy, plain_model

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM reserves room for; a smaller adapter takes the next one up."""


def adapter_of(policy: Policy) -> LoraConfig | None:
    """Return the settings of the policy's adapter; None where there is none."""
    if not isinstance(policy.model, PeftModel):
        return None
    config = policy.model.active_peft_config
    assert isinstance(config, LoraConfig)
    return config


def adapter_fault(config: LoraConfig) -> str:
    """Return why vLLM cannot take an adapter by itself, in what can be known before it is tried; "" where it can."""
    extras = {
        "DoRA": config.use_dora,
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
        "target_parameters": getattr(config, "target_parameters", None),
        f"ranks above {RANKS[-1]}": config.r > RANKS[-1],
    }
    found = [name for name, present in extras.items() if present]
    return f"vLLM has no {' and no '.join(found)}" if found else ""


def lora_arguments(config: LoraConfig) -> dict[str, object]:
    """Return the engine arguments with which vLLM takes this adapter."""
    rank = next(rank for rank in RANKS if rank >= config.r)
    # Else the head is wrapped too, and on a CPU vLLM 0.32 then fails at the log-probabilities of prompts.
    targets = sorted({name.rpartition(".")[2] for name in config.target_modules or ()})
    room = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 1}
    return {**room, "lora_target_modules": targets}


@torch.no_grad()
def save_adapter(policy: Policy, directory: Path) -> None:
    """Write the adapter as PEFT does: ``adapter_config.json`` and ``adapter_model.safetensors``."""
    config = adapter_of(policy)
    assert config is not None
    _refuse_sharded(policy)
    config.save_pretrained(str(directory))
    tensors = get_peft_model_state_dict(policy.model)
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(whole, directory / "adapter_model.safetensors")


@torch.no_grad()
def checkpoint_tensors(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) as ``save_pretrained`` would write them; the policy is left as it is, to the bit.

    Where it is sharded every rank must go through all of it. Raises AlignError for an adapter on a sharded model.
    """
    sharded = _refuse_sharded(policy)
    network = policy.unwrapped if sharded else plain_model(policy.model)
    named: set[tuple[int, torch.Size]] = set()
    for name, value in dict(revert_weight_conversion(network, network.state_dict())).items():
        if isinstance(value, DTensor):
            yield name, value.full_tensor()
        elif (place := (value.data_ptr(), value.shape)) not in named:  # else tied to one that was named before
            named.add(place)
            yield name, value


def _refuse_sharded(policy: Policy) -> bool:
    """Return True for a policy that is sharded over devices. Raises AlignError where it has an adapter too."""
    sharded = any(isinstance(parameter, DTensor) for parameter in policy.parameters())
    if sharded and isinstance(policy.model, PeftModel):
        raise AlignError(
            "an adapter on a model that is sharded over devices cannot be sent to vLLM",
            "use strategy ddp (an adapter needs little memory), or train without adapter",
        )
    return sharded
