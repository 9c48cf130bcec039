"""Parts of plugins that run in several processes: rank, values of all ranks, ports, random number generators.

Importing this loads PyTorch.
"""

from align.core.engine.checkpoint import all_gather_objects, keep_random_state
from align.core.engine.processes import free_port, rank

__all__ = ["all_gather_objects", "free_port", "keep_random_state", "rank"]
