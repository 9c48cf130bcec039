"""Built-in strategies."""

from align.plugins.strategies.single_ddp_fsdp.strategies import DDP, FSDP, Auto, Single

__all__ = ["DDP", "FSDP", "Auto", "Single"]
