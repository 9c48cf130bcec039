"""Before a run with a ``project:`` starts: the advice that ``align advise`` gives, and what of it stops the launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

from align.advisor.predicates import DATA_OF, METHOD
from align.advisor.project_facts import Evidence
from align.advisor.render import render
from align.api.advising import AdviceCase
from align.core.config.project_file import Brief
from align.core.data.rows import BadRow
from align.core.data.sources import Reading
from align.core.training.launch import largest
from align.core.util.atomic_files import write_atomic
from align.schemas.advice import Advice, Quote
from align.schemas.errors import Problem
from align.schemas.hardware import Hardware
from align.schemas.project import Method, Project
from align.schemas.run import Run, Source, Stage

ADVICE = "advice.json"
"""The file's name in the run's directory."""
MEMORY = "memory_does_not_fit"
MAX_COUNTED_ROWS = 100_000
"""Rows that are counted of a file: no rule of the adviser turns on more."""

_latest: tuple[Run, Hardware, Advice] | None = None
"""The latest check's run, hardware and advice. A launch is checked and then writes its advice: computed again, it would
count the rows of the run's files a second time."""


def launch_problems(run: Run, hardware: Hardware) -> Iterator[Problem]:
    """Yield the problems that the advice on a run's ``project:`` sees in launching it.

    Errors for findings that stop the launch, warnings for overrides, used or idle.
    """
    global _latest
    advice = advice_for(run, hardware)
    _latest = run, hardware, advice
    reasons = {override.rule: override.reason for override in run.overrides}
    used: set[str] = set()
    for found in obstacles(advice):
        if given := next((id for id in found.ids if id in reasons), None):
            used.add(given)
            yield Problem(f"override {given}: {reasons[given]}", f"goes on although: {found.what}", level="warning")
        else:
            name = found.ids[0]
            anyway = f"--override {name} --reason TEXT (from Python overrides={{{name!r}: TEXT}})"
            fix = f"{found.fix}; or launch all the same: {anyway}"
            yield Problem(f"project: {found.ids[0]}", found.what, fix)
    for rule in sorted(reasons.keys() - used):
        yield Problem(f"override {rule}", "overrides nothing: no such finding stops this run", level="warning")


def advice_for(run: Run, hardware: Hardware) -> Advice:
    """Return the advice on what a run is about to do: its project, and over it what the run file and its data show."""
    assert run.project is not None
    project = project_of(run.project, run.stages, hardware)
    case = AdviceCase.of(Brief("run file", project, project.description or ""))
    # The run file shows which method is wanted; what the free words ask for would contradict it.
    stated = [e for e in case.evidence if not (e.source == "text" and e.field == "requested")]
    asked = Evidence("requested", project.requested or method_of(run.stages), quote=_algorithms(run), place="run file")
    return case.having([*stated, asked, *count_rows(run.stages)]).advice()


