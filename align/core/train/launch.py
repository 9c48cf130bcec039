"""Run -> stages -> Lightning's Trainer: the whole of ``align train``."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from align.core import runfile
from align.core.algorithm import Algorithm
from align.core.data.collate import collate
from align.core.data.examples import Examples
from align.core.model.export import export_from_state
from align.core.model.load import build_policy, load_tokenizer
from align.core.model.packing import layout_for
from align.core.model.policy import Policy
from align.core.model.reference import Precomputed, Reference, assert_zero_kl, make_reference, precompute
from align.core.registry import registry
from align.core.train import checkpoint, spawn
from align.core.train.callbacks import Bar, Interrupted, Keeper, Metrics, Signals
from align.core.train.module import AlignModule, NonFinite
from align.core.train.prepare import HeldOutSet, Prepared, prepare
from align.core.train.rundir import RunDirectory, StageDirectory, StageResult, cache_directory, digest, what_is_learned
from align.core.train.steps import Cutter, EpochPhases, Phases, StepLoader, fixed_steps
from align.core.train.strategy import Strategy, detect, footprint
from align.schemas.errors import AlignError, Problem
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Choice, Run, Stage

MICRO_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Default tokens of a forward pass: past these sizes neither kind of device gets faster on models that fit it."""


def train(run: Run, *, resume: bool = False, progress: bool = True) -> list[StageResult]:
    """Run every stage that is not finished yet; returns all of them.

    Raises AlignError for whatever the user can mend, and ``Interrupted`` after a signal, once the step is saved.
    """
    directory = RunDirectory(run)
    if spawn.rank() != 0:
        return [_stage(directory, stage, progress=False) for stage in run.stages]
    with directory:
        directory.begin(resume)
        results = [_stage(directory, stage, progress) for stage in run.stages]
    registry.notify("run_finished", run=run, directory=directory.path, results=results)
    return results


def _stage(directory: RunDirectory, stage: Stage, progress: bool) -> StageResult:
    """One stage: skipped when done, here when one process does it or this is one of a group, else in workers."""
    place = directory.stage(stage.name)
    if place.result() is None:
        hardware = detect(stage.devices)
        if spawn.under_launcher() or hardware.world_size == 1:
            fit(directory, stage, progress)
        else:
            arguments = ["worker", str(directory.path), stage.name, *["--progress"] * progress]
            status = spawn.run_workers(arguments, hardware.devices)
            if status:
                raise _worker_failed(status, place)
    result = place.result()
    assert result is not None
    return result


def work(directory: Path, name: str, progress: bool) -> None:
    """One process of a stage's group, started by ``_stage``."""
    run = runfile.load(directory / "run.yaml")
    stage = next(stage for stage in run.stages if stage.name == name)
    try:
        fit(RunDirectory(run), stage, progress and spawn.rank() == 0)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _worker_failed(status: int, place: StageDirectory) -> BaseException:
    number = -status if status < 0 else status - 128
    saved = (checkpoint.steps(place.checkpoints) or [0])[0]
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        return Interrupted(number, saved)
    if status == WORKER_TOLD:
        return AlignError("a worker stopped for the reason above", where=str(place.path))
    how = f"was killed by {signal.Signals(number).name}" if 0 < number < 65 else f"ended with status {status}"
    return AlignError(
        f"a worker {how}", f"step {saved} is saved; --resume goes on from there" if saved else "", where=str(place.path)
    )


WORKER_TOLD = 2
"""Exit status of a worker that has printed an AlignError."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A stage made ready: everything but the Trainer."""

    stage: Stage
    algorithm: Algorithm
    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    reference: Reference | None
    prepared: Prepared
    cutter: Cutter
    phases: Phases
    strategy: Strategy
    hardware: Hardware


