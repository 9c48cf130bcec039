"""Advice with a history: tiny runs are trained, measured and gated by the real commands, and advised on afterwards."""

from __future__ import annotations

import copy
import functools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import align as library
from align.advisor.merge_evidence import gather
from align.advisor.precedents import taken, with_precedents
from align.advisor.render import render
from align.api import history as reading
from align.api.history import read_history
from align.cli import main
from align.core.util import atomic_files
from align.schemas.advice import Advice, Precedent
from align.schemas.errors import AlignError
from tests.advisor.advices import full
from tests.cli.test_gate_end_to_end import POLICY, SHIFTS, SUITE, align, examples, questions, write_rows

RUN = """\
output: runs/{name}
project:
  behaviour: {{target_capability: extraction}}
  evals: {{metric: next, target: {target}}}
model: {{path: {model}}}
algorithm: sft
optimizer: {{learning_rate: 1e-2}}
train: {{batch_size: 64, num_train_epochs: 20}}
stages:
  - name: sft
    data: {{train: {rows}}}
    gate: {{suite: suite.yaml, policy: gate.yaml, on_regression: keep}}
"""
BRIEF = """\
behaviour: {target_capability: extraction}
data: [{kind: sft_pairs, size: {rows: 600}}]
evals: {metric: next, target: 0.95}
model: {name: some/model}
tried: [prompting]
"""


@pytest.fixture(scope="module")
def made(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns both tasks and passes, one from it that damages a task, evals of the start, and their gate."""
    home = tmp_path_factory.mktemp("history")
    (home / "model").symlink_to(tiny_model_dir)
    for name, text in {"suite.yaml": SUITE, "gate.yaml": POLICY, "brief.yaml": BRIEF}.items():
        (home / name).write_text(text)
    recipe, damaging = [], []
    for task, shift in SHIFTS.items():
        rows = questions(task, shift)
        write_rows(home / f"{task}.jsonl", rows[:100])
        recipe += examples(rows[100:])
        damaging += examples(questions(task, shift + 1 if task == "next" else shift)[100:])
    write_rows(home / "recipe.jsonl", recipe)
    write_rows(home / "damaging.jsonl", damaging)
    good = {"name": "good", "model": "model", "rows": "recipe.jsonl", "target": 0.95}
    bad = {"name": "bad", "model": "runs/good/sft/export", "rows": "damaging.jsonl", "target": 0.95}
    for values in (good, bad):
        name = f"{values['name']}.yaml"
        (home / name).write_text(RUN.format(**values))
        overrides = ("--override", "requested-differs", "--reason", "a test")
        command = [sys.executable, "-m", "align", "train", name, *overrides]
        environment = os.environ | {"ALIGN_CACHE": str(home / "cache")}
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        (home / f"{values['name']}.out").write_text(done.stderr)
    for model, out in (("model", "base"), ("runs/good/sft/export", "good")):
        align(home, "eval", "run", "--model", model, "--suite", "suite.yaml", "--out", f"evals/{out}")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, as the working directory."""
    copy = tmp_path / "home"
    shutil.copytree(made, copy, symlinks=True)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(copy)
    yield copy


def advise(*words: str) -> Advice:
    done = CliRunner().invoke(main, ["advise", *words, "--format", "json", "--exit-zero"])
    assert done.exit_code == 0, done.output
    return Advice.model_validate_json(done.stdout)


def past(advice: Advice) -> dict[str, Precedent]:
    return {each.run: each for each in advice.precedents}


def report_of(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"runs/{run}/sft/gate.json").read_text())["report"]
    return found


def test_the_figures_are_those_of_the_gate(home: Path) -> None:
    advice = advise("brief.yaml", "--history", "runs")
    assert set(past(advice)) == {"good/sft", "bad/sft"}
    for run, outcome in (("good", "pass"), ("bad", "regressed")):
        found, report = past(advice)[f"{run}/sft"], report_of(run)
        assert (found.outcome, found.rows, found.stage, found.tuning) == (outcome, 320, "sft", "full")
        units = [*report["result"]["domains"], *report["result"]["benchmarks"]]
        assert [score.name for score in found.scores] == [unit["name"] for unit in units]
        for score, unit in zip(found.scores, units, strict=True):
            compared = unit["comparison"]
            assert (score.before, score.after) == (unit["baseline"], unit["candidate"])
            assert (score.difference, score.low, score.high) == tuple(
                compared[k] for k in ("difference", "low", "high")
            )
            assert score.items == compared["rows"] == 100
    measured = next(unit for unit in report_of("good")["result"]["benchmarks"] if unit["name"] == "next")
    compared = measured["comparison"]
    reached = f"320 rows reached {measured['candidate']:.3g} of next, from {measured['baseline']:.3g} "
    reached += f"({compared['difference']:+.3g}, {compared['low']:+.3g} to {compared['high']:+.3g}, 100 items)"
    assert past(advice)["good/sft"].text.startswith(reached)
    assert past(advice)["good/sft"].verdict == "improved"


