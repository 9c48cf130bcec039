"""``align train --check``: everything but training, on the very path that training takes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from align.core.data.encode import Encoder
from align.core.data.examples import Example
from align.core.data.look import legend, shown
from align.core.train.launch import look_over
from align.core.train.rundir import RunDirectory
from align.core.train.setup import set_up
from align.schemas.run import Run, Stage


@dataclass(frozen=True, slots=True)
class StageCheck:
    """What a stage would do. Numbers are of its first epoch."""

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
    scored_tokens_of_first_step: int
    micro_batches_of_first_step: int
    layout: str
    findings: list[str]
    first: Example
    shown: RenderableType


def check(run: Run) -> list[StageCheck]:
    """Make every stage ready and build its first batch; nothing is written to the run's output.

    A stage that starts from what an earlier one will export is checked with the model that the chain starts from.
    Raises AlignError as launching would.
    """
    look_over(run)
    with tempfile.TemporaryDirectory() as scratch:
        directory = RunDirectory(run.model_copy(update={"output": scratch}))
        return [_stage(directory, _rooted(run.stages, stage)) for stage in run.stages]


def _rooted(stages: Sequence[Stage], stage: Stage) -> Stage:
    while stage.model.path.startswith("stage:"):
        root = next(s for s in stages if s.name == stage.model.path.removeprefix("stage:"))
        model = stage.model.model_copy(update={"path": root.model.path, "chat_template": root.model.chat_template})
        stage = stage.model_copy(update={"model": model})
    return stage


def _stage(directory: RunDirectory, stage: Stage) -> StageCheck:
    place = directory.path / stage.name
    place.mkdir(parents=True)
    setup = set_up(directory, stage, progress=True)
    step = next(iter(setup.phases.loader(0, 0)))
    lengths = setup.prepared.train.lengths
    return StageCheck(
        name=stage.name,
        algorithm=stage.algorithm.type,
        parameters=sum(p.numel() for p in setup.policy.parameters()),
        trained_parameters=sum(p.numel() for p in setup.policy.parameters() if p.requires_grad),
        rows=len(setup.prepared.train),
        held_out_rows=sum(len(held_out.examples) for held_out in setup.prepared.held_out),
        bad_rows=setup.prepared.bad_rows,
        tokens=int(np.sum(lengths)),
        longest=int(np.max(lengths)),
        steps=setup.phases.total_steps,
        scored_tokens_of_first_step=int(step.denominators["token"]),
        micro_batches_of_first_step=len(step.micros),
        layout=setup.cutter.layout,
        findings=[str(finding) for finding in setup.prepared.findings],
        first=setup.prepared.train[0],
        shown=shown(setup.prepared.train[0], Encoder(setup.tokenizer), _colour(Console())),
    )


def render(checks: Sequence[StageCheck]) -> None:
    """Print what was found."""
    console = Console()
    for found in checks:
        table = Table(title=f"{found.name} ({found.algorithm})", show_header=False, title_justify="left")
        bad = ", ".join(f"{count} {kind}" for kind, count in found.bad_rows.items()) or "none"
        for name, value in (
            ("rows", f"{found.rows:,} to train on, {found.held_out_rows:,} held out, bad: {bad}"),
            ("tokens", f"{found.tokens:,}, the longest example {found.longest:,}"),
            ("parameters", f"{found.trained_parameters:,} trained of {found.parameters:,}"),
            ("steps", f"{found.steps:,}"),
            (
                "first step",
                f"{found.scored_tokens_of_first_step:,} scored tokens in {found.micro_batches_of_first_step} "
                f"micro-batches ({found.layout})",
            ),
        ):
            table.add_row(name, value)
        console.print(table, *(Text(finding, style="yellow") for finding in found.findings))
        console.print(legend(_colour(console)), soft_wrap=True)
        console.print(found.shown, soft_wrap=True)
    console.print("[green]ready to train[/green]")


def _colour(console: Console) -> bool:
    """Whether the terminal has colours; without them what is learned stands in brackets."""
    return console.color_system is not None
