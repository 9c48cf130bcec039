"""The data that a number counts where its noun is unknown: known by words around it, or by the sentence before."""

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
    ("We have 18k bug reports with the patch that closed them.", "sft_pairs", 18000),
    ("Guests are given two itineraries and book one of them, 14,200 times last year.", "preference_pairs", 14200),
    ("Agents either send the proposed reply or bin it, 130k such decisions so far.", "unpaired_feedback", 130000),
    ("There are 13k puzzles and a program that says solved or not solved.", "prompts", 13000),
    ("On 420 fresh tickets the prompt gets 71%.", "eval_set", 420),
    ("Our prompt hits the position in 39% of 220 clauses no one had looked at.", "eval_set", 220),
    ("Testers were shown pairs of jokes and swiped. 70,000 swipes.", "preference_pairs", 70000),
    ("For every one of 2,900 old incidents there is the report that went out.", "sft_pairs", 2900),
    ("(a) 35k solved examples; (b) 60k times a tutor preferred one answer over the other.", "preference_pairs", 60000),
]
NOT_COUNTED = [
    "The hospital has 900 beds and answers questions.",
    "Staff marked which answer they liked. We pay 48,000 for it.",
    "We labelled reviews ourselves and it agreed on 188, which is fine.",
    "The building has 600 rooms and was finished in 1998.",
    "A fleet of 1,200 trucks is tracked and corrected by dispatchers.",
    "The prompt has a style guide and ten samples.",
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


def test_what_comes_less_than_daily_is_no_request() -> None:
    assert not [e for e in read("One new policy per month.").evidence if e.field == "constraints.requests_per_day"]


def test_millions_are_of_parameters_only_beside_a_model() -> None:
    fields = [{e.field for e in read(text).evidence} for text in ("It is a 500M student.", "Is 900M enough?")]
    assert ["model.params_b" in said for said in fields] == [True, False]


def test_a_number_below_one_beside_a_metric_is_a_score() -> None:
    said = {e.field: e.value for e in read("F1 0.62 today, at temperature 0.7.").evidence}
    assert said["evals.baseline"] == 0.62
