"""The hardware of a run, and what a fit needs of it: the facts that strategies, checks and estimates decide by.

No torch. What is known of a GPU by its name is in ``align.schemas.gpus``; what a brief says, in ``project``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.schemas.engine import REPLICA_SHARE


@dataclass(frozen=True, slots=True)
class Hardware:
    """The devices a run is to use.

    devices: devices (processes) per node. nodes: machines. memory: bytes of one device, 0 where it is not here.
    timeout: seconds that a collective waits for the other processes. name: of the device, as its driver or the list
    of GPUs has it; empty where unknown.
    """

    accelerator: Literal["cpu", "cuda"]
    devices: int
    nodes: int
    memory: int
    timeout: float = 1800.0
    name: str = ""

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

    def leaves_room(self, memory: int) -> bool:
        """Return whether a device of so many bytes has room for more than this: ``auto`` then takes ddp, not fsdp."""
        return self.state + self.activations < REPLICA_SHARE * memory
