"""One stage on Lightning's Trainer: fit, resume, export."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from transformers.utils import logging as transformers_logging

from align.core.algorithm import contract
from align.core.algorithm.online import RowGenerator
from align.core.engine import checkpoint, processes
from align.core.engine.callbacks import CheckpointCallback, MetricsCallback, ProgressBar, SignalHandler
from align.core.engine.logger import Verified
from align.core.engine.module import AlignModule, NonFinite
from align.core.engine.steps import StepLoader, fixed_steps
from align.core.models.export import export_from_state
from align.core.online.alarm_callback import AlarmCallback
from align.core.online.collect import Prompts
from align.core.online.phases import RolloutSteps
from align.core.plugin_system.registry import registry
from align.core.rewards.functions import STATE
from align.core.training.reward_stage import opened
from align.core.training.row_stage import harvest
from align.core.training.run_directory import RunDirectory, StageDirectory, located, training_settings
from align.core.training.sample_log import SampleLog
from align.core.training.stage import Setup, set_up
from align.core.util import liveness
from align.core.util.atomic_files import digest
from align.core.util.liveness import Interrupted, Limits, watched
from align.core.util.progress import showing, working
from align.core.util.system_errors import explain
from align.schemas.errors import AlignError, Problem
from align.schemas.run import Stage
from align.schemas.text import stripped

# Messages for a stage that failed: which process, on which machine, at which step, and what is saved.

_GLOO = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
"""Text in gloo's RuntimeErrors about a broken connection; torch has no class for them."""
REPORT_SECONDS = 1.0
"""Seconds that a process which lost its peers waits for one of them to report why it ended."""


class Lost(AlignError):
    """Raised for a collective that broke because another process is gone or silent: that process is the cause."""


@contextmanager
def explained_failures(place: StageDirectory) -> Iterator[None]:
    """Raise errors of the machine and lost connections to other processes as AlignError, with the saved step."""
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        found = explain(error)
        if found is None and not _is_lost(error):
            raise
        problems = _peers(place) if found is None else found.problems
        kind = Lost if found is None else AlignError
        raise kind("", problems=[*problems, *_saved(place)]) from error


def worker_failed(ended: processes.Ended, place: StageDirectory) -> BaseException:
    """Return the exception to raise for the worker that ended first."""
    status = ended.status
    number = -status if status < 0 else status - 128
    if number in liveness.SIGNALS:
        return Interrupted(number, checkpoint.last_step(place.checkpoints))
    sign = liveness.signs(place.path).get(ended.rank)
    reported = sign.error if sign is not None else ""
    # Rank 0 has printed its error on this terminal; another rank's is repeated only where it is not above already.
    if status == liveness.FAILED and not (ended.rank and reported and reported not in ended.stderr):
        above = Problem(str(place.path), "a worker stopped for the reason above")
        return AlignError("", problems=[above, *_saved(place)])
    who = liveness.named(ended.rank, sign) if sign else f"rank {ended.rank} on {socket.gethostname()}"
    if reported:
        what, fix = f"stopped:\n{reported}", ""
    elif number == signal.SIGKILL:
        what = "was killed by SIGKILL: memory may have run out"
        fix = "dmesg shows whether it did, and which process used it"
    elif 0 < number < signal.NSIG:
        what, fix = f"was killed by {signal.Signals(number).name}", ""
    else:
        what, fix = f"ended with status {status}", ""
    problems = [Problem(who, what, fix)]
    if ended.stderr and not reported:
        problems.append(Problem("its last lines", ended.stderr.replace("\n", "\n    ")))
    return AlignError("", problems=[*problems, *_saved(place)])


def _saved(place: StageDirectory) -> list[Problem]:
    step = checkpoint.last_step(place.checkpoints)
    return [Problem(str(place.path), f"step {step} is saved", "--resume goes on from there")] if step else []


def _is_lost(error: Exception) -> bool:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    broken = isinstance(error, RuntimeError) and any(text in str(error) for text in _GLOO)
    return broken or isinstance(error, dist.DistError)


def _peers(place: StageDirectory) -> list[Problem]:
    """Return the errors that other processes of the group reported; without any, that the connection was lost."""
    mine, world = processes.rank(), int(os.environ["WORLD_SIZE"])
    until = time.monotonic() + REPORT_SECONDS  # a peer may be about to write its error
    while True:
        signs = liveness.signs(place.path)
        reported = [
            Problem(liveness.named(rank, sign), f"stopped:\n{sign.error}")
            for rank, sign in signs.items()
            if rank != mine and sign.error
        ]
        if reported or time.monotonic() > until:
            break
        time.sleep(0.05)
    if reported:
        return reported
    absent = [f"rank {rank}" for rank in range(world) if rank not in signs]
    what = f"{', '.join(absent)} never started" if absent else "lost its connection to another process of the group"
    fix = "what started the processes names the one that ended first (torchrun: root cause)"
    return [Problem(liveness.named(mine, signs.get(mine)), what, fix)]


