"""A stage made ready: data, model, reference, plan. What ``--check`` does too."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from lightning.pytorch import seed_everything
from transformers import PreTrainedTokenizerBase

from align.core.algorithm import contract
from align.core.algorithm.base import Algorithm
from align.core.algorithm.online import Online, RowGenerator
from align.core.data.batch import collate
from align.core.data.examples import Example, Examples
from align.core.data.mixture import Window
from align.core.data.step_plan import FORWARD
from align.core.engine import processes
from align.core.engine.steps import EpochSteps, MicroBatcher, StepSource
from align.core.engine.strategy import Strategy, footprint
from align.core.models.loading import build_policy, load_tokenizer, notes
from align.core.models.packing import check_lengths, layout_for, limits_for, longest_sequence
from align.core.models.policy import Policy
from align.core.models.reference import Precomputed, ReferenceModel, assert_zero_kl, make_reference, precompute
from align.core.online.collect import Prompts
from align.core.online.phases import RolloutSteps
from align.core.plugin_system.registry import registry
from align.core.training.datasets import HeldOutSet, Preparation, Prepared, StreamSteps
from align.core.training.reward_stage import build_critic, configure, make_collector, refuse_unusable_rows
from align.core.training.run_directory import RunDirectory
from align.core.util.atomic_files import cache_directory
from align.core.util.progress import working
from align.schemas.engine import MICRO_TOKENS
from align.schemas.errors import AlignError, Problem
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Choice, Stage


@dataclass(frozen=True, slots=True)
class Setup:
    """A stage made ready: everything but the Trainer."""

    stage: Stage
    algorithm: Algorithm
    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    critic: Policy | None
    reference: ReferenceModel | None
    prepared: Prepared
    cutter: MicroBatcher
    phases: StepSource
    strategy: Strategy
    hardware: Hardware
    notes: list[Problem]
    """Warnings to print before the first step."""


def set_up(directory: RunDirectory, stage: Stage, progress: bool) -> Setup:
    """Data first (cheap to be wrong about), then the model, its reference, and the plan.

    ``stage`` is located already: nothing in it is called ``stage:NAME`` any more.
    """
    algorithm: Algorithm = registry.build("algorithm", stage.algorithm)
    if stage.train.precision == "bf16-true":  # weights are loaded so: converting them later would take buffers along
        stage = stage.model_copy(update={"model": stage.model.model_copy(update={"dtype": "bfloat16"})})
    hardware = processes.launched(stage.devices)
    if hardware.accelerator == "cuda":  # before anything is put on a GPU: rewards and engines take the current one
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if isinstance(algorithm, Online):
        configure(algorithm, stage)
    if isinstance(algorithm, RowGenerator):  # it measures nothing on held-out prompts, and asks them all
        data = stage.data.model_copy(update={"validation": None, "validation_fraction": 0.0})
        stage = stage.model_copy(update={"data": data})
    if stage.data.stream and (algorithm.samples or algorithm.uses_reference or stage.train.max_steps is None):
        raise AlignError(
            "needs train.max_steps, and an algorithm without reference such as pretrain or sft",
            "give train.max_steps, or read the files whole: data.stream: false",
            where=f"{stage.name}: data.stream",
        )
    tokenizer = load_tokenizer(stage.model, algorithm.head)
    # Only rank 0 writes into the run directory: it may still have to refuse it.
    report = directory.stage(stage.name).path if processes.rank() == 0 else None
    preparation = Preparation(stage, tokenizer, algorithm, report, progress)
    prepared = preparation.prepare()
    if stage.rollout is not None:
        refuse_unusable_rows(prepared.rows.values(), [*stage.rollout.rewards, *filter(None, [stage.rollout.gold])])

    seed_everything(stage.seed, verbose=False)
    dropout = algorithm.dropout if stage.train.dropout is None else stage.train.dropout
    with working(f"{stage.name}: loading the model {stage.model.path}", shown=progress):
        policy, tokenizer = build_policy(stage.model, algorithm.head, seed=stage.seed, dropout=dropout)
    sets = [prepared.train, *(held.examples for held in prepared.held_out)]
    longest = max(map(longest_sequence, sets))
    if stage.data.stream:  # rows of later windows may be longer than the first window's
        longest = max(longest, stage.data.max_length)
    limits = limits_for(policy, longest)
    too_long = check_lengths(policy, limits, sets)
    critic = build_critic(algorithm, stage, tokenizer) if isinstance(algorithm, Online) else None
    if stage.rollout is not None:
        policy.temperature = stage.rollout.sampling.temperature or 1.0
    pad_id = int(tokenizer.pad_token_id or 0)
    with working(f"{stage.name}: trying a forward pass", shown=progress):
        layout = layout_for(policy, hardware.accelerator, stage.train.layout, prepared.train, pad_id)
    reference = None
    if algorithm.uses_reference:
        known_ahead = type(algorithm).auxiliary is Algorithm.auxiliary and not isinstance(algorithm, Online)
        reference = make_reference(stage.reference, policy, stage, known_ahead=known_ahead)
    strategy: Strategy = registry.build("strategy", stage.devices.strategy)
    size = footprint(*filter(None, (policy, critic)))
    with contract.calling(strategy, "resolve"):
        strategy = strategy.resolve(hardware, size, lambda: _chosen(hardware, size))
    cutter = MicroBatcher(
        algorithm,
        stage.train,
        layout,
        pad_id,
        stage.train.micro_batch_tokens or MICRO_TOKENS[hardware.accelerator],
        processes.rank(),
        int(os.environ.get("WORLD_SIZE", "1")),
        FORWARD[hardware.accelerator],
    )
    if reference is not None:
        with autocast(hardware, stage.train.precision):
            prepared = _measured(prepared, reference, policy, cutter, hardware, progress)
    phases: StepSource
    if isinstance(algorithm, Online):
        prompts = Prompts(prepared.train, prepared.rows)
        speaking = partial(autocast, hardware, stage.train.precision)
        home = directory.stage(stage.name).path
        collector = make_collector(
            stage, tokenizer, policy, critic, reference, cutter, hardware, prepared, home, speaking
        )
        phases = RolloutSteps(prompts, collector, algorithm, cutter, stage)
    elif stage.data.stream:
        # A stream's rows come only while it trains, so their lengths are checked as they come.
        def tokenise(window: Window) -> Examples:
            examples = preparation.window(window)
            check_lengths(policy, limits, [examples])
            return examples

        phases = StreamSteps(preparation.windows, tokenise, cutter, stage.train, stage.seed)
    else:
        phases = EpochSteps(prepared.train, cutter, stage.train, stage.seed)
    known = [*too_long, *notes(policy, tokenizer, prepared.train)]
    return Setup(
        stage, algorithm, tokenizer, policy, critic, reference, prepared, cutter, phases, strategy, hardware, known
    )


def autocast(hardware: Hardware, precision: str) -> AbstractContextManager[object]:
    """The context that training's forward passes run in, so that the reference is measured as the policy will be."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return nullcontext() if dtype is None else torch.autocast(hardware.accelerator, dtype)


def _measured(
    prepared: Prepared,
    reference: ReferenceModel,
    policy: Policy,
    cutter: MicroBatcher,
    hardware: Hardware,
    progress: bool,
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

        held_out = [HeldOutSet(held.name, measure(held.examples)) for held in prepared.held_out]
        prepared = replace(prepared, train=measure(prepared.train), held_out=held_out)
    first = collate([_something_scored(prepared.train[0])], cutter.layout, cutter.pad_id)
    assert_zero_kl(reference, policy, first.to(next(policy.parameters()).device))
    return prepared


def _something_scored(example: Example) -> Example:
    """An example as it is, or a prompt with all its tokens scored."""
    if any(s.scored.any() for s in example.sequences):
        return example
    return replace(example, sequences=tuple(replace(s, scored=np.arange(len(s)) > 0) for s in example.sequences))


def _chosen(hardware: Hardware, size: Footprint) -> Strategy:
    name = registry.first("choose_strategy", hardware=hardware, footprint=size)
    strategy: Strategy = registry.build("strategy", Choice(type=name))
    return strategy