def test_a_like_run_that_failed_warns_and_lowers_confidence_and_says_so(home: Path) -> None:
    Path("stated.yaml").write_text(BRIEF.replace("target: 0.95", "target: 0.95, baseline: 0.5"))
    without, advice = advise("stated.yaml"), advise("stated.yaml", "--history", "runs")
    (warning,) = (each for each in advice.warnings if each.id == "precedent_failed")
    assert "bad/sft failed its gate" in warning.text and past(advice)["bad/sft"].text in warning.text
    assert "good/sft" not in warning.text and warning.level == "warning"
    assert "sft" in [step.stage for step in advice.plan]
    order = ("low", "medium", "high")
    assert order.index(advice.confidence) == max(0, order.index(without.confidence) - 1)
    changed = past(advice)["bad/sft"].changed
    assert f"the confidence falls from {without.confidence} to {advice.confidence}" in changed
    assert past(advice)["good/sft"].changed == []
    same = ("primary", "plan", "reasons", "requested", "evals", "algorithms")
    assert all(getattr(without, name) == getattr(advice, name) for name in same)


def test_a_measured_start_is_the_baseline_where_the_brief_states_none(home: Path) -> None:
    advice = advise("brief.yaml", "--history", ".")
    (taken,) = (each for each in advice.assumptions if each.fact.startswith("evals.baseline"))
    score = json.loads(Path("evals/base/metrics.json").read_text())["metrics"]["next"]["score"]
    assert (
        taken.fact == f"evals.baseline = {score:g}"
        and "next of model before training, with the eval's own prompt" in taken.why
    )
    assert "measured here (evals/base)" in taken.why
    Path("stated.yaml").write_text(BRIEF.replace("target: 0.95", "target: 0.95, baseline: 0.5"))
    stated = advise("stated.yaml", "--history", ".")
    assert not any(each.fact.startswith("evals.baseline") for each in stated.assumptions)
    other = BRIEF.replace("metric: next", "metric: another")
    Path("other.yaml").write_text(other)
    assert not any(
        each.fact.startswith("evals.baseline") for each in advise("other.yaml", "--history", ".").assumptions
    )


def test_time_that_was_measured_is_beside_the_estimate(home: Path) -> None:
    noted = json.loads(Path("runs/good/manifest.json").read_text())["stages"]["sft"]
    found = past(advise("brief.yaml", "--history", "runs"))["good/sft"]
    assert found.hours == noted["seconds"] / 3600 > 0
    assert found.hardware == "1 x CPU" and found.gpu_hours is None
    Path("gpu.yaml").write_text("hardware: {gpus: 1, gpu: H100}\n")
    Path("sized.yaml").write_text(BRIEF.replace("some/model", "some/model, params_b: 0.00004"))
    advice = advise("sized.yaml", "--history", "runs", "--hardware", "gpu.yaml")
    assert advice.estimate is not None and "good/sft took" in advice.estimate.basis


def test_after_a_pass_it_ships_and_after_a_regression_the_domain_has_a_remedy(home: Path) -> None:
    passed, lost = advise("--history", "runs/good"), advise("--history", "runs/bad")
    assert passed.summary.startswith("The gate of good/sft passed: ship runs/good/sft/export.")
    assert lost.summary.startswith("The gate of bad/sft failed: next letters is down by 1 (")
    assert "halve optimizer.learning_rate (0.01 to 0.005)" in lost.summary
    assert "Check its rows first (align data check), as next is what it was to improve" in lost.summary
    for advice in (passed, lost):
        assert advice.precedents[0].own and advice.precedents[0].next
        assert "tried.fine_tuning=true" in advice.precedents[0].changed[0]
        assert "data.sft_pairs.rows=320" in advice.precedents[0].changed[0]
    general = advise("--text", "It writes letters.", "--history", "runs/bad/sft/gate.json")
    assert "Mix 1-5% rows of that kind and of general text into data.train" in general.summary