COMPARED = ("settings", "data", "steps")
"""Facts of a checkpoint that must be the same in a resumed run."""


def fit(directory: RunDirectory, stage: Stage, progress: bool) -> None:
    """Train one stage in this process (and its group), export it and mark it as done."""
    place = directory.stage(stage.name)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    watching = watched(place.path, processes.rank(), world, limits(stage))
    with showing(progress), watching, explained_failures(place):
        _fit(directory, place, stage, progress)


def limits(stage: Stage) -> Limits:
    """Return how many seconds the stage's processes wait."""
    return Limits(stage.devices.timeout, stage.devices.stop_timeout)


def _fit(directory: RunDirectory, place: StageDirectory, stage: Stage, progress: bool) -> None:
    setup = set_up(directory, located(stage, directory.export_of), progress)
    if processes.rank() == 0:
        for note in setup.notes:
            print(stripped(str(note)), file=sys.stderr)
    if isinstance(setup.phases, RolloutSteps):
        setup.phases.heard = [SampleLog(directory.run, place, setup.phases.rollout)] if processes.rank() == 0 else []
    if isinstance(setup.algorithm, RowGenerator):
        harvest(place, stage, setup, directory)
        return
    module = AlignModule(
        setup.stage,
        setup.policy,
        setup.algorithm,
        setup.reference,
        setup.phases.total_steps,
        [held_out.name for held_out in setup.prepared.held_out],
        setup.critic,
    )
    if setup.strategy.shards:
        module.shard = lambda policy, mesh: setup.strategy.shard(policy, mesh, stage.train.precision)
    start, damaged = checkpoint.latest_valid(place.checkpoints)
    facts = _facts(stage, place, setup)
    if processes.rank() == 0:
        for sentence in damaged:
            print(stripped(sentence), file=sys.stderr)
        directory.note(stage.name, **facts, files=directory.sums(place.path / "data_report.json"))
    if start is not None:
        _check_same(start, facts)
    try:
        with _quiet(), rolling_out(directory, place, setup, module):
            trainer, keeper = _trainer(directory, place, setup, start, progress, facts)
            if processes.rank() == 0:
                keeper.on_pause = lambda step: directory.note(stage.name, paused_at=checkpoint.at(Path(), step).name)
            if isinstance(setup.phases, RolloutSteps):
                setup.phases.broken_off = partial(keeper.break_off, trainer, module)
            trainer.fit(module, datamodule=StageDataModule(setup), ckpt_path=start, weights_only=True)
            with working(f"{stage.name}: writing the model to {place.export}"):
                _export(directory, place, stage, setup, module, keeper, trainer)
        if module.stopping or keeper.signals.received:  # during the last step: the stage is done, the run is not
            raise Interrupted(keeper.signals.received or signal.SIGTERM, setup.phases.total_steps)
    except NonFinite as error:
        saved = checkpoint.last_step(place.checkpoints)
        fix = f"the last good checkpoint is of step {saved}" if saved else "no checkpoint had been made yet"
        raise AlignError.gather([*error.problems, Problem(str(place.path), fix)]) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No advice from Lightning about settings that are align's own, and no bar for every file that is written."""
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


def _facts(stage: Stage, place: StageDirectory, setup: Setup) -> dict[str, Any]:
    """Return the facts for a checkpoint's manifest; those of ``COMPARED`` must match when the run is resumed."""
    return {
        "settings": digest(training_settings(stage)),
        "inputs": place.inputs() if processes.rank() == 0 else {},  # compared before (RunDirectory.begin_stage)
        "data": setup.prepared.content_hash,
        "steps": setup.phases.total_steps,
        "seed": setup.stage.seed,
        "world_size": setup.cutter.world_size,
        "layout": setup.cutter.layout,
        "micro_tokens": setup.cutter.micro_tokens,
    }


def _check_same(start: Path, facts: Mapping[str, Any]) -> None:
    before = checkpoint.facts(start)
    changed = [name for name in COMPARED if before[name] != facts[name]]
    if changed:
        raise AlignError(
            f"its {' and '.join(changed)} are not what this run has",
            "put the files and settings back as they were, or choose another output",
            where=str(start),
        )