def set_up(directory: RunDirectory, stage: Stage, progress: bool) -> Setup:
    """Data first (cheap to be wrong about), then the model, its reference, and the plan."""
    stage = stage.model_copy(update={"model": _located(directory, stage)})
    algorithm: Algorithm = registry.build("algorithm", stage.algorithm)
    hardware = detect(stage.devices)
    tokenizer = load_tokenizer(stage.model)
    prepared = prepare(stage, tokenizer, algorithm, directory.stage(stage.name).path, progress)

    seed_everything(stage.seed, verbose=False)
    dropout = algorithm.dropout if stage.train.dropout is None else stage.train.dropout
    policy, tokenizer = build_policy(stage.model, algorithm.head, seed=stage.seed, dropout=dropout)
    pad_id = int(tokenizer.pad_token_id or 0)
    layout = layout_for(policy, hardware.accelerator, stage.train.layout, prepared.train, pad_id)
    reference = None
    if algorithm.uses_reference:
        known_ahead = type(algorithm).auxiliary is Algorithm.auxiliary
        reference = make_reference(stage.reference, policy, stage, known_ahead=known_ahead)
    strategy: Strategy = registry.build("strategy", stage.devices.strategy)
    size = footprint(policy)
    strategy = strategy.settle(hardware, size, lambda: _chosen(hardware, size))
    cutter = Cutter(
        algorithm,
        stage.train,
        layout,
        pad_id,
        stage.train.micro_batch_tokens or MICRO_TOKENS[hardware.accelerator],
        spawn.rank(),
        int(os.environ.get("WORLD_SIZE", "1")),
    )
    if reference is not None:
        prepared = _measured(prepared, reference, policy, cutter, hardware, progress)
    phases = EpochPhases(prepared.train, cutter, stage.train, stage.seed)
    return Setup(stage, algorithm, tokenizer, policy, reference, prepared, cutter, phases, strategy, hardware)


def _measured(
    prepared: Prepared, reference: Reference, policy: Policy, cutter: Cutter, hardware: Hardware, progress: bool
) -> Prepared:
    """The data with reference log-probabilities where they are computed once; and the reference checked."""
    if hardware.accelerator == "cuda":
        policy.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
    if isinstance(reference, Precomputed):

        def measure(examples: Examples) -> Examples:
            return precompute(
                policy,
                examples,
                layout=cutter.layout,
                pad_id=cutter.pad_id,
                micro_tokens=cutter.micro_tokens,
                micro_size=cutter.train.micro_batch_size,
                cache=cache_directory(),
                progress=progress,
            )

        with FileLock(cache_directory() / ".lock"):  # one rank computes, the others find its cache
            held_out = [HeldOutSet(held.name, measure(held.examples)) for held in prepared.held_out]
            prepared = replace(prepared, train=measure(prepared.train), held_out=held_out)
    first = collate([prepared.train[0]], cutter.layout, cutter.pad_id)
    assert_zero_kl(reference, policy, first.to(next(policy.parameters()).device))
    return prepared


def _located(directory: RunDirectory, stage: Stage) -> Any:
    """The stage's model, with ``stage:NAME`` replaced by what that stage exported."""
    kind, _, name = stage.model.path.partition(":")
    path = str(directory.stage(name).export) if kind == "stage" else stage.model.path
    return stage.model.model_copy(update={"path": path})


def _chosen(hardware: Hardware, size: Footprint) -> Strategy:
    name = registry.first("choose_strategy", hardware=hardware, footprint=size)
    strategy: Strategy = registry.build("strategy", Choice(type=name))
    return strategy


def fit(directory: RunDirectory, stage: Stage, progress: bool) -> None:
    """Train one stage in this process (and its group), export it and mark it as done."""
    place = directory.stage(stage.name)
    setup = set_up(directory, stage, progress)
    module = AlignModule(
        setup.stage,
        setup.policy,
        setup.algorithm,
        setup.reference,
        setup.phases.total_steps,
        [held_out.name for held_out in setup.prepared.held_out],
    )
    if setup.strategy.shard is not None:
        split, precision = setup.strategy.shard, stage.train.precision
        module.shard = lambda policy, mesh: split(policy, mesh, precision)
    start, damaged = checkpoint.newest(place.checkpoints)
    facts = _facts(setup)
    if spawn.rank() == 0:
        for sentence in damaged:
            print(sentence, file=sys.stderr)
        directory.note(stage.name, **facts)
    if start is not None:
        _check_same(start, facts)
    try:
        with _quiet():
            trainer, keeper = _trainer(directory, place, setup, start, progress, facts)
            trainer.fit(module, datamodule=Steps(setup), ckpt_path=start, weights_only=True)
            _hand_on(place, setup, module, keeper)
    except NonFinite as error:
        saved = (checkpoint.steps(place.checkpoints) or [0])[0]
        mend = f"the last good checkpoint is of step {saved}" if saved else "no checkpoint had been made yet"
        raise AlignError.gather([*error.problems, Problem(str(place.path), mend)]) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No advice from Lightning about settings that are align's own, and no bar for every file that is written."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        try:
            yield
        finally:
            log.setLevel(level)
            transformers_logging.enable_progress_bar()


