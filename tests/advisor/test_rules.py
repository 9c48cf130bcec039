"""Every rule: what makes it speak, and the smallest change after which it is silent."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Plan
from align.advisor.rule import Ask, Vote, Warn
from align.schemas.advice import Fit, HardwareFit, PlanStep
from align.schemas.project import Project
from tests.advisor.deciding import LIMIT, advice, corpus, facts, fired, rows, rules, stages, warned

QA = {"task__type": "qa"}
TASK = {"task__type": "generation"}
SQL_PAIRS = {"task__type": "sql", "data": [rows("sft_pairs", 5000)]}
PAIRS, FEW = rows("sft_pairs", 500), rows("sft_pairs", 499)


# (rule, what it finds, facts it speaks for, facts next to them)
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("R-RAG-1", "rag hard", {"knowledge__changes": "monthly"}, {"knowledge__changes": "yearly"}),
    (
        "R-RAG-1",
        "rag hard",
        {"knowledge__changes": "daily"},
        {"knowledge__changes": "daily", "knowledge__source": "none"},
    ),
    ("R-RAG-1", "rag soft", {"knowledge__changes": "yearly"}, {"knowledge__changes": "never"}),
    (
        "R-RAG-1",
        "rag soft",
        {"knowledge__changes": "yearly"},
        {"knowledge__changes": "yearly", "behaviour__rules_count": 9},
    ),
    ("R-RAG-2", "rag hard", {"knowledge__needs_citations": True}, {"knowledge__needs_citations": False}),
    ("R-RAG-3", "rag hard", {"data": [corpus(10**9 - 1)], **QA}, {"data": [corpus(10**9)], **QA}),
    (
        "R-RAG-3",
        "rag hard",
        {"data": [corpus(10**8 - 1)], "knowledge__unseen_domain": True, **QA},
        {"data": [corpus(10**8)], "knowledge__unseen_domain": True, **QA},
    ),
    ("R-RAG-3", "rag hard", {"knowledge__source": "proprietary"}, {"knowledge__source": "public"}),
    (
        "R-RAG-3",
        "rag soft",
        {"data": [rows("documents")], "knowledge__unseen_domain": True},
        {"data": [rows("documents")], "knowledge__unseen_domain": True, "behaviour__rules_count": 9},
    ),
    (
        "R-RAG-3",
        "rag soft",
        {"data": [rows("documents")], "knowledge__unseen_domain": True},
        {"data": [rows("documents")]},
    ),
    (
        "R-RAG-3",
        "rag soft",
        {"data": [corpus(10**6)], "requested": "continual_pretraining"},
        {"data": [corpus(10**6), FEW], "requested": "continual_pretraining"},
    ),
    (
        "R-RAG-3",
        "rag hard",
        {"data": [corpus(10**10)], "knowledge__unseen_domain": False, **QA},
        {"data": [corpus(10**10)], **QA},
    ),
    (
        "R-RAG-3",
        "rag soft",
        {"data": [rows("documents"), PAIRS], "behaviour__target_capability": "sql", **QA},
        {"data": [rows("documents"), PAIRS], "behaviour__target_capability": "sql"},
    ),
    ("R-RAG-4", "rag hard", {"knowledge__per_user": True}, {"knowledge__per_user": False}),
    (
        "R-CPT-1",
        "continual_pretraining hard",
        {"data": [corpus(10**9)], "knowledge__unseen_domain": True},
        {"data": [corpus(10**9 - 1)], "knowledge__unseen_domain": True},
    ),
    (
        "R-CPT-1",
        "continual_pretraining soft",
        {"data": [corpus(10**9)], "knowledge__needs_citations": True},
        {"data": [corpus(10**9)], "knowledge__needs_citations": True, "knowledge__unseen_domain": False},
    ),
    (
        "R-CPT-2",
        "continual_pretraining soft",
        {"data": [corpus(10**8)], "knowledge__unseen_domain": True},
        {"data": [corpus(10**8)]},
    ),
    (
        "R-CPT-3",
        "continual_pretraining veto",
        {"data": [corpus(10**8 - 1)], "requested": "continual_pretraining"},
        {"data": [corpus(10**8)], "requested": "continual_pretraining"},
    ),
    (
        "R-CPT-4",
        "continual_pretraining veto",
        {"knowledge__pretraining_done": True},
        {"knowledge__pretraining_done": False},
    ),
    ("R-POST-1", "post_training hard", {"behaviour__rules_count": 20}, {"behaviour__rules_count": 19}),
    (
        "R-POST-1",
        "post_training hard",
        {"behaviour__rules_count": 20, "evals__baseline": 0.2, "data": [FEW]},
        {"behaviour__rules_count": 20, "evals__baseline": 0.2},
    ),
    (
        "R-POST-2",
        "post_training hard",
        {"behaviour__target_capability": "sql", "data": [PAIRS]},
        {"data": [PAIRS]},
    ),
    (
        "R-POST-2",
        "post_training soft",
        {"task__type": "extraction", "data": [FEW]},
        {"task__type": "extraction", "data": [rows("sft_pairs", 9)]},
    ),
    (
        "R-POST-2",
        "post_training soft",
        {"task__type": "sql", "data": [PAIRS], "evals__baseline": 0.9, "evals__target": 0.92},
        {"task__type": "chat", "data": [PAIRS], "evals__baseline": 0.9, "evals__target": 0.92},
    ),
    (
        "R-POST-3",
        "post_training hard",
        {"behaviour__style_or_persona": True, "data": [PAIRS], "tried": ["prompting"]},
        {"behaviour__style_or_persona": True, "data": [FEW], "tried": ["prompting"]},
    ),
    (
        "R-POST-3",
        "post_training soft",
        {"behaviour__style_or_persona": True, "data": [PAIRS]},
        {"data": [PAIRS]},
    ),
    (
        "R-POST-4",
        "post_training soft",
        {"behaviour__rules_count": 6, "data": [PAIRS], "behaviour__prompt_falls_short": True},
        {"behaviour__rules_count": 5, "data": [PAIRS], "behaviour__prompt_falls_short": True},
    ),
    (
        "R-POST-5",
        "post_training hard",
        {"data": [rows("preference_pairs", 500)]},
        {"data": [rows("preference_pairs", 49)]},
    ),
    ("R-POST-5", "post_training soft", {"data": [rows("preference_pairs", 499)]}, {"data": [rows("logs", 499)]}),
    ("R-POST-6", "post_training soft", {"data": [PAIRS], "requested": "sft", **TASK}, {"data": [PAIRS], **TASK}),
    (
        "R-POST-6",
        "post_training soft",
        {"data": [PAIRS], "requested": "sft", **TASK},
        {"data": [PAIRS], "requested": "sft"},
    ),
    (
        "R-POST-6",
        "post_training soft",
        {"data": [PAIRS], "requested": "sft", **TASK},
        {"data": [FEW], "requested": "sft", **TASK},
    ),
    (
        "R-POST-6",
        "post_training soft",
        {"data": [FEW], "evals__baseline": 0.6},
        {"data": [rows("sft_pairs", 9)], "evals__baseline": 0.6},
    ),
    (
        "R-POST-6",
        "post_training soft",
        {"data": [PAIRS], "evals__baseline": 0.96},
        {"data": [PAIRS], "evals__baseline": 0.97},
    ),
    (
        "R-POST-6",
        "post_training soft",
        {"data": [PAIRS], "evals__baseline": 0.96},
        {"data": [PAIRS], "evals__baseline": 0.96, "behaviour__prompt_falls_short": False},
    ),
    (
        "R-POST-3",
        "post_training hard",
        {"data": [PAIRS], "model__type": "base"},
        {"data": [FEW], "model__type": "base"},
    ),
    (
        "R-PRM-5",
        "prompting soft",
        {"task__type": "generation", "data": [rows("preference_pairs", 49)]},
        {"task__type": "generation", "data": [rows("preference_pairs", 50)]},
    ),
    (
        "R-POST-7",
        "post_training soft",
        {"data": [rows("prompts", 100)], "reward__kind": "verifier"},
        {"data": [rows("prompts", 100)], "reward__kind": "none"},
    ),
    (
        "R-POST-7",
        "post_training soft",
        {"reward__kind": "verifier", "evals__baseline": 0.2},
        {"reward__kind": "llm_judge", "evals__baseline": 0.2},
    ),
    (
        "R-BON-1",
        "best_of_n hard",
        {"reward__kind": "reward_model", "constraints__weights_frozen": True},
        {"reward__kind": "reward_model", "constraints__weights_frozen": True, "constraints__latency_s": 0.5},
    ),
    (
        "R-BON-1",
        "best_of_n hard",
        {"reward__kind": "reward_model", "constraints__requests_per_day": 300},
        {"reward__kind": "verifier", "constraints__requests_per_day": 300},
    ),
    (
        "R-BON-1",
        "best_of_n soft",
        {"reward__kind": "verifier", "constraints__requests_per_day": 300},
        {"reward__kind": "verifier", "constraints__requests_per_day": 30_000},
    ),
    (
        "R-FRZ-1",
        "post_training veto",
        {"constraints__weights_frozen": True},
        {"constraints__weights_frozen": False},
    ),
    ("R-PRM-1", "prompting soft", {"behaviour__rules_count": 5}, {"behaviour__rules_count": 6}),
    (
        "R-PRM-2",
        "prompting hard",
        {"evals__baseline": 0.9, "evals__target": 0.9},
        {"evals__baseline": 0.89, "evals__target": 0.9},
    ),
    ("R-PRM-3", "prompting soft", {"behaviour__rules_count": 6}, {"behaviour__rules_count": 20}),
    ("R-PRM-4", "prompting soft", {"behaviour__output_format": "fixed"}, {"behaviour__output_format": "none"}),
    (
        "R-PRM-5",
        "prompting soft",
        {"behaviour__target_capability": "sql"},
        {"behaviour__target_capability": "sql", "data": [PAIRS]},
    ),
    (
        "R-PRM-6",
        "prompting soft",
        {"evals__baseline": 0.9, "evals__target": 0.92},
        {"evals__baseline": 0.8, "evals__target": 0.92},
    ),
    ("R-PRM-7", "prompting soft", {"behaviour__rules_count": 20, "data": []}, {"behaviour__rules_count": 20}),
    (
        "R-PRM-5",
        "prompting soft",
        {**TASK, "data": [FEW]},
        {**TASK, "data": [FEW], "evals__baseline": 0.5},
    ),
    (
        "R-PRM-8",
        "prompting soft",
        {"behaviour__prompt_falls_short": False},
        {"behaviour__prompt_falls_short": False, "evals__baseline": 0.5, "evals__target": 0.9},
    ),
    (
        "R-POST-6",
        "post_training soft",
        {"data": [PAIRS], "knowledge__unseen_domain": True},
        {"data": [FEW], "knowledge__unseen_domain": True},
    ),
    (
        "R-PRM-5",
        "prompting soft",
        {**TASK, "data": [FEW]},
        {**TASK, "data": [FEW], "knowledge__unseen_domain": True},
    ),
    (
        "R-CPT-2",
        "continual_pretraining soft",
        {"data": [corpus(10**8)], "knowledge__unseen_domain": True},
        {"data": [corpus(10**8)], "requested": "continual_pretraining"},
    ),
    (
        "R-RAG-3",
        "rag hard",
        {"knowledge__source": "proprietary", "tried": ["rag"], **SQL_PAIRS},
        {"knowledge__source": "proprietary", **SQL_PAIRS},
    ),
    (
        "R-BON-1",
        "best_of_n hard",
        {"reward__kind": "reward_model", "constraints__weights_frozen": True, "constraints__max_n": 2},
        {"reward__kind": "reward_model", "constraints__weights_frozen": True, "constraints__max_n": 1},
    ),
    ("R-PRM-9", "prompting soft", {"knowledge__changes": "never"}, {"knowledge__changes": "monthly"}),
    (
        "R-PRM-9",
        "prompting soft",
        {"knowledge__changes": "yearly", "data": [corpus(30_000)]},
        {"knowledge__changes": "yearly", "data": [corpus(30_001)]},
    ),
    (
        "R-PRM-9",
        "prompting soft",
        {"knowledge__changes": "never", "data": [corpus(9000)]},
        {"knowledge__changes": "never", "data": [corpus(9000)], "knowledge__needs_citations": True},
    ),
    (
        "R-RAG-1",
        "rag soft",
        {"knowledge__changes": "yearly", "data": [corpus(30_001)]},
        {"knowledge__changes": "yearly", "data": [corpus(30_000)]},
    ),
    (
        "R-RAG-1",
        "rag soft",
        {"knowledge__changes": "yearly"},
        {"knowledge__changes": "yearly", "data": [PAIRS]},
    ),
    ("R-PRM-10", "prompting soft", {"evals__baseline": 0.97}, {"evals__baseline": 0.96}),
    ("R-PRM-10", "prompting soft", {"evals__baseline": 0.98}, {"evals__baseline": 0.98, "evals__target": 0.99}),
    (
        "R-INS-6",
        "insufficient soft",
        {"evals__baseline": 0.5, "evals__target": 0.9},
        {"evals__baseline": 0.5, "evals__target": 0.9, "data": [rows("sft_pairs", 1)]},
    ),
    (
        "R-INS-6",
        "insufficient soft",
        {"behaviour__prompt_falls_short": True},
        {"behaviour__prompt_falls_short": True, "reward__kind": "verifier"},
    ),
    ("R-INS-1", "insufficient soft", {"hardware__gpus": 8}, {"hardware__gpus": 8, "behaviour__rules_count": 3}),
    (
        "R-INS-2",
        "insufficient soft",
        {"requested": "dpo"},
        {"requested": "dpo", "data": [rows("preference_pairs", 500)]},
    ),
    (
        "R-INS-4",
        "insufficient soft",
        {"knowledge__unseen_domain": True, "data": [{"kind": "corpus"}]},
        {"knowledge__unseen_domain": True, "data": [{"kind": "corpus", "size": {"docs": 5}}]},
    ),
    ("R-INS-5", "insufficient soft", {"data": [PAIRS]}, {"data": [PAIRS], "behaviour__rules_count": 3}),
    (
        "R-CPT-1",
        "continual_pretraining hard",
        {"data": [corpus(10**9), PAIRS]},
        {"data": [corpus(10**9)]},
    ),
    (
        "R-INS-3",
        "insufficient soft",
        {"requested": "ppo", "data": [rows("prompts", 2000)]},
        {"requested": "ppo", "data": [rows("prompts", 2000)], "reward__kind": "verifier"},
    ),
]


def found(rule: str, settings: dict[str, Any]) -> list[str]:
    outcome = rules()[rule](facts(**settings), LIMIT)
    every = [outcome] if isinstance(outcome, Vote) else list(outcome or ())  # type: ignore[arg-type]
    return [f"{f.option} {f.weight}" for f in every if isinstance(f, Vote)]


@pytest.mark.parametrize(("rule", "expected", "settings", "next_to"), CASES)
def test_a_rule_speaks_where_it_should_and_not_next_to_it(
    rule: str, expected: str, settings: dict[str, Any], next_to: dict[str, Any]
) -> None:
    assert expected in found(rule, settings)
    assert expected not in found(rule, next_to)


def test_every_rule_that_decides_has_a_case() -> None:
    deciding = {name for name in rules() if name.startswith("R-") and not name.startswith("R-MEA")}
    assert {case[0] for case in CASES} == deciding - {"R-INS-7"}  # of hearsay, which a form cannot state


def test_an_impression_is_no_baseline_where_there_is_no_test_set() -> None:
    felt = Evidence("behaviour.prompt_falls_short", True, "asserted", "it is not good enough", source="text")
    none = Evidence("data.eval_set", False, "asserted", "no test set", source="text")
    assert "no_baseline" not in warned(advice(gather([felt])))
    assert "no_baseline" in warned(advice(gather([felt, none])))


def test_data_that_are_only_spoken_of_have_to_be_looked_at() -> None:
    """ "There is a folder that somebody calls training data": it may be anything."""
    told = Evidence("data.sft_pairs", True, "attributed", "a folder called training data", source="text")
    goal = Evidence("task.type", "generation", "asserted", "write letters", source="text")
    assert advice(gather([told, goal])).primary == "insufficient"
    assert advice(gather([goal])).primary == "prompting"
    counted = Evidence("data.sft_pairs.rows", 400, "asserted", "400 of them", source="text")
    assert advice(gather([told, goal, counted])).primary == "prompting"


WARNINGS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "too_little_data",
        {"data": [rows("preference_pairs", 499)], "requested": "dpo"},
        {"data": [rows("preference_pairs", 500)], "requested": "dpo"},
    ),
    (
        "too_little_data",
        {"data": [corpus(10**7)], "requested": "continual_pretraining"},
        {"data": [corpus(10**10)], "requested": "continual_pretraining"},
    ),
    (
        "forgetting",
        {"data": [corpus(10**9)], "knowledge__unseen_domain": True},
        {"data": [rows("documents")]},
    ),
    (
        "forgetting",
        {"data": [PAIRS], "task__type": "sql", "training__tuning": "full"},
        {"data": [PAIRS], "task__type": "sql", "training__tuning": "lora"},
    ),
    (
        "adapter_learns_less",
        {"data": [corpus(10**10)], "knowledge__unseen_domain": True, "training__tuning": "lora"},
        {"data": [corpus(10**10)], "knowledge__unseen_domain": True, "training__tuning": "full"},
    ),
    ("needs_eval_gate", {"data": [PAIRS], "task__type": "sql"}, {"behaviour__rules_count": 3}),
    ("needs_rag_eval", {"knowledge__needs_citations": True}, {"behaviour__rules_count": 3}),
    ("data_freshness", {"knowledge__changes": "weekly"}, {"knowledge__changes": "yearly"}),
    ("data_freshness", {"knowledge__changes": "yearly", "requested": "sft"}, {"knowledge__changes": "never"}),
    (
        "reward_hacking",
        {"data": [rows("prompts", 5000)], "reward__kind": "verifier", "task__type": "math"},
        {"data": [rows("preference_pairs", 5000)], "task__type": "math"},
    ),
    ("missing_reward", {"requested": "grpo"}, {"requested": "grpo", "reward__kind": "verifier"}),
    ("missing_reward", {"requested": "rlhf"}, {"requested": "rlhf", "data": [rows("preference_pairs", 5000)]}),
    (
        "missing_reward",
        {"requested": "ppo", "data": [rows("preference_pairs", 5000)]},
        {"requested": "ppo", "data": [rows("preference_pairs", 5000), rows("prompts", 5000)]},
    ),
    ("missing_reward", {"data": [rows("prompts", 900)]}, {"data": [rows("prompts", 900), PAIRS]}),
    (
        "judge_bias",
        {"data": [rows("preference_pairs", 900, labelled_by="gpt-4")]},
        {"data": [rows("preference_pairs", 900, labelled_by="three experts")]},
    ),
    *(
        (
            "judge_bias",
            {"data": [rows("preference_pairs", 900, labelled_by=model)]},
            {"data": [rows("preference_pairs", 900, labelled_by=people)]},
        )
        for model, people in (
            ("model", "shop"),
            ("yi-34b-chat", "Maria"),
            ("reward_model", "model railway customers"),
            ("GPT4o", "us"),
            ("ein Sprachmodell: ki", "email"),
            ("Qwen/Qwen3-8B", "annotator_7"),
            ("大模型", "marketing"),
        )
    ),
    ("judge_bias", {"evals__judge": "model"}, {"evals__judge": "human"}),
    ("license_or_privacy", {"constraints__regulated": True}, {"constraints__regulated": False}),
    ("license_or_privacy", {"data": [rows("logs", pii=True)]}, {"data": [rows("logs", pii=False)]}),
    ("license_or_privacy", {"data": [rows("logs", license="varies")]}, {"data": [rows("logs", license="mit")]}),
    (
        "contamination",
        {"data": [rows("sft_pairs", 900, overlaps_evals=True)]},
        {"data": [rows("sft_pairs", 900, overlaps_evals=False)]},
    ),
    ("brittle_prompt", {"behaviour__rules_count": 2}, {"behaviour__rules_count": 30}),
    ("no_baseline", {"requested": "sft"}, {"requested": "sft", "tried": ["prompting"]}),
    ("no_baseline", {"tried": []}, {"tried": ["prompting"]}),
    (
        "needs_eval_gate",
        {"reward__kind": "reward_model", "constraints__weights_frozen": True},
        {"constraints__weights_frozen": True},
    ),
]


@pytest.mark.parametrize(("warning", "settings", "next_to"), WARNINGS)
def test_a_danger_is_seen_where_it_is(warning: str, settings: dict[str, Any], next_to: dict[str, Any]) -> None:
    assert warning in warned(advice(**settings))
    assert warning not in warned(advice(**next_to))


def test_what_cannot_work_is_an_error() -> None:
    below = advice(data=[rows("preference_pairs", 49)], requested="dpo")
    assert {w.id: w.level for w in below.warnings}["too_little_data"] == "error"
    thin = advice(data=[rows("preference_pairs", 400)], requested="dpo")
    assert {w.id: w.level for w in thin.warnings}["too_little_data"] == "warning"


def fit(strategy: str, verdict: str, total: float) -> Fit:
    return Fit.model_validate(
        {"strategy": strategy, "verdict": verdict, "per_gpu_gb": {}, "total_gb": total, "short_gb": total - 80}
    )


@pytest.mark.parametrize(
    ("asked", "chosen", "level"),
    [
        (fit("full-ddp", "does_not_fit", 208), fit("lora-ddp", "fits", 30), "error"),
        (None, None, "error"),
        (fit("full-fsdp", "tight", 75), fit("full-fsdp", "tight", 75), None),
        (None, fit("lora-ddp", "fits", 30), None),
    ],
)
def test_memory(asked: Fit | None, chosen: Fit | None, level: str | None) -> None:
    hardware = HardwareFit(given="1 x 80 GB", capacity_gb=80, chosen=chosen, asked=asked)
    plan = Plan("post_training", (PlanStep(stage="sft", why=["R-POST-1"]),), hardware=hardware)
    outcome = rules()["W-MEMORY"](_with_plan(plan), LIMIT)
    assert (outcome.level if isinstance(outcome, Warn) else outcome) == level


def test_memory_where_pretraining_has_to_make_do_with_an_adapter() -> None:
    steps = (PlanStep(stage="continual_pretraining", why=["R-CPT-1"]),)
    hardware = HardwareFit(given="1 x 80 GB", capacity_gb=80, chosen=fit("lora-ddp", "fits", 30))
    outcome = rules()["W-MEMORY"](_with_plan(Plan("continual_pretraining", steps, hardware=hardware)), LIMIT)
    assert isinstance(outcome, Warn) and outcome.level == "warning"


def _with_plan(plan: Plan) -> Any:
    return replace(facts(), plan=plan)


QUESTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("goal", {}, {"behaviour__rules_count": 3}),
    ("data", {}, {"behaviour__rules_count": 3}),
    ("data_kind", {"data": [rows("logs", 80_000)]}, {"data": [rows("logs", 80_000), PAIRS], "task__type": "sql"}),
    ("data_kind", {"data": [PAIRS]}, {"data": [PAIRS], "requested": "sft", **TASK}),
    (
        "data_size",
        {"data": [{"kind": "corpus"}], "knowledge__unseen_domain": True},
        {"data": [corpus(10**9)], "knowledge__unseen_domain": True},
    ),
    ("reward", {"requested": "ppo"}, {"requested": "ppo", "reward__kind": "verifier"}),
    (
        "evals",
        {"data": [PAIRS], "task__type": "sql"},
        {"data": [PAIRS], "task__type": "sql", "evals__baseline": 0.5, "evals__held_out_rows": 300},
    ),
    ("model", {"data": [PAIRS], "task__type": "sql"}, {"data": [PAIRS], "task__type": "sql", "model__params_b": 7}),
    ("hardware", {"data": [PAIRS], "task__type": "sql"}, {"data": [PAIRS], "task__type": "sql", "hardware__gpus": 0}),
]


@pytest.mark.parametrize(("question", "settings", "next_to"), QUESTIONS)
def test_what_is_not_known_is_asked_once(question: str, settings: dict[str, Any], next_to: dict[str, Any]) -> None:
    asked = [q.id for q in advice(**settings).missing]
    assert asked.count(question) == 1
    assert question not in {q.id for q in advice(**next_to).missing}


NOT_TRIGGERS: list[dict[str, Any]] = [
    {"hardware__gpus": 64, "hardware__gpu": "H100"},
    {"constraints__budget_usd": 1e6},
    {"requested": "rlhf"},
    {"requested": "post_training"},
    {"data": [rows("logs", 10**6)]},
    {"model__params_b": 70, "model__type": "base"},
]


@pytest.mark.parametrize("settings", NOT_TRIGGERS)
def test_means_and_fashion_trigger_nothing(settings: dict[str, Any]) -> None:
    advised = advice(**settings)
    assert advised.primary == "insufficient" and stages(advised) == []
    assert all(name.startswith("R-INS") for name in fired(advised))


def test_rules_only_return_what_they_may() -> None:
    nothing = facts()
    for name, rule in rules().items():
        outcome = rule(nothing, LIMIT)
        for each in [outcome] if isinstance(outcome, Vote | Warn | Ask) else list(outcome or ()):
            assert isinstance(each, Vote | Warn | Ask), name


def test_fields_of_findings_are_fields_of_the_form() -> None:
    known = set(_paths())
    for _, _, settings, _ in CASES:
        for name, rule in rules().items():
            outcome = rule(facts(**settings), LIMIT)
            for each in [outcome] if isinstance(outcome, Vote | Warn | Ask) else list(outcome or ()):
                for path in each.fields if not isinstance(each, Ask) else (each.field,):
                    assert path in known or path.split(".")[0] in ("data", "tried"), (name, path)


def _paths() -> list[str]:
    paths = []
    for name, field in Project.model_fields.items():
        below = getattr(field.annotation, "model_fields", None)
        paths += [name] + [f"{name}.{key}" for key in below or ()]
    return paths


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({"knowledge__changes": "monthly"}, "note"),
        ({"knowledge__changes": "monthly", "requested": "sft"}, "warning"),
        ({"knowledge__changes": "monthly", "tried": ["fine_tuning"]}, "warning"),
        ({"knowledge__changes": "monthly", "behaviour__rules_count": 30}, "warning"),
        ({"knowledge__changes": "yearly", "requested": "sft"}, "warning"),
    ],
)
def test_facts_that_change_matter_most_where_somebody_wants_to_train(settings: dict[str, Any], level: str) -> None:
    found = advice(**settings).warnings
    assert [warning.level for warning in found if warning.id == "data_freshness"] == [level]


def test_a_yearly_change_needs_no_note_where_nobody_wants_to_train() -> None:
    assert "data_freshness" not in warned(advice(knowledge__changes="yearly"))


@pytest.mark.parametrize(
    ("evals", "words"),
    [
        ({"evals__baseline": 0.6, "evals__target": 0.95}, "the best prompt reaches 60% and 95% is wanted"),
        ({"evals__baseline": 0.615}, "the best prompt reaches 61.5%"),
        ({"evals__baseline": 21, "evals__target": 30}, "the best prompt reaches 21 and 30 is wanted"),
        ({"behaviour__prompt_falls_short": True}, "a good prompt was seen to fall short"),
    ],
)
@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("R-POST-1", {"behaviour__rules_count": 20, "data": [FEW]}),
        ("R-POST-2", {"behaviour__target_capability": "sql", "data": [PAIRS]}),
        ("R-POST-3", {"behaviour__style_or_persona": True, "data": [PAIRS]}),
        ("R-POST-4", {"behaviour__rules_count": 9, "data": [PAIRS]}),
        ("R-POST-6", {"data": [PAIRS]}),
        ("R-POST-7", {"data": [rows("prompts", 500)], "reward__kind": "verifier"}),
        ("R-INS-6", {}),
    ],
)
def test_a_measured_miss_is_given_as_a_reason(
    rule: str, settings: dict[str, Any], evals: dict[str, Any], words: str
) -> None:
    advised = advice(**settings, **evals)
    reason = next(reason for reason in advised.reasons if reason.rule == rule)
    assert words in reason.because
    quoted = {quote.fact.partition(" =")[0] for quote in reason.quotes}
    assert {name.replace("__", ".") for name in evals} <= quoted


def test_a_corpus_for_sft_is_text_to_pre_train_on() -> None:
    """Pages that somebody wants to "fine-tune on" are far too few tokens, whatever the method is called."""
    assert "too_little_data" in warned(
        advice(data=[rows("documents", 300)], requested="sft", knowledge__changes="daily")
    )


def test_one_answer_per_request_leaves_no_choice_among_several() -> None:
    scored = {"reward__kind": "reward_model", "data": [rows("prompts", 5000)]}
    assert stages(advice(**scored, constraints__max_n=8)) == ["best_of_n", "sft"]
    assert stages(advice(**scored, constraints__max_n=1)) == ["rloo"]


def test_pairs_behind_a_scorer_are_not_learned_from_twice() -> None:
    held = {"reward__kind": "reward_model", "data": [rows("preference_pairs", 27_000)]}
    assert stages(advice(**held)) == ["dpo"]
    assert stages(advice(**held, requested="ppo")) == ["ppo"]


def test_a_base_model_is_taught_before_it_learns_from_a_scorer_to_be_trained() -> None:
    held = [rows("sft_pairs", 20_000), rows("preference_pairs", 30_000)]
    scorer = {"requested": "reward_model", "model__type": "base"}
    assert stages(advice(data=held, **scorer)) == ["reward_model"]
    assert stages(advice(data=[*held, rows("prompts", 9000)], **scorer)) == ["sft", "reward_model", "ppo"]


SCARCE = re.compile(r"there were fewer than ([\d,]+) rows")


@pytest.mark.parametrize("count", [10, 49, 50, 60, 99, 100, 499, 500, 999, 1000, 20_000])
@pytest.mark.parametrize("kind", ["preference_pairs", "unpaired_feedback", "sft_pairs", "prompts"])
def test_a_finding_is_not_said_to_end_below_what_is_there_already(kind: str, count: int) -> None:
    """60 pairs spoke for training, "not if there were fewer than 500 of them". With one row less it does end."""

    def heard(number: int, scored: bool) -> dict[str, Vote]:
        scores = {"reward__kind": "verifier"} if scored else {}
        known = facts(data=[rows(kind, number)], behaviour__target_capability="sql", **scores)
        found = {name: rule(known, LIMIT) for name, rule in rules().items()}
        return {name: each for name, each in found.items() if isinstance(each, Vote)}

    scored = kind == "prompts"
    for name, finding in heard(count, scored).items():
        for number in SCARCE.findall(finding.flips_if):
            least = int(number.replace(",", ""))
            assert least <= count, finding
            after = heard(least - 1, scored and "nothing could score" not in finding.flips_if).get(name)
            assert after is None or (finding.weight, after.weight) == ("hard", "soft"), finding


def test_what_a_step_needs_counts_what_is_there() -> None:
    """``needs at least 500 rows`` beside ``at least 50 rows`` and 60 of them."""
    (step,) = advice(data=[rows("preference_pairs", 60)], requested="dpo").plan
    assert step.needs == "more preference pairs: 60 rows are few, 500 are wanted"
    (step,) = advice(data=[rows("preference_pairs", 500)], requested="dpo").plan
    assert step.needs == ""
