"""The interview asks what could change the answer, the most telling first, and stops when nothing could."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.advisor.assemble import advise
from align.advisor.form_fields import fields
from align.advisor.interview import (
    MAX_QUESTIONS,
    InterviewQuestion,
    answer_evidence,
    disagreement,
    interview,
    most_informative,
    opening,
    parse_answer,
    questions,
    read_answers,
)
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence
from align.advisor.thresholds import Thresholds
from align.core.plugin_system.registry import registry
from align.schemas.advice import Advice
from align.schemas.errors import AlignError
from tests.advisor.advices import insufficient

LIMIT = Thresholds.load()
RULES = registry.working("rule")
BY_FIELD = {question.field: question for question in questions(LIMIT)}


def decide(evidence: Sequence[Evidence]) -> Advice:
    return advise(gather(evidence), LIMIT, RULES, others=False)


def only(field: str, options: dict[Any, str]) -> Any:
    """A decision that hangs on one field alone."""

    def by_field(evidence: Sequence[Evidence]) -> Advice:
        found = [e.value for e in evidence if e.field == field]
        return insufficient().model_copy(update={"primary": options.get(found[0] if found else None, "rag")})

    return by_field


def test_every_question_is_of_a_field_and_tries_values_that_it_can_have() -> None:
    assert len(BY_FIELD) == len(questions(LIMIT))
    for question in BY_FIELD.values():
        assert question.field in fields() and question.text.endswith("?") and len(question.tried) > 1
        assert [value for value in question.tried if fields()[question.field].fault(value)] == []


def test_numbers_are_tried_on_both_sides_of_where_advice_turns() -> None:
    assert BY_FIELD["behaviour.rules_count"].tried == (4, 5, 6, 19, 20, 21)
    floor = LIMIT.sft_rows
    assert BY_FIELD["data.sft_pairs.rows"].tried == (0, floor.below - 1, floor.below, floor.warn, floor.comfortable)


def test_disagreement_by_hand() -> None:
    one = {"primary": "rag", "plan": [], "companions": [], "blocking": [], "strategy": None}
    assert disagreement([one, one, one]) == 0
    assert disagreement([one, {**one, "primary": "prompting"}]) == 4
    assert disagreement([one, one, {**one, "plan": ["sft"]}]) == pytest.approx(2 * 2 / 3)  # two pairs of three
    assert disagreement([one]) == 0


def test_only_what_matters_is_asked_and_then_no_more() -> None:
    asked: list[str] = []

    def answer(question: InterviewQuestion) -> Any:
        asked.append(question.field)
        return 25

    decide_by_rules = only("behaviour.rules_count", {20: "prompting", 21: "prompting", 25: "prompting"})
    answers = interview([], decide_by_rules, LIMIT, answer)
    assert asked == ["behaviour.rules_count"]
    assert [(e.field, e.value, e.source) for e in answers] == [("behaviour.rules_count", 25, "answer")]
    assert answers[0].quote == "How many rules must one answer keep at the same time? 25"
    always = only("behaviour.rules_count", {})
    assert interview([], always, LIMIT, answer) == [] and len(asked) == 1


def test_what_is_known_is_not_asked() -> None:
    known = [Evidence("behaviour.rules_count", 3)]
    hangs = only("behaviour.rules_count", {20: "prompting"})
    assert most_informative(known, hangs, questions(LIMIT)) is None
    none = [Evidence("data.sft_pairs", False)]
    assert most_informative(none, only("data.sft_pairs.rows", {10: "prompting"}), questions(LIMIT)) is None


def test_the_goal_comes_first_and_leaves_out_the_others() -> None:
    asked: list[str] = []

    def answer(question: InterviewQuestion) -> Any:
        asked.append(question.field)
        return "skill" if question.field == "goal" else None

    assert interview([], decide, LIMIT, answer) == []
    assert asked[:2] == ["goal", "behaviour.target_capability"]
    assert not {"knowledge.changes", "behaviour.style_or_persona", "behaviour.rules_count"} & set(asked)
    assert opening([Evidence("behaviour.rules_count", 3)], decide) is None
    assert [(e.field, e.value) for e in answer_evidence("goal", "tone")] == [("behaviour.style_or_persona", True)]
    assert answer_evidence("goal", "skill") == []


PERSONAS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "fresh facts": ({"goal": "facts", "knowledge.needs_citations": True}, "rag", ["rag"]),
    "many rules": (
        {"goal": "rules", "behaviour.rules_count": 27, "data.sft_pairs.rows": 14_000},
        "post_training",
        ["sft"],
    ),
    "a checked skill": (
        {
            "goal": "skill",
            "behaviour.target_capability": "math",
            "data.prompts.rows": 8000,
            "reward.kind": "verifier",
            "model.type": "instruct",
        },
        "post_training",
        ["grpo"],
    ),
    "a new field": (
        {"goal": "field", "data.corpus.tokens": 8_000_000_000},
        "continual_pretraining",
        ["continual_pretraining", "sft"],
    ),
    "a tone": (
        {"goal": "tone", "data.preference_pairs.rows": 40_000, "model.type": "instruct"},
        "post_training",
        ["dpo"],
    ),
    "two rules": ({"goal": "rules", "behaviour.rules_count": 2}, "prompting", ["prompting"]),
}


@pytest.mark.parametrize("name", PERSONAS)
def test_nine_questions_find_the_way_of_somebody_who_knows_little(name: str) -> None:
    knows, primary, stages = PERSONAS[name]
    found = decide(interview([], decide, LIMIT, lambda question: knows.get(question.field)))
    assert (found.primary, [step.stage for step in found.plan]) == (primary, stages)


def test_unknown_is_an_answer_and_the_end_of_input_ends_it() -> None:
    asked: list[str] = []

    def unknown(question: InterviewQuestion) -> Any:
        asked.append(question.field)

    assert interview([], decide, LIMIT, unknown) == []
    assert len(asked) == len(set(asked)) == MAX_QUESTIONS

    def ends(question: InterviewQuestion) -> Any:
        raise EOFError

    assert interview([], decide, LIMIT, ends) == []


GOALS = {"goal": st.none() | st.sampled_from(["skill", "rules", "tone", "facts", "field"])}
ANSWERS = st.fixed_dictionaries({**GOALS, **{q.field: st.none() | st.sampled_from(q.tried) for q in BY_FIELD.values()}})


@settings(max_examples=2)
@given(ANSWERS)
def test_by_the_real_rules_it_is_short_repeatable_and_replayed_by_a_file(answers: dict[str, Any]) -> None:
    asked: list[str] = []

    def answer(question: InterviewQuestion) -> Any:
        asked.append(question.field)
        return answers[question.field]

    first = interview([], decide, LIMIT, answer)
    assert len(asked) <= MAX_QUESTIONS and len(set(asked)) == len(asked)
    assert interview([], decide, LIMIT, lambda question: answers[question.field]) == first
    replayed = read_answers({field: answers[field] for field in asked}, "answers.yaml", LIMIT)
    assert decide(replayed) == decide(first)


def test_an_answer_of_none_says_that_there_is_none() -> None:
    assert [(e.field, e.value) for e in answer_evidence("data.prompts.rows", 0)] == [("data.prompts", False)]
    assert [(e.field, e.value) for e in answer_evidence("data.prompts.rows", 9)] == [
        ("data.prompts", True),
        ("data.prompts.rows", 9),
    ]
    assert gather(answer_evidence("knowledge.per_user", True)).project.knowledge.per_user is True


@pytest.mark.parametrize(
    ("field", "words", "value"),
    [
        ("behaviour.rules_count", "27", 27),
        ("data.corpus.tokens", " 2.5b ", 2_500_000_000),
        ("data.sft_pairs.rows", "14k", 14_000),
        ("data.sft_pairs.rows", "14,000", 14_000),
        ("model.params_b", "0.6", 0.6),
        ("knowledge.changes", "Daily", "daily"),
        ("knowledge.changes", "5", "daily"),
        ("knowledge.per_user", "y", True),
        ("knowledge.per_user", "2", False),
        ("behaviour.target_capability", "function calling", "function_calling"),
        ("behaviour.rules_count", "", None),
        ("knowledge.changes", "?", None),
    ],
)
def test_what_is_typed(field: str, words: str, value: Any) -> None:
    assert parse_answer(BY_FIELD[field], words) == (value, "")


@pytest.mark.parametrize(
    ("field", "words", "fault"),
    [
        ("behaviour.rules_count", "many", "a number"),
        ("behaviour.rules_count", "9" * 400, "a number"),
        ("behaviour.rules_count", "2.5", "integer"),
        ("model.params_b", "0", "greater than 0"),
        ("knowledge.changes", "7", "one of: never, yearly"),
        ("knowledge.per_user", "perhaps", "one of: yes, no"),
    ],
)
def test_what_is_no_answer_is_asked_again(field: str, words: str, fault: str) -> None:
    value, said_so = parse_answer(BY_FIELD[field], words)
    assert value is None and fault in said_so


def test_a_file_of_answers_is_checked_as_a_whole() -> None:
    with pytest.raises(AlignError) as error:
        wrong = {"behaviour.rule_count": 3, "knowledge.changes": "sometimes", "model.params_b": None, "goal": "skil"}
        read_answers(wrong, "a.yaml", LIMIT)
    assert "a.yaml: behaviour.rule_count\n    is no question\n    did you mean 'behaviour.rules_count'?" in str(
        error.value
    )
    assert "a.yaml: knowledge.changes\n    is 'sometimes'" in str(error.value) and len(error.value.problems) == 3
    assert "did you mean 'skill'?" in str(error.value)
    with pytest.raises(AlignError, match="is not a mapping"):
        read_answers([1], "a.yaml", LIMIT)