def _facts(setup: Setup) -> dict[str, Any]:
    """What a checkpoint's manifest says about the stage; a resumed run must match all but the last three."""
    return {
        "settings": digest(what_is_learned(setup.stage)),
        "data": setup.phases.fingerprint,
        "steps": setup.phases.total_steps,
        "seed": setup.stage.seed,
        "world_size": setup.cutter.world_size,
        "layout": setup.cutter.layout,
        "micro_tokens": setup.cutter.micro_tokens,
    }


def _check_same(start: Path, facts: Mapping[str, Any]) -> None:
    before = json.loads((start / checkpoint.MANIFEST).read_bytes())
    changed = [name for name in ("settings", "data", "steps") if before[name] != facts[name]]
    if changed:
        raise AlignError(
            f"its {' and '.join(changed)} are not what this run has",
            "put the files and settings back as they were, or choose another output",
            where=str(start),
        )


def _trainer(
    directory: RunDirectory, place: StageDirectory, setup: Setup, start: Path | None, progress: bool, facts: Any
) -> tuple[Trainer, Keeper]:
    stage, hardware = setup.stage, setup.hardware
    steps_done = int(start.name.partition("-")[2]) if start else 0
    loggers = []
    if spawn.rank() == 0:
        made = [registry.build("logger", choice) for choice in stage.loggers]
        loggers = [logger.open(place.path, f"{directory.path.name}/{stage.name}", steps_done) for logger in made]
    io = checkpoint.DirectoryIO()
    io.facts = facts
    signals = Signals()
    validates = bool(setup.prepared.held_out)
    keeper = Keeper(place.checkpoints, setup.phases, signals, validates)
    callbacks = [signals, Metrics(setup.phases), keeper, *registry.collect("make_callbacks", run=directory.run)]
    every = stage.validation.every
    trainer = Trainer(
        accelerator="gpu" if hardware.accelerator == "cuda" else "cpu",
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=setup.strategy.trainer_strategy(hardware),
        plugins=[io, TorchElasticEnvironment() if spawn.under_launcher() else LightningEnvironment()],
        precision=stage.train.precision,
        max_steps=setup.phases.total_steps,
        max_epochs=-1,
        logger=loggers,
        callbacks=[*callbacks, Bar(stage.name)] if progress else callbacks,
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
    return trainer, keeper


class Steps(LightningDataModule):
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
        size = self.setup_.stage.train.batch_size
        return [fixed_steps(held_out.examples, self.setup_.cutter, size) for held_out in self.setup_.prepared.held_out]


def _hand_on(place: StageDirectory, setup: Setup, module: AlignModule, keeper: Keeper) -> None:
    """Export what was trained (rank 0, from the checkpoint, so that sharded and whole policies take one path)."""
    if spawn.rank() == 0:
        best = setup.stage.checkpoint.export == "best" and keeper.best_step is not None
        chosen = checkpoint.at(place.checkpoints, keeper.best_step or 0) if best else None
        source = chosen or checkpoint.newest(place.checkpoints)[0]
        assert source is not None
        weights = checkpoint.load(source)["state_dict"]
        weights = {name.removeprefix("policy."): value for name, value in weights.items()}
        export_from_state(weights, setup.stage.model, setup.algorithm.head, place.export)
        place.finish({**module.metrics, **module.held_out_metrics})
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
