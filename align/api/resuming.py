"""Going on with a run from its directory alone, and the proof that going on changes nothing."""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.api import training
from align.core.config import run_file
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError
from align.schemas.results import StageResult
from align.schemas.run import Choice, Run, Stage

KILL_TRIES = 3
"""Starts of the run that is killed: one that ends before the kill proves nothing."""
POLL_SECONDS = 0.002
"""Time between two looks for the checkpoint after which it is killed."""
SHOWN = ("loss", "grad_norm")
"""Metrics of each step that a proof lists."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One thing that was compared. values: numbers and texts in it. different: those that are not the same bits.

    largest: the largest difference of two numbers over the largest number there; infinite where texts, counts or shapes
    differ.
    """

    name: str
    values: int
    different: int
    largest: float


@dataclass(frozen=True, slots=True)
class ResumeProof:
    """n + m steps without interruption, against n steps, SIGKILL, and m steps after resuming.

    step_metrics: for each step and metric of ``SHOWN`` both values. repeated: two runs without interruption, compared
    alike where the first comparison found a difference: what differs there too does not come from resuming.
    """

    stage: str
    steps: tuple[int, int]
    processes: int
    step_metrics: list[tuple[int, str, float, float]]
    compared: list[Compared]
    repeated: list[Compared] | None = None

    @property
    def identical(self) -> bool:
        """True if every value is the same to the bit."""
        return not any(each.different for each in self.compared)

    @property
    def deterministic(self) -> bool:
        """True unless two runs without interruption differed, as on GPUs whose sums have no fixed order."""
        return not any(each.different for each in self.repeated or ())

    @property
    def learned(self) -> bool:
        """True if a step after the kill had a gradient: else it changed nothing that could have differed."""
        after = (whole for step, name, whole, _ in self.step_metrics if name == "grad_norm" and step > self.steps[0])
        return any(norm != 0 for norm in after)


@explaining()
def resume(directory: str | Path, *, progress: bool = True, profile: bool = False) -> list[StageResult]:
    """Go on with the run in a directory as ``align.train(..., resume=True)`` does; returns every stage's result.

    The run file is the one kept there (``run.yaml``); the directory may have been moved. Relative paths in it start
    from the working directory. Imports torch. Raises AlignError as ``align.train`` does, and where no run is there.
    """
    return training.train(run_in(directory), resume=True, progress=progress, profile=profile)


def run_in(directory: str | Path) -> Run:
    """Return the run that a directory holds, with its output there. Raises AlignError where there is none."""
    place = Path(directory).expanduser()
    if not (place / "run.yaml").is_file():
        raise AlignError(
            "holds no run: there is no run.yaml",
            "name the directory that the run file calls output; a run file is started by `align train`",
            where=str(directory),
        )
    return run_file.load(place / "run.yaml").model_copy(update={"output": str(place)})


@explaining()
def verify_resume(
    directory: str | Path,
    *,
    steps: tuple[int, int] = (5, 5),
    stage: str | None = None,
    scratch: str | Path | None = None,
    progress: bool = True,
) -> ResumeProof:
    """Prove on a user's own run that resuming is exact: n + m steps against n steps, SIGKILL, and m steps.

    Both are started anew, in a temporary directory under ``scratch``, over as many processes as the run had; the run's
    own directory is only read. Compared to the bit: every metric of every step, completions, and of the last
    checkpoint weights, optimizer and random states. Evaluation suites, gates, loggers but ``csv``, early stopping and
    actions of alarms are left out.

    steps: n and m. stage: its name; by default the first that is not finished, else the last. progress: show it.
    Imports torch. Raises AlignError for a stage that takes no optimizer steps, for a run over several nodes, and for
    whatever stops the training.
    """
    from align.core.engine import processes
    from align.core.util.progress import showing, working

    run = run_in(directory)
    chosen, count = _chosen(run, stage), sum(steps)
    if min(steps) < 1:
        raise AlignError(f"is {steps[0]} and {steps[1]}; each must be at least 1", where="steps")
    if processes.under_launcher():
        raise AlignError("starts processes of its own", "leave torchrun out", where="align resume --verify")
    world = _processes(run, chosen)
    with tempfile.TemporaryDirectory(prefix="align-verify-", dir=scratch) as place, showing(progress):
        root = Path(place)
        whole, resumed, again = (root / name for name in ("whole", "resumed", "again"))
        with working(f"{chosen.name}: {count} steps without interruption"):
            _finish(_short_run(run, chosen, whole, steps, world), root)
        with working(f"{chosen.name}: {steps[0]} steps, SIGKILL, {steps[1]} steps"):
            short = _short_run(run, chosen, resumed, steps, world)
            _kill_after(short, chosen.name, steps, root)
            _finish(short, root)
        compared = list(compare(whole / chosen.name, resumed / chosen.name))
        repeated = None
        if any(each.different for each in compared):
            with working(f"{chosen.name}: {count} steps without interruption, again"):
                _finish(_short_run(run, chosen, again, steps, world), root)
            repeated = list(compare(whole / chosen.name, again / chosen.name))
        pairs = list(_step_metrics(whole / chosen.name, resumed / chosen.name))
    return ResumeProof(chosen.name, steps, world, pairs, compared, repeated)


