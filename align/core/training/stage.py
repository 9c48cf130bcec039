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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from align.core.algorithm import contract
from align.core.algorithm.contract import Algorithm
from align.core.data.batch import collate
from align.core.data.datasets import DatasetBuilder, Datasets, HeldOutSet
from align.core.data.examples import Example
from align.core.data.step_plan import FORWARD
from align.core.engine import checkpoint, processes
from align.core.engine.checkpoint import seed_random_state
from align.core.engine.processes import Strategy, footprint
from align.core.engine.steps import MicroBatcher, StepLoader, StepSource
from align.core.generation.generator_base import ModelHandle
from align.core.inference.eval_suite import opened_suite
from align.core.models.load_and_export import (
    build_policy,
    end_tokens,
    load_tokenizer,
    notes,
    resolve_model_path,
)
from align.core.models.packing import (
    LengthLimits,
    check_lengths,
    layout_for,
    limits_for,
    longest_sequence,
    worth_sharing,
)
from align.core.models.policy import Policy, layer_by_layer
from align.core.models.reference import Precomputed, ReferenceModel, assert_zero_kl, make_reference, precompute
from align.core.online.phases import PhaseObserver
from align.core.plugin_system.registry import registry
from align.core.training.run_directory import RunDirectory, located
from align.core.training.suite_in_training import SuiteInTraining
from align.core.util.atomic_files import cache_directory
from align.core.util.detect_hardware import slow_precision
from align.core.util.profile import profiled
from align.core.util.progress import say, working
from align.core.util.stopping import StopFlag
from align.schemas.engine import MICRO_TOKENS, REPLICA_SHARE, activation_bytes
from align.schemas.errors import AlignError, Problem
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Choice, Stage
from align.schemas.text import stripped

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from align.core.engine.module import StageHooks

