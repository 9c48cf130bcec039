"""Training of a stage on Lightning's Trainer: fit or resume, export what was trained, record the stage as done.

Lightning is imported with this file, so nothing imports it before a stage trains (``TrainingStage.execute``).
"""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from transformers.utils import logging as transformers_logging

from align.core.algorithm import contract
from align.core.engine import checkpoint, processes
from align.core.engine.callbacks import CheckpointCallback, DirectoryIO, MetricsCallback, ProgressBar, SignalHandler
from align.core.engine.logger import Verified
from align.core.engine.module import AlignModule, NonFinite
from align.core.engine.sharded_checkpoint import join
from align.core.engine.steps import StepBatch, StepLoader, StepSource
from align.core.generation.generator_base import Interrupt
from align.core.models.load_and_export import export_by_tensor, export_from_state
from align.core.models.policy import has_dropout
from align.core.online.phases import PhaseFailed
from align.core.plugin_system.registry import registry
from align.core.training.run_directory import StageDirectory, training_settings
from align.core.training.stage import PreparedStage, TrainingStage
from align.core.util.atomic_files import digest
from align.core.util.profile import profiled
from align.core.util.progress import working
from align.core.util.stopping import Interrupted
from align.schemas.errors import AlignError, Problem
from align.schemas.text import stripped

Source = TypeVar("Source", bound=StepSource)

COMPARED = ("settings", "data", "steps")
"""Facts of a checkpoint that must be the same in a resumed run."""


def fit(runner: TrainingStage[Source], ready: PreparedStage[Source]) -> None:
    """Train from the latest valid checkpoint on, or from the start; then export."""
    module = AlignModule(
        runner.stage,
        ready.model.policy,
        ready.algorithm,
        ready.model.reference,
        ready.steps.total_steps,
        [held_out.name for held_out in ready.data.held_out],
        ready.model.critic,
        runner.hooks(ready),
    )
    start, facts = _resume_from(runner, ready)
    try:
        with _quiet(), runner.running(ready), nullcontext() if runner.suite is None else runner.suite.running():
            trainer, checkpoints = _trainer(runner, ready, start, facts)
            steps = StageDataModule(
                ready.steps, partial(runner.held_out_loaders, ready), partial(checkpoints.interrupt, trainer, module)
            )
            trainer.fit(module, datamodule=steps, ckpt_path=start, weights_only=True)
            with working(f"{runner.stage.name}: writing the model to {runner.place.export}"):
                _export(runner, ready, trainer, module, checkpoints)
        if module.stopping or runner.signals.received:  # during the last step: the stage is done, the run is not
            raise Interrupted(runner.signals.received or signal.SIGTERM, ready.steps.total_steps)
    except NonFinite as error:
        saved = checkpoint.last_step(runner.place.checkpoints)
        fix = f"the last good checkpoint is of step {saved}" if saved else "no checkpoint had been made yet"
        raise AlignError.gather([*error.problems, Problem(str(runner.place.path), fix)]) from None


def _resume_from(runner: TrainingStage[Source], ready: PreparedStage[Source]) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint to start from, None for the beginning, and the facts for the next ones' manifests.

    Raises AlignError for a checkpoint of other settings, data or steps.
    """
    start, damaged = checkpoint.latest_valid(runner.place.checkpoints)
    facts: dict[str, Any] = {
        "settings": digest(training_settings(runner.declared)),
        # Compared before, as the run began (RunDirectory.begin_stage).
        "inputs": runner.place.inputs() if processes.rank() == 0 else {},
        "data": ready.data.content_hash,
        "steps": ready.steps.total_steps,
        "seed": runner.stage.seed,
        "world_size": ready.batcher.world_size,
        "strategy": ready.strategy.name,
        "layout": ready.batcher.layout,
        "micro_tokens": ready.batcher.micro_tokens,
    }
    if processes.rank() == 0:
        for sentence in damaged:
            print(stripped(sentence), file=sys.stderr)
        report = runner.directory.sums(runner.place.path / "data_report.json")
        sampled = ready.steps.steps_per_rollout  # the report places the completions of a phase by it
        phases = {} if sampled is None else {"steps_per_rollout": sampled}
        runner.directory.note(runner.stage.name, **facts, **phases, files=report)
    if start is not None:
        before = checkpoint.facts(start)
        changed = [name for name in COMPARED if before[name] != facts[name]]
        if changed:
            raise AlignError(
                f"its {' and '.join(changed)} are not what this run has",
                "put the files and settings back as they were, or choose another output",
                where=str(start),
            )
        if processes.rank() == 0 and (sentence := _inexact(before, facts, has_dropout(ready.model.policy))):
            print(stripped(f"{runner.stage.name}: {sentence}"), file=sys.stderr)
    return start, facts


def _inexact(before: Mapping[str, Any], now: Mapping[str, Any], dropout: bool) -> str:
    """Return the sentence about a run that goes on over other processes than those that saved; empty if it does not.

    before, now: facts of checkpoints. Rows, order and completions follow from the seed, not from the processes; sums
    over a step are taken in another order, and dropout's random state belongs to each process.
    """
    saved, here = (_group(facts) for facts in (before, now))
    if saved == here or (before["world_size"] == now["world_size"] and "strategy" not in before):
        return ""
    same = "the same rows and completions follow in the same order"
    noise = "; dropout draws other numbers than it would have drawn" if dropout else ""
    step = before["name"].removeprefix("step-").lstrip("0")
    return (
        f"step {step} was saved by {saved}, and the run goes on over {here}: {same}, and sums are rounded in another "
        f"order, so that later steps are equal to rounding and not to the bit{noise}"
    )


def _group(facts: Mapping[str, Any]) -> str:
    """Return the processes that a checkpoint's facts are of, as a phrase: ``2 processes (ddp)``."""
    count = facts["world_size"]
    name = f" ({facts['strategy']})" if facts.get("strategy") else ""
    return f"{count} process{'es' if count > 1 else ''}{name}"