def _chosen(run: Run, name: str | None) -> Stage:
    """Return the stage to verify. Raises AlignError for an unknown one, and for one that takes no optimizer steps."""
    from align.core.plugin_system.registry import registry
    from align.core.training.run_directory import RunDirectory

    directory = RunDirectory(run)
    unfinished = [stage for stage in run.stages if directory.stage(stage.name).result() is None]
    named = [stage for stage in run.stages if stage.name == name] if name else [*unfinished, run.stages[-1]][:1]
    if not named:
        known = ", ".join(stage.name for stage in run.stages)
        raise AlignError(f"no stage is called {name}", f"its stages: {known}", where=run.output)
    (stage,) = named
    if registry.build("algorithm", stage.algorithm).makes_rows:
        raise AlignError(
            "makes rows and takes no optimizer steps", "verify another stage (--stage)", where=f"stage {stage.name}"
        )
    return stage


def _processes(run: Run, stage: Stage) -> int:
    """Return the number of processes that the stage ran over, or would. Raises AlignError for several nodes."""
    from align.core.engine import processes
    from align.core.training.run_directory import RunDirectory

    if stage.devices.nodes > 1:
        raise AlignError(
            "runs over several nodes, and the proof starts processes on this one only",
            "verify a copy of the run with devices.nodes: 1",
            where=f"{stage.name}: devices.nodes",
        )
    noted: int | None = RunDirectory(run).noted(stage.name).get("world_size")
    return noted or processes.launched(stage.devices).world_size


def _short_run(run: Run, stage: Stage, output: Path, steps: tuple[int, int], world: int) -> Run:
    """Return the stage alone, as a run of n + m steps with a checkpoint after n."""
    from align.core.training.run_directory import RunDirectory, located

    found = located(stage, RunDirectory(run).export_of)
    update: dict[str, Any] = {
        "train": found.train.model_copy(update={"max_steps": sum(steps)}),
        "checkpoint": found.checkpoint.model_copy(update={"save_steps": steps[0], "export": "last"}),
        "validation": found.validation.model_copy(update={"early_stopping_patience": None, "suite": None}),
        "devices": found.devices.model_copy(update={"count": world}),
        "loggers": [Choice(type="csv")],
        "gate": None,
    }
    if found.rollout is not None:
        watch = found.rollout.watch.model_copy(update={"action": "warn"})
        update["rollout"] = found.rollout.model_copy(update={"watch": watch})
    short = found.model_copy(update=update)
    return run.model_copy(update={"output": str(output), "stages": [short], "project": None, "overrides": []})


def _start(run: Run, root: Path) -> subprocess.Popen[bytes]:
    """Start ``align train`` with a run. It ends with this process, which a signal may end without any cleaning up."""
    from align.core.util import child_processes
    from align.core.util.stopping import die_with_parent

    file = root / f"{Path(run.output).name}.yaml"
    file.write_text(run_file.dump(run), encoding="utf-8")
    command = child_processes.command("-m", "align", "train", str(file), "--resume", "--quiet")
    with open(root / "log", "wb") as log:
        environment = child_processes.environment()
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=die_with_parent)


def _finish(run: Run, root: Path) -> None:
    """Train to the end. Raises AlignError with the last lines if it fails."""
    started = _start(run, root)
    try:
        if started.wait() == 0:
            return
    finally:
        started.kill()  # where this process is interrupted; its ranks die with it
    raise _failed(root)


