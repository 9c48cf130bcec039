"""Measuring what a brief is about: probes of its untouched model on its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from align.api.input_types import BriefLike, Files, RewardLike, as_brief, as_files, as_reward
from align.core.config.project_file import Brief
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError, Problem
from align.schemas.project import Measured


@explaining()
def measure(
    brief: BriefLike = "",
    *,
    model: str | Path | None = None,
    data: Files = (),
    rewards: Sequence[RewardLike] = (),
    reference: str | Path | None = None,
    chat: bool | None = None,
    rows: int = 200,
    samples: int = 8,
    max_completion_length: int = 256,
    seed: int = 0,
    report: Callable[[str], None] = lambda probe: None,
) -> Measured:
    """Probe an untouched model on rows, for ``align.advise(..., measured=found)``.

    Everything that the rows can show is measured: zero shots and worked examples, closed and open book, bits per byte,
    pass@k, and the share of pairs whose better answer is the likelier one (docs/measuring.md).

    brief: gives the model and the files where they are not named here. model: a directory or hub id. data: files with
    rows of any format that training reads. rewards: what scores answers; none: word F1 with the answer wanted.
    reference: a file of ordinary text, to hold the corpus' bits per byte against. chat: prompts that are plain text are
    put as a user's message; None: where the model has a chat template. rows: most of each kind. samples: answers to a
    prompt, 2 or more, for pass@k. max_completion_length: longest answer. report: called with the name of each probe.

    Imports torch. Raises AlignError where no model or no data is named, for files, models and rewards that do not work,
    and where the rows show nothing.
    """
    if rows < 1 or samples < 2 or max_completion_length < 1:
        raise AlignError("needs at least 1 row, 2 samples and 1 token", where="measure")
    known = as_brief(brief)
    start = model or known.project.model.name
    files = [file.path for file in as_files(data)] or _files(known)
    problems = []
    if start is None:
        fix = "name one (--model DIR; from Python model=DIR), or write model: {name: DIR} into the form"
        problems.append(Problem("measure", "no model is named", fix))
    if not files:
        fix = "name one (--data FILE; from Python data=[FILE]), or write a path into the form's data"
        problems.append(Problem("measure", "no data file is named", fix))
    if start is None or problems:
        raise AlignError.gather(problems)
    from align.core.inference.probes import (
        ProbeSettings,
        run_probes,  # it imports torch
    )

    return run_probes(
        str(start),
        files,
        ProbeSettings(rows=rows, k=samples, max_completion_length=max_completion_length, seed=seed),
        rewards=[as_reward(reward) for reward in rewards],
        reference=None if reference is None else str(reference),
        chat=chat,
        report=report,
    )


def _files(brief: Brief) -> list[str]:
    paths = [data.path for data in brief.project.data or () if data.path]
    return [path for path in paths if Path(path).expanduser().exists()]
