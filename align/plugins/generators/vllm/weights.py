"""A policy's weights as a checkpoint would name them: adapter merged, shards gathered."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
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
def adapter_tensors(policy: Policy) -> dict[str, Tensor]:
    """Return the adapter's tensors by PEFT's names, whole and on the CPU; where it is sharded every rank must call."""
    tensors = get_peft_model_state_dict(policy.model)
    return {name: _whole(value).cpu().contiguous() for name, value in tensors.items()}


def save_adapter(config: LoraConfig, tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Write an adapter as PEFT does: ``adapter_config.json`` and ``adapter_model.safetensors``."""
    config.save_pretrained(str(directory))
    save_file(dict(tensors), directory / "adapter_model.safetensors")


@torch.no_grad()
def checkpoint_tensors(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) as ``save_pretrained`` would name them; the policy is left as it is, to the bit.

    Tied tensors come under each of their names: some of vLLM's models skip the head's where it is tied, and on a CPU
    vLLM multiplies by a packed copy of the head, which only a tensor of the head's name renews. Where the policy is
    sharded, one layer at a time is gathered, and every rank must go through all of it.
    """
    seen: set[tuple[int, torch.Size]] = set()
    for name, value in _named(policy):
        place = (value.data_ptr(), value.shape)
        yield name, value.clone() if place in seen else value  # safetensors writes no memory under two names
        seen.add(place)


def _named(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    shards = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if not shards:
        network = plain_model(policy.model)
        yield from dict(revert_weight_conversion(network, network.state_dict())).items()
        return
    for module in shards:
        module.reshard()  # what is gathered for computing has its type, not that of the weights
    for tensors in _by_layer(policy.unwrapped):
        yield from dict(revert_weight_conversion(policy.unwrapped, tensors)).items()


def _by_layer(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of each layer that is sharded by itself, and last those of the rest; adapters merged.

    Together, since a checkpoint may have a layer's tensors in another form (experts, one matrix for three).
    """
    rest: dict[str, Tensor] = {}
    layer: dict[str, Tensor] = {}
    prefix = ""
    merged = " "  # the module of an adapter that was merged last: those inside it are done
    for name, module in network.named_modules():
        if prefix and not name.startswith(prefix):
            yield layer
            layer, prefix = {}, ""
        if isinstance(module, FSDPModule):
            prefix = f"{name}."
        if name.startswith(merged):
            continue
        found = layer if prefix else rest
        if _is_adapted(module):
            merged = f"{name}."
            found |= {f"{name}.{key}": value for key, value in _merged(module).state_dict().items()}
            continue
        left_out = module._non_persistent_buffers_set
        buffers = ((key, value) for key, value in module.named_buffers(recurse=False) if key not in left_out)
        for key, value in itertools.chain(module.named_parameters(recurse=False), buffers):
            found[f"{name}.{key}" if name else key] = _whole(value)
    if layer:
        yield layer
    yield rest


def _is_adapted(module: nn.Module) -> bool:
    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _merged(module: Any) -> nn.Module:
    """Return a copy of a layer with its adapter added, by PEFT's own sum. Raises AlignError where it is not finite."""
    # deepcopy takes what its memo holds as already copied.
    whole = {id(p): nn.Parameter(_whole(p).clone(), requires_grad=False) for p in module.parameters()}
    copied = copy.deepcopy(module, whole)
    try:
        if hasattr(copied, "unload_and_optionally_merge_module"):
            plain: nn.Module = copied.unload_and_optionally_merge_module(
                merge=True, safe_merge=True, adapter_names=None
            )
            return plain
        copied.merge(safe_merge=True)
    except ValueError as error:  # safe_merge: peft checks the sums before it keeps them
        raise AlignError(
            f"merging the adapter gives weights that are not finite: {error}",
            "hold the weights in float32 or bfloat16 (model.dtype)",
        ) from error
    layer: nn.Module = copied.get_base_layer()
    return layer


def _whole(value: Tensor) -> Tensor:
    gathered: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return gathered.detach()