Source = TypeVar("Source", bound=StepSource)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The networks of a stage. limits: the longest rows that the policy can take and was made for."""

    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    critic: Policy | None
    reference: ReferenceModel | None
    limits: LengthLimits

    def handle(self, stage: Stage, context: int) -> ModelHandle:
        """Return the policy in training as generators take it. context: most tokens of prompt and completion."""
        start = stage.model
        directory = resolve_model_path(start.path, start.revision, start.trust_remote_code)
        ends = end_tokens(self.policy.unwrapped, self.tokenizer)
        return ModelHandle(directory, start, self.tokenizer, ends, context, self.policy)


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
    placement: str
    """A sentence: the strategy, and why it was taken."""
    hardware: Hardware
    notes: list[Problem]
    """Warnings to print before the first step."""


class StageRunner(ABC, Generic[Source]):
    """One stage of a run, in this process and, where there are several, in all processes of its group alike."""

    def __init__(
        self,
        directory: RunDirectory,
        stage: Stage,
        algorithm: Algorithm,
        progress: bool,
        hardware: Hardware | None = None,
    ) -> None:
        """hardware: to plan for; None: what the stage's processes run on."""
        self.directory, self.algorithm, self.progress = directory, algorithm, progress
        self.place = directory.stage(stage.name)
        self.declared = stage
        """The stage as the run file has it: a resumed run is compared by it, so that a directory may be moved."""
        self.stage = self.adapt_settings(located(stage, directory.export_of))
        self.hardware = hardware or processes.launched(stage.devices)
        self.signals = StopFlag()  # made here because sampling asks it too; it listens once training has begun

    # --- what the kinds differ in ----------------------------------------------------------------------------------

    def adapt_settings(self, stage: Stage) -> Stage:
        """Return the settings as the stage uses them, from those of the run file. Called before all else."""
        if stage.train.precision != "bf16-true":
            return stage
        # Weights are loaded in it: converting them later would take buffers along.
        model = stage.model.model_copy(update={"dtype": "bfloat16"})
        return stage.model_copy(update={"model": model})

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

    def planned_rows(self, data: Datasets, batcher: MicroBatcher) -> NDArray[np.int64]:
        """Return the indices of the training examples that the stage reads, ascending; by default all."""
        return np.arange(len(data.train))

    def observers(self) -> Sequence[PhaseObserver]:
        """Return the functions that are given every phase's completions while the stage runs, none by default."""
        return ()

    @abstractmethod
    def describe_first_step(self, ready: PreparedStage[Source]) -> str:
        """Return a phrase about the first step, for ``align train --check``."""

    def running(self, ready: PreparedStage[Source]) -> AbstractContextManager[None]:
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
            self.directory.note(self.stage.name, strategy={"name": ready.strategy.name, "why": ready.placement})
            if self.progress and self.hardware.world_size > 1:
                say(f"{self.stage.name}: strategy {ready.placement}")
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
        if self.stage.validation.suite is not None:
            with opened_suite(self.stage.validation.suite):  # its mistakes are found before the model is loaded
                pass
        tokenizer = load_tokenizer(self.stage.model, self.algorithm.head)
        # Only rank 0 writes into the run directory: it may still have to refuse it.
        report = self.place.path if processes.rank() == 0 else None
        builder = DatasetBuilder(self.stage, tokenizer, self.algorithm, report, self.progress)
        data = builder.build()
        self.check_rows(data)
        model, batcher, too_long = self.load_model(data)
        strategy, placement = self.choose_strategy(model, data, batcher)
        if model.reference is not None:
            with autocast(self.hardware, self.stage.train.precision), self._on_device(model.policy, strategy):
                data = self.measure_reference(data, model.policy, model.reference, batcher)
        steps = self.make_step_source(model, data, builder, batcher, observers)
        slow = slow_precision(self.hardware, self.stage.train.precision, self.stage.model.dtype)
        warnings = [*too_long, *slow, *notes(model.policy, model.tokenizer, data.train)]
        return PreparedStage(
            self.stage, self.algorithm, model, data, batcher, steps, strategy, placement, self.hardware, warnings
        )

    @profiled("loading")
    def load_model(self, data: Datasets) -> tuple[LoadedModel, MicroBatcher, list[Problem]]:
        """Return the networks, how steps are cut for them, and warnings about rows that are long for them."""
        stage, algorithm = self.stage, self.algorithm
        seed_random_state(stage.seed)
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
            share = stage.train.shared_prefix and (algorithm.samples or worth_sharing(data.train))
            layout = layout_for(
                policy,
                self.hardware.accelerator,
                stage.train.layout,
                data.train,
                pad_id,
                share=share,
                critic=critic,
            )
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

    def choose_strategy(self, model: LoadedModel, data: Datasets, batcher: MicroBatcher) -> tuple[Strategy, str]:
        """Return the strategy that shares the work, the run file's or for ``auto`` the one that plugins choose; why."""
        size = footprint(
            *filter(None, (model.policy, model.critic)),
            others=0 if model.reference is None else model.reference.copied_bytes,
            activations=self._activations(model, data, batcher),
        )
        return resolve_strategy(self.stage, self.hardware, size)

    def _activations(self, model: LoadedModel, data: Datasets, batcher: MicroBatcher) -> float:
        """Return about how many bytes a micro-batch of the largest size keeps for backward, by a formula."""
        train, config = self.stage.train, model.policy.unwrapped.config.get_text_config()
        rollout = self.stage.rollout
        longest = int(data.train.lengths.max()) + (0 if rollout is None else rollout.sampling.max_completion_length)
        rows = -(-train.batch_size // batcher.world_size)
        tokens = min(train.micro_batch_size or rows, rows) * longest
        if train.micro_batch_size is None:
            tokens = max(longest, min(tokens, batcher.micro_tokens))
        half = train.precision != "32-true" or self.stage.model.dtype in ("bfloat16", "float16")
        hidden, layers = (int(getattr(config, name, 0)) for name in ("hidden_size", "num_hidden_layers"))
        return activation_bytes(tokens, hidden, layers, self.stage.model.gradient_checkpointing, 2 if half else 4)

    def measure_reference(
        self, data: Datasets, policy: Policy, reference: ReferenceModel, batcher: MicroBatcher
    ) -> Datasets:
        """Return the data with reference log-probabilities, where they are computed once; check the reference."""
        rows = self.planned_rows(data, batcher)
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
            data = replace(data, train=measure(data.train, rows=rows), held_out=held_out)
        first = collate([_something_scored(data.train[int(rows[0])])], batcher.layout, batcher.pad_id)
        assert_zero_kl(reference, policy, first.to(policy.device))
        return data

    def _on_device(self, policy: Policy, strategy: Strategy) -> AbstractContextManager[None]:
        """Return a context in which the policy, not sharded yet, runs on this process's device.

        Whole where it fits; one that only shards of fit has a layer there at a time.
        """
        if self.hardware.accelerator != "cuda":
            return nullcontext()
        device = torch.device("cuda", processes.local_rank())
        held = sum(p.numel() * p.element_size() for p in policy.parameters())
        if strategy.shards and held > REPLICA_SHARE * self.hardware.memory:
            return layer_by_layer(policy, device)
        policy.to(device)
        return nullcontext()


def autocast(hardware: Hardware, precision: str) -> AbstractContextManager[object]:
    """Return the context of training's forward passes, so that the reference is measured as the policy will be."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return nullcontext() if dtype is None else torch.autocast(hardware.accelerator, dtype)


def resolve_strategy(stage: Stage, hardware: Hardware, size: Footprint) -> tuple[Strategy, str]:
    """Return the strategy that shares a stage's work, and the sentence that says why.

    Raises AlignError where it cannot run on this hardware or with the stage's settings.
    """
    declared: Strategy = registry.build("strategy", stage.devices.strategy)
    with contract.calling(declared, "resolve"):
        chosen = declared.resolve(hardware, size, lambda: _strategy_by_plugins(hardware, size))
    _refuse_quantised(stage, hardware, chosen)
    _refuse_half_precision(stage, chosen)
    if chosen is declared:
        return chosen, size.explain(chosen.name, hardware, "run file")
    return chosen, size.explain(chosen.name, hardware, "auto" if chosen.name == size.choice(hardware) else "plugin")


def _refuse_quantised(stage: Stage, hardware: Hardware, strategy: Strategy) -> None:
    """Raise AlignError where a base in few bits cannot be computed with, or not be sharded."""
    adapter = stage.model.adapter
    if adapter is None or adapter.quantize is None:
        return
    where = f"{stage.name}: model.adapter.quantize"
    if hardware.accelerator != "cuda":
        raise AlignError("needs a CUDA GPU", "leave quantize out to train on a CPU", where=where)
    if strategy.shards and hardware.world_size > 1:
        what = f"is {adapter.quantize}, and {strategy.name} cannot split a quantised base over devices"
        raise AlignError(what, "leave quantize out, or use devices.strategy: ddp", where=where)


def _refuse_half_precision(stage: Stage, strategy: Strategy) -> None:
    """Raise AlignError for float16 under a strategy that splits: Lightning has no gradient scaler for it."""
    if strategy.shards and stage.train.precision == "16-mixed":
        raise AlignError(
            f"is 16-mixed, and {strategy.name} cannot scale the loss, without which gradients in float16 vanish",
            "use bf16-mixed (or 32-true, where the GPU has no bfloat16), or devices.strategy: ddp if a replica fits",
            where=f"{stage.name}: train.precision",
        )


def refuse_stream(stage: Stage) -> None:
    """Raise AlignError if the stage's data are a stream."""
    if stage.data.stream:
        raise AlignError(
            "needs train.max_steps, and an algorithm without reference such as pretrain or sft",
            "give train.max_steps, or read the files whole: data.stream: false",
            where=f"{stage.name}: data.stream",
        )


def _something_scored(example: Example) -> Example:
    """Return an example as it is, or a prompt with all its tokens scored."""
    if any(s.scored.any() for s in example.sequences):
        return example
    return replace(example, sequences=tuple(replace(s, scored=np.arange(len(s)) > 0) for s in example.sequences))


def _strategy_by_plugins(hardware: Hardware, size: Footprint) -> Strategy:
    name = registry.first("choose_strategy", hardware=hardware, footprint=size)
    strategy: Strategy = registry.build("strategy", Choice(type=name))
    return strategy


# --- stages that train -----------------------------------------------------------------------------------------------


class TrainingStage(StageRunner[Source]):
    """A stage that takes optimizer steps and exports a model."""

    suite: SuiteInTraining | None = None
    """The suite that is measured at evaluations, once ``hooks`` was called."""

    # --- what the kinds differ in ----------------------------------------------------------------------------------

    def hooks(self, ready: PreparedStage[Source]) -> StageHooks:
        """Return what this kind of stage adds to the module's steps."""
        from align.core.engine.module import StageHooks

        shard = None
        if ready.strategy.shards:
            shard = partial(_shard, ready.strategy.shard, self.stage.train.precision)
        hooks = StageHooks(shard=shard, stop_requested=self.signals.requested)
        if self.stage.validation.suite is not None:
            forward = partial(autocast, self.hardware, self.stage.train.precision)
            self.suite = SuiteInTraining(self.stage, ready.model, ready.batcher, self.place.path, forward)
            hooks = replace(hooks, evaluate_suite=self.suite.evaluate)
        return hooks

    def callbacks(self, ready: PreparedStage[Source]) -> list[Callback]:
        """Return Lightning callbacks of this kind of stage alone, none by default."""
        return []

    @abstractmethod
    def held_out_loaders(self, ready: PreparedStage[Source]) -> list[StepLoader]:
        """Return one loader for each held-out set."""

    # --- what they share -------------------------------------------------------------------------------------------

    def execute(self, ready: PreparedStage[Source]) -> None:
        """Train from the latest valid checkpoint on, or from the start; then export."""
        # Here: Lightning takes half a second to import, and ``align train --check`` does not train.
        from align.core.training.fit import fit

        fit(self, ready)

    def note_pause(self, step: int) -> None:
        """Record that the pause of a step is reported, so that it is not reported again after --resume."""
        if processes.rank() == 0:
            self.directory.note(self.stage.name, paused_at=checkpoint.at(Path(), step).name)


def _shard(shard: Callable[[Any, Any, str], None], precision: str, policy: Any, mesh: Any) -> None:
    shard(policy, mesh, precision)
