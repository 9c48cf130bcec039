"""Where a stage runs: the base class of strategy plugins, and what this machine offers them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from align.core.train import spawn
from align.schemas.base import Config
from align.schemas.errors import AlignError
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Devices

COLLECTIVE_MARGIN = 30.0
"""Extra seconds for a collective's timeout, so that ``align.core.liveness`` ends the run first, naming the process."""


class Strategy:
    """How processes share the work: subclass, name it, and return what Lightning's Trainer takes."""

    name: ClassVar[str]

    class Config(Config):
        """Settings in the run file."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def settle(self, hardware: Hardware, footprint: Footprint, choose: Callable[[], Strategy]) -> Strategy:
        """The strategy to use here: itself, or (``auto``) the one that plugins ``choose``.

        Raises AlignError when it cannot run on this hardware.
        """
        return self

    def trainer_strategy(self, hardware: Hardware) -> Any:
        """A Lightning strategy, or its name."""
        raise NotImplementedError

    shards: ClassVar[bool] = False
    """Whether the policy is split over the devices, by ``shard``."""

    def shard(self, policy: torch.nn.Module, mesh: Any, precision: str) -> None:
        """Split the policy in place over Lightning's device mesh, before the optimizer is made."""
        raise NotImplementedError


def detect(devices: Devices) -> Hardware:
    """What a run file's ``devices`` means here: all GPUs of this node, or one CPU process, unless it says how many.

    In a group of processes that was started already (torchrun), what was started. Raises AlignError where that is not
    what the run file asks for, and where several nodes are asked for and nobody has started them.
    """
    cuda = devices.accelerator == "cuda" or (devices.accelerator == "auto" and torch.cuda.is_available())
    if cuda:
        found = torch.cuda.device_count()
        memory = torch.cuda.get_device_properties(0).total_memory if found else 0
    else:
        found, memory = 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count, nodes = max(1, found) if devices.count == "auto" else devices.count, devices.nodes
    if spawn.under_launcher():
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        started = int(os.environ["WORLD_SIZE"]) // local
        if (devices.count not in ("auto", local)) or (nodes not in (1, started)):
            raise AlignError(
                f"asks for {devices.count} processes on {nodes} nodes, but {local} on {started} were started",
                "start as many, or leave devices.count and devices.nodes out",
                where="devices",
            )
        count, nodes = local, started
    elif nodes > 1:
        raise AlignError(
            f"asks for {nodes} nodes, and align starts processes on this one only",
            f"start it on each: torchrun --nnodes={nodes} --nproc-per-node={count} --rdzv-endpoint=HOST:PORT -m align",
            where="devices.nodes",
        )
    return Hardware("cuda" if cuda else "cpu", count, nodes, memory, devices.timeout + COLLECTIVE_MARGIN)


def footprint(*networks: torch.nn.Module) -> Footprint:
    """Bytes of one unsharded replica: weights as held, and for what is trained a gradient and AdamW's two moments."""
    parameters = [p for network in networks for p in network.parameters()]
    held = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    return Footprint(held + 3 * trained, 0)
