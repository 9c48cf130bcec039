"""Built-in strategies, each by one of Lightning's: single device, replicas (DDP), shards (FSDP2), and the choice.

Lightning is imported where its strategy is made: one is chosen for ``align train --check`` too, which does not train.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

from pydantic import PositiveInt
from torch import nn

from align import AlignError, Footprint, Hardware, Strategy


class Auto(Strategy):
    """The default: single on one device; on several, ddp if a replica fits, else fsdp. A plugin may override it."""

    name = "auto"

    def resolve(self, hardware: Hardware, footprint: Footprint, choose: Callable[[], Strategy]) -> Strategy:
        """Return the chosen strategy, resolved in its turn."""
        return choose().resolve(hardware, footprint, choose)


class Single(Strategy):
    """Everything in one process on one device."""

    name = "single"

    def resolve(self, hardware: Hardware, footprint: Footprint, choose: Callable[[], Strategy]) -> Strategy:
        """Return itself. Raises AlignError for more than one device."""
        if hardware.world_size > 1:
            raise AlignError(
                f"is single, but the run has {hardware.world_size} devices",
                "choose ddp, fsdp or auto, or devices.count: 1",
                where="devices.strategy",
            )
        return self

    def trainer_strategy(self, hardware: Hardware) -> Any:
        """Lightning's own choice for one device."""
        return "auto"


class DDP(Strategy):
    """A whole replica on every device; the fastest where the model, its gradients and optimizer state fit."""

    name = "ddp"

    def trainer_strategy(self, hardware: Hardware) -> Any:
        """Gloo on CPUs, NCCL on GPUs."""
        from lightning.pytorch.strategies import DDPStrategy

        return DDPStrategy(
            process_group_backend="nccl" if hardware.accelerator == "cuda" else "gloo",
            timeout=timedelta(seconds=hardware.timeout),
        )


class FSDP(Strategy):
    """Weights, gradients and optimizer state split over the devices; for models of which a replica does not fit."""

    name = "fsdp"
    shards = True

    class Config(Strategy.Config):
        """Settings of ``fsdp``. None of them changes what is learned, but for the rounding of sums."""

        reshard_after_forward: bool = True
        """True drops a layer's gathered weights after its forward pass and gathers them again for its backward pass
        (ZeRO stage 3). False keeps them in between (ZeRO stage 2): a third less traffic, and each device holds the
        whole weights, in the type of computing, while gradients, moments and its own weights stay split."""
        offload: bool = False
        """True keeps the split weights, gradients and moments in the host's memory, and takes the optimizer's step
        there (ZeRO-Offload): a device then holds the gathered layers and activations only. Slow: every layer's weights
        cross the bus in each pass."""
        shard_size: PositiveInt | Literal["all", "node"] = "all"
        """Devices that a replica is split over: ``all``; ``node``, the devices of one machine, so that weights never
        cross the network between machines and only gradients do (hybrid sharding, HSDP); or a number that divides them
        all."""
        checkpoints: Literal["auto", "whole", "sharded"] = "auto"
        """``whole``: rank 0 gathers weights and moments in its host's memory and writes them. ``sharded``: each device
        writes its own part, and the export is written tensor by tensor. ``auto``: whole, unless that takes more than a
        quarter of the host's memory. Either goes on with another number of devices, or under another strategy."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._meshes: dict[Any, Any] = {}
        self._shard_size: int | None = None  # known once the hardware is

    def resolve(self, hardware: Hardware, footprint: Footprint, choose: Callable[[], Strategy]) -> Strategy:
        """Return itself. Raises AlignError where ``shard_size`` does not divide the number of devices."""
        given = self.config.shard_size
        size = {"all": hardware.world_size, "node": hardware.devices}.get(str(given)) or int(given)
        if hardware.world_size % size:
            raise AlignError(
                f"is {given}, and replicas of {size} devices do not fill the run's {hardware.world_size}",
                f"give a divisor of {hardware.world_size}, node or all",
                where="devices.strategy.shard_size",
            )
        self._shard_size = size
        return self

    def shard(self, policy: nn.Module, mesh: Any, precision: str) -> None:
        """Split the policy over the mesh's data dimension, or over the devices of each replica."""
        from align.plugins.strategies.single_ddp_fsdp.sharding import replicas, shard

        size = self._shard_size or mesh.size()
        over = mesh["data_parallel"]
        if size < mesh.size():
            # Made once for policy and critic: each mesh makes process groups.
            over = self._meshes[mesh] = self._meshes.get(mesh) or replicas(mesh, size)
        shard(policy, over, precision, reshard=self.config.reshard_after_forward, offload=self.config.offload)

    def trainer_strategy(self, hardware: Hardware) -> Any:
        """Gloo on CPUs, NCCL on GPUs; what is offloaded is reduced over gloo there too."""
        from align.plugins.strategies.single_ddp_fsdp.sharding import Sharded

        backend = "nccl" if hardware.accelerator == "cuda" else "gloo"
        if hardware.accelerator == "cuda" and self.config.offload:
            backend = "cpu:gloo,cuda:nccl"
        return Sharded(
            offload=self.config.offload,
            checkpoints=self.config.checkpoints,
            data_parallel_size=hardware.world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
            timeout=timedelta(seconds=hardware.timeout),
        )
