"""A run with a project takes its advice first: what stops it, what lets it go on, and what is kept of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from align.advisor.emit import emit
from align.api import prelaunch
from align.api.advising import AdviceCase
from align.api.prelaunch import (
    advice_for,
    count_rows,
    launch_problems,
    method_of,
    obstacles,
    project_of,
    write_advice,
)
from align.cli import main
from align.core.config import run_file, yaml_loader
from align.core.config.project_file import Brief, of_text
from align.core.report import write_report
from align.schemas.advice import Advice, Fit, HardwareFit
from align.schemas.errors import AlignError
from align.schemas.hardware import Hardware
from align.schemas.project import Project
from align.schemas.run import Run, Stage
from tests.advisor.advices import full, insufficient
from tests.core.runs import REWARDS, write_rows

CPU = Hardware("cpu", 1, 1, 8 * 10**9)
GPU = Hardware("cuda", 2, 1, 24 * 10**9)
FITTING = {"description": "One answer must keep 27 rules at the same time.", "behaviour": {"rules_count": 27}}
CORPUS = {"knowledge": {"changes": "daily", "source": "proprietary"}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def stage(algorithm: str, **sections: Any) -> Stage:
    least = {"name": algorithm, "model": {"path": "m"}, "data": {"train": "r.jsonl"}, "algorithm": algorithm}
    return Stage.model_validate({**least, **sections})


def write_run(model: Path, algorithm: str, project: dict[str, Any] | None, count: int = 600) -> str:
    write_rows(algorithm, Path("rows.jsonl"), count)
    values = {
        "output": "out",
        **({} if project is None else {"project": project}),
        "model": {"path": str(model)},
        "data": {"train": "rows.jsonl", "dataset_num_proc": 1},
        "algorithm": algorithm,
        "train": {"max_steps": 1, "batch_size": 4},
    }
    Path("run.yaml").write_text(yaml_loader.write(values))
    return "run.yaml"


def train(*arguments: str) -> Result:
    done = CliRunner().invoke(main, ["train", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_a_launch_computes_its_advice_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files' rows are counted for it; other hardware than the checked one is other advice."""
    write_rows("sft", Path("rows.jsonl"), 40)
    run = Run(output="out", project=Project.model_validate(FITTING), stages=[stage("sft")])
    counted: list[Hardware] = []

    def counting(run: Run, hardware: Hardware) -> Advice:
        counted.append(hardware)
        return advice_for(run, hardware)

    monkeypatch.setattr(prelaunch, "advice_for", counting)
    monkeypatch.setattr(prelaunch, "largest", lambda _: CPU)
    list(launch_problems(run, CPU))
    write_advice(run, tmp_path)
    assert counted == [CPU]
    assert Advice.model_validate_json((tmp_path / "advice.json").read_bytes()) == advice_for(run, CPU)
    list(launch_problems(run, GPU))
    write_advice(run, tmp_path)
    write_advice(run.model_copy(), tmp_path)
    assert counted == [CPU, GPU, CPU, CPU]


def test_a_run_that_follows_its_advice_starts_and_keeps_it(tiny_model_dir: Path) -> None:
    done = train(write_run(tiny_model_dir, "sft", FITTING))
    assert done.exit_code == 0, done.output
    kept = Advice.model_validate_json(Path("out/advice.json").read_bytes())
    assert kept.primary == "post_training" and kept.requested is not None and kept.requested.agrees
    assert kept.data[0].given == 600  # counted, since nobody said
    assert json.loads(Path("out/manifest.json").read_text())["overrides"] == []
    assert run_file.load("out/run.yaml").project == Project.model_validate(FITTING)


def test_a_run_without_a_project_is_not_advised(tiny_model_dir: Path) -> None:
    done = train(write_run(tiny_model_dir, "pretrain", None, 20))
    assert done.exit_code == 0 and not Path("out/advice.json").exists()


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_blocking_finding_stops_it_with_rule_words_and_fix(tiny_model_dir: Path, check: list[str]) -> None:
    done = train(write_run(tiny_model_dir, "pretrain", CORPUS, 20), *check)
    assert done.exit_code == 2 and not Path("out").exists()
    assert "project: R-CPT-3\n    launches continual_pretraining, and advised is rag" in done.output
    assert "“data.train: rows.jsonl” (run file)" in done.output
    assert "launch all the same: --override R-CPT-3 --reason TEXT" in done.output
    assert "project: too_little_data" in done.output


