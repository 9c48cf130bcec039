"""The summary of a finished run on the terminal: where each model lies, what improved, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from align.core.engine.checkpoint import goal_of
from align.core.plugin_system.registry import registry
from align.core.report.read import StageFacts, read_run
from align.core.util import profile
from align.core.util.atomic_files import read_json
from align.schemas.results import StageResult
from align.schemas.run import Run, Stage
from align.schemas.text import number

SHOWN = ("reward", "gold", "rows")
"""Metrics that a stage's first line shows in place of its loss, where it has one of them. An online stage's loss starts
near 0 and shows no progress."""


def summary(run: Run, results: Sequence[StageResult], brief: bool = False) -> Iterator[str]:
    """Yield lines about every stage, then commands for the last one's model. brief: only one line for each stage."""
    known = {facts.name: facts for facts in read_run(Path(run.output)).stages}
    for stage, result in zip(run.stages, results, strict=True):
        learns_from_data = result.metrics.keys().isdisjoint(("reward", "rows"))
        names = ("loss",) if learns_from_data else SHOWN
        values = (f"{name} {value:.4g}" for name, value in result.metrics.items() if name.rpartition("/")[2] in names)
        yield f"{result.name}: {result.export}  {'  '.join(values)}".rstrip()
        if not brief:
            yield f"    {_change(stage, known[result.name])}"
    if not brief and results:
        yield ""
        yield from _next(run, results)


def profile_of(results: Sequence[StageResult]) -> Iterator[str]:
    """Yield a table for each stage that has a profile (``align train --profile``)."""
    for result in results:
        if (path := result.directory / profile.FILE).is_file():
            yield ""
            total, *parts = profile.table(read_json(path))
            yield f"{result.name}: {total}"
            yield from parts


def _change(stage: Stage, facts: StageFacts) -> str:
    """Return how the stage's own measure changed, on held-out rows where there are some."""
    algorithm = registry.build("algorithm", stage.algorithm)
    if algorithm.makes_rows:
        return "made rows, learned nothing"
    metric, mode = goal_of(stage, algorithm)
    better = "higher" if mode == "max" else "lower"
    held_out, learned = facts.curves.get(f"val/{metric}", []), facts.curves.get(metric, [])
    if len(held_out) > 1:
        start, (step, end) = held_out[0][1], held_out[-1]
        if stage.checkpoint.export == "best":
            best = max if mode == "max" else min
            step, end = best(held_out[1:], key=lambda point: point[1])
        if end == start:
            verdict = "unchanged"
        elif (end > start) == (mode == "max"):
            verdict = "improved"
        else:
            verdict = "got worse"
        values = f"{number(start)} before, {number(end)} after step {step:.0f}"
        return f"held-out {metric} {verdict}: {values} ({better} is better)"
    if len(learned) > 1:
        (_, start), (step, end) = learned[0], learned[-1]
        return (
            f"{metric} {number(start)} at the first step, {number(end)} at step {step:.0f}, on what it learned from; "
            "no rows are held out to check it: set data.validation_fraction"
        )
    if not facts.curves:
        return "no change can be shown: without the logger csv no values are kept to compare"
    return "no change can be shown: it learned in one step, and no rows are held out"


def _next(run: Run, results: Sequence[StageResult]) -> Iterator[str]:
    """Yield commands that can be pasted into a shell."""
    last, stage = results[-1], run.stages[-1]
    export, start = shlex.quote(str(last.export)), shlex.quote(_start(run, stage))
    algorithm = registry.build("algorithm", stage.algorithm)
    if algorithm.makes_rows:
        yield f"look      align data check {export}"
        yield f"train on  data: {{train: {export}}} in a run file"
    elif algorithm.head == "reward":
        yield f"score     align reward score reward_model FILE --set path={export}"
        yield f"use it    rollout: {{rewards: [{{type: reward_model, path: {export}}}]}} in a run file"
    else:
        yield f'ask it    align sample {export} "YOUR PROMPT"'
        yield f'compare   align sample {start} "YOUR PROMPT"'
        yield f"serve     vllm serve {export}"
        yield f"train on  model: {{path: {export}}} in another run file"
    if (metrics := last.directory / "metrics.csv").is_file():
        yield f"curves    {shlex.quote(str(metrics))}"


def _start(run: Run, stage: Stage) -> str:
    """Return the model that the stage's chain of stages began with, to compare with the trained one."""
    by_name = {other.name: other for other in run.stages}
    while stage.model.path.startswith("stage:"):
        stage = by_name[stage.model.path.removeprefix("stage:")]
    return stage.model.path
