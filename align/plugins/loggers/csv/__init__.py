"""Metrics to ``metrics.csv``."""

from align.plugins.loggers.csv.logger import CSV

__all__ = ["CSV"]
