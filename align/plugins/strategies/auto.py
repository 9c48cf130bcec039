"""Ask the plugins (``choose_strategy``); align's own answer comes last."""

from __future__ import annotations

from collections.abc import Callable

from align.core.engine.strategy import Strategy
from align.schemas.hardware import Footprint, Hardware


class Auto(Strategy):
    """The default: single on one device; on several, ddp if a replica fits, else fsdp. A plugin may override it."""

    name = "auto"

    def settle(self, hardware: Hardware, footprint: Footprint, choose: Callable[[], Strategy]) -> Strategy:
        """What was chosen, settled in its turn."""
        return choose().settle(hardware, footprint, choose)
