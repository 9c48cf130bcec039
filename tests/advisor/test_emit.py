"""Run files from advice: every one loads, and every stage that can be advised passes ``align train --check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from align.advisor.default_settings import algorithms
from align.advisor.emit import OUTPUT, comments, emit
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Facts, Plan, from_form
from align.advisor.thresholds import Thresholds
from align.cli import main
from align.core.config import run_file, yaml_loader
from align.core.plugin_system.registry import registry
from align.schemas.advice import Advice, Fit, HardwareFit, PlanStep
from align.schemas.errors import AlignError
from align.schemas.project import Project
from align.schemas.run import Run
from tests.advisor.advices import full
from tests.core.runs import REWARDS, write_rows

LIMIT = Thresholds.load()
PIPELINES = [
    ["sft"],
    ["continual_pretraining"],
    ["continual_pretraining", "sft"],
    ["dpo"],
    ["sft", "dpo"],
    ["kto"],
    ["reward_model"],
    ["grpo"],
    ["rloo"],
    ["ppo"],
    ["best_of_n", "sft"],
    ["sft", "reward_model", "ppo"],
    ["continual_pretraining", "sft", "dpo", "grpo"],
]
ROWS = {
    "corpus": "pretrain",
    "sft_pairs": "sft",
    "preference_pairs": "dpo",
    "unpaired_feedback": "kto",
    "prompts": "grpo",
}


def advised(stages: Sequence[str], project: Project, strategy: str | None = None) -> Advice:
    """Advice with this plan, and the settings to start from that go with it."""
    facts: Facts = gather(from_form(project))
    steps = tuple(PlanStep(stage=stage, why=["R-X-1"]) for stage in stages)
    fit = Fit(strategy=strategy or "full-ddp", verdict="fits", per_gpu_gb={}, total_gb=1, short_gb=-1)
    hardware = HardwareFit(given="", capacity_gb=1, chosen=fit) if strategy else None
    chosen = algorithms(facts, LIMIT, Plan("post_training", steps), hardware)
    return full().model_copy(update={"plan": list(steps), "algorithms": chosen, "hardware": hardware})


def loaded(advice: Advice, project: Project, file: Path) -> Run:
    file.write_text(yaml_loader.write(emit(advice, project).values))
    return run_file.load(file)


@pytest.mark.parametrize("stages", PIPELINES, ids="-".join)
def test_what_is_emitted_passes_the_check_of_the_launch(
    stages: list[str], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    held = [
        {"kind": kind, "path": str(write_rows(algorithm, tmp_path / f"{kind}.jsonl", 64))}
        for kind, algorithm in ROWS.items()
    ]
    form = {
        "model": {"name": str(tiny_model_dir)},
        "data": held,
        "hardware": {"gpus": 0},
        "reward": {"kind": "verifier", "path": f"{REWARDS}:low_ids"},
        "training": {"max_length": 64},
    }
    project = Project.model_validate(form)
    emitted = emit(advised(stages, project), project)
    assert emitted.todo == ()
    # What the brief is for is launched in tests/cli/test_advise_to_run.py; here the plan is not what it would advise.
    values = {key: value for key, value in emitted.values.items() if key != "project"}
    (tmp_path / "run.yaml").write_text(yaml_loader.write(values))
    done = CliRunner().invoke(main, ["train", "run.yaml", "--check"])
    assert done.exit_code == 0, done.output
    assert "ready to train" in done.output


FORMS = st.fixed_dictionaries(
    {
        "hardware": st.fixed_dictionaries(
            {"gpus": st.sampled_from([None, 0, 1, 2, 8]), "gpu": st.sampled_from([None, "T4", "H100"])}
        ),
        "model": st.fixed_dictionaries(
            {
                "name": st.sampled_from([None, "Qwen/Qwen3-0.6B", "the 7B we have", "a: b # c"]),
                "params_b": st.sampled_from([None, 0.6, 8, 70]),
                "type": st.sampled_from([None, "base", "instruct"]),
            }
        ),
        "reward": st.fixed_dictionaries(
            {
                "kind": st.sampled_from([None, "none", "verifier", "reward_model", "llm_judge", "human"]),
                "path": st.sampled_from([None, "math", f"{REWARDS}:low_ids"]),
            }
        ),
        "behaviour": st.fixed_dictionaries({"target_capability": st.sampled_from([None, "math", "code", "sql"])}),
        "training": st.fixed_dictionaries(
            {"tuning": st.sampled_from([None, "full", "lora", "qlora"]), "max_length": st.sampled_from([None, 100])}
        ),
        "description": st.sampled_from([None, "A bot: it # has\n\n- rules", 'quotes " and \\ and é\t'])
        | st.text("ab \n\té☃'\"#:", max_size=30),
        "data": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"kind": st.sampled_from(list(ROWS)), "path": st.sampled_from([None, "a.jsonl", "b: c.jsonl"])}
            ),
            max_size=4,
        ),
    }
)


@settings(max_examples=60)
@given(FORMS, st.sampled_from(PIPELINES), st.sampled_from([None, "full-ddp", "lora-fsdp", "full-fsdp-zero2"]))
def test_every_emitted_run_loads(
    tmp_path_factory: pytest.TempPathFactory, form: dict[str, Any], stages: list[str], strategy: str | None
) -> None:
    form["reward"]["path"] = None if form["reward"]["kind"] == "reward_model" else form["reward"]["path"]
    project = Project.model_validate(form)
    run = loaded(advised(stages, project, strategy), project, tmp_path_factory.mktemp("emit") / "run.yaml")
    assert len(run.stages) == len(stages) and run.output == OUTPUT
    assert run.project == project


def test_stages_hand_on_what_they_make(tmp_path: Path) -> None:
    run = loaded(advised(["sft", "reward_model", "ppo"], Project()), Project(), tmp_path / "run.yaml")
    sft, scorer, ppo = run.stages
    assert (scorer.model.path, ppo.model.path) == ("stage:sft", "stage:sft")
    assert ppo.algorithm.settings["critic"] == "stage:reward_model"
    assert ppo.rollout is not None and ppo.rollout.rewards[0].settings["path"] == "stage:reward_model"
    assert sft.data.train[0].path == "data/sft_pairs.jsonl"
    best = loaded(advised(["best_of_n", "sft"], Project()), Project(), tmp_path / "run.yaml").stages
    assert best[1].data.train[0].path == "stage:best_of_n"
    assert best[1].model.path == best[0].model.path  # what was sampled from is what learns


def test_settings_to_start_from_arrive(tmp_path: Path) -> None:
    project = Project.model_validate({"training": {"tuning": "qlora"}, "hardware": {"gpus": 1, "gpu": "RTX 4090"}})
    (stage,) = loaded(advised(["sft"], project), project, tmp_path / "run.yaml").stages
    assert stage.optimizer.learning_rate == 2e-4
    assert stage.model.adapter is not None
    assert (stage.model.adapter.r, stage.model.adapter.quantize) == (32, "nf4")
    assert (stage.model.dtype, stage.train.precision) == ("bfloat16", "bf16-mixed")
    old = Project.model_validate({"hardware": {"gpus": 1, "gpu": "Tesla T4"}})
    assert loaded(advised(["sft"], old), old, tmp_path / "run.yaml").stages[0].train.precision == "16-mixed"


def test_devices_follow_the_strategy_that_fits(tmp_path: Path) -> None:
    project = Project.model_validate({"hardware": {"gpus": 8}})
    (stage,) = loaded(advised(["sft"], project, "lora-fsdp"), project, tmp_path / "run.yaml").stages
    assert (stage.devices.strategy.type, stage.devices.count) == ("fsdp", 8)
    for plan, expected in (
        ("full-fsdp-zero2", {"reshard_after_forward": False}),
        ("full-fsdp-offload", {"offload": True}),
    ):
        (stage,) = loaded(advised(["sft"], project, plan), project, tmp_path / "run.yaml").stages
        assert (stage.devices.strategy.type, stage.devices.strategy.settings) == ("fsdp", expected)
        registry.build("strategy", stage.devices.strategy)


def test_what_is_not_known_is_said() -> None:
    project = Project.model_validate({"model": {"name": "the 7B we have"}, "reward": {"kind": "llm_judge"}})
    told = " ".join(emit(advised(["sft", "grpo"], project), project).todo)
    assert "(the brief says the 7B we have)" in told and "data.train of sft is a placeholder" in told
    assert "name the judge" in told and "data/prompts.jsonl" in told


def test_better_answers_serve_as_examples(tmp_path: Path) -> None:
    pairs = write_rows("dpo", tmp_path / "pairs.jsonl")
    project = Project.model_validate({"data": [{"kind": "preference_pairs", "path": str(pairs)}]})
    (source,) = emit(advised(["sft"], project), project).values["data"]["train"]
    from align.core.data.lint.linter import scan_source
    from align.schemas.run import Source

    found = scan_source(Source.model_validate(source), ("completion",))
    assert (found.rows, len(found.bad)) == (48, 0)


def test_the_wish_is_not_launched_beside_the_advice() -> None:
    project = Project.model_validate({"requested": "ppo"})
    assert "requested" not in emit(advised(["sft"], project), project).values["project"]


def test_what_is_optional_or_no_training_is_told_and_left_out() -> None:
    emitted = emit(full(), Project())  # sft, and dpo as soon as there are pairs
    assert emitted.values["algorithm"] == {"type": "sft"} and "stages" not in emitted.values
    assert emitted.todo[-1] == "stage dpo is left out: it is optional and needs at least 500 preference pairs"
    with_rag = full().model_copy(update={"plan": [PlanStep(stage="rag", why=[]), *full().plan]})
    assert "rag is part of the plan but has no run file" in emit(with_rag, Project()).todo[0]
    only = full().model_copy(update={"plan": [PlanStep(stage="rag", why=[])], "primary": "rag"})
    with pytest.raises(AlignError, match="the advice is rag"):
        emit(only, Project())


def test_the_head_says_the_answer_and_what_to_put_in_place() -> None:
    head = list(comments(full(), emit(full(), Project()), "run.yaml"))
    assert head[:3] == ["align train run.yaml --check", "", full().summary]
    hostile = full().model_copy(update={"summary": "a\nb: 1\r\n\u2028c: 2\x85d"})
    assert list(comments(hostile, emit(full(), Project()), "a\nb.yaml"))[:3] == [
        "align train a b.yaml --check",
        "",
        "a b: 1 ⟨U+2028⟩c: 2⟨U+0085⟩d",
    ]
    assert any("write a directory or hub id for models/start" in line for line in head)
