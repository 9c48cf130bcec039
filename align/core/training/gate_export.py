"""The gate of a stage: its export is measured against the model that it began from, before a later stage takes it.

STAGE/gate/baseline, STAGE/gate/candidate   the eval runs, which go on where an interruption left them
STAGE/gate.json                             the gate's report, and what was done about it
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from align.core.config.suite_file import load_policy
from align.core.engine import processes
from align.core.evaluation.comparison import GateReport, StoredRun, check_policy, compare_runs
from align.core.evaluation.junit import describe
from align.core.evaluation.store import MANIFEST, ROWS
from align.core.inference.eval_models import ModelChoice, open_model
from align.core.inference.eval_suite import OpenSuite, measure_suite, open_judge, opened_suite
from align.core.models.load_and_export import resolve_model_path
from align.core.training.run_directory import RunDirectory, StageDirectory, located
from align.core.util import atomic_files
from align.core.util.progress import say
from align.schemas.errors import AlignError
from align.schemas.run import Gate, Stage

REJECTED = "export-rejected"
"""The directory that a rejected export moves to; ``export`` is then the model that the stage began from."""
POLL = 0.5
"""Seconds between two checks of a rank that waits for rank 0."""


def check_gate(gate: Gate) -> None:
    """Raise AlignError for a suite, its data or a policy that cannot be used, before anything is trained."""
    with opened_suite(gate.suite) as given:
        known = {each.name: each.eval for each in given.evals}
        check_policy(load_policy(gate.policy), known, known, f"{gate.suite} does not have", gate.policy)


def pass_gate(directory: RunDirectory, stage: Stage, gate: Gate) -> None:
    """Measure a finished stage's export, and act on the verdict as the run file says; once for each stage.

    Under torchrun rank 0 measures and acts, and the others wait until it is done. Raises AlignError on all of them
    where the run stops.
    """
    place = directory.stage(stage.name)
    if processes.rank() != 0:
        _wait(place, stage.devices.timeout)
    elif _decision(place) is None:
        here = located(stage, directory.export_of)
        assert here.gate is not None
        report = _measure(here, here.gate, place)
        action = _action(report, gate)
        atomic_files.write_json(
            place.path / "gate.json", {"action": action, "start": here.model.path, "report": report.to_json()}
        )
        _show(stage.name, report, action)
        if directory.run.project is not None:
            say(f"{stage.name}: gate: what next: align advise --history {shlex.quote(str(place.path / 'gate.json'))}")
    decided = _decision(place)
    assert decided is not None
    if decided["action"] == "rollback" and processes.rank() == 0:
        _roll_back(stage, place, Path(decided["start"]))
    if decided["action"] == "stop":
        raise AlignError(
            f"the gate's verdict is: {decided['report']['outcome']}",
            f"see {place.path / 'gate.json'}. To go on all the same, set gate.on_regression: keep, remove that file, "
            "and --resume",
            where=stage.name,
        )


def _decision(place: StageDirectory) -> dict[str, Any] | None:
    try:
        return atomic_files.read_json(place.path / "gate.json", "remove it, and --resume measures again")
    except FileNotFoundError:
        return None


def _wait(place: StageDirectory, timeout: float) -> None:
    """Wait until rank 0 has acted on the verdict; give up ``timeout`` seconds after its last sign of progress.

    A suite may take hours, so rows that rank 0 writes count as progress.
    """
    seen, since = -1, time.monotonic()
    while not _settled(place):
        rows = sum(path.stat().st_size for path in (place.path / "gate").glob(f"*/{ROWS}"))
        if rows != seen:
            seen, since = rows, time.monotonic()
        if time.monotonic() - since > timeout:
            fix = "see what rank 0 printed; devices.timeout is how long the others wait for a further row"
            raise AlignError(f"rank 0 measured nothing for {timeout:g} s", fix, where=str(place.path))
        time.sleep(POLL)


def _settled(place: StageDirectory) -> bool:
    """Return True once the verdict is there, and after a rollback only when the export is the one to go on with."""
    decided = _decision(place)
    if decided is None:
        return False
    return decided["action"] != "rollback" or ((place.path / REJECTED).exists() and place.export.exists())


def _measure(stage: Stage, gate: Gate, place: StageDirectory) -> GateReport:
    """Return the gate's report on the stage's export. stage, gate: with paths in place of ``stage:NAME``."""
    policy = load_policy(gate.policy)
    model = stage.model
    trusted = model.trust_remote_code
    if gate.baseline is None:  # the stage's own start, as the stage loads it: its revision and chat template count
        start = ModelChoice(
            model.path, revision=model.revision, chat_template=model.chat_template, trust_remote_code=trusted
        )
    else:
        start = ModelChoice(gate.baseline, trust_remote_code=trusted)
    end = ModelChoice(str(place.export), trust_remote_code=trusted)
    with opened_suite(gate.suite) as given:
        stored = Path(start.model)
        if (stored / MANIFEST).is_file() and (stored / ROWS).is_file():
            baseline = StoredRun.read(stored)
        else:
            baseline = _measured(given, start, place.path / "gate" / "baseline")
        candidate = _measured(given, end, place.path / "gate" / "candidate")
        return compare_runs(baseline, candidate, policy, {each.name: each.eval for each in given.evals})


def _measured(given: OpenSuite, choice: ModelChoice, out: Path) -> StoredRun:
    """Measure what ``out`` lacks of a model, and return the complete run."""
    with open_model(choice) as model, open_judge(given.suite, given.evals) as judge:
        measure_suite(given, {"model": model, **judge}, out, choice.model)
    return StoredRun.read(out)


def _action(report: GateReport, gate: Gate) -> str:
    """Return ``stop``, ``keep`` or ``rollback``; runs that cannot be compared and refused margins always stop."""
    if report.outcome == "regressed":
        return gate.on_regression
    if report.outcome == "inconclusive":
        return gate.on_inconclusive
    return "keep" if report.outcome == "pass" else "stop"


def _show(name: str, report: GateReport, action: str) -> None:
    words = {"stop": "the run stops", "keep": "the export is kept", "rollback": "the export is rolled back"}
    say(f"{name}: gate: {report.outcome}; {words[action]}")
    for unit in (unit for unit in report.units() if unit.role != "watch" or unit.verdict == "regressed"):
        say(f"{name}: gate: {unit.name}: {describe(unit)}")
    for problem in (*report.problems, *report.warnings):
        print(f"{name}: gate: {problem}", file=sys.stderr)


def _roll_back(stage: Stage, place: StageDirectory, start: Path) -> None:
    """Make the model that the stage began from its export. A crash may have come after any of the steps."""
    rejected = place.path / REJECTED
    if not rejected.exists():
        place.export.rename(rejected)
    if not place.export.exists():
        source = resolve_model_path(str(start), stage.model.revision, stage.model.trust_remote_code)
        partial = atomic_files.partial(place.export)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        atomic_files.fsync_tree(partial)
        partial.rename(place.export)
    place.record_export()
