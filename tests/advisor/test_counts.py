"""What a number counts where no noun of it is known: told by the words around it, or by the sentence before."""

import pytest

from align.advisor.text import read

COUNTS = [
    ("Experts saw two replies and marked which they liked. That left 8,800.", "preference_pairs", 8800),
    ("Each record has the notes and what a human typed afterwards, 41 thousand of them.", "sft_pairs", 41000),
    ("15,000 times a customer saw A and B and took B.", "preference_pairs", 15000),
    ("Our annotators filled in 6,200 bills of lading by hand.", "sft_pairs", 6200),
    ("Approved summaries with their tenders: 2,800.", "sft_pairs", 2800),
    ("Users give a thumb up or down. There are 260 k of those.", "unpaired_feedback", 260000),
    ("Problems whose result a checker verifies, no solutions. We have about 7,400 in all.", "prompts", 7400),
    (
        "Unter jedem Vorschlag steht Daumen hoch oder runter, das wurde 44.000-mal angeklickt.",
        "unpaired_feedback",
        44000,
    ),
    ("(a) 35k solved examples; (b) 60k times a tutor preferred one answer over the other.", "preference_pairs", 60000),
]
NOT_COUNTED = [
    "The hospital has 900 beds and answers questions.",
    "Staff marked which answer they liked. We pay 48,000 for it.",
    "We labelled reviews ourselves and it agreed on 188, which is fine.",
    "The company was founded in 1923. Examples exist.",
]


@pytest.mark.parametrize(("text", "kind", "rows"), COUNTS)
def test_a_number_is_of_the_kind_told(text: str, kind: str, rows: int) -> None:
    counted = {e.field: e.value for e in read(text).evidence if e.field.endswith(".rows")}
    assert counted[f"data.{kind}.rows"] == rows


@pytest.mark.parametrize("text", NOT_COUNTED)
def test_a_number_of_other_things_counts_no_data(text: str) -> None:
    assert not [e for e in read(text).evidence if e.field.endswith((".rows", ".docs"))]


def test_a_share_may_have_its_noun_within() -> None:
    [target] = [e for e in read("The auditors want nine letters in ten right.").evidence if e.field == "evals.target"]
    assert target.value == 0.9
