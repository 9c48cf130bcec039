"""Streamed data: a phase is a window of rows, read and tokenised when its turn comes (continual pre-training)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from align.core.data import step_plan
from align.core.data.examples import Examples
from align.core.data.sources import Window
from align.core.engine.steps import Cutter, StepBatch, StepLoader
from align.schemas.run import Train

Places = Sequence[Sequence[int]]


class StreamPhases:
    """Windows of a stream, each one epoch of the step plan; in bounded memory, and resumed at the same row.

    windows:  those from given places on (``align.core.data.sources.stream_records``).
    tokenise: a window's records as examples.
    """

    evaluate_every: int | None = None

    def __init__(
        self,
        windows: Callable[[Places | None], Iterator[Window]],
        tokenise: Callable[[Window], Examples],
        cutter: Cutter,
        train: Train,
        seed: int,
    ) -> None:
        assert train.max_steps is not None, "a stream without it was refused"
        self.total_steps = train.max_steps
        self._from, self._tokenise, self._cutter = windows, tokenise, cutter
        self._batch_size, self._seed = train.batch_size, seed
        self._ends: list[int] = []  # steps done at the end of each window begun so far
        self._places: list[Places | None] = [None]  # where each of them begins in the sources, then where the next does
        self._windows: Iterator[Window] | None = None

    def loader(self, phase: int, start: int) -> StepLoader:
        """The steps of one window, cut short at ``total_steps``. Windows are asked for in order, the first again."""
        if self._windows is None or phase != len(self._ends):
            self._windows = self._from(self._places[phase])
        window = next(self._windows)
        examples = self._tokenise(window)
        order = step_plan.compose(np.zeros(len(examples), np.int32), (1.0,), self._seed, phase, self._batch_size)
        before = self._ends[phase - 1] if phase else 0
        self._ends[phase:] = [before + len(order)]
        self._places[phase + 1 :] = [[list(place) for place in window.places]]

        def build(index: int) -> StepBatch:
            return self._cutter.step(index, [examples[int(i)] for i in order[index]])

        return StepLoader(build, min(len(order), self.total_steps - before), start)

    def locate(self, steps_done: int) -> tuple[int, int]:
        """(window, step within it)."""
        phase = sum(end <= steps_done for end in self._ends)
        return phase, steps_done - (self._ends[phase - 1] if phase else 0)

    def epochs(self, steps_done: int) -> float:
        """Windows: a stream has no other end to count by."""
        phase, step = self.locate(steps_done)
        begin = self._ends[phase - 1] if phase else 0
        return phase + (step / (self._ends[phase] - begin) if phase < len(self._ends) else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Where each window begins and ends."""
        return {"ends": list(self._ends), "places": list(self._places)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back, before the first ``loader``."""
        self._ends, self._places, self._windows = list(state["ends"]), list(state["places"]), None
