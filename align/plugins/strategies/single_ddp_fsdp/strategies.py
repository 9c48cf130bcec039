"""Built-in strategies, each by one of Lightning's: single device, replicas (DDP), shards (FSDP2), and the choice.

Lightning is imported where its strategy is made: one is chosen for ``align train --check`` too, which does not train.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

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

    def shard(self, policy: nn.Module, mesh: Any, precision: str) -> None:
        """Split the policy over the mesh's data dimension."""
        from align.plugins.strategies.single_ddp_fsdp.sharding import shard

        shard(policy, mesh["data_parallel"], precision)

    def trainer_strategy(self, hardware: Hardware) -> Any:
        """Gloo on CPUs, NCCL on GPUs."""
        from align.plugins.strategies.single_ddp_fsdp.sharding import WholeCheckpoints

        return WholeCheckpoints(
            data_parallel_size=hardware.world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend="nccl" if hardware.accelerator == "cuda" else "gloo",
            timeout=timedelta(seconds=hardware.timeout),
        )
