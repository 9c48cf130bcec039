"""The hardware of a run, and what a fit needs of it: the facts that strategies, checks and estimates decide by.

No torch. What is known of a GPU by its name is in ``align.schemas.gpus``; what a brief says, in ``project``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.schemas.engine import PLANNED_SHARE, REPLICA_SHARE


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
class Placement:
    """The decision of training about a stage on some hardware, before anything is loaded.

    strategy: its name. why: the sentence that says why it is taken. refused: why training would not start, whatever the
    memory; empty where it would.
    """

    strategy: str
    why: str
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that one unsharded replica needs.

    state: weights, gradients, optimizer state and frozen reference, of all networks that learn. activations: one
    micro-batch's forward pass, 0 where that is not known.
    """

    state: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes of a replica while it trains."""
        return self.state + self.activations

    def room_on(self, memory: float) -> float:
        """Return the bytes of a device's memory that ``auto`` plans a replica with.

        Where activations are known, all but what the driver and fragmentation take; else less, since they come on top.
        """
        return (PLANNED_SHARE if self.activations else REPLICA_SHARE) * memory

    def leaves_room(self, memory: float) -> bool:
        """Return True if a replica fits a device of so many bytes: ``auto`` then takes ddp, not fsdp."""
        return self.total < self.room_on(memory)

    def choice(self, hardware: Hardware) -> str:
        """Return the strategy that ``auto`` takes: single on one device; on several ddp if a replica fits, else fsdp.

        Splitting costs communication at every layer, so it is taken only where a whole replica does not fit.
        """
        if hardware.world_size == 1:
            return "single"
        return "ddp" if self.leaves_room(hardware.memory) else "fsdp"

    def explain(self, strategy: str, hardware: Hardware, chosen: Literal["auto", "plugin", "run file"] = "auto") -> str:
        """Return the sentence that says which strategy a run has, and why, in numbers (GB of 10^9 bytes).

        strategy: its name. chosen: by ``auto`` itself, by a plugin for ``auto``, or by ``devices.strategy``.
        """
        devices, state = hardware.world_size, _gb(self.state)
        if chosen != "auto":
            who = "a plugin chose it" if chosen == "plugin" else "devices.strategy names it"
            return f"{strategy}, because {who}; {self._needs(strategy, devices)}"
        if devices == 1:
            return f"{strategy}, because there is one device; {self._needs(strategy, devices)}"
        if not hardware.memory:
            return f"{strategy}, because the memory of the devices is not known; {self._needs(strategy, devices)}"
        room = f"{_gb(hardware.memory)} of a device, of which auto plans with {_gb(self.room_on(hardware.memory))}"
        if self.leaves_room(hardware.memory):
            return f"{strategy}, because a whole replica ({self._parts()}) fits the {room}"
        each = f"split over {devices} devices the states take {_gb(self.state / devices)} on each"
        if self.state >= self.room_on(hardware.memory):
            return (
                f"{strategy}, because {state} of states do not fit the {room}: ddp would need {self._parts()}; {each}"
            )
        return f"{strategy}, because a whole replica ({self._parts()}) does not fit the {room}; {each}"

    def _needs(self, strategy: str, devices: int) -> str:
        if strategy == "fsdp" and devices > 1:
            return f"the states take {_gb(self.state / devices)} on each of {devices} devices ({_gb(self.state)} whole)"
        return f"a replica takes {self._parts()} on {'it' if devices == 1 else 'each device'}"

    def _parts(self) -> str:
        if not self.activations:
            return f"{_gb(self.state)} of states, and activations"
        return f"{_gb(self.total)}: {_gb(self.state)} of states and about {_gb(self.activations)} of activations"


def _gb(size: float) -> str:
    """Return bytes as GB; small sizes as MB, so that a tiny model does not take 0.0 GB.

    With fixed decimals, unlike ``format_bytes``: an explanation shows parts and their sum.
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
