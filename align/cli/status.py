"""``align status``: parse, call, print."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

if TYPE_CHECKING:
    from align.core.report.status import RankStatus, RunStatus, StageStatus

REFRESH = 5.0
"""Seconds between two looks of ``--watch``."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path), help="A run's directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the state as JSON.")
@click.option("--watch", is_flag=True, help="Look again every few seconds, until the run ends.")
@click.option("--stacks", is_flag=True, help="Have every process of the run write the stacks of its threads.")
def status(run: Path, as_json: bool, watch: bool, stacks: bool) -> None:
    """Say how a run is: alive or not, step, time left, last checkpoint, alarms, and what each process does.

    Works from another terminal, or another machine that sees the directory. The exit status is 0 for a run that is
    finished or runs, 1 for one that failed, stalled, was stopped or has not started, 2 where there is no run.

    \b
    Example:
      align status runs/first
      align status runs/first --watch
      align status runs/first --json
    """
    from align.api.status import request_stacks
    from align.api.status import status as state_of

    if stacks:
        files = request_stacks(run)
        for file in files:
            click.echo(file)
        if not files:
            click.echo("no process of the run is there to write its stacks; `align status` says why", err=True)
        sys.exit(0 if files else 1)
    while True:
        found = state_of(run)
        if as_json:
            click.echo(json.dumps(asdict(found), default=str, indent=None if watch else 1, ensure_ascii=False))
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            for line in _lines(found):
                click.echo(line)
        if not watch or found.state != "running":
            break
        time.sleep(REFRESH)
    sys.exit(0 if found.good else 1)


def _lines(found: RunStatus) -> Iterator[str]:
    from align.schemas.text import stripped

    yield stripped(f"{found.directory}: {found.state}")
    for stage in found.stages:
        for line in _of_stage(stage):
            yield stripped(line)
    for sentence in found.damaged:
        yield stripped(f"damaged: {sentence}")


def _of_stage(stage: StageStatus) -> Iterator[str]:
    facts = []
    if stage.step is not None:
        facts.append(f"step {stage.step:,}" + (f" of {stage.total:,}" if stage.total else ""))
    if stage.seconds_a_step and stage.state == "running":
        facts.append(f"{stage.seconds_a_step:.3g} s a step")
    if stage.seconds_left is not None:
        facts.append(f"{timedelta(seconds=round(stage.seconds_left))} left")
    if stage.checkpoint is not None:
        facts.append(f"step {stage.checkpoint:,} is saved")
    yield "  " + "  ".join([f"{stage.name}: {stage.state}", *facts])
    for part in (stage.why, stage.straggler, *stage.alarms):
        if part:
            first, *rest = part.splitlines()
            yield f"    {first}"
            yield from (f"      {line.strip()}" for line in rest)
    for rank in stage.ranks:
        yield f"    {_of_rank(rank)}"


def _of_rank(rank: RankStatus) -> str:
    at = "before the first step" if not rank.step else f"step {rank.step:,}"
    parts = [f"rank {rank.rank} on {rank.host} (pid {rank.pid}): {rank.state}", at]
    if rank.doing not in ("", "other"):  # other: nothing that has a name
        parts.append(f"in {rank.doing}")
    if rank.window is not None:
        kinds = (f"{kind} {seconds:.2f}" for kind, seconds in rank.window.seconds.items() if seconds >= 0.005)
        parts += [f"{rank.window.tokens_per_second:,.0f} tok/s", f"s a step: {', '.join(kinds)}"]
    return "  ".join(parts)
