"""FSDP2: the policy split over devices, and its whole state gathered for checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from align.models import decoder_layers

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
    for layer in decoder_layers(policy):
        fully_shard(layer, mesh=mesh, mp_policy=mixed, offload_policy=place, reshard_after_forward=reshard)
    # None: torch keeps the root's own weights gathered, since backward needs them first.
    fully_shard(policy, mesh=mesh, mp_policy=mixed, offload_policy=place, reshard_after_forward=None)


WHOLE_SHARE = 0.25
"""Largest share of the host's memory that a whole checkpoint may take there, for ``checkpoints: auto`` to gather it:
rank 0 holds it once, and its file is in the page cache."""


class Sharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, whose checkpoints go through the CheckpointIO: align's checksummed directory.

    Not its FSDPStrategy: that refuses CPUs and so could not be tested without GPUs. Nor its sharded checkpoints, whose
    metadata is a raw pickle. Checkpoints are whole (gathered on rank 0), or each rank writes its own part.

    offload: the weights stay in the host's memory. checkpoints: ``whole``, ``sharded``, or ``auto`` by size.
    """

    _whole = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
    _parts = StateDictOptions(full_state_dict=False, cpu_offload=False, strict=False)

    def __init__(self, *, offload: bool, checkpoints: Literal["auto", "whole", "sharded"], **settings: Any) -> None:
        super().__init__(**settings)
        self._offload, self._checkpoints = offload, checkpoints

    def _gathers(self) -> bool:
        """Return True if a checkpoint is to be whole. Collective the first time: rank 0 decides for all."""
        if self._checkpoints == "auto":
            assert self.model is not None
            learned = (p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            fits = 3 * sum(learned) <= WHOLE_SHARE * memory  # with AdamW's two moments
            self._checkpoints = self.broadcast("whole" if fits else "sharded")
        return self._checkpoints == "whole"

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights: gathered on rank 0, or of every rank its own part."""
        assert self.model is not None
        return dict(get_model_state_dict(self.model, options=self._whole if self._gathers() else self._parts))

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
        """Return moments and settings, keyed by parameter name: gathered on rank 0, or of every rank its own part."""
        assert self.model is not None
        options = self._whole if self._gathers() else self._parts
        return dict(get_optimizer_state_dict(self.model, getattr(optimizer, "_optimizer", optimizer), options=options))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Rank 0 writes the whole, or every rank its part."""
        writer: Any = self.checkpoint_io
        if not self._gathers():
            writer.save_sharded(checkpoint, filepath)
        elif self.is_global_zero:
            writer.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any strategy and number of ranks: of a whole one every rank keeps its part.

        Of one that ranks wrote by themselves each reads its own part only.
        """
        assert self.model is not None
        reader: Any = self.checkpoint_io
        state: dict[str, Any]
        state, shards = reader.load_sharded(checkpoint_path)
        options, weights = self._whole, state["state_dict"]
        if shards is not None:
            options = self._parts
            own = get_model_state_dict(self.model, options=options)
            weights = {name: _own_part(value, own[name], shards) for name, value in weights.items()}
        set_model_state_dict(self.model, weights, options=options)
        parameters = dict(self.model.named_parameters())
        for optimizer, saved in zip(self.optimizers, state["optimizer_states"], strict=True):
            named = _by_parameter_name(self.model, optimizer, saved)
            if shards is not None:
                named["state"] = {
                    name: {key: _own_part(value, parameters[name], shards) for key, value in values.items()}
                    for name, values in named["state"].items()
                }
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Done in ``load_checkpoint``."""


def _own_part(value: Any, like: Any, shards: Any) -> Any:
    """Return this rank's part of a tensor that a marker stands for, split as ``like`` is; anything else as it is."""
    name = shards.name_of(value)
    return value if name is None else shards.like(name, like)


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
