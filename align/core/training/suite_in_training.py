"""Suites of evals measured on the policy while a stage trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from align.core.config.suite_file import LoadedEval
from align.core.engine.checkpoint import all_gather_or_raise
from align.core.engine.steps import MicroBatcher
from align.core.evaluation.eval import Item, Row
from align.core.evaluation.store import RowList
from align.core.generation.generator_base import Generator, Interrupt
from align.core.generation.sharded import independent_passes
from align.core.inference.eval_models import EvalModel, GeneratorModel
from align.core.inference.eval_runner import EvalRunner
from align.core.inference.eval_suite import OpenSuite, aggregate, open_judge, opened_suite
from align.core.models.packing import longest_row
from align.core.plugin_system.registry import registry
from align.core.util.atomic_files import write_atomic
from align.schemas.errors import AlignError, Problem
from align.schemas.run import Choice, Stage

if TYPE_CHECKING:
    from align.core.training.stage import LoadedModel

CONTEXT = 4096
"""Most tokens of prompt and completion in an eval, for a policy without a limit."""


class SuiteInTraining:
    """Measures a suite on the policy as it is. Ranks split the items, and rank 0 writes all rows. Collective."""

    def __init__(
        self,
        stage: Stage,
        model: LoadedModel,
        batcher: MicroBatcher,
        directory: Path,
        forward: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """forward: makes the context of forward passes."""
        assert stage.validation.suite is not None
        self._path = stage.validation.suite
        self._rank, self._world_size = batcher.rank, batcher.world_size
        self._directory, self._forward, self._policy = directory, forward, model.policy
        self._handle = model.handle(stage, longest_row(model.policy, CONTEXT))
        self._models: dict[str, EvalModel] = {}
        self._given: OpenSuite  # set by ``running``

    @contextmanager
    def running(self) -> Iterator[None]:
        """Open the suite, the policy's generator, and the judge if an eval needs it; close all of them at the end.

        Raises AlignError for a suite, or data of it, that cannot be used.
        """
        with ExitStack() as opened:
            self._given = opened.enter_context(opened_suite(self._path))
            generator: Generator = registry.build("generator", Choice(type="local"))
            opened.callback(generator.close)
            generator.open(self._handle)
            policy = GeneratorModel(generator, self._handle, {"policy": "in training"})
            judge = opened.enter_context(open_judge(self._given.suite, self._given.evals))
            self._models = {"model": policy, **judge}
            yield

    def evaluate(self, step: int) -> dict[str, float]:
        """Return the metrics of every eval as ``EVAL/METRIC``; write the rows to ``evals/step-000100.jsonl``.

        Raises AlignError on every rank for a failure of one of them.
        """
        metrics: dict[str, float] = {}
        kept: list[Row] = []
        for each in self._given.evals:
            rows = self._measure(each)
            kept += rows
            metrics |= {f"{each.name}/{name}": value for name, value in aggregate(each, rows).items()}
        if self._rank == 0:
            path = self._directory / "evals" / f"step-{step:06d}.jsonl"
            write_atomic(path, b"".join(row.line() for row in kept))
        return metrics

    def _measure(self, each: LoadedEval) -> list[Row]:
        """Return the rows of all items in their order, each measured by one rank."""
        items: Sequence[Item] = self._given.items[each.name]
        own = items[self._rank :: self._world_size]
        problems: tuple[Problem, ...] = ()
        rows: list[Row] = []
        try:
            # One block around all of the eval's queries: ranks send as many as their own items take.
            with self._forward(), torch.random.fork_rng(devices=[]), independent_passes(self._policy):
                runner = EvalRunner(each.eval, each.name, self._models, self._given.suite.seed)
                rows = runner.measure(own, each.choice.samples, RowList())
        except Interrupt:
            pass  # the problems of the rank that asked to stop come below
        except AlignError as error:
            problems = error.problems  # raised again on every rank, or the others would wait for this one
        by_key = {row.key: row for found in all_gather_or_raise(rows, problems) for row in found}
        return [by_key[each.name, item.id, k] for item in items for k in range(each.choice.samples)]
