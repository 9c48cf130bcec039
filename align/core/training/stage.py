"""A stage of a run, and the steps that every kind of stage takes.

    prepare   check the settings -> read the data -> load the model -> make the source of optimizer steps
    execute   train or make rows -> write the export -> record the stage as done

``align train --check`` and measured estimates only prepare. Three kinds differ in some of these steps: ``DataStage``
learns from rows, ``RewardStage`` from the rewards of completions that it samples, and ``RowStage`` makes rows of such
completions. The algorithm's class decides which one runs it (``align.core.training.launch.stage_runner``).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from lightning.pytorch import seed_everything
from transformers import PreTrainedTokenizerBase

from align.core.algorithm import contract
from align.core.algorithm.base import Algorithm
from align.core.data.batch import collate
from align.core.data.examples import Example
from align.core.data.step_plan import FORWARD
from align.core.engine import processes
from align.core.engine.callbacks import SignalHandler
from align.core.engine.steps import MicroBatcher, StepSource
from align.core.engine.strategy import Strategy, footprint
from align.core.models.load_and_export import build_policy, load_tokenizer, notes
from align.core.models.packing import LengthLimits, check_lengths, layout_for, limits_for, longest_sequence
from align.core.models.policy import Policy
from align.core.models.reference import Precomputed, ReferenceModel, assert_zero_kl, make_reference, precompute
from align.core.online.phases import PhaseObserver
from align.core.plugin_system.registry import registry
from align.core.training.datasets import DatasetBuilder, Datasets, HeldOutSet
from align.core.training.run_directory import RunDirectory, located
from align.core.util.atomic_files import cache_directory
from align.core.util.progress import working
from align.schemas.engine import MICRO_TOKENS
from align.schemas.errors import Problem
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Choice, Stage
from align.schemas.text import stripped

Source = TypeVar("Source", bound=StepSource)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The networks of a stage. limits: the longest rows that the policy can take and was made for."""

    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    critic: Policy | None
    reference: ReferenceModel | None
    limits: LengthLimits


@dataclass(frozen=True, slots=True)
class PreparedStage(Generic[Source]):
    """Everything that a stage needs to run, except Lightning's Trainer."""

    stage: Stage
    algorithm: Algorithm
    model: LoadedModel
    data: Datasets
    batcher: MicroBatcher
    steps: Source
    strategy: Strategy
    hardware: Hardware
    notes: list[Problem]
    """Warnings to print before the first step."""