def _trainer(
    runner: TrainingStage[Source], ready: PreparedStage[Source], start: Path | None, facts: Mapping[str, Any]
) -> tuple[Trainer, CheckpointCallback]:
    """Return Lightning's Trainer with align's callbacks, and the one of them that keeps checkpoints."""
    stage, hardware = runner.stage, runner.hardware
    loggers = _open_loggers(runner, start) if processes.rank() == 0 else []
    with contract.calling(ready.strategy, "trainer_strategy"):
        strategy = ready.strategy.trainer_strategy(hardware)
    validates = bool(ready.data.held_out)
    checkpoints = CheckpointCallback(
        runner.place.checkpoints, ready.steps, runner.signals, validates, on_pause=runner.note_pause
    )
    callbacks = [
        SignalHandler(runner.signals),
        MetricsCallback(ready.steps),
        *runner.callbacks(ready),
        checkpoints,
        *registry.collect("make_callbacks", run=runner.directory.run),
    ]
    every = stage.validation.eval_steps or ready.steps.evaluate_every
    environment = TorchElasticEnvironment() if processes.under_launcher() else LightningEnvironment()
    trainer = Trainer(
        accelerator="gpu" if hardware.accelerator == "cuda" else "cpu",
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=strategy,
        plugins=[DirectoryIO(facts, partial(log_sums, loggers)), environment],
        precision="32-true" if stage.train.precision == "bf16-true" else stage.train.precision,
        max_steps=ready.steps.total_steps,
        max_epochs=-1,
        logger=loggers,
        callbacks=[*callbacks, ProgressBar(stage.name)] if runner.progress else callbacks,
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
        default_root_dir=runner.place.path,
    )
    return trainer, checkpoints


def _open_loggers(runner: TrainingStage[Any], start: Path | None) -> list[Any]:
    """Open the stage's loggers at the step of the checkpoint: rows of later steps come again and are cut off.

    A log that is not what was written before the checkpoint is renamed and reported, and a new one started.
    """
    steps_done = int(start.name.partition("-")[2]) if start else 0
    loggers = []
    for choice in runner.stage.loggers:
        logger = registry.build("logger", choice)
        with contract.calling(logger, "open"):
            run_name = f"{runner.directory.path.name}/{runner.stage.name}"
            loggers.append(logger.open(runner.place.path, run_name, steps_done))
    if start is not None:
        _verify_logs(loggers, checkpoint.facts(start)["logs"])
    return loggers


@profiled("export")
def _export(
    runner: TrainingStage[Source],
    ready: PreparedStage[Source],
    trainer: Trainer,
    module: AlignModule,
    checkpoints: CheckpointCallback,
) -> None:
    """Export what was trained (rank 0, from the checkpoint, so that sharded and whole policies take one path)."""
    if processes.rank() == 0:
        takes_best = runner.stage.checkpoint.export == "best" or module.rolled_back
        best = checkpoints.best_step if takes_best else None
        source = _verified(runner.place, trainer.global_step, best, module.rolled_back)
        state, shards = checkpoint.load_sharded(source)
        weights = {n.removeprefix("policy."): v for n, v in state["state_dict"].items() if n.startswith("policy.")}
        model, head, export = runner.stage.model, ready.algorithm.head, runner.place.export
        if shards is None:
            export_from_state(weights, model, head, export)
        else:
            reads = {n.removeprefix("model."): partial(join, value, shards.whole) for n, value in weights.items()}
            if not export_by_tensor(reads, model, head, export):
                export_from_state(join(weights, shards.whole), model, head, export)
        if module.rolled_back:
            runner.directory.note(runner.stage.name, rolled_back_to=checkpoints.best_step)
        metrics = {**module.metrics, **module.held_out_metrics}
        runner.place.finish(runner.declared, metrics, log_sums(trainer.loggers))
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
        # FSDP2 warns of what would follow if the loss changed the policy's output in place; it does not.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
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
    fault = checkpoint.fault_of(path)
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
