"""Training of a stage on Lightning's Trainer: fit or resume, export what was trained, record the stage as done."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningDataModule, Trainer
from transformers.utils import logging as transformers_logging

from align.core.algorithm import contract
from align.core.engine import checkpoint, processes
from align.core.engine.callbacks import CheckpointCallback, MetricsCallback, ProgressBar
from align.core.engine.logger import Verified
from align.core.engine.module import AlignModule, NonFinite, StageHooks
from align.core.engine.steps import StepBatch, StepLoader, StepSource
from align.core.generation.base import Interrupt
from align.core.models.export import export_from_state
from align.core.online.collect import PhaseFailed
from align.core.plugin_system.registry import registry
from align.core.training.run_directory import StageDirectory, training_settings
from align.core.training.stage import PreparedStage, Source, StageRunner
from align.core.util.atomic_files import digest
from align.core.util.liveness import Interrupted
from align.core.util.progress import working
from align.schemas.errors import AlignError, Problem
from align.schemas.text import stripped

COMPARED = ("settings", "data", "steps")
"""Facts of a checkpoint that must be the same in a resumed run."""


class TrainedStage(StageRunner[Source]):
    """A stage that takes optimizer steps and exports a model."""

    # --- what the kinds differ in ----------------------------------------------------------------------------------

    def hooks(self, ready: PreparedStage[Source]) -> StageHooks:
        """Return what this kind of stage adds to the module's steps."""
        shard = None
        if ready.strategy.shards:
            shard = partial(_shard, ready.strategy.shard, self.stage.train.precision)
        return StageHooks(shard=shard, stop_requested=self.signals.requested)

    def callbacks(self, ready: PreparedStage[Source]) -> list[Callback]:
        """Return Lightning callbacks of this kind of stage alone, none by default."""
        return []

    @abstractmethod
    def held_out_loaders(self, ready: PreparedStage[Source]) -> list[StepLoader]:
        """Return one loader for each held-out set."""

    # --- what they share -------------------------------------------------------------------------------------------

    def execute(self, ready: PreparedStage[Source]) -> None:
        """Train from the latest valid checkpoint on, or from the start; then export."""
        module = AlignModule(
            self.stage,
            ready.model.policy,
            ready.algorithm,
            ready.model.reference,
            ready.steps.total_steps,
            [held_out.name for held_out in ready.data.held_out],
            ready.model.critic,
            self.hooks(ready),
        )
        start, facts = self._resume_from(ready)
        try:
            with _quiet(), self.at_work(ready):
                trainer, checkpoints = self._trainer(ready, start, facts)
                steps = StageDataModule(
                    ready.steps, partial(self.held_out_loaders, ready), partial(checkpoints.interrupt, trainer, module)
                )
                trainer.fit(module, datamodule=steps, ckpt_path=start, weights_only=True)
                with working(f"{self.stage.name}: writing the model to {self.place.export}"):
                    self._export(ready, trainer, module, checkpoints)
            if module.stopping or self.signals.received:  # during the last step: the stage is done, the run is not
                raise Interrupted(self.signals.received or signal.SIGTERM, ready.steps.total_steps)
        except NonFinite as error:
            saved = checkpoint.last_step(self.place.checkpoints)
            fix = f"the last good checkpoint is of step {saved}" if saved else "no checkpoint had been made yet"
            raise AlignError.gather([*error.problems, Problem(str(self.place.path), fix)]) from None

    def _resume_from(self, ready: PreparedStage[Source]) -> tuple[Path | None, dict[str, Any]]:
        """Return the checkpoint to start from, None for the beginning, and the facts for the next ones' manifests.

        Raises AlignError for a checkpoint of other settings, data or steps.
        """
        start, damaged = checkpoint.latest_valid(self.place.checkpoints)
        facts: dict[str, Any] = {
            "settings": digest(training_settings(self.declared)),
            # Compared before, as the run began (RunDirectory.begin_stage).
            "inputs": self.place.inputs() if processes.rank() == 0 else {},
            "data": ready.data.content_hash,
            "steps": ready.steps.total_steps,
            "seed": self.stage.seed,
            "world_size": ready.batcher.world_size,
            "layout": ready.batcher.layout,
            "micro_tokens": ready.batcher.micro_tokens,
        }
        if processes.rank() == 0:
            for sentence in damaged:
                print(stripped(sentence), file=sys.stderr)
            report = self.directory.sums(self.place.path / "data_report.json")
            self.directory.note(self.stage.name, **facts, files=report)
        if start is not None:
            before = checkpoint.facts(start)
            changed = [name for name in COMPARED if before[name] != facts[name]]
            if changed:
                raise AlignError(
                    f"its {' and '.join(changed)} are not what this run has",
                    "put the files and settings back as they were, or choose another output",
                    where=str(start),
                )
        return start, facts

    def _trainer(
        self, ready: PreparedStage[Source], start: Path | None, facts: Mapping[str, Any]
    ) -> tuple[Trainer, CheckpointCallback]:
        """Return Lightning's Trainer with align's callbacks, and the one of them that keeps checkpoints."""
        stage, hardware = self.stage, self.hardware
        loggers = self._open_loggers(start) if processes.rank() == 0 else []
        with contract.calling(ready.strategy, "trainer_strategy"):
            strategy = ready.strategy.trainer_strategy(hardware)
        validates = bool(ready.data.held_out)
        checkpoints = CheckpointCallback(
            self.place.checkpoints, ready.steps, self.signals, validates, on_pause=self._note_pause
        )
        callbacks = [
            self.signals,
            MetricsCallback(ready.steps),
            *self.callbacks(ready),
            checkpoints,
            *registry.collect("make_callbacks", run=self.directory.run),
        ]
        every = stage.validation.eval_steps or ready.steps.evaluate_every
        environment = TorchElasticEnvironment() if processes.under_launcher() else LightningEnvironment()
        trainer = Trainer(
            accelerator="gpu" if hardware.accelerator == "cuda" else "cpu",
            devices=hardware.devices,
            num_nodes=hardware.nodes,
            strategy=strategy,
            plugins=[checkpoint.DirectoryIO(facts, partial(log_sums, loggers)), environment],
            precision="32-true" if stage.train.precision == "bf16-true" else stage.train.precision,
            max_steps=ready.steps.total_steps,
            max_epochs=-1,
            logger=loggers,
            callbacks=[*callbacks, ProgressBar(stage.name)] if self.progress else callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            # Each phase is one epoch, and its loader is made when it begins: an online phase is sampled only then.
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            inference_mode=False,
            num_sanity_val_steps=-1 if validates and start is None else 0,
            val_check_interval=every or 1.0,
            check_val_every_n_epoch=None if every else 1,
            limit_val_batches=1.0 if validates else 0,
            default_root_dir=self.place.path,
        )
        return trainer, checkpoints

    def _open_loggers(self, start: Path | None) -> list[Any]:
        """Open the stage's loggers at the step of the checkpoint: rows of later steps come again and are cut off.

        A log that is not what was written before the checkpoint is renamed and reported, and a new one started.
        """
        steps_done = int(start.name.partition("-")[2]) if start else 0
        loggers = []
        for choice in self.stage.loggers:
            logger = registry.build("logger", choice)
            with contract.calling(logger, "open"):
                run_name = f"{self.directory.path.name}/{self.stage.name}"
                loggers.append(logger.open(self.place.path, run_name, steps_done))
        if start is not None:
            _verify_logs(loggers, checkpoint.facts(start)["logs"])
        return loggers

    def _note_pause(self, step: int) -> None:
        """Record that the pause of a step is reported, so that it is not reported again after --resume."""
        if processes.rank() == 0:
            self.directory.note(self.stage.name, paused_at=checkpoint.at(Path(), step).name)

    def _export(
        self, ready: PreparedStage[Source], trainer: Trainer, module: AlignModule, checkpoints: CheckpointCallback
    ) -> None:
        """Export what was trained (rank 0, from the checkpoint, so that sharded and whole policies take one path)."""
        if processes.rank() == 0:
            takes_best = self.stage.checkpoint.export == "best" or module.rolled_back
            best = checkpoints.best_step if takes_best else None
            source = _verified(self.place, trainer.global_step, best, module.rolled_back)
            weights = checkpoint.load(source)["state_dict"]
            names = (name for name in weights if name.startswith("policy."))
            weights = {name.removeprefix("policy."): weights[name] for name in names}
            export_from_state(weights, self.stage.model, ready.algorithm.head, self.place.export)
            if module.rolled_back:
                self.directory.note(self.stage.name, rolled_back_to=checkpoints.best_step)
            metrics = {**module.metrics, **module.held_out_metrics}
            self.place.finish(self.declared, metrics, log_sums(trainer.loggers))
        if dist.is_available() and dist.is_initialized():
            dist.barrier()


