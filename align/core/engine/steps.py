"""Optimizer steps as Lightning sees them: one batch is one step's share on this rank.

A stage is a sequence of *phases*, each one Lightning epoch: an epoch over a file, a window of a stream, a rollout
phase. A phase knows its number of steps beforehand and can build any of them, so resuming is an index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from align.core.algorithm import contract
from align.core.algorithm.contract import Algorithm
from align.core.data import step_plan
from align.core.data.batch import MicroBatch, collate
from align.core.data.examples import Example, Examples
from align.core.data.step_plan import Layout
from align.core.util.profile import profiled
from align.schemas.run import Train


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The micro-batches of one rank for one optimizer step.

    denominators: counts over the whole step, all ranks (see ``align.core.data.step_plan.denominators``).
    auxiliary:    micro-batches that ``Algorithm.statistics`` is computed on first.
    """

    index: int
    micros: list[MicroBatch]
    auxiliary: list[MicroBatch]
    denominators: Mapping[str, float]
    tokens: int

    @property
    def own_tokens(self) -> int:
        """Positions of this rank's micro-batches alone, padding included: the work that it has in this step."""
        return sum(micro.input_ids_RL.numel() for micro in self.micros)

    @profiled("data")
    def to(self, device: Any) -> StepBatch:
        """Move every tensor (Lightning calls it)."""
        return StepBatch(
            self.index,
            [m.to(device) for m in self.micros],
            [m.to(device) for m in self.auxiliary],
            self.denominators,
            self.tokens,
        )


@dataclass(frozen=True, slots=True)
class MicroBatcher:
    """Cuts a step's examples into one rank's micro-batches. Changes speed and memory, never the gradient."""

    algorithm: Algorithm
    train: Train
    layout: Layout
    pad_id: int
    micro_tokens: int
    rank: int
    world_size: int
    forward: int
    """``plan.FORWARD`` of the device."""

    def micros(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """The micro-batches of ``examples`` for this rank; as many on every rank."""
        ranks = step_plan.plan_micro_batches(
            examples, self.world_size, self.micro_tokens, self.train.micro_batch_size, self.layout, self.forward
        )
        return [
            collate([examples[i] for i in micro.examples], self.layout, self.pad_id, like=examples, trees=micro.trees)
            for micro in ranks[self.rank]
        ]

    @profiled("data")
    def step(self, index: int, examples: Sequence[Example]) -> StepBatch:
        """One whole optimizer step."""
        with contract.calling(self.algorithm, "auxiliary"):
            auxiliary = self.algorithm.auxiliary(examples)
        return StepBatch(
            index,
            self.micros(examples),
            self.micros(auxiliary) if auxiliary else [],
            step_plan.denominators(examples),
            sum(sum(e.lengths) for e in examples),
        )


class StepLoader:
    """The steps of one phase from ``start`` on; what Lightning iterates over."""

    def __init__(self, build: Callable[[int], StepBatch], steps: int, start: int = 0) -> None:
        self.build, self.steps, self.start = build, steps, start

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[StepBatch]:
        for index in range(self.start, self.steps):
            yield self.build(index)


class StepSource(Protocol):
    """A source of optimizer steps, phase by phase."""

    total_steps: int
    steps_per_rollout: int | None
    """Optimizer steps that learn from the same sampled completions; None for a source that samples nothing."""
    evaluate_every: int | None
    """Steps between evaluations where the run file does not say; None: at the end of each phase."""

    def loader(self, phase: int, start: int) -> StepLoader:
        """Return the steps of one phase from step ``start`` of it on."""
        ...

    def locate(self, steps_done: int) -> tuple[int, int]:
        """Return (phase, step within it) after that many optimizer steps of the stage."""
        ...

    def epochs(self, steps_done: int) -> float:
        """Return the passes over the data that so many steps make, for the log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the settings do not determine."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned, before the first ``loader``."""
        ...


class EpochSteps:
    """A phase is a pass over a fixed set of examples, in an order drawn from (seed, epoch)."""

    evaluate_every: int | None = None
    steps_per_rollout: int | None = None

    def __init__(self, examples: Examples, batcher: MicroBatcher, train: Train, seed: int) -> None:
        self.examples, self.batcher, self.seed = examples, batcher, seed
        self.batch_size = train.batch_size
        self.steps_per_epoch = len(self._order(0))
        wanted = max(1, round(train.num_train_epochs * self.steps_per_epoch))
        self.total_steps = train.max_steps or wanted

    def _order(self, epoch: int) -> list[NDArray[Any]]:
        return step_plan.epoch_order(self.examples.sources, self.examples.weights, self.seed, epoch, self.batch_size)

    def rows(self) -> NDArray[np.int64]:
        """Return the indices of the examples that some step learns from, ascending."""
        learned = np.zeros(len(self.examples), bool)
        for epoch in range(-(-self.total_steps // self.steps_per_epoch)):
            left = self.total_steps - epoch * self.steps_per_epoch
            learned[np.concatenate(self._order(epoch)[:left])] = True
            if learned.all():
                break
        return np.flatnonzero(learned)

    def loader(self, phase: int, start: int) -> StepLoader:
        """One epoch's steps, the last epoch cut short at ``total_steps``."""
        steps = self._order(phase)

        def build(index: int) -> StepBatch:
            return self.batcher.step(index, [self.examples[int(i)] for i in steps[index]])

        left = self.total_steps - phase * self.steps_per_epoch
        return StepLoader(build, min(len(steps), left), start)

    def locate(self, steps_done: int) -> tuple[int, int]:
        """(epoch, step within it)."""
        return divmod(steps_done, self.steps_per_epoch)

    def epochs(self, steps_done: int) -> float:
        """Passes over the data."""
        return steps_done / self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: every epoch follows from its number."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""


def fixed_steps(examples: Examples, batcher: MicroBatcher, batch_size: int) -> StepLoader:
    """Held-out examples in file order, the same steps at every evaluation."""

    def build(index: int) -> StepBatch:
        chosen = range(index * batch_size, min(len(examples), (index + 1) * batch_size))
        return batcher.step(index, [examples[i] for i in chosen])

    return StepLoader(build, -(-len(examples) // batch_size))
