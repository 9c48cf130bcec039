"""A setting corrects a fact as if it had been in the form, and nothing that it replaces is left to contradict it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.advisor.fact_settings import change, correct, in_words, joined, number, suppose
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence, Facts, from_form
from align.advisor.text import read
from align.advisor.understood import understood, written
from align.schemas.errors import AlignError
from align.schemas.project import DATA_KINDS, DataSet, Project, Size, Tried
from tests.advisor.deciding import advice, facts, form, rows
from tests.advisor.test_understood import FORM, values_of


def corrected(evidence: list[Evidence], *settings: str) -> Facts:
    return gather(correct(evidence, settings))


def shown(known: Facts) -> dict[str, str]:
    return {fact.setting: fact.text for fact in understood(known)}


def essence(known: Facts) -> dict[str, Any]:
    """Return what an advice says, without the words that it quotes."""
    said = advice(known).model_dump(exclude={"understood", "provenance"})
    for part in ("reasons", "warnings"):
        said[part] = [{key: value for key, value in each.items() if key != "quotes"} for each in said[part]]
    return said


@st.composite
def forms(draw: st.DrawFn) -> dict[str, Any]:
    """Some fields with values, and data of different kinds."""
    chosen = draw(st.lists(st.sampled_from(FORM), max_size=5, unique=True))
    kinds = draw(st.lists(st.sampled_from(DATA_KINDS), max_size=3, unique=True))
    held = [rows(kind, draw(st.integers(1, 10**6))) for kind in sorted(kinds, key=DATA_KINDS.index)]
    return {**{name.replace(".", "__"): draw(values_of(name)) for name in chosen}, **({"data": held} if held else {})}


@given(forms(), st.sampled_from(FORM), st.data())
@settings(deadline=None, max_examples=60)
def test_a_corrected_fact_is_that_of_the_form(known: dict[str, Any], name: str, data: st.DataObject) -> None:
    value = data.draw(values_of(name))
    setting = f"{name}={written(value)}"
    found = corrected(from_form(form(**known)), setting)
    wanted = facts(**{**known, name.replace(".", "__"): value})
    assert found.project == wanted.project
    assert setting in shown(found) and found.conflicts == ()
    assert essence(found) == essence(wanted)


@given(forms())
@settings(deadline=None, max_examples=60)
def test_what_is_understood_says_the_form_again(known: dict[str, Any]) -> None:
    given = facts(**known)
    assert gather(correct([], list(shown(given)))).project == given.project


@given(forms().filter(lambda known: "data" in known), st.sampled_from(DATA_KINDS), st.data())
@settings(deadline=None, max_examples=60)
def test_data_are_corrected_by_their_number(known: dict[str, Any], kind: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(known["data"]) - 1))
    others = {body["kind"] for i, body in enumerate(known["data"]) if i != at}
    if kind in others:
        return
    found = corrected(from_form(form(**known)), f"data.{at}.kind={kind}", f"data.{at}.rows=77")
    changed = [rows(kind, 77) if i == at else body for i, body in enumerate(known["data"])]
    wanted = facts(**{**known, "data": sorted(changed, key=lambda body: DATA_KINDS.index(body["kind"]))})
    assert found.project == wanted.project
    assert essence(found) == essence(wanted)


def test_words_are_corrected_without_contradiction() -> None:
    words = list(read("27 rules must hold at the same time. We have 14,000 labelled examples.").evidence)
    found = corrected(words, "behaviour.rules_count=4", "data.0.kind=preference")
    assert found.project.behaviour.rules_count == 4 and found.conflicts == ()
    assert found.kinds == {"preference_pairs"}
    (held,) = found.project.data or ()
    assert held.size.rows == 14_000
    quoted = {fact.setting: fact.quotes[0] for fact in understood(found)}
    assert quoted["data.0.kind=preference_pairs"].source == "--set"
    kept = quoted["data.0.rows=14000"]
    assert (kept.quote, kept.source) == ("14,000", "description") and kept.span is not None


def test_unknown_none_planned_and_some() -> None:
    words = list(read("27 rules must hold at the same time. We have 14,000 labelled examples.").evidence)
    assert corrected(words, "behaviour.rules_count=null").project.behaviour.rules_count is None
    none = corrected(words, "data.sft=none")
    assert none.project.data == [] and shown(none)["data.sft_pairs=none"] == "no labelled examples"
    planned = corrected(words, "data.sft_pairs=planned")
    assert planned.coming("sft_pairs") and not planned.kinds
    assert shown(planned)["data.sft_pairs=planned"] == "labelled examples are planned"
    some = corrected(words, "data.documents=some")
    assert some.kinds == {"sft_pairs", "documents"}
    assert corrected(words, "data=[]").project.data == []


def test_a_kind_is_named_where_there_is_none_yet() -> None:
    found = corrected([], "data.preference.rows=2k", "tried.prompting=true", "tried.rag=no")
    assert found.project.data == [DataSet(kind="preference_pairs", size=Size(rows=2000))]
    assert found.project.tried == ["prompting"]
    assert {"tried.prompting=true", "tried.rag=false"} <= set(shown(found))
    assert corrected(from_form(form(tried=["rag", "prompting"])), "tried.rag=false").project.tried == ["prompting"]
    assert corrected(from_form(form(tried=["rag"])), "tried=null").project.tried is None


def test_what_follows_from_a_replaced_fact_goes_too() -> None:
    """Else the memory of the card that was misread, and retrieval that a request implies, would stay."""
    words = list(read("We have one RTX 4090. We tried RAG before.").evidence)
    assert gather(words).project.hardware.memory_gb == 24 and gather(words).project.tried == ["rag"]
    assert corrected(words, "hardware.gpu=H100").project.hardware.memory_gb is None
    assert corrected(words, "tried.rag=false").project.tried == []


def test_a_counted_file_is_stronger_but_for_what_it_is_for() -> None:
    counted = [
        Evidence("data.sft_pairs", True, quote="a file of pairs", source="file", place="a.jsonl"),
        Evidence("data.sft_pairs.rows", 14_000, quote="rows: 14,000", source="file", place="a.jsonl"),
    ]
    stays = corrected(counted, "data.0.rows=200")
    assert [body.size.rows for body in stays.project.data or ()] == [14_000] and len(stays.conflicts) == 1
    (body,) = corrected(counted, "data.0.kind=eval").project.data or ()
    assert (body.kind, body.size.rows) == ("eval_set", 14_000)


def test_supposing_agrees_with_correcting() -> None:
    known = facts(behaviour__rules_count=3, data=[rows("sft_pairs", 500)], tried=["rag"])
    for setting in (
        "behaviour.rules_count=27",
        "data.0.rows=9",
        "data.sft=none",
        "data.sft=planned",
        "tried.rag=false",
    ):
        laid = suppose(known, [setting])
        other = gather(correct(known.evidence, [setting]))
        assert (laid.project, laid.planned) == (other.project, other.planned), setting


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("25", 25),
        ("5e4", 50_000),
        ("50_000", 50_000),
        ("14,000", 14_000),
        ("14k", 14_000),
        ("2.5b", 2.5e9),
        ("95%", 0.95),
    ],
)
def test_numbers_as_they_are_typed(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rules=3", "did you mean 'behaviour.rules_count'?"),
        ("data.0.kind=p", "preference_pairs or prompts"),
        ("data.0.kind=preferences", "did you mean 'preference_pairs'?"),
        ("data.sft_pairs=many", "write data.sft_pairs.rows=200"),
        ("data.0.rows=many", "write 27, 14000"),
        ("data.0.rows=nan", "no number"),
        ("data.0.rows=-1", "greater than or equal to 0"),
        ("data.0.rows.x=1", "x is not a field"),
        ("data=5", "write data=[] for none"),
        ("tried.magic=true", "known: few_shot, fine_tuning"),
        ("tried.rag=perhaps", "known: false, true"),
        ("tried.rag.x=true", "tried.rag=true"),
        ("=3", "is no setting"),
        ("constraints.on_prem=", "write null for unknown"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_meant(setting: str, said: str) -> None:
    with pytest.raises(AlignError) as caught:
        change(form(data=[rows("sft_pairs", 5)]), [setting, "behaviour.rules_count=x"])
    first, second = caught.value.problems
    assert first.where == setting and said in str(first) and second.where == "behaviour.rules_count=x"


@given(st.text(max_size=30))
def test_any_text_is_a_setting_or_a_mistake(text: str) -> None:
    for setting in (text, f"{text}=1", f"behaviour.rules_count={text}", f"data.0.{text}=1", f"data.{text}"):
        try:
            change(Project(), [setting])
        except AlignError as error:
            assert error.problems


def test_methods_have_a_setting_each() -> None:
    for method in Tried.__args__:
        assert corrected([], f"tried.{method}=true").project.tried == [method]


def test_settings_in_words() -> None:
    settings = ["data.0.size.tokens=0", "data.1.kind=corpus", "data.1.size.tokens=1e9", "data.2.kind=preference_pairs"]
    settings += ["knowledge.changes=daily", "tried.rag=false", "requested=null", "no.such=1", "data.2.size.rows=x"]
    assert in_words(settings, {"data.0": "corpus"}) == [
        "there is no text for pre-training",
        "there are 1 billion tokens of text for pre-training",
        "the facts change daily",
        "retrieval was not tried",
        "no method is asked for",
        "no.such=1",
        "data.2.rows=x",
    ]
    assert in_words(["data.2.kind=preference_pairs"], {}) == ["there are preference pairs"]
    assert [joined(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