class StageDataModule(LightningDataModule):
    """The steps of a stage as Lightning asks for them.

    held_out: returns a loader for each held-out set. on_interrupt: called with the exception that ended a phase while
    its completions were sampled; it saves what the last step left, and raises.
    """

    def __init__(
        self,
        steps: StepSource,
        held_out: Callable[[], list[StepLoader]],
        on_interrupt: Callable[[BaseException], NoReturn],
    ) -> None:
        super().__init__()
        self._steps, self._held_out, self._on_interrupt = steps, held_out, on_interrupt

    def train_dataloader(self) -> _Interruptible:
        """Return the steps left of the phase that the next step belongs to."""
        assert self.trainer is not None
        loader = self._steps.loader(*self._steps.locate(self.trainer.global_step))
        return _Interruptible(loader, self._on_interrupt)

    def val_dataloader(self) -> list[StepLoader]:
        """Return one loader for each held-out set."""
        return self._held_out()


class _Interruptible:
    """A loader of steps that reports an interrupted phase from between two steps, where a checkpoint can be saved."""

    def __init__(self, loader: StepLoader, on_interrupt: Callable[[BaseException], NoReturn]) -> None:
        self._loader, self._on_interrupt = loader, on_interrupt

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[StepBatch]:
        steps = iter(self._loader)
        while True:
            try:
                step = next(steps)
            except StopIteration:
                return
            except (Interrupt, PhaseFailed) as stop:
                self._on_interrupt(stop)
            yield step


