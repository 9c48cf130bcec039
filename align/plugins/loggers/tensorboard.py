"""Metrics to TensorBoard event files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from align import AlignError, Logger

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger as LightningLogger


class TensorBoard(Logger):
    """Event files under ``STAGE/tensorboard``."""

    name = "tensorboard"

    def open(self, directory: Path, run_name: str, resume_step: int) -> LightningLogger:
        """TensorBoard hides steps that are logged again after a restart (``purge_step``)."""
        from lightning.pytorch.loggers import TensorBoardLogger

        try:
            return TensorBoardLogger(directory, name="tensorboard", version="", purge_step=resume_step + 1)
        except ModuleNotFoundError:
            raise AlignError(
                "needs TensorBoard, which is not installed", "pip install tensorboard", where="loggers: tensorboard"
            ) from None