def _kill_after(run: Run, stage: str, steps: tuple[int, int], root: Path) -> None:
    """Kill a run as soon as its checkpoint after n steps is there, in the middle of the m steps that follow."""
    from align.core.engine import checkpoint
    from align.core.training.run_directory import StageDirectory

    place = StageDirectory(Path(run.output) / stage)
    for _ in range(KILL_TRIES):
        started = _start(run, root)
        try:
            while not checkpoint.steps(place.checkpoints):
                status = started.poll()
                if status:
                    raise _failed(root)
                if status == 0:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            started.kill()
            started.wait()
        if checkpoint.last_step(place.checkpoints) == steps[0] and place.result() is None:
            return
        shutil.rmtree(run.output)
    raise AlignError(
        f"took its last {steps[1]} steps before it could be killed, {KILL_TRIES} times",
        f"give more steps: --steps {steps[0]} {10 * steps[1]}",
        where=f"stage {stage}",
    )


def _failed(root: Path) -> AlignError:
    lines = (root / "log").read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
    return AlignError("ended early; its last lines:\n    " + "\n    ".join(lines), where="the run to verify by")


def compare(one: Path, other: Path) -> Iterator[Compared]:
    """Yield the comparisons of two finished stages' directories: log, completions, last checkpoint, export."""
    from safetensors.torch import load_file

    from align.core.engine import checkpoint
    from align.core.training.run_directory import StageDirectory
    from align.core.training.sample_log import read_samples

    stages = [StageDirectory(path) for path in (one, other)]
    yield _compared("metrics of every step", *(_log(path) for path in (one, other)))
    files = [sorted((path / "samples").glob("*.parquet")) for path in (one, other)]
    if any(files):
        texts = ([read_samples(file) for file in each] for each in files)
        yield _compared("completions and rewards", *texts)
    states = []
    for stage in stages:
        states.append(checkpoint.load(checkpoint.at(stage.checkpoints, checkpoint.last_step(stage.checkpoints))))
    for name, part in (
        ("weights", "state_dict"),
        ("optimizer state", "optimizer_states"),
        ("schedule", "lr_schedulers"),
    ):
        yield _compared(name, *(state[part] for state in states))
    yield _compared("random and other states", *(state["align"] for state in states))
    exports = ({file.name: load_file(file) for file in stage.export.rglob("*.safetensors")} for stage in stages)
    yield _compared("exported weights", *exports)


def _log(stage: Path) -> list[dict[str, str]]:
    with open(stage / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _step_metrics(one: Path, other: Path) -> Iterator[tuple[int, str, float, float]]:
    for mine, theirs in zip(_log(one), _log(other), strict=False):  # one may have ended early
        for name in SHOWN:
            if mine.get(name) and theirs.get(name):
                yield int(mine["step"]), name, float(mine[name]), float(theirs[name])


def _compared(name: str, one: Any, other: Any) -> Compared:
    """Return the comparison of two nested values."""
    values, different, largest = 0, 0, 0.0
    for mine, theirs in _leaves(one, other):
        values += 1
        gap = _gap(mine, theirs)
        different += gap > 0
        largest = max(largest, gap)
    return Compared(name, values, different, largest)


MISSING = object()


def _leaves(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the tensors and plain values of two nested structures in pairs; ``MISSING`` for one without a partner."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from _leaves(one.get(key, MISSING), other.get(key, MISSING))
    elif isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        for index in range(max(len(one), len(other))):
            pair = (side[index] if index < len(side) else MISSING for side in (one, other))
            yield from _leaves(*pair)
    else:
        yield one, other


def _gap(one: Any, other: Any) -> float:
    """Return 0 for the same bits, else the largest difference over the largest number; infinite for other kinds."""
    import torch

    if isinstance(one, str) and isinstance(other, str) and one != other:
        try:
            one, other = float(one), float(other)  # a cell of the log
        except ValueError:
            return math.inf
    if isinstance(one, float | int) and isinstance(other, float | int):
        one, other = (torch.tensor(value, dtype=torch.float64) for value in (one, other))
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return 0.0 if one is not MISSING and one == other else math.inf
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    first, second = (side.contiguous().view(-1).view(torch.uint8) for side in (one, other))
    if torch.equal(first, second):
        return 0.0
    largest = float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp_min(1e-300))
    return largest or math.inf  # the same numbers in other bits: 0.0 and -0.0
