"""The base class of strategy plugins, and the footprint that they decide by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from align.schemas.base import Config
from align.schemas.hardware import Footprint, Hardware

if TYPE_CHECKING:
    import torch


class Strategy:
    """Base class of strategies, by which processes share the work: subclass it and return a Lightning strategy."""

    name: ClassVar[str]

    class Config(Config):
        """Settings in the run file."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def resolve(self, hardware: Hardware, footprint: Footprint, choose: Callable[[], Strategy]) -> Strategy:
        """The strategy to use here: itself, or (``auto``) the one that plugins ``choose``.

        Raises AlignError when it cannot run on this hardware.
        """
        return self

    def trainer_strategy(self, hardware: Hardware) -> Any:
        """A Lightning strategy, or its name."""
        raise NotImplementedError

    shards: ClassVar[bool] = False
    """True if the policy is split over the devices, by ``shard``."""

    def shard(self, policy: torch.nn.Module, mesh: Any, precision: str) -> None:
        """Split the policy in place over Lightning's device mesh, before the optimizer is made."""
        raise NotImplementedError


def footprint(*networks: torch.nn.Module) -> Footprint:
    """Bytes of one unsharded replica: weights as held, and for what is trained a gradient and AdamW's two moments."""
    parameters = [p for network in networks for p in network.parameters()]
    held = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    return Footprint(held + 3 * trained, 0)
