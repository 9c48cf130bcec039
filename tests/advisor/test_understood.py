"""What was understood is all that the form holds, in words, with the words of the brief that it rests on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.advisor.fact_words import DATA, clause, score
from align.advisor.form_fields import fields
from align.advisor.merge_evidence import gather
from align.advisor.project_facts import Evidence
from align.advisor.text import read
from align.advisor.understood import TOPICS, understood
from align.schemas.project import DATA_KINDS
from tests.advisor.deciding import facts, rows


def reading(words: str) -> dict[str, str]:
    """Return what was understood of words, by setting."""
    found = read(words)
    return {fact.setting: fact.text for fact in understood(gather(found.evidence, languages=found.languages))}


def test_every_status_is_in_the_words() -> None:
    shown = reading(
        "27 rules must hold at the same time. There are no labelled pairs. We plan to label 2,000 examples. "
        "A consultant recommended PPO."
    )
    assert shown["behaviour.rules_count=27"] == "27 rules must hold at once"
    assert shown["data.sft_pairs=planned"] == "labelled examples are planned, 2,000 rows"
    assert shown["requested=ppo"] == "learning from rewards (ppo) is asked for by others"


def test_what_is_denied_is_shown() -> None:
    absent = Evidence("data.sft_pairs", True, "negated", "no labelled pairs", (0, 17), "text")
    (fact,) = understood(gather([absent]))
    assert (fact.topic, fact.setting, fact.text) == ("data", "data.sft_pairs=none", "no labelled examples")
    assert fact.quotes[0].quote == "no labelled pairs"
    (nothing,) = understood(facts(data=[]))
    assert (nothing.setting, nothing.text) == ("data=[]", "there are no data")


def test_what_others_claim_is_shown_and_does_not_count() -> None:
    claimed = Evidence("behaviour.rules_count", 90, "attributed", "he thinks of 90 rules", (0, 21), "text")
    (fact,) = understood(gather([claimed]))
    assert fact.text == "90 rules must hold at once (others claim it; it does not count)"


def test_the_gpus_and_a_rough_number() -> None:
    shown = reading("We have one RTX 4090 and a few hundred labelled examples.")
    assert shown["hardware.gpus=1"] == "1 GPU" and shown["hardware.gpu=RTX 4090"] == "RTX 4090"
    assert shown["data.0.kind=sft_pairs"] == "labelled examples"
    assert shown["data.0.rows=300"] == "about 300 rows"


def test_methods_tried() -> None:
    assert [fact.setting for fact in understood(facts(tried=["rag"]))] == ["tried.rag=true"]
    assert [fact.text for fact in understood(facts(tried=[]))] == ["nothing was tried before"]


def test_sets_of_one_kind_have_their_own_words() -> None:
    several = [rows("sft_pairs", 200), rows("sft_pairs", 9000)]
    shown = {fact.setting: [q.quote for q in fact.quotes] for fact in understood(facts(data=several))}
    assert shown["data.0.rows=200"] == ["rows: 200"] and shown["data.1.rows=9000"] == ["rows: 9000"]
    assert shown["data.0.kind=sft_pairs"] == ["rows: 200"]


def values_of(field: str) -> st.SearchStrategy[Any]:
    of = fields()[field]
    if of.choices:
        return st.sampled_from(of.choices)
    if of.numeric:
        return st.integers(1, 10**9)
    words = st.sampled_from(["sql", "Llama 3", "H100"])
    return st.lists(words, min_size=1, max_size=2, unique=True) if of.listed else words


FORM = [name for name in fields() if not name.startswith(("data.", "tried."))]


@given(st.data())
def test_no_fact_of_the_form_is_left_out(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(FORM), max_size=8, unique=True))
    kinds = data.draw(st.lists(st.sampled_from(DATA_KINDS), min_size=1, max_size=3, unique=True))
    values = {name: data.draw(values_of(name)) for name in chosen}
    held = [rows(kind, data.draw(st.integers(1, 10**7))) for kind in kinds]
    known = facts(data=held, **{name.replace(".", "__"): value for name, value in values.items()})
    found = understood(known)
    settings = {fact.setting.partition("=")[0] for fact in found}
    assert settings == {*chosen, *(f"data.{i}.{key}" for i in range(len(held)) for key in ("kind", "rows"))}
    assert [TOPICS.index(fact.topic) for fact in found] == sorted(TOPICS.index(fact.topic) for fact in found)
    for fact in found:
        assert fact.quotes and "{" not in fact.text and "_" not in fact.text.replace("pre_", ""), fact


@pytest.mark.parametrize("name", fields())
def test_every_field_has_words_of_its_own(name: str) -> None:
    of = fields()[name]
    for value in of.choices or ([3] if of.numeric else [["x"] if of.listed else "x"]):
        words = clause(name, value)
        assert "{" not in words and name not in words, words
    assert len({clause(name, value) for value in of.choices}) == len(of.choices), "two values in the same words"


def test_scores_and_counts() -> None:
    assert (score(0.6), score(0.953), score(34.5), score(1)) == ("60 %", "95.3 %", "34.5", "100 %")
    assert clause("behaviour.rules_count", 1) == "1 rule must hold"
    assert clause("data.corpus.tokens", 3_000_000_000, rough=True) == "about 3 billion tokens"
    assert set(DATA) == set(DATA_KINDS)


@pytest.mark.parametrize(
    ("probabilities", "guess"),
    [((0.49,), True), ((0.5,), False), ((None,), False), ((0.1, 0.9), False), ((0.1, 0.2), True), ((0.1, None), False)],
)
def test_a_fact_that_its_words_alone_make_improbable_is_a_guess(
    probabilities: tuple[float | None, ...], guess: bool
) -> None:
    found = [
        Evidence("knowledge.needs_citations", True, quote=f"q{at}", span=(at, at + 2), source="text", probability=each)
        for at, each in enumerate(probabilities)
    ]
    (fact,) = understood(gather(found))
    assert fact.guess is guess
    assert fact.text == "answers must show their sources", "the words are the same"


def test_data_and_denials_may_be_guesses_and_what_nobody_weighed_is_none() -> None:
    held = Evidence("data.prompts", True, quote="prompts", span=(0, 7), source="text", probability=0.03)
    none = Evidence("data.sft_pairs", True, "negated", "pairs", (9, 14), "text", probability=0.3)
    assert {fact.setting: fact.guess for fact in understood(gather([held, none]))} == {
        "data.0.kind=prompts": True,
        "data.sft_pairs=none": True,
    }
    assert not any(fact.guess for fact in understood(facts(data=[rows("prompts", 10)], reward={"kind": "verifier"})))


def test_a_rough_one_is_a_few() -> None:
    assert clause("behaviour.rules_count", 1, rough=True) == "a few rules must hold at once"
    assert clause("behaviour.rules_count", 1) == "1 rule must hold"
    assert clause("behaviour.rules_count", 30, rough=True) == "about 30 rules must hold at once"


def test_an_untried_prompt_is_not_called_good_enough() -> None:
    assert clause("behaviour.prompt_falls_short", False) == "no good prompt was seen to fall short"
