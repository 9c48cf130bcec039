"""FSDP2: the policy split over devices, and its whole state gathered for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

_DTYPES = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "16-mixed": torch.float16}


def replicas(mesh: Any, size: int) -> Any:
    """Return a mesh of the same processes: replicas, each split over ``size`` neighbours. Collective."""
    names = ("replicate", "shard")
    return init_device_mesh(mesh.device_type, (mesh.size() // size, size), mesh_dim_names=names)


def shard(policy: nn.Module, mesh: Any, precision: str, *, reshard: bool, offload: bool) -> None:
    """Split every decoder layer by itself and the rest as the root.

    Under mixed precision the shards stay in their own type; what is gathered and reduced is cast.
    """
    compute = _DTYPES.get(precision)
    # Sums of 16-bit gradients over many devices lose digits: they are reduced in 32 bits.
    reduce = torch.float32 if compute else None
    mixed = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce)
    # Pinned memory is the driver's: without a GPU there is none.
    place = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    stacks = [m for m in policy.modules() if isinstance(m, nn.ModuleList) and len(m) and _is_decoder(m)]
    for stack in stacks:
        for layer in stack:
            fully_shard(layer, mesh=mesh, mp_policy=mixed, offload_policy=place, reshard_after_forward=reshard)
    # None: torch keeps the root's own weights gathered, since backward needs them first.
    fully_shard(policy, mesh=mesh, mp_policy=mixed, offload_policy=place, reshard_after_forward=None)


def _is_decoder(stack: nn.ModuleList) -> bool:
    """Return whether it is a model's stack of layers: modules of one class, each with weights."""
    with_weights = [m for m in stack if next(m.parameters(), None) is not None]
    return len({type(m) for m in stack}) == 1 and len(with_weights) == len(stack)


class WholeCheckpoints(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, which reads and writes whole states through the CheckpointIO.

    Not its FSDPStrategy: that refuses CPUs and so could not be tested without GPUs. Checkpoints are whole (gathered on
    rank 0) and go through align's own checksummed directory, since a sharded checkpoint's metadata is a raw pickle.
    """

    _whole = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)

    def __init__(self, *, offload: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self._offload = offload

    def model_to_device(self) -> None:
        """Move what is left on the CPU; where weights are offloaded they belong there, and buffers alone move."""
        if not self._offload:
            super().model_to_device()
            return
        assert self.lightning_module is not None
        for module in self.lightning_module.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.root_device))
        self.lightning_module._device = self.root_device  # where batches go, and what ``module.device`` says

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Gathered on rank 0, keyed by parameter name."""
        assert self.model is not None
        return dict(
            get_optimizer_state_dict(self.model, getattr(optimizer, "_optimizer", optimizer), options=self._whole)
        )

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Rank 0 writes."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the whole and keeps its shards."""
        assert self.model is not None
        state = self.checkpoint_io.load_checkpoint(checkpoint_path)
        set_model_state_dict(self.model, state["state_dict"], options=self._whole)
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizer_states"], strict=True):
            named = _by_parameter_name(self.model, optimizer, optimizer_state)
            set_optimizer_state_dict(self.model, optimizer, named, options=self._whole)
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Done in ``load_checkpoint``."""


def _by_parameter_name(model: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state keyed by parameter names; one that single or ddp saved has numbers in their place.

    Numbers count the parameters in the order of the optimizer's groups, which is the same under every strategy.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = getattr(optimizer, "_optimizer", optimizer)
    key_to_name: dict[Any, str] = {}
    groups = []
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        here = [names[id(parameter)] for parameter in group["params"]]
        key_to_name.update(zip(saved["params"], here, strict=True))
        groups.append({**saved, "params": here})
    return {"state": {key_to_name[key]: value for key, value in state["state"].items()}, "param_groups": groups}
