"""A stage that learns from data: rows of files are tokenised once, or read as a stream while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from align.core.data import step_plan
from align.core.data.datasets import DatasetBuilder, Datasets
from align.core.data.examples import Examples
from align.core.data.mixture import Window
from align.core.engine.steps import EpochSteps, MicroBatcher, StepBatch, StepLoader, StepSource, fixed_steps
from align.core.models.packing import check_lengths
from align.core.online.phases import PhaseObserver
from align.core.training.held_out_generation import HeldOutGeneration
from align.core.training.stage import LoadedModel, PreparedStage, TrainingStage, autocast, refuse_stream
from align.schemas.run import Train

if TYPE_CHECKING:
    from align.core.engine.module import StageHooks


class DataStage(TrainingStage[StepSource]):
    """A stage whose algorithm learns from rows: pretrain, sft, dpo, reward_model and the like."""

    _completions: HeldOutGeneration | None = None

    def check_settings(self) -> None:
        """Raise AlignError for a stream that has no end, or whose reference could not be measured beforehand."""
        if self.algorithm.uses_reference or self.stage.train.max_steps is None:
            refuse_stream(self.stage)

    def make_step_source(
        self,
        model: LoadedModel,
        data: Datasets,
        builder: DatasetBuilder,
        batcher: MicroBatcher,
        observers: Sequence[PhaseObserver],
    ) -> StepSource:
        """Return the steps of whole epochs, or of a stream's windows."""
        stage = self.stage
        if not stage.data.stream:
            return EpochSteps(data.train, batcher, stage.train, stage.seed)

        # A stream's rows come only while it trains, so their lengths are checked as they come.
        def tokenise(window: Window) -> Examples:
            examples = builder.window(window)
            check_lengths(model.policy, model.limits, [examples])
            return examples

        return StreamSteps(builder.windows, tokenise, batcher, stage.train, stage.seed)

    def planned_rows(self, data: Datasets, batcher: MicroBatcher) -> NDArray[np.int64]:
        """Return the rows of the planned steps: ``max_steps`` or part of an epoch may need few of a large file."""
        return EpochSteps(data.train, batcher, self.stage.train, self.stage.seed).rows()

    def held_out_loaders(self, ready: PreparedStage[StepSource]) -> list[StepLoader]:
        """Return the steps of each held-out set, the same at every evaluation."""
        size = self.stage.train.batch_size
        return [fixed_steps(held_out.examples, ready.batcher, size) for held_out in ready.data.held_out]

    def hooks(self, ready: PreparedStage[StepSource]) -> StageHooks:
        """Complete and score held-out prompts, where the run file asks for it."""
        hooks = super().hooks(ready)
        if self.stage.validation.generate:
            self._completions = HeldOutGeneration(
                self.stage,
                ready.model,
                ready.batcher,
                list(ready.data.held_out_rows.values()),
                self.place.path,
                self.hardware.accelerator,
                partial(autocast, self.hardware, self.stage.train.precision),
            )
            hooks = replace(hooks, evaluate_completions=self._completions.evaluate)
        return hooks

    def running(self, ready: PreparedStage[StepSource]) -> AbstractContextManager[None]:
        """Run what completes and scores held-out prompts."""
        return nullcontext() if self._completions is None else self._completions.running()

    def describe_first_step(self, ready: PreparedStage[StepSource]) -> str:
        """Return the first step's scored tokens and micro-batches."""
        step = next(iter(ready.steps.loader(0, 0)))
        micros = len(step.micros)
        batches = f"{micros} micro-batch" if micros == 1 else f"{micros} micro-batches"
        layout = ready.batcher.layout.replace("_shared", ", shared prefixes")
        return f"{step.denominators['token']:,.0f} scored tokens in {batches} ({layout})"


Places = Sequence[Sequence[int]]


class StreamSteps:
    """The steps of streamed data: each window of rows is one epoch of the step plan, read when its turn comes.

    Memory is bounded by a window, and a resumed run goes on at the same row.

    windows:  yields the windows from given places on (``align.core.data.mixture.stream_records``).
    tokenise: returns a window's records as examples.
    """

    evaluate_every: int | None = None
    steps_per_rollout: int | None = None

    def __init__(
        self,
        windows: Callable[[Places | None], Iterator[Window]],
        tokenise: Callable[[Window], Examples],
        batcher: MicroBatcher,
        train: Train,
        seed: int,
    ) -> None:
        assert train.max_steps is not None, "a stream without it was refused"
        self.total_steps = train.max_steps
        self._from, self._tokenise, self._batcher = windows, tokenise, batcher
        self._batch_size, self._seed = train.batch_size, seed
        self._ends: list[int] = []  # steps done at the end of each window begun so far
        self._places: list[Places | None] = [None]  # where each of them begins in the sources, then where the next does
        self._windows: Iterator[Window] | None = None

    def loader(self, phase: int, start: int) -> StepLoader:
        """Return the steps of one window, cut short at ``total_steps``. Windows come in order, the first one again."""
        if self._windows is None or phase != len(self._ends):
            self._windows = self._from(self._places[phase])
        window = next(self._windows)
        examples = self._tokenise(window)
        order = step_plan.epoch_order(np.zeros(len(examples), np.int32), (1.0,), self._seed, phase, self._batch_size)
        before = self._ends[phase - 1] if phase else 0
        self._ends[phase:] = [before + len(order)]
        self._places[phase + 1 :] = [[list(place) for place in window.places]]

        def build(index: int) -> StepBatch:
            return self._batcher.step(index, [examples[int(i)] for i in order[index]])

        return StepLoader(build, min(len(order), self.total_steps - before), start)

    def locate(self, steps_done: int) -> tuple[int, int]:
        """Return (window, step within it)."""
        phase = sum(end <= steps_done for end in self._ends)
        return phase, steps_done - (self._ends[phase - 1] if phase else 0)

    def epochs(self, steps_done: int) -> float:
        """Return the number of windows: a stream has no other end to count by."""
        phase, step = self.locate(steps_done)
        begin = self._ends[phase - 1] if phase else 0
        return phase + (step / (self._ends[phase] - begin) if phase < len(self._ends) else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return where each window begins and ends."""
        return {"ends": list(self._ends), "places": list(self._places)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state, before the first ``loader``."""
        self._ends, self._places, self._windows = list(state["ends"]), list(state["places"]), None
