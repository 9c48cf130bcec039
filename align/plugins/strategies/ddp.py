"""Replicas: every process holds the whole model, gradients are averaged (torch DistributedDataParallel)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from align.core.engine.strategy import Strategy
from align.schemas.hardware import Hardware


class DDP(Strategy):
    """A whole replica on every device; the fastest where the model, its gradients and optimizer state fit."""

    name = "ddp"

    def trainer_strategy(self, hardware: Hardware) -> Any:
        """Gloo on CPUs, NCCL on GPUs."""
        return DDPStrategy(
            process_group_backend="nccl" if hardware.accelerator == "cuda" else "gloo",
            timeout=timedelta(seconds=hardware.timeout),
        )
