"""One page that says what a run did: ``report.write(directory)``."""

from align.core.report.page import write

__all__ = ["write"]
