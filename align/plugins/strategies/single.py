"""One process, one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from align.core.engine.strategy import Strategy
from align.schemas.errors import AlignError
from align.schemas.hardware import Footprint, Hardware


class Single(Strategy):
    """Everything in one process on one device."""

    name = "single"

    def settle(self, hardware: Hardware, footprint: Footprint, choose: Callable[[], Strategy]) -> Strategy:
        """Raises AlignError for more than one device."""
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
