"""Resolution of sentences by the whole text."""

from typing import Any

import pytest

from align.advisor.merge_evidence import gather
from align.advisor.text import read


def said(text: str, field: str) -> list[Any]:
    return [e.value for e in read(text).evidence if e.field == field and e.status == "asserted"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (
            "Must:\n1. never name a fund\n2. hand over on complaints\n3. close with the phone line\n\nThat is all.",
            3,
        ),
        ("It needs to (a) stay polite (b) never mention prices.", 2),
        ("What should change\n- no endings\n- one question back\n- under 90 words\n- helpline text", 4),
        ("We want to add rules. 第一，不谈对手；第二，转人工。", 2),
    ],
)
def test_the_items_of_a_list_of_rules_are_counted(text: str, count: int) -> None:
    assert count in said(text, "behaviour.rules_count")


def test_a_list_of_other_things_is_no_list_of_rules() -> None:
    assert said("Our branches:\n- Leeds\n- York\n- Hull", "behaviour.rules_count") == []


def test_a_format_of_three_fields_is_one_rule() -> None:
    assert said("The reply is a JSON object with three fields.", "behaviour.rules_count") == [1]


def test_words_of_duty_count_as_rules_only_where_there_is_nothing_to_train_on() -> None:
    duty = "It must never mention prices and has to stay polite."
    assert said(duty, "behaviour.rules_count") != []
    assert said(f"{duty} We have 4,000 labelled examples.", "behaviour.rules_count") == []


def test_what_a_number_counts_may_stand_in_the_sentence_before() -> None:
    text = "Of two variants per ticket the agent sends one, the other is kept. That's 64,000 tickets now."
    assert said(text, "data.preference_pairs.rows") == [64000]


def test_papers_of_a_corpus_are_no_documents_to_look_up() -> None:
    text = "We have 46,000 guidelines. The corpus is 48B tokens, which no model has seen."
    assert said(text, "data.corpus.docs") == [46000]
    assert said(text, "data.documents.docs") == []


def test_several_bodies_of_one_kind_are_several_and_add_up() -> None:
    facts = gather(read("Instruction sets of 56k and 12k rows exist.").evidence)
    held = facts.data("sft_pairs")
    assert held is not None and held.size.rows == 68_000


def test_each_kind_of_a_list_has_its_own_number() -> None:
    text = "939,344 instruction samples, then 270k preference pairs, then 30k prompts whose answers can be verified."
    kinds = ("sft_pairs", "preference_pairs", "prompts")
    assert [said(text, f"data.{kind}.rows") for kind in kinds] == [[939_344], [270_000], [30_000]]


def test_the_more_telling_task_comes_first() -> None:
    assert said("A bot that turns questions into SQL.", "task.type")[0] == "sql"


def test_somebody_elses_tokens_are_not_ours() -> None:
    assert said("Bloomberg did 363B tokens.", "data.corpus.tokens") == []


def test_bytes_of_text_are_guessed_in_tokens() -> None:
    tokens = [e for e in read("We have 2 GB of source code.").evidence if e.field == "data.corpus.tokens"]
    assert [(e.value, e.vague) for e in tokens] == [(500_000_000, True)]


@pytest.mark.parametrize(
    "text",
    [
        "We only have one laptop CPU.",
        "no GPU, just my MacBook",
        "CPU only server with 64 GB RAM",
        "Wir haben nur einen Laptop.",
        "Solo tenemos un portátil.",
        "我们只有CPU服务器",
    ],
)
def test_a_machine_without_cards_is_read_as_none(text: str) -> None:
    assert [e.value for e in read(text).evidence if e.field == "hardware.gpus"] == [0]


@pytest.mark.parametrize("text", ["Not on CPU, we have two A100.", "Customers ask what a laptop costs."])
def test_a_laptop_or_cpu_spoken_of_is_no_machine(text: str) -> None:
    assert 0 not in [e.value for e in read(text).evidence if e.field == "hardware.gpus"]


def test_a_card_with_two_sizes_is_a_guess_between_them() -> None:
    memory = [e for e in read("We have 4 A100.").evidence if e.field == "hardware.memory_gb"]
    assert [(e.value, e.low, e.high, e.vague) for e in memory] == [(40.0, 40, 80, True)]


def test_the_place_is_kept() -> None:
    assert {e.place for e in read("We have 20 rules.", "brief.md").evidence} == {"brief.md"}
