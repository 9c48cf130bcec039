"""Votes -> advice: two axes, stages in order, what was asked for, other ways, numbers, provenance."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from align.advisor.alternatives import CLASSES, OPTIONS, compare, why_not
from align.advisor.assemble import advise
from align.advisor.decision import decide
from align.advisor.default_settings import algorithms
from align.advisor.eval_plan import detectable, rows_needed
from align.advisor.fact_settings import suppose, what_if
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Facts, from_form
from align.advisor.rule import Ask, Vote
from align.advisor.thresholds import Thresholds
from align.core.plugin_system.registry import check, config_of, registry
from align.schemas.advice import Advice
from align.schemas.errors import AlignError
from align.schemas.project import Project
from align.schemas.run import Run
from tests.advisor.deciding import LIMIT, advice, corpus, facts, fired, form, rows, rules, stages

PAIRS = rows("sft_pairs", 5000)
COMPARED = rows("preference_pairs", 6000)
CHECKED = {"reward__kind": "verifier"}
MISSED = {"evals__baseline": 0.3, "evals__target": 0.9}
SQL = {"behaviour__target_capability": "sql"}


# Two axes


@pytest.mark.parametrize(
    ("settings", "primary", "companions"),
    [
        ({"knowledge__changes": "daily", **SQL, "data": [PAIRS]}, "rag", ["post_training"]),
        ({"knowledge__changes": "daily", **SQL, "data": [PAIRS], "tried": ["rag"]}, "post_training", ["rag"]),
        ({"knowledge__changes": "daily", "behaviour__rules_count": 3}, "rag", ["prompting"]),
        ({"knowledge__source": "proprietary", **MISSED, "data": [PAIRS], "tried": ["rag"]}, "post_training", ["rag"]),
        ({"knowledge__source": "proprietary", **MISSED, "data": [PAIRS]}, "rag", []),
        ({"knowledge__source": "proprietary", **MISSED, "tried": ["rag"]}, "rag", []),
        (
            {"data": [corpus(10**10)], "knowledge__unseen_domain": True, "knowledge__needs_citations": True},
            "continual_pretraining",
            ["rag", "post_training"],
        ),
        ({"data": [corpus(3 * 10**8)], "knowledge__unseen_domain": True}, "continual_pretraining", ["post_training"]),
        ({"data": [corpus(10**6)], "requested": "continual_pretraining"}, "rag", []),
        ({"behaviour__rules_count": 3, **SQL, "data": [rows("sft_pairs", 20)]}, "prompting", []),
        ({"evals__baseline": 0.95, "evals__target": 0.9, "behaviour__rules_count": 30}, "prompting", []),
    ],
)
def test_the_answer(settings: dict[str, Any], primary: str, companions: list[str]) -> None:
    advised = advice(**settings)
    assert (advised.primary, advised.companions) == (primary, companions)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data": [PAIRS], **SQL}, ["sft"]),
        ({"data": [COMPARED]}, ["dpo"]),
        ({"data": [COMPARED], "model__type": "base"}, ["sft", "dpo"]),
        ({"data": [COMPARED, PAIRS]}, ["sft", "dpo"]),
        ({"data": [rows("unpaired_feedback", 9000)]}, ["kto"]),
        ({"data": [rows("prompts", 9000)], "task__type": "math", **CHECKED}, ["grpo"]),
        ({"data": [rows("prompts", 9000)], "task__type": "math", **CHECKED, "requested": "ppo"}, ["ppo"]),
        ({"data": [rows("prompts", 9000)], "task__type": "math", "reward__kind": "reward_model"}, ["rloo"]),
        (
            {
                "data": [rows("prompts", 9000)],
                "task__type": "math",
                "reward__kind": "reward_model",
                "constraints__max_n": 8,
            },
            ["best_of_n", "sft"],
        ),
        ({"data": [PAIRS, COMPARED, rows("prompts", 9000)], "task__type": "math", **CHECKED}, ["sft", "dpo", "grpo"]),
        ({"data": [COMPARED, rows("prompts", 9000)], "requested": "rlhf"}, ["reward_model", "ppo"]),
        ({"data": [COMPARED], "requested": "rlhf"}, ["dpo"]),
        ({"data": [COMPARED], "requested": "reward_model"}, ["reward_model"]),
        ({"data": [PAIRS], **SQL, **CHECKED}, ["sft", "grpo"]),
        ({"data": [COMPARED], "constraints__weights_frozen": True}, ["reward_model", "best_of_n"]),
        (
            {"data": [corpus(10**10), COMPARED], "knowledge__unseen_domain": True},
            ["continual_pretraining", "sft", "dpo"],
        ),
        ({"reward__kind": "reward_model", "constraints__weights_frozen": True}, ["best_of_n"]),
        ({"behaviour__rules_count": 25}, ["sft"]),
    ],
)
def test_stages_follow_the_data(settings: dict[str, Any], expected: list[str]) -> None:
    assert stages(advice(**settings)) == expected


def test_a_step_says_what_it_lacks() -> None:
    (step,) = advice(behaviour__rules_count=25).plan
    assert step.needs == "at least 500 examples of the answer wanted"
    sft, dpo = advice(data=[COMPARED], model__type="base").plan
    assert sft.needs == "the better answers of the pairs as examples" and not dpo.needs
    (_, grpo) = advice(data=[PAIRS], **SQL, **CHECKED).plan
    assert grpo.optional


# What was asked for


@pytest.mark.parametrize(
    ("settings", "agrees", "blocking"),
    [
        ({"data": [PAIRS], **SQL, "requested": "sft"}, True, False),
        ({"data": [PAIRS], **SQL, "requested": "post_training"}, True, False),
        ({"data": [PAIRS], **SQL, "requested": "dpo"}, False, True),
        ({"knowledge__changes": "daily", "requested": "sft"}, False, True),
        ({"behaviour__rules_count": 3, "data": [rows("sft_pairs", 30)], "requested": "sft"}, False, False),
        ({"data": [corpus(10**6)], "requested": "continual_pretraining"}, False, True),
        ({"behaviour__rules_count": 25, "data": [PAIRS], "requested": "prompting"}, False, False),
    ],
)
def test_the_wish_against_the_advice(settings: dict[str, Any], agrees: bool, blocking: bool) -> None:
    advised = advice(**settings)
    assert advised.requested is not None
    assert (advised.requested.agrees, advised.requested.blocking) == (agrees, blocking)
    assert ("requested-differs" in advised.blocking) == blocking


def test_without_a_wish_there_is_nothing_to_compare() -> None:
    assert advice(behaviour__rules_count=3).requested is None


# Confidence


def test_confidence() -> None:
    hard = from_form(form(knowledge__changes="daily"))
    assert advice(gather(hard)).confidence == "high"
    disputed = [*hard, Evidence("knowledge.changes", "never", quote="never", source="text")]
    assert advice(gather(disputed)).confidence == "medium"
    assert advice(behaviour__rules_count=3).confidence == "medium"
    assert advice().confidence == "low"


def test_a_rough_number_on_which_the_answer_hangs_makes_it_doubtful() -> None:
    def about(low: float, high: float) -> Facts:
        rough = Evidence(
            "behaviour.rules_count", 21, quote="some twenty", source="text", vague=True, low=low, high=high
        )
        return gather([rough, *from_form(form(data=[PAIRS]))])

    assert advice(about(21, 25)).confidence == "high"
    doubtful = advice(about(4, 25))
    assert doubtful.confidence == "low"
    assert doubtful.assumptions[0].effect == "the answer depends on it"


def test_a_rough_number_that_does_not_fit_is_left_out_and_hurts_nothing() -> None:
    wrong = Evidence("hardware.gpus", -3, quote="minus three", source="text", vague=True, low=-5, high=1)
    odd = Evidence("hardware.cards", 3, quote="three cards", source="text", vague=True, low=2, high=5)
    advised = advice(gather([wrong, odd, *from_form(form(behaviour__rules_count=3))]))
    assert advised.primary == "prompting" and len(advised.not_understood) == 2


# Reasons


def test_reasons_quote_the_words_they_rest_on() -> None:
    text = "There are 27 mandatory clauses."
    said = Evidence("behaviour.rules_count", 27, quote="27 mandatory clauses", span=(10, 30), source="text")
    (reason,) = advice(gather([said])).reasons
    (quote,) = reason.quotes
    assert text[slice(*quote.span or ())] == quote.quote
    assert (quote.fact, quote.source, reason.rule) == ("behaviour.rules_count = 27", "description", "R-POST-1")


def test_where_nothing_is_said_the_reason_says_so() -> None:
    (reason,) = advice().reasons
    assert reason.rule == "R-INS-1" and reason.quotes[0].quote == "(not stated)"


def test_reasons_for_what_is_advised_come_first_and_the_hard_ones_before() -> None:
    advised = advice(behaviour__rules_count=25, knowledge__changes="daily", task__type="qa", data=[rows("documents")])
    assert [r.rule for r in advised.reasons] == ["R-RAG-1", "R-RAG-3", "R-POST-1"]


# Other ways


@pytest.mark.parametrize(
    "settings",
    [
        {"behaviour__rules_count": 3},
        {"behaviour__rules_count": 27, "data": [PAIRS], "evals__baseline": 0.81, "evals__target": 0.97},
        {"knowledge__changes": "daily", "knowledge__needs_citations": True, "data": [rows("documents")]},
        {"data": [corpus(10**10)], "knowledge__unseen_domain": True},
        {"data": [COMPARED], "requested": "ppo"},
        {"evals__baseline": 0.95, "evals__target": 0.9, "data": [PAIRS], **SQL},
        {},
    ],
)
def test_what_is_said_to_flip_the_answer_flips_it(settings: dict[str, Any]) -> None:
    known = facts(**settings)
    advised = advice(known)
    assert [a.rank for a in advised.alternatives] == list(range(2, len(advised.alternatives) + 2))
    assert {a.option for a in advised.alternatives} == {*CLASSES} - {advised.primary, *advised.companions}
    for way in advised.alternatives:
        if way.what_if:
            flipped = suppose(known, way.what_if)
            assert advice(flipped).primary == way.option
            fewer = [[s for s in way.what_if if s != left_out] for left_out in way.what_if]
            for settings_left in fewer if len(way.what_if) > 1 else []:
                with_fewer = _attempt(known, settings_left)
                assert with_fewer is None or with_fewer.primary != way.option, "no setting is idle"


def _attempt(known: Facts, settings: list[str]) -> Advice | None:
    try:
        return advice(suppose(known, settings))
    except AlignError:
        return None  # a body of data without its kind


def test_near_ways_are_told_in_words() -> None:
    ways = {a.option: a for a in advice(behaviour__rules_count=3).alternatives}
    assert ways["post_training"].what_if == ["behaviour.rules_count=20"]
    assert ways["post_training"].flips_if == "it is advised if 20 rules must hold at once"
    assert ways["rag"].rank < ways["post_training"].rank < ways["continual_pretraining"].rank


@pytest.mark.parametrize("option", OPTIONS)
def test_why_not(option: str) -> None:
    known = facts(data=[PAIRS], **SQL, requested="grpo")
    answer = why_not(known, LIMIT, rules(), option)
    assert answer.chosen == (option in ("sft", "post_training"))
    if answer.what_if:
        decision = decide(suppose(known, answer.what_if), LIMIT, rules())
        assert option in (decision.plan.primary, *decision.plan.stages)


def test_why_not_says_which_rules_speak() -> None:
    answer = why_not(
        facts(data=[corpus(10**6)], requested="continual_pretraining"), LIMIT, rules(), "continual_pretraining"
    )
    assert [text.split(":")[0] for text in answer.opposed_by] == ["R-CPT-3", "R-INS-5", "R-RAG-3"]
    assert "data.0.size.tokens=1000000000" in answer.what_if


def test_why_not_knows_its_options() -> None:
    with pytest.raises(AlignError, match="did you mean 'grpo'"):
        why_not(facts(), LIMIT, rules(), "gpro")


def test_two_advices_apart() -> None:
    before, after = advice(behaviour__rules_count=3), advice(behaviour__rules_count=30)
    rows_of = {name: (was, now) for name, was, now in compare(before, after)}
    assert rows_of["primary"] == ("prompting", "post_training")
    assert rows_of["rules"] == ("R-PRM-1", "R-POST-1")
    assert compare(before, before) == []


# Settings


def test_settings_are_laid_over_a_form() -> None:
    project = form(behaviour__rules_count=3, data=[PAIRS])
    laid = what_if(
        project,
        ["behaviour.rules_count=25", "data.0.size.rows=5e4", "data.1.kind=documents", "task.languages=[de, en]"],
    )
    assert laid.behaviour.rules_count == 25 and laid.task.languages == ["de", "en"]
    assert [(d.kind, d.size.rows) for d in laid.data or ()] == [("sft_pairs", 50_000), ("documents", None)]
    assert what_if(project, ["data=[]", "requested=null"]).data == []
    assert project.behaviour.rules_count == 3, "the form itself stays"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("behaviour.rules_count", "is no setting"),
        ("behaviour.rule_count=3", "did you mean 'rules_count'?"),
        ("behavior.rules_count=3", "did you mean 'behaviour'?"),
        ("behaviour=3", "is not a single value"),
        ("behaviour.rules_count.x=3", "has no fields"),
        ("behaviour.rules_count=-3", "greater than or equal to 0"),
        ("knowledge.changes=hourly", "hourly is not valid\n    known: daily, monthly"),
        ("data.3.size.rows=5", "the next one is 1"),
        ("data.x.size.rows=5", "known: corpus, documents"),
        ("data.0.size.row=5", "did you mean 'rows'?"),
        ("data.0=5", "names no field of it"),
        ("data.1.size.rows=5", "kind"),
    ],
)
def test_a_setting_that_is_none_is_said(setting: str, said: str) -> None:
    with pytest.raises(AlignError) as caught:
        what_if(form(data=[PAIRS]), [setting])
    assert said.lower() in str(caught.value).lower()


def test_all_bad_settings_are_said_at_once() -> None:
    with pytest.raises(AlignError) as caught:
        what_if(Project(), ["a=1", "b=2"])
    assert len(caught.value.problems) == 2


# Numbers


def test_rows_to_see_an_effect() -> None:
    """n = 4 p (1 - p) / d^2: 4 * 0.8 * 0.2 / 0.04^2 = 400; and 2 sqrt(0.8 * 0.2 / 400) = 0.04."""
    assert rows_needed(0.8, 0.04, 2) == 400
    assert detectable(0.8, 400, 2) == pytest.approx(0.04)
    assert detectable(0.8, 100, 2) == pytest.approx(0.08), "research/advisor.md 6.2: 100 rows are 4.0 points each way"


def test_the_gate_knows_what_can_be_seen() -> None:
    known = {"behaviour__rules_count": 27, "data": [PAIRS], "evals__baseline": 0.5, "evals__target": 0.6}
    gate = advice(**known, evals__held_out_rows=25).evals
    assert gate is not None
    assert gate.min_rows == 100, "4 * 0.5 * 0.5 / 0.1^2"
    assert gate.detectable == pytest.approx(0.2), "2 sqrt(0.25 / 25)"
    unknown = advice(behaviour__rules_count=27).evals
    assert unknown is not None and (unknown.min_rows, unknown.detectable) == (500, None)


def test_suites_follow_the_capability() -> None:
    ruled = advice(behaviour__rules_count=27, data=[PAIRS], **SQL).evals
    assert ruled is not None and ruled.target == ["execution_accuracy", "all_rules_pass", "ifeval"]
    sql = advice(data=[PAIRS], **SQL, evals__metric="own_accuracy", evals__suite=["bird"]).evals
    assert sql is not None
    assert sql.target == ["own_accuracy", "bird", "execution_accuracy"] and "empty_result_rate" in sql.guard
    both = advice(data=[corpus(10**10)], knowledge__unseen_domain=True).evals
    assert both is not None and "domain_perplexity" in both.target and "general_perplexity" in both.guard
    assert advice().evals is None


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (rows("sft_pairs", 9), "too_little"),
        (rows("sft_pairs", 10), "thin"),
        (rows("sft_pairs", 500), "ok"),
        (rows("sft_pairs"), "unknown"),
        (rows("logs"), "missing"),
    ],
)
def test_data_needed_against_given(data: dict[str, Any], verdict: str) -> None:
    need = advice(behaviour__rules_count=30, data=[{**data, "path": "rows.jsonl"}]).data[0]
    assert (need.need, need.floor, need.comfortable, need.verdict) == ("sft_pairs", 10, 1000, verdict)
    assert need.lint == ("" if verdict == "missing" else "align data check rows.jsonl")


def test_sizes_that_are_reckoned_are_said() -> None:
    advised = advice(data=[{"kind": "corpus", "size": {"bytes": 8 * 10**9}}], knowledge__unseen_domain=True)
    assert advised.primary == "continual_pretraining"
    assert [a.fact for a in advised.assumptions][:1] == ["data.corpus.tokens = 2,000,000,000"]


# Settings to start from


@pytest.mark.parametrize(
    ("settings", "tuning"),
    [
        ({"data": [PAIRS], **SQL}, "lora"),
        ({"data": [rows("sft_pairs", 200_000)], **SQL}, "full"),
        ({"data": [PAIRS], **SQL, "training__tuning": "full"}, "full"),
        ({"data": [PAIRS], **SQL, "model__params_b": 8, "hardware__gpus": 1, "hardware__memory_gb": 12}, "qlora"),
    ],
)
def test_tuning(settings: dict[str, Any], tuning: str) -> None:
    assert [a.tuning for a in advice(**settings).algorithms] == [tuning]


def test_settings_follow_size_rows_and_scorer() -> None:
    def start(**settings: Any) -> dict[str, Any]:
        return advice(**settings).algorithms[0].start

    full = {"training__tuning": "full", **SQL}
    assert start(data=[PAIRS], model__params_b=7, **full)["optimizer.learning_rate"] == 2e-5
    assert start(data=[PAIRS], model__params_b=70, **full)["optimizer.learning_rate"] == 2e-6
    assert start(data=[PAIRS], **SQL)["optimizer.learning_rate"] == pytest.approx(10 * 2e-5)
    assert start(data=[rows("sft_pairs", 900)], **SQL)["train.num_train_epochs"] == 4
    frozen = {"constraints__weights_frozen": True}
    assert start(reward__kind="verifier", **frozen)["algorithm.minimum"] == 1.0
    assert "algorithm.minimum" not in start(reward__kind="reward_model", **frozen)


def test_every_start_is_keys_of_the_run_file() -> None:
    """Laid over a minimal stage, each set of settings makes a Run and a Config of its algorithm."""
    every = [
        {"data": [corpus(10**10)], "knowledge__unseen_domain": True},
        {"data": [corpus(10**10)], "knowledge__unseen_domain": True, "model__type": "base"},
        {"data": [PAIRS, COMPARED, rows("prompts", 9000)], "task__type": "math", **CHECKED},
        {"data": [rows("unpaired_feedback", 9000)]},
        {"data": [COMPARED, rows("prompts", 9000)], "requested": "rlhf"},
        {"data": [rows("prompts", 9000)], "task__type": "math", "reward__kind": "reward_model"},
        {"reward__kind": "verifier", "constraints__weights_frozen": True},
    ]
    seen = set()
    for settings in every:
        for tuning in ("full", "lora", "qlora"):
            known = facts(**settings, training__tuning=tuning)
            for algorithm in algorithms(known, LIMIT, decide(known, LIMIT, rules()).plan, None):
                assert algorithm.source
                seen.add(algorithm.stage)
                _accepted(algorithm.name, algorithm.start)
    assert seen == {"continual_pretraining", "sft", "dpo", "kto", "reward_model", "grpo", "rloo", "ppo", "best_of_n"}


def _accepted(name: str, start: dict[str, Any]) -> None:
    own = {key.removeprefix("algorithm."): value for key, value in start.items() if key.startswith("algorithm.")}
    check(config_of(registry.get("algorithm", name)), own, str)
    stage: dict[str, Any] = {"name": name, "model": {"path": "m"}, "data": {"train": "d"}, "algorithm": name}
    for key, value in start.items():
        if not key.startswith("algorithm."):
            *above, last = key.split(".")
            level = stage
            for part in above:
                level = level.setdefault(part, {"rewards": ["exact"]} if part == "rollout" else {})
            level[last] = value
    assert Run.model_validate({"output": "o", "stages": [stage]}).stages[0].name == name


# Strangers' rules, and what the advice depends on


def test_a_strangers_rule_decides_as_ours_do() -> None:
    def house_rule(known: Facts, limit: Any) -> Vote:
        return Vote("rag", "hard", "the house wants it", ("behaviour.rules_count",), "it did not", "HOUSE")

    advised = advise(facts(behaviour__rules_count=3), LIMIT, {**rules(), "ACME-1": house_rule})
    assert advised.primary == "rag" and "ACME-1" in fired(advised)


def test_a_rule_that_breaks_is_named_and_stops_nothing() -> None:
    def broken(known: Facts, limit: Any) -> None:
        raise ZeroDivisionError("oh")

    advised = advise(facts(behaviour__rules_count=3), LIMIT, {**rules(), "ACME-2": broken})
    assert advised.primary == "prompting"
    assert advised.not_understood == ["rule ACME-2 failed and was left out: ZeroDivisionError: oh"]


def test_the_same_input_is_the_same_bytes_and_another_is_another_hash() -> None:
    known = facts(behaviour__rules_count=3)
    one, two = advice(known), advice(facts(behaviour__rules_count=3))
    assert one.model_dump_json() == two.model_dump_json()
    other = advice(facts(behaviour__rules_count=4))
    assert one.provenance.input != other.provenance.input
    assert one.provenance.rules == other.provenance.rules
    fewer = {name: rule for name, rule in rules().items() if name != "R-RAG-1"}
    assert advise(known, LIMIT, fewer).provenance.rules != one.provenance.rules
    moved = LIMIT.model_copy(update={"many_rules": 21})
    assert advise(known, moved, rules()).provenance.thresholds != one.provenance.thresholds


def test_an_unread_language_is_said() -> None:
    said = gather(from_form(form(behaviour__rules_count=3)), languages=("en", "xx?"))
    assert "'xx' is not read" in advice(said).not_understood[0]


def test_the_manual_of_rules_does_what_it_says() -> None:
    """Its first and its last Python block, one after the other."""
    text = (Path(__file__).parents[2] / "docs/rules.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    exec(blocks[0] + blocks[2], names)
    (question,) = [rule for rule in [names["long_letters"](facts(), LIMIT)] if isinstance(rule, Ask)]
    assert question.field == "training.max_length"


def test_the_manual_of_rules_shows_thresholds_that_load(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/rules.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "own.yaml").write_text(block)
    own = Thresholds.load(tmp_path / "own.yaml")
    assert (own.many_rules, own.sft_rows.warn) == (25, 300)


def test_the_first_experiment_names_what_is_reached_and_what_is_wanted() -> None:
    """On 200 rows 2 sqrt(0.6 * 0.4 / 200) = 6.9 points can be seen."""
    first = advice(behaviour__rules_count=27, data=[PAIRS], evals__baseline=0.6, evals__target=0.95).first_try
    assert first is not None
    assert first.stop_if == "the score reaches 95 % (60 % today; on 200 rows a difference of 6.9 points can be seen)"


def test_training_that_follows_is_not_called_no_training() -> None:
    combined = advice(knowledge__changes="daily", data=[COMPARED], knowledge__needs_citations=True)
    assert combined.primary == "rag" and "dpo" in stages(combined)
    lead = "Start without training: retrieval. Then train: preference learning (dpo). "
    assert combined.summary.startswith(lead)
    assert advice(behaviour__rules_count=27, data=[PAIRS]).summary.startswith("Training is the answer: supervised ")
