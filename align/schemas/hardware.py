"""What a machine offers and what a fit needs: the facts that strategies and checks decide by. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Hardware:
    """The devices a run is to use.

    devices: devices (processes) per node. nodes: machines. memory: bytes of one device. timeout: seconds that
    a collective waits for the other processes.
    """

    accelerator: Literal["cpu", "cuda"]
    devices: int
    nodes: int
    memory: int
    timeout: float = 1800.0

    @property
    def world_size(self) -> int:
        """Processes over all nodes."""
        return self.devices * self.nodes


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that one unsharded replica needs.

    state: weights, gradients, optimizer state and frozen reference. activations: one micro-batch's forward pass.
    """

    state: int
    activations: int
