"""A policy's weights as a checkpoint would name them: adapter merged, shards gathered, tied tensors once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

from align import AlignError
from align.models import Policy, plain_model


@torch.no_grad()
def checkpoint_tensors(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) as ``save_pretrained`` would write them; the policy is left as it is, to the bit.

    Where it is sharded every rank must go through all of it. Raises AlignError for an adapter on a sharded model.
    """
    sharded = any(isinstance(parameter, DTensor) for parameter in policy.parameters())
    if sharded and isinstance(policy.model, PeftModel):
        raise AlignError(
            "an adapter on a model that is sharded over devices cannot be sent to vLLM",
            "use strategy ddp (an adapter needs little memory), or train without adapter",
        )
    network = policy.unwrapped if sharded else plain_model(policy.model)
    named: set[tuple[int, torch.Size]] = set()
    for name, value in dict(revert_weight_conversion(network, network.state_dict())).items():
        if isinstance(value, DTensor):
            yield name, value.full_tensor()
        elif (place := (value.data_ptr(), value.shape)) not in named:  # else tied to one that was named before
            named.add(place)
            yield name, value