def test_what_is_overridden_is_said_kept_shown_and_remembered(tiny_model_dir: Path) -> None:
    file = write_run(tiny_model_dir, "pretrain", CORPUS, 20)
    one = ["--override", "R-CPT-3", "--reason", "a test <b>of</b> the pipeline"]
    still = train(file, *one)
    assert still.exit_code == 2 and "R-CPT-3: a test" not in still.output.partition("project: ")[0]
    both = [*one, "--override", "too_little_data", "--reason", "we know"]
    done = train(file, *both)
    assert done.exit_code == 0, done.output
    assert "override R-CPT-3: a test <b>of</b> the pipeline\n    goes on although: launches" in done.stderr
    noted = json.loads(Path("out/manifest.json").read_text())["overrides"]
    assert noted == [
        {"rule": "R-CPT-3", "reason": "a test <b>of</b> the pipeline"},
        {"rule": "too_little_data", "reason": "we know"},
    ]
    assert [o.rule for o in run_file.load("out/run.yaml").overrides] == ["R-CPT-3", "too_little_data"]
    write_report(Path("out"), Path("report.html"), title="x")
    page = Path("report.html").read_text()
    assert "<bdi>R-CPT-3</bdi> was overridden" in page and "a test &lt;b&gt;of&lt;/b&gt; the pipeline" in page
    again = train(file, "--resume")
    assert again.exit_code == 0 and "override too_little_data: we know" in again.stderr
    assert train("out/run.yaml").exit_code == 0  # what was stored launches as it is
    elsewhere = train(file, "output=other")
    assert elsewhere.exit_code == 2 and "project: R-CPT-3" in elsewhere.output


def test_overrides_come_with_reasons_and_for_something(tiny_model_dir: Path) -> None:
    file = write_run(tiny_model_dir, "sft", FITTING)
    assert "1 overrides and 0 reasons" in train(file, "--override", "X").output
    blank = train(file, "--override", "X", "--reason", "  ")
    assert blank.exit_code == 2 and "reason\n    is empty; say why" in blank.output
    idle = train(file, "--override", "X", "--reason", "just so")
    assert idle.exit_code == 0 and "override X\n    overrides nothing" in idle.stderr
    plain = train(write_run(tiny_model_dir, "sft", None), "--override", "X", "--reason", "just so")
    assert plain.exit_code == 2 and "no project:" in plain.output
    Path("run.yaml").write_text(Path("run.yaml").read_text() + "overrides: [{rule: X, reason: y}]\n")
    unread = train("run.yaml")
    assert unread.exit_code == 2 and "overrides\n    is not read without project" in unread.output


def test_a_project_is_checked_with_its_lines(tiny_model_dir: Path) -> None:
    file = write_run(tiny_model_dir, "sft", {"behaviour": {"rules_count": 27}})
    Path(file).write_text(Path(file).read_text().replace("rules_count: 27", "rules: 27"))
    done = train(file, "project.knowledge.changes=hourly")
    assert "run.yaml line 4: project.behaviour.rules\n    is not a key here" in done.output
    assert "command line: project.knowledge.changes\n    is 'hourly'" in done.output


@pytest.mark.parametrize(
    ("algorithms", "asked"),
    [
        (["sft"], "sft"),
        (["sft", "dpo"], "dpo"),
        (["pretrain", "sft"], "continual_pretraining"),
        (["sft", "best_of_n", "sft"], "best_of_n"),
        (["simpo"], "dpo"),
        (["reinforce"], "rlhf"),
        (["somebody_elses"], "post_training"),
        (["sft", "reward_model", "ppo"], "ppo"),
    ],
)
def test_what_a_run_asks_for(algorithms: list[str], asked: str) -> None:
    assert method_of([stage(name) for name in algorithms]) == asked


def test_the_run_file_knows_better_what_it_does() -> None:
    said = Project.model_validate({"model": {"name": "Llama"}, "training": {"tuning": "full"}, "hardware": {"gpus": 8}})
    lora = stage("sft", model={"path": "m", "adapter": {"quantize": "nf4"}}, data={"train": "r", "max_length": 77})
    known = project_of(said, [lora], GPU)
    assert (known.training.tuning, known.training.max_length, known.model.name) == ("qlora", 77, "Llama")
    assert (known.hardware.gpus, known.hardware.memory_gb) == (2, 24.0)
    assert project_of(said, [lora], CPU).hardware.gpus == 8  # checked where it will not run
    assert project_of(Project(), [stage("dpo")], CPU).hardware.gpus == 0
    assert project_of(Project(), [stage("dpo")], CPU).model.name == "m"
    scored = stage("grpo", rollout={"rewards": [{"type": "python", "file": str(REWARDS), "function": "low_ids"}]})
    assert project_of(Project(), [scored], CPU).reward.kind == "verifier"
    judged = stage("rloo", rollout={"rewards": [{"type": "reward_model", "path": "x"}]})
    assert project_of(Project(), [judged], CPU).reward.kind == "reward_model"


