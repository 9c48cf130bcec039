"""The topic of a text: a goal in words that no phrase foresees, and talk of models that has none."""

from __future__ import annotations

import pytest

from align.advisor.text import read
from align.advisor.text.topic import WORDS


def goals(text: str) -> list[str]:
    return [e.quote for e in read(text).evidence if e.field == "task.description"]


@pytest.mark.parametrize(
    "text",
    [
        "Botanical garden. Labels, seedlings, watering hints, pruning dates, greenhouse rota.",
        "Every reply opens with an apology.",
        "Turn minutes into notes.",
    ],
)
def test_who_brings_a_subject_or_a_wish_has_a_goal(text: str) -> None:
    found = goals(text)
    assert found and all(quote in text for quote in found)


@pytest.mark.parametrize(
    "text",
    [
        "The board would like RLHF by Q3, budget 20k USD. Everyone else has it.",
        "We have two cards and some data. LoRA or QLoRA, and which learning rate?",
        "Our model should be better.",
        "Key result: the LLM is fine-tuned, stakeholders informed.",
    ],
)
def test_talk_of_models_money_and_plans_is_no_goal(text: str) -> None:
    assert goals(text) == []


def test_a_subject_needs_so_many_words_of_its_own() -> None:
    words = ["seedlings", "pruning", "greenhouse", "orchids", "compost", "mulch", "trellis"]
    assert goals(", ".join(words[: WORDS - 1])) == []
    assert goals(", ".join(words[:WORDS])) == [", ".join(words[:WORDS])]
    assert goals(", ".join([words[0]] * WORDS)) == []  # one word said often is one word


def test_who_says_that_there_is_no_goal_has_none() -> None:
    text = "Seedlings, pruning, greenhouse, orchids, compost, mulch, trellis."
    assert goals(text) and goals(f"{text} We have no particular use in mind.") == []


def test_the_reference_number_of_an_enquiry_is_no_source() -> None:
    fields = {e.field for e in read("Each letter ends with the reference number of the enquiry.").evidence}
    assert "knowledge.needs_citations" not in fields
    assert any(e.field == "knowledge.needs_citations" for e in read("It names the paragraph it rests on.").evidence)


def test_questions_that_people_ask_are_about_facts_unless_it_should_act_otherwise() -> None:
    asked = "Guests ask us whether lift 7 is open."
    told = {(e.field, e.value) for e in read(asked).evidence}
    assert {("knowledge.source", "proprietary"), ("task.type", "qa")} <= told
    ruled = read(f"{asked} It must never mention prices.").evidence
    assert not any(e.field == "knowledge.source" for e in ruled)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It shall (i) answer politely, (ii) give no legal advice and (iii) end with a name.", 3),
        ("The rules: i) no advice ii) no names iii) max 5 sentences iv) no slang.", 4),
        ("It must (ii) do this and (iii) that.", None),
        ("Must do what volume (i) says, and again (i) and (i).", None),
    ],
)
def test_roman_numbers_count_rules_where_they_begin_at_one(text: str, count: int | None) -> None:
    counted = [e.value for e in read(text).evidence if e.field == "behaviour.rules_count" and not e.vague]
    assert counted == ([] if count is None else [count])


def test_what_we_should_do_is_no_rule_for_the_model() -> None:
    fields = {e.field for e in read("We should use reinforcement learning.").evidence}
    assert "behaviour.rules_count" not in fields
    assert any(e.field == "behaviour.rules_count" for e in read("It should use short words.").evidence)