def _trainer(
    directory: RunDirectory, place: StageDirectory, setup: Setup, start: Path | None, progress: bool, facts: Any
) -> tuple[Trainer, CheckpointCallback]:
    stage, hardware = setup.stage, setup.hardware
    steps_done = int(start.name.partition("-")[2]) if start else 0
    loggers = []
    if processes.rank() == 0:
        made = [registry.build("logger", choice) for choice in stage.loggers]
        for logger in made:
            # Opened for the step of the checkpoint: rows of later steps come again and are cut off.
            with contract.calling(logger, "open"):
                loggers.append(logger.open(place.path, f"{directory.path.name}/{stage.name}", steps_done))
        if start is not None:
            _verify_logs(loggers, checkpoint.facts(start)["logs"])
    with contract.calling(setup.strategy, "trainer_strategy"):
        strategy = setup.strategy.trainer_strategy(hardware)
    io = checkpoint.DirectoryIO()
    io.facts = facts
    signals = SignalHandler()
    validates = bool(setup.prepared.held_out)
    keeper = CheckpointCallback(place.checkpoints, setup.phases, signals, validates)
    callbacks = [
        signals,
        MetricsCallback(setup.phases),
        *_alarms(directory, setup),
        keeper,
        *registry.collect("make_callbacks", run=directory.run),
    ]
    every = stage.validation.eval_steps or setup.phases.evaluate_every
    trainer = Trainer(
        accelerator="gpu" if hardware.accelerator == "cuda" else "cpu",
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=strategy,
        plugins=[io, TorchElasticEnvironment() if processes.under_launcher() else LightningEnvironment()],
        precision="32-true" if stage.train.precision == "bf16-true" else stage.train.precision,
        max_steps=setup.phases.total_steps,
        max_epochs=-1,
        logger=loggers,
        callbacks=[*callbacks, ProgressBar(stage.name)] if progress else callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        inference_mode=False,
        num_sanity_val_steps=-1 if validates and start is None else 0,
        val_check_interval=every or 1.0,
        check_val_every_n_epoch=None if every else 1,
        limit_val_batches=1.0 if validates else 0,
        default_root_dir=place.path,
    )
    io.logs = partial(log_sums, trainer)
    return trainer, keeper


def _verify_logs(loggers: Sequence[Any], sums: Mapping[str, str]) -> None:
    """Rename a log that is not what was written before the checkpoint, report it, and start a new one."""
    for logger in loggers:
        if isinstance(logger, Verified) and sums.get(str(logger.name), logger.digest()) != logger.digest():
            logger.set_aside("its rows are not those that were written")


@contextmanager
def rolling_out(directory: RunDirectory, place: StageDirectory, setup: Setup, module: AlignModule) -> Iterator[None]:
    """For an online stage: its collector at work, and module, phases and run directory told of each other."""
    phases = setup.phases
    if not isinstance(phases, RolloutSteps):
        yield
        return
    module.phase_metrics = lambda: phases.metrics
    held_out = [Prompts(held.examples, setup.prepared.rows) for held in setup.prepared.held_out]
    module.rehearse = lambda index: phases.evaluate(held_out[index], module.trainer.global_step)
    phases.collector.stop = lambda: module.stop_requested()
    try:
        with opened(phases.collector):
            yield
    finally:
        STATE.global_step = 0  # outside training


class StageDataModule(LightningDataModule):
    """The phases as Lightning asks for them."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup_ = setup

    def train_dataloader(self) -> StepLoader:
        """What is left of the phase that the next step belongs to."""
        assert self.trainer is not None
        return self.setup_.phases.loader(*self.setup_.phases.locate(self.trainer.global_step))

    def val_dataloader(self) -> list[StepLoader]:
        """One loader for each held-out set."""
        if isinstance(self.setup_.phases, RolloutSteps):  # what each holds is asked by ``AlignModule.rehearse``
            return [
                StepLoader(lambda index: self.setup_.cutter.step(index, []), 1) for _ in self.setup_.prepared.held_out
            ]
        size = self.setup_.stage.train.batch_size
        return [fixed_steps(held_out.examples, self.setup_.cutter, size) for held_out in self.setup_.prepared.held_out]


def _alarms(directory: RunDirectory, setup: Setup) -> list[AlarmCallback]:
    if not isinstance(setup.phases, RolloutSteps):
        return []
    name = setup.stage.name
    return [
        AlarmCallback(setup.phases.rollout.watch, setup.phases, lambda said: directory.note(name, alarms=list(said)))
    ]


def _export(
    directory: RunDirectory,
    place: StageDirectory,
    stage: Stage,
    setup: Setup,
    module: AlignModule,
    keeper: CheckpointCallback,
    trainer: Trainer,
) -> None:
    """Export what was trained (rank 0, from the checkpoint, so that sharded and whole policies take one path)."""
    if processes.rank() == 0:
        wanted = setup.stage.checkpoint.export == "best" or module.rolled_back
        best = keeper.best_step if wanted else None
        source = _verified(place, trainer.global_step, best, module.rolled_back)
        weights = checkpoint.load(source)["state_dict"]
        mine = (name for name in weights if name.startswith("policy."))
        weights = {name.removeprefix("policy."): weights[name] for name in mine}
        export_from_state(weights, setup.stage.model, setup.algorithm.head, place.export)
        if module.rolled_back:
            directory.note(setup.stage.name, rolled_back_to=keeper.best_step)
        place.finish(stage, {**module.metrics, **module.held_out_metrics}, log_sums(trainer))
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


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


def log_sums(trainer: Trainer) -> dict[str, str]:
    """Return the checksums of the loggers' files so far, by logger name; rank 0 only has loggers."""
    return {str(logger.name): logger.digest() for logger in trainer.loggers if isinstance(logger, Verified)}
