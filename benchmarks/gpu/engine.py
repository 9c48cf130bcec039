"""align's own training step under a bare Trainer: no checkpoints, no exports, every step timed and weighed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, Trainer

from align.core.engine.module import AlignModule
from align.core.training.fit import StageDataModule
from align.core.training.launch import stage_runner
from align.core.training.run_directory import RunDirectory
from align.core.training.stage import PreparedStage, TrainingStage
from align.schemas.run import Run


def allocated() -> int:
    """Bytes of live tensors on the GPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def peak() -> int:
    """Most bytes of live tensors since the last call; waits for the GPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return most


class Scale(Callback):
    """Bytes and seconds of every step, and of what happens between steps (an online phase)."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.before, self.weights = allocated(), 0
        self._micros: list[dict[str, int]] = []

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """The networks are on the device, and nothing else is."""
        peak()
        self.weights, self._since = allocated(), time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """The step's micro-batches are on the device."""
        self._between = peak()
        self._phase_seconds = time.perf_counter() - self._since
        self._micros = [
            {
                "rows": int(micro.input_ids_RL.shape[0]),
                "length": int(micro.input_ids_RL.shape[1]),
                "scored": len(micro.target_T),
                "masked": int(micro.attention_mask_RL is not None),
            }
            for micro in batch.micros
        ]
        self._tokens, self._since = batch.tokens, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        """The optimizer has stepped; gradients are still there."""
        most, now = peak(), time.perf_counter()
        self.steps.append(
            {
                "between_peak": self._between,
                "between_seconds": round(self._phase_seconds, 4),
                "step_peak": most,
                "step_seconds": round(now - self._since, 4),
                "after": allocated(),
                "tokens": self._tokens,
                "loss": module.metrics["loss"],
                "micros": self._micros,
            }
        )
        self._since = time.perf_counter()


def weighed(run: Run, steps: int) -> tuple[Scale, PreparedStage[Any], int]:
    """Train the run's only stage for some steps; the scale, what was set up, and bytes before the first step."""
    directory = RunDirectory(run)
    directory.path.mkdir(parents=True)
    runner = stage_runner(directory, run.stages[0], progress=False)
    assert isinstance(runner, TrainingStage)
    runner.place.path.mkdir()
    peak()
    scale = Scale()
    ready = runner.prepare()
    preparing = peak()
    model = ready.model
    module = AlignModule(
        ready.stage,
        model.policy,
        ready.algorithm,
        model.reference,
        ready.steps.total_steps,
        critic=model.critic,
        hooks=runner.hooks(ready),
    )
    with runner.running(ready):
        trainer = Trainer(
            accelerator="gpu" if ready.hardware.accelerator == "cuda" else "cpu",
            devices=1,
            precision=ready.stage.train.precision,
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            callbacks=[scale],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            inference_mode=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            default_root_dir=Path(run.output),
        )
        trainer.fit(module, datamodule=StageDataModule(ready.steps, list, _raise))
    return scale, ready, preparing


def _raise(why: BaseException) -> NoReturn:
    raise why
