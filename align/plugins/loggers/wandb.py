"""Metrics to Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from align import AlignError, Logger

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger as LightningLogger


class WandB(Logger):
    """A run at wandb, or offline files; the key comes from the environment (``WANDB_API_KEY``), never from here."""

    name = "wandb"

    class Config(Logger.Config):
        """Settings in the run file."""

        project: str = "align"
        """The wandb project."""
        mode: Literal["online", "offline"] = "online"
        """``offline`` keeps the files under the stage's directory for ``wandb sync``."""

    def open(self, directory: Path, run_name: str, resume_step: int) -> LightningLogger:
        """A resumed stage goes on in the same wandb run."""
        from lightning.pytorch.loggers import WandbLogger

        assert isinstance(self.config, WandB.Config)
        try:
            return WandbLogger(
                name=run_name,
                id=run_name.replace("/", "-"),
                save_dir=directory,
                project=self.config.project,
                offline=self.config.mode == "offline",
                resume="allow",
            )
        except ModuleNotFoundError:
            raise AlignError(
                "needs wandb, which is not installed", "pip install 'align-llm[wandb]'", where="loggers: wandb"
            ) from None
