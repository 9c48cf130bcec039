"""The interview asks what could flip the answer, the most telling first, and stops when nothing could."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from align.advisor.assemble import advise
from align.advisor.data_budget import denied
from align.advisor.form_fields import fields
from align.advisor.interview import MAX_QUESTIONS, between_readings, disagreement, interview, next_question
from align.advisor.interview_questions import (
    Choice,
    InterviewQuestion,
    answer_evidence,
    fact_evidence,
    parse_answer,
    questions,
    read_answers,
    table,
)
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Facts, from_form
from align.advisor.text import read
from align.advisor.thresholds import Thresholds
from align.core.plugin_system.registry import registry
from align.schemas.advice import Advice, OtherReading
from align.schemas.errors import AlignError
from tests.advisor.advices import insufficient
from tests.advisor.deciding import form, rows

LIMIT = Thresholds.load()
RULES = registry.working("rule")
BY_FIELD = {question.field: question for question in questions(LIMIT)}
LEARN = Path(__file__).parents[2] / "data" / "advice" / "learn"


@functools.lru_cache(maxsize=5000)  # the tests decide again what the interview decided
def decided(evidence: tuple[Evidence, ...]) -> Advice:
    return advise(gather(evidence), LIMIT, RULES, others=False)


def decide(evidence: Sequence[Evidence]) -> Advice:
    try:
        return decided(tuple(evidence))
    except TypeError:  # a value that is a list
        return advise(gather(evidence), LIMIT, RULES, others=False)


def only(field: str, options: dict[Any, str]) -> Any:
    """A decision that hangs on one field alone."""

    def by_field(evidence: Sequence[Evidence]) -> Advice:
        found = [e.value for e in evidence if e.field == field]
        return insufficient().model_copy(update={"primary": options.get(found[-1] if found else None, "rag")})

    return by_field


def asked_by(evidence: Sequence[Evidence], decision: Any = decide, **knows: Any) -> list[InterviewQuestion]:
    """The questions of an interview with somebody who knows little."""
    asked: list[InterviewQuestion] = []

    def answer(question: InterviewQuestion) -> Any:
        asked.append(question)
        return knows.get(question.field.replace(".", "__"))

    interview(evidence, decision, LIMIT, answer)
    return asked


# The table


def test_every_question_states_facts_of_the_form_in_words_with_examples() -> None:
    assert len(BY_FIELD) == len(questions(LIMIT))
    for question in BY_FIELD.values():
        assert question.text.endswith("?")
        assert question.choices or question.example, "a number needs an example of how to type it"
        assert all(choice.words and choice.example for choice in question.choices)
        for choice in question.choices:
            assert all(fields()[field].fault(value) == "" for field, value in choice.settings)
            assert all(name in BY_FIELD for name in choice.asks)
        if question.field != "goal":
            stated = [setting for value in question.tried for setting in question.settings(value)]
            assert len(question.tried) > 1 and [(f, v) for f, v in stated if fields()[f].fault(v)] == []
        typed = question.example.split()[:1]
        assert [parse_answer(question, word.strip(";"))[1] for word in typed] == [""] * len(typed)


def test_numbers_are_tried_on_both_sides_of_where_advice_turns() -> None:
    assert BY_FIELD["behaviour.rules_count"].tried == (4, 5, 6, 19, 20, 21)
    floor = LIMIT.sft_rows
    assert BY_FIELD["data.sft_pairs.rows"].tried == (0, floor.below - 1, floor.below, floor.warn, floor.comfortable)


def test_disagreement_by_hand() -> None:
    one = {"primary": "rag", "plan": [], "blocking": []}
    assert disagreement([one, one, one]) == 0
    assert disagreement([one, {**one, "primary": "prompting"}]) == 4
    assert disagreement([one, one, {**one, "plan": ["sft"]}]) == pytest.approx(2 * 2 / 3)  # two pairs of three
    assert disagreement([one]) == 0


# What is asked, and when it stops


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


def test_facts_that_flip_only_together_are_asked_one_after_the_other() -> None:
    def by_both(evidence: Sequence[Evidence]) -> Advice:
        facts = gather(evidence)
        both = facts.project.behaviour.prompt_falls_short and facts.data("sft_pairs")
        return insufficient().model_copy(update={"primary": "post_training" if both else "prompting"})

    assert [question.field for question in asked_by([], by_both, data=("sft_pairs",))] == ["data", "prompt"]
    assert [question.field for question in asked_by([], by_both, data=())] == ["data"]
    assert [question.field for question in asked_by([], by_both)] == ["data"]


def test_what_is_known_is_not_asked() -> None:
    known = [Evidence("behaviour.rules_count", 3)]
    assert next_question(known, only("behaviour.rules_count", {20: "prompting"}), LIMIT) is None
    none = [Evidence("data.sft_pairs", False)]
    assert next_question(none, only("data.sft_pairs.rows", {10: "prompting"}), LIMIT) is None
    frozen = [Evidence("constraints.weights_frozen", False)]
    (asked,) = asked_by(frozen, only("constraints.regulated", {True: "prompting"}))
    assert [choice.value for choice in asked.choices] == ["regulated"]


def test_the_goal_comes_first_and_leaves_out_the_others() -> None:
    asked = [question.field for question in asked_by([], goal="skill")]
    assert asked[:2] == ["goal", "behaviour.target_capability"]
    assert not {"knowledge", "behaviour.style_or_persona", "behaviour.rules_count"} & set(asked)
    assert "goal" not in [question.field for question in asked_by([Evidence("behaviour.rules_count", 3)])]
    stated = [(e.field, e.value) for e in answer_evidence(BY_FIELD["goal"], "tone")]
    assert stated == [("behaviour.style_or_persona", True)]
    assert answer_evidence(BY_FIELD["goal"], "skill") == []


PERSONAS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "fresh facts": ({"goal": "facts", "knowledge": "cited"}, "rag", ["rag"]),
    "many rules": (
        {"goal": "rules", "behaviour__rules_count": 27, "data": ("sft_pairs",), "data__sft_pairs__rows": 14_000},
        "post_training",
        ["sft"],
    ),
    "a checked skill": (
        {
            "goal": "skill",
            "behaviour__target_capability": "math",
            "data": ("prompts",),
            "data__prompts__rows": 8000,
            "reward__kind": "verifier",
            "prompt": "fell_short",
            "model__type": "instruct",
        },
        "post_training",
        ["grpo"],
    ),
    "a new field": (
        {"goal": "field", "data": ("corpus",), "data__corpus__tokens": 8_000_000_000},
        "continual_pretraining",
        ["continual_pretraining", "sft"],
    ),
    "a tone": (
        {
            "goal": "tone",
            "data": ("preference_pairs",),
            "data__preference_pairs__rows": 40_000,
            "model__type": "instruct",
        },
        "post_training",
        ["dpo"],
    ),
    "a tone that a prompt holds": (
        {"goal": "tone", "data": ("sft_pairs",), "data__sft_pairs__rows": 4000, "prompt": "good_enough"},
        "prompting",
        ["prompting"],
    ),
    "twelve rules that a prompt misses": (
        {
            "goal": "rules",
            "behaviour__rules_count": 12,
            "data": ("sft_pairs",),
            "data__sft_pairs__rows": 4000,
            "prompt": "fell_short",
        },
        "post_training",
        ["sft"],
    ),
    "two rules": ({"goal": "rules", "behaviour__rules_count": 2}, "prompting", ["prompting"]),
}


@pytest.mark.parametrize("name", PERSONAS)
def test_nine_questions_find_the_way_of_somebody_who_knows_little(name: str) -> None:
    knows, primary, stages = PERSONAS[name]
    answers = interview([], decide, LIMIT, lambda question: knows.get(question.field.replace(".", "__")))
    found = decide(answers)
    assert (found.primary, [step.stage for step in found.plan]) == (primary, stages)


def test_unknown_is_an_answer_and_the_end_of_input_ends_it() -> None:
    asked = [question.field for question in asked_by([])]
    assert 1 < len(asked) <= MAX_QUESTIONS and len(asked) == len(set(asked))

    def ends(question: InterviewQuestion) -> Any:
        raise EOFError

    assert interview([], decide, LIMIT, ends) == []


TRAINED = {
    "many rules": form(behaviour__rules_count=27, data=[rows("sft_pairs", 14_000)]),
    "a skill": form(behaviour__target_capability="sql", data=[rows("sft_pairs", 9000)]),
    "a style": form(behaviour__style_or_persona=True, data=[rows("sft_pairs", 9000)]),
    "judged answers": form(data=[rows("preference_pairs", 9000)]),
    "rewards": form(
        behaviour__target_capability="math", data=[rows("prompts", 9000)], reward__kind="verifier", requested="grpo"
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_before_training_is_advised_it_asks_how_a_good_prompt_did(name: str) -> None:
    evidence = from_form(TRAINED[name])
    assert decide(evidence).primary == "post_training"
    assert "prompt" in [question.field for question in asked_by(evidence)]
    good_enough = [*evidence, *answer_evidence(BY_FIELD["prompt"], "good_enough")]
    assert decide(good_enough).primary == "prompting"
    fell_short = [*evidence, *answer_evidence(BY_FIELD["prompt"], "fell_short")]
    assert decide(fell_short).primary == "post_training"
    for known in (Evidence("behaviour.prompt_falls_short", True), Evidence("evals.baseline", 0.6)):
        assert "prompt" not in [question.field for question in asked_by([*evidence, known])]


@functools.cache
def sampled(count: int) -> list[dict[str, Any]]:
    loaded = [yaml.load(file.read_text("utf-8"), yaml.CSafeLoader)["cases"] for file in sorted(LEARN.glob("*.yaml"))]
    return random.Random(13).sample([case for cases in loaded for case in cases], count)


def outcome(evidence: Sequence[Evidence]) -> tuple[Any, ...]:
    advised = decide(evidence)
    stages = [(step.stage, step.optional, step.needs) for step in advised.plan]
    return advised.primary, stages, sorted(advised.blocking)


def unknown(facts: Facts, field: str) -> bool:
    """Whether nothing is known of a field: written anew, by the form alone."""
    first, *rest = field.split(".")
    if first == "tried":
        return not facts.all(field)
    if first == "data":
        held = facts.coming(rest[0])  # type: ignore[arg-type]
        if len(rest) == 1:
            return held is None and not denied(facts, rest[0])  # type: ignore[arg-type]
        return held is not None and getattr(held.size, rest[1]) is None
    return getattr(getattr(facts.project, first), rest[0]) is None


def outcomes(evidence: Sequence[Evidence], question: InterviewQuestion) -> Iterable[tuple[Any, ...]]:
    """What the advice would be after each answer."""
    facts = gather(evidence)
    for value in question.tried:
        stated = question.settings(value)
        if question.confirms is None:
            stated = [(field, one) for field, one in stated if unknown(facts, field)]
        yield outcome([*evidence, *(e for field, one in stated for e in fact_evidence(field, one))])


@pytest.mark.parametrize("at", range(60))
def test_each_question_could_flip_the_advice_and_at_the_end_none_could(at: int) -> None:
    """On descriptions, with answers by chance: also together with one of the facts that count only in pairs."""
    case = sampled(60)[at]
    evidence = list(read(case["text"]).evidence)
    chance = random.Random(at)
    known = list(evidence)
    asked: list[str] = []
    closed: set[str] = set()

    def answer(question: InterviewQuestion) -> Any:
        pairs = ([*known, *(e for f, v in both.items() for e in fact_evidence(f, v))] for both in table()["together"])
        opening = question.field == "goal"
        before = ((outcome(each), outcomes(each, question)) for each in (known, *pairs))
        assert opening or any(found != now for now, after in before for found in after)
        value = chance.choice([None, *(question.tried or [choice.value for choice in question.choices])])
        asked.append(question.field)
        closed.add(question.field)
        if opening and value is not None:
            left = next(choice.asks for choice in question.choices if choice.value == value)
            about = {name for choice in question.choices for name in (*choice.asks, *dict(choice.settings))}
            closed.update(about - set(left))
        known.extend(answer_evidence(question, value))
        return value

    assert [*evidence, *interview(evidence, decide, LIMIT, answer)] == known
    assert len(asked) <= MAX_QUESTIONS and len(set(asked)) == len(asked)
    if len(asked) < MAX_QUESTIONS:
        primary = decide(known).primary
        facts = gather(known)
        open = [q for q in questions(LIMIT) if q.field not in {"goal", *closed}]
        if not unknown(facts, "behaviour.prompt_falls_short") or facts.project.evals.baseline is not None:
            open = [question for question in open if question.field != "prompt"]
        assert {found[0] for question in open for found in outcomes(known, question)} <= {primary}


# What was read only probably


def test_a_fact_that_was_read_only_probably_is_confirmed_where_the_other_would_flip_the_answer() -> None:
    hangs = only("data.sft_pairs", {False: "prompting"})
    unsure = Evidence("data.sft_pairs", False, quote="none of it is labelled", source="text", probability=0.7)
    (asked,) = asked_by([unsure], only("data.sft_pairs", {False: "prompting", True: "rag"}))
    assert asked.text == 'I read: no labelled examples ("none of it is labelled"). Is that right?'
    assert [(choice.value, choice.words) for choice in asked.choices] == [(True, "yes"), (False, "no")]
    assert [(e.field, e.value) for e in answer_evidence(asked, True)] == [("data.sft_pairs", False)]
    assert [(e.field, e.value) for e in answer_evidence(asked, False)] == [("data.sft_pairs", True)]
    assert asked_by([replace(unsure, probability=0.95)], hangs) == []
    assert asked_by([replace(unsure, source="form")], hangs) == []
    assert asked_by([unsure, replace(unsure, probability=0.99)], hangs) == []
    assert asked_by([unsure], only("reward.kind", {})) == []
    rough = replace(unsure, probability=None, vague=True)
    assert [question.field for question in asked_by([rough], hangs)] == ["data.sft_pairs"]


def test_a_rough_number_is_asked_for_where_its_bounds_flip_the_answer() -> None:
    def by_rows(evidence: Sequence[Evidence]) -> Advice:
        held = gather(evidence).data("sft_pairs")
        count = (held.size.rows or 0) if held else 0
        return insufficient().model_copy(update={"primary": "post_training" if count >= 500 else "prompting"})

    rough = Evidence(
        "data.sft_pairs.rows", 450, quote="hundreds of letters", source="text", vague=True, low=200, high=900
    )
    (asked,) = asked_by([rough], by_rows)
    assert asked.text.startswith('I read: about 450 rows of labelled examples ("hundreds of letters"). How many')
    assert asked.tried == (200, 900) and asked.example
    assert asked_by([replace(rough, high=490)], by_rows) == []
    word = Evidence("knowledge.changes", "daily", quote="now and then", source="text", probability=0.6)
    (asked,) = asked_by([word], only("knowledge.changes", {"daily": "rag", "never": "prompting"}))
    assert asked.text == 'I read: the facts change daily ("now and then"). Is that right?'
    assert [(e.field, e.value) for e in answer_evidence(asked, False)] == [("knowledge.changes", "never")]


def test_the_question_between_two_readings_comes_first() -> None:
    evidence = [
        Evidence("behaviour.rules_count", 27, source="text"),
        Evidence("data.sft_pairs", True, source="text"),
        Evidence("data.sft_pairs.rows", 3000, source="text"),
    ]
    other = OtherReading(
        primary="prompting",
        probability=0.3,
        facts=[],
        settings=["data.0.kind=preference_pairs", "behaviour.prompt_falls_short=true"],
        question="Is one of the two answers known to be better?",
    )
    question = between_readings(evidence, [other])
    assert question is not None and question.text == other.question
    assert question.choices[0] == Choice(
        "as_read",
        "labelled examples; 3,000 rows of labelled examples; no good prompt was seen to fall short; "
        "no preference pairs",
        "as it was read",
        (
            ("data.sft_pairs", True),
            ("data.sft_pairs.rows", 3000),
            ("behaviour.prompt_falls_short", False),
            ("data.preference_pairs", False),
        ),
    )
    after = gather([*evidence, *answer_evidence(question, "other")])
    assert after.kinds == {"preference_pairs"} and after.project.behaviour.prompt_falls_short is True
    held = after.data("preference_pairs")
    assert held is not None and held.size.rows == 3000
    asked: list[str] = []

    def answer(question: InterviewQuestion) -> Any:
        asked.append(question.field)

    interview(evidence, decide, LIMIT, answer, [other])
    assert asked[0] == "reading" and asked.count("reading") == 1
    assert between_readings(evidence, []) is None


# Answers


def value_of(question: InterviewQuestion) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(question.tried or tuple(choice.value for choice in question.choices))


@settings(max_examples=2)
@given(st.fixed_dictionaries({q.field: value_of(q) for q in BY_FIELD.values()}))
def test_by_the_real_rules_it_is_repeatable_and_replayed_by_a_file(answers: dict[str, Any]) -> None:
    asked: dict[str, Any] = {}

    def answer(question: InterviewQuestion) -> Any:
        value = answers[question.field]
        if question.several and value is not None:
            value = tuple(one for one in value if one in {choice.value for choice in question.choices})
        asked[question.field] = value
        return value

    first = interview([], decide, LIMIT, answer)
    assert len(asked) <= MAX_QUESTIONS
    assert interview([], decide, LIMIT, answer) == first
    listed = {field: list(value) if isinstance(value, tuple) else value for field, value in asked.items()}
    replayed = decide(read_answers(listed, "answers.yaml", LIMIT))
    assert (replayed.primary, replayed.plan) == (decide(first).primary, decide(first).plan)


def test_an_answer_of_none_says_that_there_is_none() -> None:
    assert [(e.field, e.value) for e in fact_evidence("data.prompts.rows", 0)] == [("data.prompts", False)]
    assert [(e.field, e.value) for e in fact_evidence("data.prompts.rows", 9)] == [
        ("data.prompts", True),
        ("data.prompts.rows", 9),
    ]
    taken = answer_evidence(BY_FIELD["data"], ("prompts",))
    assert {e.field for e in taken if e.value is True} == {"data.prompts"}
    assert {e.field for e in taken if e.value is False} == {
        f"data.{kind}" for kind in ("sft_pairs", "preference_pairs", "unpaired_feedback", "corpus", "documents")
    }
    assert taken[0].quote == "Which of these do you have? inputs without answers"
    assert gather(answer_evidence(BY_FIELD["data"], ())).project.data == []
    assert gather(answer_evidence(BY_FIELD["knowledge"], "per_user")).project.knowledge.per_user is True
    assert gather(answer_evidence(BY_FIELD["prompt"], "not_tried")).project.tried == []
    assert answer_evidence(BY_FIELD["prompt"], None) == []


@pytest.mark.parametrize(
    ("field", "words", "value"),
    [
        ("behaviour.rules_count", "27", 27),
        ("data.corpus.tokens", " 2.5b ", 2_500_000_000),
        ("data.corpus.tokens", "2.5 B", 2_500_000_000),
        ("data.sft_pairs.rows", "14k", 14_000),
        ("data.sft_pairs.rows", "14,000", 14_000),
        ("model.params_b", "0.6", 0.6),
        ("knowledge", "Per user", "per_user"),
        ("knowledge", "5", "per_user"),
        ("tried.rag", "y", True),
        ("tried.rag", "2", False),
        ("tried.rag", "no", False),
        ("behaviour.target_capability", "function calling", "function_calling"),
        ("data", "1, 4", ("sft_pairs", "prompts")),
        ("data", "4 1 4", ("prompts", "sft_pairs")),
        ("data", "prompts,corpus", ("prompts", "corpus")),
        ("data", "0", ()),
        ("data", "none", ()),
        ("behaviour.output_format", "none", "none"),
        ("data", "?", None),
        ("behaviour.rules_count", "", None),
        ("knowledge", "?", None),
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
        ("knowledge", "7", "one of: none, changing"),
        ("tried.rag", "perhaps", "one of: yes, no"),
        ("data", "1,9", "some of: sft_pairs, preference_pairs"),
        ("data", ",", "0 for none of them"),
    ],
)
def test_what_is_no_answer_is_asked_again(field: str, words: str, fault: str) -> None:
    value, said_so = parse_answer(BY_FIELD[field], words)
    assert value is None and fault in said_so


def test_a_file_of_answers_names_questions_or_fields_and_is_checked_as_a_whole() -> None:
    answers = {"prompt": "fell_short", "data": ["prompts"], "knowledge.changes": "daily", "data.corpus": None}
    project = gather(read_answers(answers, "a.yaml", LIMIT)).project
    assert project.behaviour.prompt_falls_short is True and project.knowledge.changes == "daily"
    assert [body.kind for body in project.data or ()] == ["prompts"]
    with pytest.raises(AlignError) as error:
        wrong = {"behaviour.rule_count": 3, "knowledge.changes": "sometimes", "model.params_b": None, "goal": "skil"}
        read_answers({**wrong, "data": "prompts", "limits": ["frozen"]}, "a.yaml", LIMIT)
    assert "a.yaml: behaviour.rule_count\n    is no question\n    did you mean 'behaviour.rules_count'?" in str(
        error.value
    )
    assert "a.yaml: knowledge.changes\n    is 'sometimes'" in str(error.value) and len(error.value.problems) == 5
    assert "did you mean 'skill'?" in str(error.value) and "some of: weights_frozen" in str(error.value)
    with pytest.raises(AlignError, match="is not a mapping"):
        read_answers([1], "a.yaml", LIMIT)
