"""Parts of loggers: files that are verified when a run is resumed, and the checksum of ``metrics.csv``.

The base class is ``align.Logger``. Importing this loads PyTorch, through Lightning.
"""

from align.core.engine.logger import Verified, chain_row, chain_rows, read_rows

__all__ = ["Verified", "chain_row", "chain_rows", "read_rows"]
