"""The base class of logger plugins: destinations of metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from align.schemas.base import Config

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger as LightningLogger


class Logger:
    """Base class of destinations for metrics: subclass, name it, and return a Lightning logger from ``open``."""

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
    """Optional methods of a logger that ``open`` returns: its file is then verified when the run is resumed.

    Checkpoints hold the file's checksum, so the file itself stays an ordinary one.
    """

    @property
    def name(self) -> str | None:
        """Name of the logger, the key of its checksum in checkpoints."""
        ...

    def digest(self) -> str:
        """Return the checksum of what was logged so far: of names and values, not of their layout in the file."""
        ...

    def set_aside(self, why: str) -> None:
        """Rename the file and start a new one, because it is not what was written. why: the reason, for the message."""
        ...