def _shard(shard: Callable[[Any, Any, str], None], precision: str, policy: Any, mesh: Any) -> None:
    shard(policy, mesh, precision)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice about settings that are align's own, and a bar for every file that is written."""
    logs = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _verify_logs(loggers: Sequence[Any], sums: Mapping[str, str]) -> None:
    """Rename a log that is not what was written before the checkpoint, report it, and start a new one."""
    for logger in loggers:
        if isinstance(logger, Verified) and sums.get(str(logger.name), logger.digest()) != logger.digest():
            logger.set_aside("its rows are not those that were written")


def _verified(place: StageDirectory, last: int, best: int | None, rolled_back: bool) -> Path:
    """Return the checkpoint to export. Raises AlignError if it is damaged: no other one has the weights wanted."""
    path = checkpoint.at(place.checkpoints, last if best is None else best)
    fault = checkpoint.verify(path)
    if fault is None:
        return path
    if best is None or best == last:
        fix = "--resume trains its steps again, from the last checkpoint before it"
    elif rolled_back:
        fix = "put it back, or choose another output and train again"
    else:
        fix = "put it back; or export the last one, with checkpoint.export=last --resume"
    named = "checkpoint to export" if best is None else "best checkpoint"
    raise AlignError(f"the {named} is damaged: {fault}", fix, where=str(path))


def log_sums(loggers: Sequence[Any]) -> dict[str, str]:
    """Return the checksums of the loggers' files so far, by logger name; only rank 0 has loggers."""
    return {str(logger.name): logger.digest() for logger in loggers if isinstance(logger, Verified)}
