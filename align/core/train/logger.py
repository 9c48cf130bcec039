"""Where metrics go: the base class of logger plugins."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from lightning.pytorch.loggers import Logger as LightningLogger

from align.schemas.base import Config


class Logger:
    """A destination for metrics: subclass, name it, and return a Lightning logger from ``open``."""

    name: ClassVar[str]

    class Config(Config):
        """Settings in the run file."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, directory: Path, run_name: str, resume_step: int) -> LightningLogger:
        """Called once, on rank 0, before the first step.

        directory:   the stage's directory.
        resume_step: steps done; what was logged after them is about to be logged again and must go (0: a new run).
        """
        raise NotImplementedError


@runtime_checkable
class Verified(Protocol):
    """What ``open`` may return as well: a logger whose file is verified when the run is resumed.

    Checkpoints keep its sum, so the file itself stays an ordinary one.
    """

    @property
    def name(self) -> str | None:
        """What checkpoints keep the sum under."""
        ...

    def digest(self) -> str:
        """Return the sum of what was logged so far: of names and values, not of how they are laid out."""
        ...

    def set_aside(self, why: str) -> None:
        """Put the file away under another name and begin anew, because it is not what was written."""
        ...
