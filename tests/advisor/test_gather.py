"""Merging of evidence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Facts, from_form
from align.schemas.project import Project


def said(field: str, value: Any, status: Any = "asserted", source: Any = "text", **more: Any) -> Evidence:
    return Evidence(field, value, status, quote=f"<{field}>", source=source, **more)


def test_the_stronger_place_counts_and_the_other_is_kept() -> None:
    places = ["text", "form", "answer", "file", "measured"]
    for weaker, stronger in pairwise(places):
        facts = gather([said("evals.baseline", 0.5, source=weaker), said("evals.baseline", 0.7, source=stronger)])
        assert facts.project.evals.baseline == 0.7
        assert [(c.field, c.taken.value, c.dropped.value) for c in facts.conflicts] == [("evals.baseline", 0.7, 0.5)]


def test_among_equals_the_first_sure_one_counts() -> None:
    rough = said("behaviour.rules_count", 4, vague=True, low=2, high=9)
    facts = gather([rough, said("behaviour.rules_count", 6), said("behaviour.rules_count", 7)])
    assert facts.project.behaviour.rules_count == 6
    assert [c.dropped.value for c in facts.conflicts] == [7], "6 lies within the rough one, which is no contradiction"


@pytest.mark.parametrize(
    ("field", "denied", "value"),
    [
        ("knowledge.needs_citations", True, False),
        ("knowledge.unseen_domain", True, False),
        ("behaviour.output_format", "fixed", "none"),
        ("reward.kind", "verifier", "none"),
        ("knowledge.source", "proprietary", "none"),
    ],
)
def test_a_denied_fact_is_its_opposite(field: str, denied: Any, value: Any) -> None:
    project = gather([said(field, denied, "negated")]).project
    first, second = field.split(".")
    assert getattr(getattr(project, first), second) == value


@pytest.mark.parametrize(("field", "denied"), [("knowledge.changes", "daily"), ("evals.baseline", 0.5)])
def test_a_denied_fact_without_an_opposite_says_nothing(field: str, denied: Any) -> None:
    facts = gather([said(field, denied, "negated")])
    assert facts.project == Project()
    assert facts.evidence[0].status == "negated"


def test_one_kind_denied_does_not_deny_another() -> None:
    facts = gather([said("reward.kind", "reward_model", "negated"), said("reward.kind", "verifier")])
    assert facts.project.reward.kind == "verifier"
    assert facts.conflicts == ()


def test_what_others_want_counts_only_where_the_user_wants_nothing() -> None:
    others = said("requested", "ppo", "attributed")
    assert gather([others]).project.requested == "ppo"
    assert gather([others, said("requested", "dpo")]).project.requested == "dpo"
    assert gather([others, said("requested", "sft", "planned")]).project.requested == "sft"
    assert gather([said("requested", "dpo", "negated")]).project.requested is None
    assert gather([said("knowledge.needs_citations", True, "attributed")]).project == Project()


def test_what_was_tried_is_known_and_asks_for_nothing() -> None:
    facts = gather([said("tried.rag", True, "tried"), said("requested", "sft", "tried")])
    assert facts.project.tried == ["rag", "fine_tuning"]
    assert facts.project.requested is None
    assert gather([said("tried.prompting", True, "negated")]).project.tried == []
    assert gather([]).project.tried is None


def test_what_is_done_is_behind_us() -> None:
    done = gather([said("data.corpus", True, "done"), said("data.corpus.tokens", 30_000_000_000, "done")])
    assert done.project.knowledge.pretraining_done
    assert done.project.data is None, "what was trained on already is not there to train on"
    assert gather([said("requested", "continual_pretraining", "done")]).project.knowledge.pretraining_done
    assert gather([said("requested", "sft", "done")]).project.model.type == "instruct"


def test_data_of_one_kind_are_listed_apart_and_added_up() -> None:
    facts = gather(
        [
            said("data.sft_pairs", True),
            said("data.sft_pairs.rows", 60_000),
            said("data.sft_pairs.rows", 11_000),
            said("data.sft_pairs.rows", 60_000),
            said("data.sft_pairs", True),
        ]
    )
    assert [d.size.rows for d in facts.project.data or ()] == [60_000, 11_000]
    held = facts.data("sft_pairs")
    assert held is not None and held.size.rows == 71_000


def test_a_form_may_list_two_bodies_of_the_same_size() -> None:
    form = Project.model_validate({"data": [{"kind": "prompts", "size": {"rows": 5}}] * 2})
    facts = gather(from_form(form))
    assert facts.project == form
    held = facts.data("prompts")
    assert held is not None and held.size.rows == 10


def test_a_counted_file_beats_what_is_claimed_and_keeps_the_rest() -> None:
    claimed = [said("data.sft_pairs", True, source="form"), said("data.sft_pairs.rows", 900, source="form")]
    more = said("data.sft_pairs.pii", True, source="form")
    counted = [said("data.sft_pairs", True, source="file"), said("data.sft_pairs.rows", 412, source="file")]
    facts = gather([*claimed, more, *counted])
    (held,) = facts.project.data or ()
    assert (held.size.rows, held.pii) == (412, True)
    assert [(c.field, c.taken.value, c.dropped.value) for c in facts.conflicts] == [("data.sft_pairs.rows", 412, 900)]


@pytest.mark.parametrize(
    "nothing",
    [
        said("data.sft_pairs.rows", 0),
        said("data.sft_pairs", False),
        said("data.sft_pairs", True, "negated"),
    ],
)
def test_no_rows_are_no_data(nothing: Evidence) -> None:
    assert gather([nothing]).project.data == []
    assert gather([said("data.eval_set", False)]).project.data is None, "says nothing of what there is to learn from"


def test_a_form_without_data_beats_prose_and_the_contradiction_is_kept() -> None:
    facts = gather([*from_form(Project(data=[])), said("data.sft_pairs", True), said("data.sft_pairs.rows", 14_000)])
    assert facts.project.data == []
    assert facts.conflicts[0].taken.quote == "data: []"


def test_planned_data_are_kept_apart() -> None:
    facts = gather([said("data.sft_pairs.rows", 200, "planned")])
    assert facts.project.data is None and facts.kinds == set()
    planned = facts.coming("sft_pairs")
    assert planned is not None and planned.size.rows == 200
    both = gather([said("data.sft_pairs.rows", 200, "planned"), said("data.sft_pairs.rows", 50)])
    held = both.coming("sft_pairs")
    assert held is not None and held.size.rows == 50, "what is there counts before what is to come"


def test_a_value_that_does_not_fit_is_left_out_and_said() -> None:
    facts = gather(
        [
            said("knowledge.changes", "hourly"),
            said("knowledge.moods", True),
            said("data.sft_pairs.rows", -5),
            said("model.params_b", 7.0),
        ],
        languages=("en",),
        rejected=("a quote that is not there",),
    )
    assert facts.project.model.params_b == 7.0 and facts.project.knowledge.changes is None
    assert facts.languages == ("en",)
    about = [text.split(":")[0] for text in facts.rejected]
    assert about == ["a quote that is not there", "knowledge.moods", "knowledge.changes", "data.0.size.rows"]


def test_lists_are_joined_within_a_source() -> None:
    facts = gather([said("task.languages", ["en"]), said("task.languages", "de"), said("task.languages", ["en"])])
    assert facts.project.task.languages == ["en", "de"]


def test_a_form_comes_back_as_it_was() -> None:
    form = Project.model_validate(
        {
            "task": {"type": "sql", "languages": ["en", "fr"]},
            "behaviour": {"rules_count": 0, "style_or_persona": False},
            "knowledge": {"source": "none", "changes": "never"},
            "data": [{"kind": "corpus", "size": {"tokens": 5, "bytes": 20}, "license": "mit"}, {"kind": "logs"}],
            "hardware": {"gpus": 0},
            "evals": {"suite": ["gsm8k"], "baseline": 0.0},
            "tried": ["prompting"],
            "requested": "kto",
        }
    )
    assert gather(from_form(form)).project == form
    assert gather(from_form(Project(tried=[]))).project.tried == []


def test_facts_say_where_a_value_is_from() -> None:
    facts: Facts = gather([said("evals.target", 0.9), said("evals.target", 0.95, source="form")])
    why = facts.why("evals.target")
    assert why is not None and (why.source, why.value) == ("form", 0.95)


def test_what_is_said_of_data_of_no_kind_is_said_of_what_is_there() -> None:
    judged = [said("data.preference_pairs.rows", 900), said("data.sft_pairs.labelled_by", "gpt")]
    (held,) = gather(judged).project.data or ()
    assert (held.kind, held.labelled_by) == ("preference_pairs", "gpt")
    assert gather(judged[1:]).project.data is None
