"""Laws of advice (research/advisor.md 10.3): monotone, exact at its floors, quoted, the same twice."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, from_form
from align.schemas.advice import Advice
from align.schemas.project import DataKind, Method, Project, Tried
from tests.advisor.deciding import advice, corpus, facts, rows, stages, warned

MANY = settings(max_examples=40)
SIZES = st.none() | st.integers(0, 2 * 10**6)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def projects(draw: st.DrawFn) -> Project:
    """Forms of every make, sensible or not."""
    body = st.fixed_dictionaries(
        {
            "kind": st.sampled_from(get_args(DataKind)),
            "size": st.fixed_dictionaries({"rows": SIZES, "tokens": maybe(st.integers(0, 10**11)), "docs": SIZES}),
            "pii": maybe(st.booleans()),
            "labelled_by": maybe(st.sampled_from(["experts", "gpt-4"])),
            "overlaps_evals": maybe(st.booleans()),
        }
    )
    skills = ("sql", "math", "reasoning", "extraction")
    values = {
        "task": {"type": draw(maybe(st.sampled_from(("chat", "qa", "sql", "other", "summarisation", "domain_model"))))},
        "behaviour": {
            "rules_count": draw(maybe(st.integers(0, 40))),
            "output_format": draw(maybe(st.sampled_from(("none", "fixed", "strict_schema")))),
            "style_or_persona": draw(maybe(st.booleans())),
            "target_capability": draw(maybe(st.sampled_from(skills))),
            "prompt_falls_short": draw(maybe(st.booleans())),
        },
        "knowledge": {
            "source": draw(maybe(st.sampled_from(("none", "public", "proprietary")))),
            "changes": draw(maybe(st.sampled_from(("never", "yearly", "weekly")))),
            "needs_citations": draw(maybe(st.booleans())),
            "unseen_domain": draw(maybe(st.booleans())),
            "per_user": draw(maybe(st.booleans())),
            "pretraining_done": draw(maybe(st.booleans())),
        },
        "data": draw(maybe(st.lists(body, max_size=3))),
        "reward": {"kind": draw(maybe(st.sampled_from(("none", "verifier", "reward_model", "llm_judge", "human"))))},
        "model": {
            "params_b": draw(maybe(st.sampled_from((1.0, 8.0, 70.0)))),
            "type": draw(maybe(st.sampled_from(("base", "instruct")))),
        },
        "hardware": {
            "gpus": draw(maybe(st.sampled_from((0, 1, 8)))),
            "memory_gb": draw(maybe(st.sampled_from((24.0, 80.0)))),
        },
        "constraints": {
            "weights_frozen": draw(maybe(st.booleans())),
            "regulated": draw(maybe(st.booleans())),
            "max_n": draw(maybe(st.just(8))),
        },
        "evals": {
            "baseline": draw(maybe(st.floats(0, 1))),
            "target": draw(maybe(st.floats(0, 1))),
            "held_out_rows": draw(maybe(st.integers(0, 3000))),
        },
        "training": {"tuning": draw(maybe(st.sampled_from(("full", "lora", "qlora"))))},
        "tried": draw(maybe(st.lists(st.sampled_from(get_args(Tried)), unique=True))),
        "requested": draw(maybe(st.sampled_from(get_args(Method)))),
    }
    return Project.model_validate(values)


@MANY
@given(projects())
def test_any_form_gets_advice_that_holds_together(project: Project) -> None:
    advised = advice(gather(from_form(project)))
    assert Advice.model_validate_json(advised.model_dump_json(by_alias=True)) == advised
    named = stages(advised)
    assert (advised.primary == "insufficient") == (named == [])
    if "continual_pretraining" in named:
        assert "sft" in named[named.index("continual_pretraining") :], "pre-training is always followed by sft"
    if project.constraints.weights_frozen:
        assert set(named) <= {"prompting", "rag", "best_of_n", "reward_model"}
    assert advised.reasons, "no verdict without a reason"
    assert all(reason.quotes and all(quote.quote for quote in reason.quotes) for reason in advised.reasons)
    assert all(way.rank == rank for rank, way in enumerate(advised.alternatives, start=2))
    if advised.primary == "insufficient":
        assert advised.confidence == "low"


@MANY
@given(projects())
def test_the_same_facts_are_the_same_bytes(project: Project) -> None:
    one, two = (advice(gather(from_form(project))).model_dump_json() for _ in range(2))
    assert one == two


@MANY
@given(
    st.sampled_from([("sft_pairs", "sft"), ("preference_pairs", "dpo"), ("unpaired_feedback", "kto")]),
    st.integers(1, 3000),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_more_rows_never_make_too_little(pair: tuple[str, str], some: int, more: int, wished: bool) -> None:
    kind, stage = pair
    asked = {"requested": stage} if wished else {"task__type": "sql"}
    few = warned(advice(data=[rows(kind, some)], **asked))
    many = warned(advice(data=[rows(kind, some + more)], **asked))
    assert "too_little_data" in few or "too_little_data" not in many


@MANY
@given(
    st.sampled_from([1.0, 3.0, 8.0, 13.0, 34.0, 70.0]),
    st.integers(1, 16),
    st.floats(8, 200),
    st.floats(0, 200),
    st.sampled_from([None, "full", "lora", "qlora"]),
)
def test_more_memory_never_stops_fitting(
    size: float, gpus: int, memory: float, more: float, tuning: str | None
) -> None:
    def fits(gb: float) -> bool:
        known = {"data": [rows("sft_pairs", 5000)], "task__type": "sql", "training__tuning": tuning}
        advised = advice(**known, model__params_b=size, hardware__gpus=gpus, hardware__memory_gb=gb)
        return "memory_does_not_fit" not in warned(advised)

    assert fits(memory) <= fits(memory + more)


@pytest.mark.parametrize(
    ("tokens", "primary", "thin"),
    [
        (10**8 - 1, "rag", True),
        (10**8, "continual_pretraining", True),
        (10**9 - 1, "continual_pretraining", True),
        (10**9, "continual_pretraining", False),
    ],
)
def test_tokens_flip_exactly_at_the_floors(tokens: int, primary: str, thin: bool) -> None:
    known = {"knowledge__unseen_domain": True, "requested": "continual_pretraining"}
    advised = advice(data=[corpus(tokens)], **known)
    assert advised.primary == primary
    assert ("too_little_data" in warned(advised)) == thin
    hard = {r.rule for r in advised.reasons if r.option == "continual_pretraining" and r.weight == "hard"}
    assert hard == ({"R-CPT-1"} if tokens >= 10**9 else set())


@MANY
@given(st.integers(0, 10**11))
def test_only_the_floors_matter(tokens: int) -> None:
    floor = 0 if tokens < 10**8 else 10**8 if tokens < 10**9 else 10**9
    there, at_floor = (advice(data=[corpus(t)], knowledge__unseen_domain=True) for t in (tokens, floor or 1))
    assert there.primary == at_floor.primary or tokens == 0


NEGATED: list[tuple[str, Any, str]] = [
    ("knowledge.changes", "daily", "rag"),
    ("knowledge.needs_citations", True, "rag"),
    ("knowledge.per_user", True, "rag"),
    ("data.corpus.tokens", 10**10, "continual_pretraining"),
    ("knowledge.unseen_domain", True, "continual_pretraining"),
    ("behaviour.rules_count", 30, "post_training"),
    ("data.preference_pairs.rows", 9000, "post_training"),
    ("data.preference_pairs", True, "post_training"),
    ("behaviour.target_capability", "sql", "post_training"),
    ("reward.kind", "reward_model", "post_training"),
]


@pytest.mark.parametrize(("field", "value", "option"), NEGATED)
@settings(max_examples=25)
@given(project=projects(), status=st.sampled_from(["negated", "attributed"]))
def test_what_is_denied_or_said_by_others_adds_nothing(
    field: str, value: Any, option: str, project: Project, status: Any
) -> None:
    """A negated clause never adds the negated option, whatever else is known."""
    spoken = [Evidence(e.field, e.value, e.status, e.quote, source="text") for e in from_form(project)]
    before = gather(spoken)
    after = gather([*spoken, Evidence(field, value, status, "no such thing", (0, 3), "text")])
    chosen = [advice(known) for known in (before, after)]
    in_plan = [option in (a.primary, *a.companions) for a in chosen]
    assert in_plan[1] <= in_plan[0]


def test_advice_is_plain_json() -> None:
    assert (
        json.loads(advice(facts(behaviour__rules_count=3)).model_dump_json(by_alias=True))["schema"] == "align.advice/1"
    )