def test_the_gate_prints_the_command_that_gives_advice_after_it(home: Path) -> None:
    compared = ["gate", "--baseline", "evals/base", "--candidate", "evals/good", "--policy", "gate.yaml"]
    (hint,) = (line for line in CliRunner().invoke(main, compared).output.splitlines() if "what next" in line)
    assert hint.endswith("add --json gate.json, then: align advise --history gate.json")
    done = CliRunner().invoke(main, [*compared, "--json", "the gate.json"])
    (hint,) = (line for line in done.output.splitlines() if "what next" in line)
    words = shlex.split(hint.removeprefix("what next: "))
    advice = advise(*words[2:])
    report = json.loads(Path("the gate.json").read_text())
    assert advice.summary.startswith("The gate of runs/good/sft passed: ship runs/good/sft/export.")
    shown = [(score.name, score.difference, score.low) for score in advice.precedents[0].scores]
    units = [*report["result"]["domains"], *report["result"]["benchmarks"]]
    assert shown == [(u["name"], u["comparison"]["difference"], u["comparison"]["low"]) for u in units]


def test_the_gate_of_a_stage_prints_it_too(home: Path) -> None:
    for run, verdict in (("good", "passed"), ("bad", "failed")):
        (hint,) = (line for line in Path(f"{run}.out").read_text().splitlines() if "what next" in line)
        words = shlex.split(hint.partition("what next: ")[2])
        assert words == ["align", "advise", "--history", f"runs/{run}/sft/gate.json"]
        assert f"of runs/{run}/sft {verdict}" in advise(*words[2:]).summary


def test_python_returns_the_same(home: Path) -> None:
    from_python = library.advise(Path("brief.yaml"), history="runs")
    assert render(from_python, "json") == render(advise("brief.yaml", "--history", "runs"), "json")
    assert render(library.advise(history="runs/bad"), "json") == render(advise("--history", "runs/bad"), "json")
    with pytest.raises(AlignError, match="no brief"):
        library.advise(history="evals")


def test_an_empty_directory_changes_no_byte(home: Path) -> None:
    Path("empty/below").mkdir(parents=True)
    Path("empty/notes.json").write_text('{"not": "a gate"}')
    plain, with_it = (
        CliRunner().invoke(main, ["advise", "brief.yaml", *more]).stdout_bytes for more in ([], ["--history", "empty"])
    )
    assert plain == with_it


def test_the_order_of_directories_does_not_matter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = render(advise("brief.yaml", "--history", "."), "json")
    real = os.scandir
    monkeypatch.setattr(reading.os, "scandir", lambda place: list(real(place))[::-1])
    assert render(advise("brief.yaml", "--history", "."), "json") == before
    monkeypatch.undo()


def changed(path: str) -> Callable[[], None]:
    """Change a byte in the middle of a file."""

    def change() -> None:
        content = bytearray(Path(path).read_bytes())
        place = len(content) // 2
        while not chr(content[place]).isalnum():
            place += 1
        content[place] ^= 1
        Path(path).write_bytes(bytes(content))

    return change