class StageRunner(ABC, Generic[Source]):
    """One stage of a run, in this process and, where there are several, in all processes of its group alike."""

    def __init__(self, directory: RunDirectory, stage: Stage, algorithm: Algorithm, progress: bool) -> None:
        self.directory, self.algorithm, self.progress = directory, algorithm, progress
        self.place = directory.stage(stage.name)
        self.declared = stage
        """The stage as the run file has it: a resumed run is compared by it, so that a directory may be moved."""
        self.stage = located(stage, directory.export_of)
        if stage.train.precision == "bf16-true":  # loaded in it: converting them later would take buffers along
            model = self.stage.model.model_copy(update={"dtype": "bfloat16"})
            self.stage = self.stage.model_copy(update={"model": model})
        self.hardware = processes.launched(stage.devices)
        self.signals = SignalHandler()  # made here because sampling asks it too; it listens once training has begun

    # --- what the kinds differ in ----------------------------------------------------------------------------------

    @abstractmethod
    def check_settings(self) -> None:
        """Raise AlignError for settings that do not go together."""

    def check_rows(self, data: Datasets) -> None:
        """Raise AlignError for rows that this kind of stage cannot use."""

    def load_critic(self, tokenizer: PreTrainedTokenizerBase) -> Policy | None:
        """Return the value model that the algorithm wants, None by default."""
        return None

    @abstractmethod
    def make_step_source(
        self,
        model: LoadedModel,
        data: Datasets,
        builder: DatasetBuilder,
        batcher: MicroBatcher,
        observers: Sequence[PhaseObserver],
    ) -> Source:
        """Return the source of the stage's optimizer steps."""

    def observers(self) -> Sequence[PhaseObserver]:
        """Return the functions that are given every phase's completions while the stage runs, none by default."""
        return ()

    @abstractmethod
    def describe_first_step(self, ready: PreparedStage[Source]) -> str:
        """Return a phrase about the first step, for ``align train --check``."""

    def at_work(self, ready: PreparedStage[Source]) -> AbstractContextManager[None]:
        """Return a context in which steps can be taken: rewards and generator run in it, where there are some."""
        return nullcontext()

    @abstractmethod
    def execute(self, ready: PreparedStage[Source]) -> None:
        """Train or make rows, write the export and record the stage as done."""

    # --- what they share -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Prepare and execute the stage; its warnings are printed before its first step."""
        ready = self.prepare(self.observers())
        if processes.rank() == 0:
            for note in ready.notes:
                print(stripped(str(note)), file=sys.stderr)
        self.execute(ready)

    def prepare(self, observers: Sequence[PhaseObserver] = ()) -> PreparedStage[Source]:
        """Read the data first, as they are cheap to be wrong about; then load the model and plan the steps.

        observers: called with each phase's completions. Raises AlignError for whatever would stop training later.
        """
        if self.hardware.accelerator == "cuda":  # first of all: rewards and engines take the current device
            torch.cuda.set_device(processes.local_rank())
        self.check_settings()
        tokenizer = load_tokenizer(self.stage.model, self.algorithm.head)
        # Only rank 0 writes into the run directory: it may still have to refuse it.
        report = self.place.path if processes.rank() == 0 else None
        builder = DatasetBuilder(self.stage, tokenizer, self.algorithm, report, self.progress)
        data = builder.build()
        self.check_rows(data)
        model, batcher, too_long = self.load_model(data)
        strategy = self.choose_strategy(model)
        if model.reference is not None:
            with autocast(self.hardware, self.stage.train.precision):
                data = self.measure_reference(data, model.policy, model.reference, batcher)
        steps = self.make_step_source(model, data, builder, batcher, observers)
        warnings = [*too_long, *notes(model.policy, model.tokenizer, data.train)]
        return PreparedStage(self.stage, self.algorithm, model, data, batcher, steps, strategy, self.hardware, warnings)

    def load_model(self, data: Datasets) -> tuple[LoadedModel, MicroBatcher, list[Problem]]:
        """Return the networks, how steps are cut for them, and warnings about rows that are long for them."""
        stage, algorithm = self.stage, self.algorithm
        seed_everything(stage.seed, verbose=False)
        dropout = algorithm.dropout if stage.train.dropout is None else stage.train.dropout
        with working(f"{stage.name}: loading the model {stage.model.path}", shown=self.progress):
            policy, tokenizer = build_policy(stage.model, algorithm.head, seed=stage.seed, dropout=dropout)
        sets = [data.train, *(held_out.examples for held_out in data.held_out)]
        longest = max(map(longest_sequence, sets))
        if stage.data.stream:  # rows of later windows may be longer than the first window's
            longest = max(longest, stage.data.max_length)
        limits = limits_for(policy, longest)
        too_long = check_lengths(policy, limits, sets)
        critic = self.load_critic(tokenizer)
        if stage.rollout is not None:
            policy.temperature = stage.rollout.sampling.temperature or 1.0
        pad_id = int(tokenizer.pad_token_id or 0)
        with working(f"{stage.name}: trying a forward pass", shown=self.progress):
            layout = layout_for(policy, self.hardware.accelerator, stage.train.layout, data.train, pad_id)
        reference = None
        if algorithm.uses_reference:
            known_ahead = algorithm.reference_known_ahead
            reference = make_reference(stage.reference, policy, stage, known_ahead=known_ahead)
        batcher = MicroBatcher(
            algorithm,
            stage.train,
            layout,
            pad_id,
            stage.train.micro_batch_tokens or MICRO_TOKENS[self.hardware.accelerator],
            processes.rank(),
            processes.world_size(),
            FORWARD[self.hardware.accelerator],
        )
        return LoadedModel(tokenizer, policy, critic, reference, limits), batcher, too_long

    def choose_strategy(self, model: LoadedModel) -> Strategy:
        """Return the strategy that shares the work: the run file's, or for ``auto`` the one that plugins choose."""
        hardware, size = self.hardware, footprint(*filter(None, (model.policy, model.critic)))
        strategy: Strategy = registry.build("strategy", self.stage.devices.strategy)
        with contract.calling(strategy, "resolve"):
            return strategy.resolve(hardware, size, lambda: _chosen(hardware, size))

    def measure_reference(
        self, data: Datasets, policy: Policy, reference: ReferenceModel, batcher: MicroBatcher
    ) -> Datasets:
        """Return the data with reference log-probabilities, where they are computed once; check the reference."""
        if self.hardware.accelerator == "cuda":
            policy.to(torch.device("cuda", processes.local_rank()))
        if isinstance(reference, Precomputed):
            measure = partial(
                precompute,
                policy,
                layout=batcher.layout,
                pad_id=batcher.pad_id,
                micro_tokens=batcher.micro_tokens,
                micro_size=batcher.train.micro_batch_size,
                cache=cache_directory(),
                progress=self.progress,
            )
            held_out = [HeldOutSet(held.name, measure(held.examples)) for held in data.held_out]
            data = replace(data, train=measure(data.train), held_out=held_out)
        first = collate([_something_scored(data.train[0])], batcher.layout, batcher.pad_id)
        assert_zero_kl(reference, policy, first.to(next(policy.parameters()).device))
        return data


def autocast(hardware: Hardware, precision: str) -> AbstractContextManager[object]:
    """Return the context of training's forward passes, so that the reference is measured as the policy will be."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return nullcontext() if dtype is None else torch.autocast(hardware.accelerator, dtype)


def _something_scored(example: Example) -> Example:
    """Return an example as it is, or a prompt with all its tokens scored."""
    if any(s.scored.any() for s in example.sequences):
        return example
    return replace(example, sequences=tuple(replace(s, scored=np.arange(len(s)) > 0) for s in example.sequences))


def _chosen(hardware: Hardware, size: Footprint) -> Strategy:
    name = registry.first("choose_strategy", hardware=hardware, footprint=size)
    strategy: Strategy = registry.build("strategy", Choice(type=name))
    return strategy
