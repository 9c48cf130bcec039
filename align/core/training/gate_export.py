"""The gate of a stage: its export is measured against the model that it began from, before a later stage takes it.

STAGE/gate/baseline, STAGE/gate/candidate   the eval runs, which go on where an interruption left them
STAGE/gate.json                             the gate's report, and what was done about it
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.core.config.suite_file import LoadedEval, load_policy, load_suite
from align.core.engine import processes
from align.core.evaluation.comparison import GateReport, StoredRun, compare_runs
from align.core.evaluation.junit import describe
from align.core.evaluation.store import MANIFEST, ROWS
from align.core.inference.eval_models import EvalModel, ModelChoice, open_model
from align.core.inference.eval_suite import load_items, measure_suite
from align.core.models.load_and_export import resolve_model_path
from align.core.training.run_directory import RunDirectory, StageDirectory, located
from align.core.util import atomic_files
from align.core.util.progress import say
from align.schemas.errors import AlignError
from align.schemas.evals import Suite
from align.schemas.run import Gate, Stage

REJECTED = "export-rejected"
"""The export of a stage that was rolled back; ``export`` is then the model that the stage began from."""
POLL = 0.5
"""Seconds between two looks of a rank that waits for the gate."""


def check_gate(gate: Gate) -> None:
    """Raise AlignError for a suite, its data or a policy that cannot be used, before anything is trained."""
    _, evals = load_suite(gate.suite)
    load_items(evals)
    policy, known = load_policy(gate.policy), {each.name for each in evals}
    named = [*policy.safety, *(name for domain in policy.domains.values() for name in domain.evals)]
    if missing := [name for name in named if name not in known]:
        what = f"names the eval {missing[0]!r}, which {gate.suite} does not have"
        raise AlignError(what, f"known: {', '.join(sorted(known))}", where=gate.policy)


def pass_gate(directory: RunDirectory, stage: Stage, gate: Gate) -> None:
    """Measure a finished stage's export, and do what the run file says about the verdict; once for each stage.

    Under a launcher rank 0 measures, and the others wait for its verdict. Raises AlignError on all of them where the
    stage is stopped.
    """
    place = directory.stage(stage.name)
    if processes.rank() != 0:
        _wait_for_verdict(place, stage.devices.timeout)
    elif _decision(place) is None:
        here = located(stage, directory.export_of)
        assert here.gate is not None
        report = _measure(here, here.gate, place)
        action = _action(report, gate)
        atomic_files.write_json(
            place.path / "gate.json", {"action": action, "start": here.model.path, "report": report.to_json()}
        )
        _show(stage.name, report, action)
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


def _wait_for_verdict(place: StageDirectory, timeout: float) -> None:
    until = time.monotonic() + timeout
    while _decision(place) is None:
        if time.monotonic() > until:
            fix = "see what rank 0 printed; devices.timeout is how long the others wait"
            raise AlignError(f"rank 0 gave no verdict in {timeout:g} s", fix, where=str(place.path))
        time.sleep(POLL)


def _measure(stage: Stage, gate: Gate, place: StageDirectory) -> GateReport:
    """Return the gate's report on the stage's export. ``stage`` and ``gate`` are located."""
    suite, evals = load_suite(gate.suite)
    policy = load_policy(gate.policy)
    with ExitStack() as opened:
        for each in evals:
            opened.callback(each.eval.close)
        given = Path(gate.baseline or stage.model.path)
        if (given / MANIFEST).is_file() and (given / ROWS).is_file():
            baseline = StoredRun.read(given)
        else:
            baseline = _measured(suite, evals, stage, str(given), place.path / "gate" / "baseline")
        candidate = _measured(suite, evals, stage, str(place.export), place.path / "gate" / "candidate")
        return compare_runs(baseline, candidate, policy, {each.name: each.eval for each in evals})


def _measured(suite: Suite, evals: list[LoadedEval], stage: Stage, model: str, out: Path) -> StoredRun:
    with ExitStack() as opened:
        trusted = stage.model.trust_remote_code
        models: dict[str, EvalModel] = {
            "model": opened.enter_context(open_model(ModelChoice(model, trust_remote_code=trusted)))
        }
        if suite.judge is not None and any(each.eval.judged for each in evals):
            judge = suite.judge
            choice = ModelChoice(judge.model, judge.url, judge.key_env, judge.generator)
            models["judge"] = opened.enter_context(open_model(choice))
        measure_suite(suite, evals, load_items(evals), models, out, model)
    return StoredRun.read(out)


def _action(report: GateReport, gate: Gate) -> str:
    """Return ``stop``, ``keep`` or ``rollback``; a comparison that says nothing always stops."""
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
    """Make the model that the stage began from its export. Each step may have been done before a crash."""
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