def write_advice(run: Run, directory: Path) -> None:
    """Write the advice on a run with a ``project:`` into its directory, as ``advice.json``."""
    hardware = largest(run)
    if _latest is not None and _latest[0] is run and _latest[1] == hardware:
        advice = _latest[2]
    else:
        advice = advice_for(run, hardware)
    write_atomic(directory / ADVICE, render(advice, "json").encode())


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A finding that stops a launch. ids: those by which it may be overridden, the one to name first."""

    ids: tuple[str, ...]
    what: str
    fix: str


def obstacles(advice: Advice) -> Iterator[Obstacle]:
    """Yield what stops a launch: too little known, another method by a hard rule, errors, no room."""
    if advice.primary == "insufficient":
        rules = [reason.rule for reason in advice.reasons if reason.option == "insufficient"]
        questions = " ".join(f"{question.question} ({question.field})" for question in advice.missing[:3])
        yield Obstacle(("insufficient", *rules), advice.summary, f"say in project: {questions}")
    request = advice.requested
    if request is not None and request.blocking:
        hard = [reason for reason in advice.reasons if reason.weight != "soft"]
        against = [reason for reason in hard if reason.because == request.because] or hard
        quotes = _quoted([quote for reason in against[:1] for quote in reason.quotes])
        what = f"launches {request.requested}, and advised is {request.recommended}: {request.because}{quotes}"
        ids = (*(reason.rule for reason in against), "requested-differs")
        yield Obstacle(
            ids, what, "follow it (align advise --emit; from Python AdviceCase.run_file), or correct the project"
        )
    for warning in advice.warnings:
        if warning.level == "error":
            what = f"{warning.text}{_quoted(warning.quotes)}"
            yield Obstacle((warning.id, warning.rule), what, "fix that, or correct the project")
    fits = advice.hardware
    reported = any(warning.id == MEMORY and warning.level == "error" for warning in advice.warnings)
    if fits is not None and fits.chosen is None and fits.rejected and not reported:
        nearest = min(fits.rejected, key=lambda fit: fit.total_gb)
        what = f"does not fit {fits.given}: {nearest.strategy} takes {nearest.total_gb:.3g} GB on each GPU"
        yield Obstacle((MEMORY,), what, nearest.knob or "take a smaller model or more memory")


def project_of(project: Project, stages: Sequence[Stage], hardware: Hardware) -> Project:
    """Return the project with what the run file knows better: model, tuning, lengths, rewards, and the GPUs here."""
    first = stages[0]
    adapter = first.model.adapter
    tuning = "full"
    if adapter is not None:
        tuning = "qlora" if adapter.quantize == "nf4" else "lora"
    length = max(stage.data.max_length for stage in stages)
    known: dict[str, object] = {
        "training": project.training.model_copy(update={"tuning": tuning, "max_length": length})
    }
    if Path(first.model.path).is_dir() or project.model.name is None:
        known["model"] = project.model.model_copy(update={"name": first.model.path})
    if hardware.accelerator == "cuda":
        here: dict[str, object] = {"gpus": hardware.world_size}
        if hardware.memory:  # 0: the GPUs are elsewhere, and their kind is not known
            here["memory_gb"] = hardware.memory / 1e9
        if hardware.name:
            here["gpu"] = hardware.name
        known["hardware"] = project.hardware.model_copy(update=here)
    elif project.hardware.gpus is None:
        known["hardware"] = project.hardware.model_copy(update={"gpus": 0})
    rewards = [choice.type for stage in stages if stage.rollout for choice in stage.rollout.rewards]
    if rewards and project.reward.kind is None:
        kinds = {"reward_model": "reward_model", "ai_feedback": "llm_judge"}
        known["reward"] = project.reward.model_copy(update={"kind": kinds.get(rewards[0], "verifier")})
    return project.model_copy(update=known)


def method_of(stages: Sequence[Stage]) -> Method:
    """Return a run's method: pre-training or the best of n where a stage does that, else its last stage's."""
    named = [METHOD.get(stage.algorithm.type, stage.algorithm.type) for stage in stages]
    for decisive in ("continual_pretraining", "best_of_n"):
        if decisive in named:
            return decisive
    return named[-1] if named[-1] in get_args(Method) else "post_training"  # type: ignore[return-value]


def count_rows(stages: Sequence[Stage]) -> Iterator[Evidence]:
    """Yield the rows (of a corpus: bytes) that each stage is about to learn from, of files on this machine."""
    for stage in stages:
        name = METHOD.get(stage.algorithm.type, stage.algorithm.type)
        kind = DATA_OF.get(name, "prompts" if stage.rollout else "sft_pairs")
        for source in stage.data.train:
            path = Path(source.path).expanduser()
            if not path.exists():
                continue
            yield Evidence(f"data.{kind}", True, quote=f"data.train: {source.path}", source="file", place="run file")
            unit, count = ("bytes", _bytes(path)) if kind == "corpus" else ("rows", _rows(source))
            yield Evidence(f"data.{kind}.{unit}", count, quote=f"{count:,} {unit}", source="file", place=source.path)


def _rows(source: Source) -> int:
    return sum(not isinstance(row, BadRow) for row in islice(Reading(source).rows(workers=1), MAX_COUNTED_ROWS))


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def _algorithms(run: Run) -> str:
    return "algorithm: " + ", ".join(stage.algorithm.type for stage in run.stages)


def _quoted(quotes: Sequence[Quote]) -> str:
    sources = dict.fromkeys(f"“{' '.join(quote.quote.split())}” ({quote.source})" for quote in quotes)
    return f" — {', '.join(list(sources)[:2])}" if sources else ""