@pytest.mark.parametrize(
    ("damage", "named", "lost"),
    [
        (changed("runs/good/run.yaml"), "runs/good", True),
        (changed("runs/good/manifest.json"), "runs/good/manifest.json", True),
        (changed("runs/good/sft/done.json"), "runs/good/sft/done.json", True),
        (changed("runs/good/sft/data_report.json"), "runs/good/sft/data_report.json", True),
        (changed("runs/good/sft/metrics.csv"), "runs/good/sft/metrics.csv", True),
        (lambda: Path("runs/good/sft/done.json").unlink(), "runs/good/sft: is not finished", True),
        (lambda: Path("runs/good/manifest.json").unlink(), "runs/good: has no manifest.json", True),
        (changed("runs/good/sft/gate.json"), "runs/good/sft/gate.json", False),
        (changed("evals/base/rows.jsonl"), "evals/base", False),
        (changed("evals/base/manifest.json"), "evals/base", False),
        (lambda: Path("evals/broken.json").write_text('{"outcome": "pass", "poli'), "evals/broken.json", False),
        (lambda: Path("evals/shape.json").write_text('{"outcome": "pass"}'), "evals/shape.json", False),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_is_used(
    home: Path, damage: Callable[[], None], named: str, lost: bool
) -> None:
    damage()
    advice = advise("brief.yaml", "--history", ".")
    (note,) = (note for note in advice.not_understood if note.startswith("history: "))
    assert note.startswith(f"history: {named}"), note
    assert ("runs/good/sft" in past(advice)) != lost
    assert "runs/bad/sft" in past(advice)
    confidence = advise("brief.yaml", "--history", "runs/bad/sft/gate.json").confidence
    assert advice.confidence == confidence, "what cannot be read lowers no confidence"


def test_directories_that_were_not_looked_at_are_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_DIRECTORIES", 3)
    (note,) = (each for each in advise("brief.yaml", "--history", ".").not_understood if "history" in each)
    assert "only the first 3 directories" in note
    monkeypatch.setattr(reading, "MOST_DIRECTORIES", 5000)
    monkeypatch.setattr(reading, "DEEPEST", 0)
    (note,) = (each for each in advise("brief.yaml", "--history", ".").not_understood if "history" in each)
    assert "only the first 0 levels" in note


def test_a_verdict_on_a_model_that_was_trained_again_is_not_believed(home: Path) -> None:
    compared = ["gate", "--baseline", "evals/base", "--candidate", "evals/good", "--policy", "gate.yaml"]
    CliRunner().invoke(main, [*compared, "--json", "gate.json"])
    assert advise("--history", "gate.json").precedents[0].run == "runs/good/sft"
    done = Path("runs/good/sft/done.json")
    facts = atomic_files.read_json(done)
    facts["files"]["model.safetensors"]["sha256"] = "0" * 64
    atomic_files.write_json(done, facts)
    Path("runs/good/sft/gate.json").unlink()
    done_command = CliRunner().invoke(main, ["advise", "--history", "gate.json"])
    assert (
        done_command.exit_code == 2 and "the run that trained runs/good/sft/export is not there" in done_command.output
    )
    notes = [each for each in advise("brief.yaml", "--history", ".").not_understood if "history" in each]
    assert notes == ["history: gate.json: the run that it judged was not found, so what was trained is not known"]


JUNK = (None, -1, 1e999, "junk", [], {}, [{}], True, 0)


def leaves(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*above, key)
        yield from leaves(each, (*above, key))


@pytest.mark.parametrize(
    "file",
    [
        *("runs/good/manifest.json", "runs/good/sft/done.json", "runs/good/sft/gate.json"),
        *("runs/good/sft/data_report.json", "evals/base/manifest.json", "evals/base/metrics.json"),
    ],
)
def test_files_of_another_shape_with_a_right_checksum_end_in_no_traceback(home: Path, file: str) -> None:
    """Every value in turn (of long lists some) becomes junk; what is left gives advice as JSON that can be read."""
    path, manifest = Path(file), Path("runs/good/manifest.json")
    if path.name == "data_report.json":  # else its checksum in the manifest stops the reading before
        facts = atomic_files.read_json(manifest)
        del facts["stages"]["sft"]["files"]
        atomic_files.write_json(manifest, facts)
    content = atomic_files.read_json(path, must=False)
    if file.endswith("gate.json"):
        content["report"]["flips"] = {}
    brief = library.AdviceCase.collect(Path("brief.yaml"))
    dice = random.Random(0)
    ways = list(leaves(content))
    for way in ways if len(ways) < 40 else dice.sample(ways, 40):
        changed = copy.deepcopy(content)
        holder = functools.reduce(lambda level, key: level[key], way[:-1], changed)
        holder[way[-1]] = dice.choice(JUNK)
        atomic_files.write_json(path, changed)
        try:
            history = read_history(".")
        except AlignError:
            continue
        facts_then = gather([*brief.evidence, *taken(history, brief.facts())])
        advice = with_precedents(full(), history, facts_then)
        assert Advice.model_validate_json(render(advice, "json")) == advice, way
        render(advice, "text")


@pytest.mark.parametrize("place", ["nowhere", "brief.yaml", "runs/good/sft/metrics.csv"])
def test_a_place_without_history_is_a_mistake_without_traceback(home: Path, place: str) -> None:
    done = CliRunner().invoke(main, ["advise", "brief.yaml", "--history", place])
    assert done.exit_code == 2 and place in done.output and "Traceback" not in done.output


def test_neither_torch_nor_scipy_is_loaded(home: Path) -> None:
    code = "import sys\nfrom align.cli import main\nmain(sys.argv[1:], standalone_mode=False)"
    heavy = ("torch", "scipy", "sklearn", "lightning")
    at_end = f"import atexit, sys\natexit.register(lambda: print([n for n in {heavy} if n in sys.modules]))\n"
    command = [sys.executable, "-c", at_end + code, "advise", "brief.yaml", "--history", ".", "--exit-zero"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_links_and_run_files_are_no_runs(home: Path) -> None:
    Path("evals/link").symlink_to(home / "runs")
    Path("runs/run.yaml").write_text("output: elsewhere\n")  # a run file among runs is no run
    assert {stage.run for stage in read_history(".").stages} == {"runs/good/sft", "runs/bad/sft"}
