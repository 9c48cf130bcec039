"""``align train --check``: everything but training, on the very path that training takes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.core.data.encode import Encoder
from align.core.data.examples import Example
from align.core.training.launch import stage_runner, validate_run
from align.core.training.run_directory import RunDirectory, located, remembered
from align.schemas.run import Run, Stage


@dataclass(frozen=True, slots=True)
class StageCheck:
    """A stage as it would train. Numbers are of its first epoch.

    strategy: which one, and why. first: the first example that it learns from. encoder: turns its tokens to text.
    """

    name: str
    algorithm: str
    parameters: int
    trained_parameters: int
    rows: int
    held_out_rows: int
    bad_rows: dict[str, int]
    tokens: int
    longest: int
    steps: int
    strategy: str
    first_step: str
    findings: list[str]
    first: Example
    encoder: Encoder


def check(run: Run, progress: bool = True) -> list[StageCheck]:
    """Make every stage ready and build its first batch; nothing is written to the run's output.

    A stage that starts from what an earlier one will export is checked with the model that the chain starts from; one
    that learns from rows which an earlier one will make is left out.
    Raises AlignError as launching would.
    """
    validate_run(remembered(run))
    with tempfile.TemporaryDirectory() as scratch:
        directory = RunDirectory(run.model_copy(update={"output": scratch}))
        stages = [_rooted(run.stages, stage) for stage in run.stages if not _awaits_rows(stage)]
        return [_stage(directory, stage, progress) for stage in stages]


def _rooted(stages: Sequence[Stage], stage: Stage) -> Stage:
    """Return the stage with the models that its chains start from, in place of what earlier stages will export."""
    by_name = {other.name: other for other in stages}
    model = stage.model
    while model.path.startswith("stage:"):
        root = by_name[model.path.removeprefix("stage:")].model
        model = model.model_copy(update={"path": root.path, "chat_template": root.chat_template})

    def root_of(name: str, rows: bool) -> str:
        path = by_name[name].model.path
        return root_of(path.removeprefix("stage:"), rows) if path.startswith("stage:") else path

    return located(stage.model_copy(update={"model": model}), root_of)


def _awaits_rows(stage: Stage) -> bool:
    """Return true if it learns from rows that an earlier stage will make: there is nothing to check yet."""
    return any(source.path.startswith("stage:") for source in stage.data.train)


def _stage(directory: RunDirectory, stage: Stage, progress: bool) -> StageCheck:
    place = directory.path / stage.name
    place.mkdir(parents=True)
    runner = stage_runner(directory, stage, progress)
    ready = runner.prepare()
    lengths, parameters = ready.data.train.lengths, list(ready.model.policy.parameters())
    return StageCheck(
        name=stage.name,
        algorithm=stage.algorithm.type,
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        rows=len(ready.data.train),
        held_out_rows=sum(len(held_out.examples) for held_out in ready.data.held_out),
        bad_rows=ready.data.bad_rows,
        tokens=int(np.sum(lengths)),
        longest=int(np.max(lengths)),
        steps=0 if ready.algorithm.makes_rows else ready.steps.total_steps,
        strategy=ready.placement,
        first_step=runner.describe_first_step(ready),
        findings=[str(finding) for finding in (*ready.data.findings, *ready.notes)],
        first=ready.data.train[0],
        encoder=Encoder(ready.model.tokenizer),
    )