def test_data_are_counted_by_what_the_stage_learns_from(tmp_path: Path) -> None:
    pairs = write_rows("dpo", tmp_path / "pairs.jsonl", 12)
    with open(pairs, "a") as file:
        file.write('{"broken": \n')
    text = write_rows("pretrain", tmp_path / "text.jsonl", 5)
    stages = [
        stage("simpo", data={"train": str(pairs)}),
        stage("pretrain", data={"train": str(text)}),
        stage("sft", data={"train": "hub/id"}),
    ]
    found = {e.field: e.value for e in count_rows(stages)}
    size = text.stat().st_size
    assert found == {
        "data.preference_pairs": True,
        "data.preference_pairs.rows": 12,
        "data.corpus": True,
        "data.corpus.bytes": size,
    }


def test_the_wish_in_the_words_gives_way_to_what_is_launched(tmp_path: Path) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl", 600)
    words = "We want PPO. One answer must keep 27 rules."
    run = Run(
        output="out",
        project=Project(description=words, behaviour={"rules_count": 27}),  # type: ignore[arg-type]
        stages=[stage("sft", data={"train": str(rows)})],
    )
    found = advice_for(run, CPU).requested
    assert found is not None and (found.requested, found.agrees) == ("sft", True)
    assert list(launch_problems(run, CPU)) == []


def test_obstacles_of_every_kind() -> None:
    found = {obstacle.ids[0]: obstacle for obstacle in obstacles(full())}
    assert list(found) == ["R-POST-1", "license_or_privacy"]
    assert found["R-POST-1"].ids == ("R-POST-1", "requested-differs")
    assert "launches ppo, and advised is sft: nothing can score" in found["R-POST-1"].what
    assert found["license_or_privacy"].ids[1] == "R-WARN-9" and "“Reports of damage" in found["license_or_privacy"].what
    (lacking,) = obstacles(insufficient())
    assert lacking.ids == ("insufficient",) and "What data is there? (data)" in lacking.fix
    fit = Fit(strategy="qlora-ddp", verdict="does_not_fit", per_gpu_gb={}, total_gb=41, short_gb=17, knob="half of it")
    tight = full().model_copy(
        update={
            "hardware": HardwareFit(given="1 x 24 GB", capacity_gb=24, chosen=None, rejected=[fit]),
            "requested": None,
            "warnings": [],
        }
    )
    (room,) = obstacles(tight)
    assert room.ids == ("memory_does_not_fit",) and room.fix == "half of it" and "41 GB" in room.what
    assert list(obstacles(full().model_copy(update={"requested": None, "warnings": []}))) == []


def test_a_plan_that_does_not_fit_is_stopped(tmp_path: Path) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl", 600)
    project = Project.model_validate({**FITTING, "model": {"params_b": 70, "name": "a 70B"}})
    run = Run(output="out", project=project, stages=[stage("sft", data={"train": str(rows)})])
    stopped = [problem for problem in launch_problems(run, GPU) if problem.level == "error"]
    assert "memory_does_not_fit" in " ".join(problem.where for problem in stopped)


CASES = Path(__file__).parents[1] / "advisor" / "cases"


@pytest.mark.parametrize(("file", "every"), [("forms.yaml", 1), ("dev.yaml", 3)])
def test_what_is_emitted_may_be_launched(file: str, every: int) -> None:
    """Where nothing stops the advice, nothing stops the run file that follows it; and the launch advises the same."""
    launched = 0
    for case in yaml.safe_load((CASES / file).read_text("utf-8"))["cases"][::every]:
        form = case.get("form")
        brief = Brief("x", Project.model_validate(form)) if form else of_text(case["description"])
        known = AdviceCase.of(brief)
        advice = known.advice()
        try:
            emitted = emit(advice, known.form())
        except AlignError:
            continue  # nothing to train
        run = run_file.parse(yaml_loader.write(emitted.values), "run.yaml")
        stopped = [problem for problem in launch_problems(run, CPU) if problem.level == "error"]
        assert advice.blocking or not stopped, (case["id"], stopped)
        assert advice_for(run, CPU).primary == advice.primary, case["id"]
        launched += 1
    assert launched >= 3
