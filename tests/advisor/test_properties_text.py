"""Laws of advice from descriptions: a denied clause adds nothing, units and wording change nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.advisor.merge_evidence import gather
from align.advisor.text import read
from align.schemas.advice import Advice
from tests.advisor.deciding import advice


def advised(text: str) -> Advice:
    reading = read(text)
    return advice(gather(reading.evidence, languages=tuple(reading.languages)))


def options(text: str) -> set[str]:
    found = advised(text)
    return {found.primary, *found.companions, *(step.stage for step in found.plan)}


STORIES = [
    "Claims letters. 27 mandatory clauses have to hold in the same letter. 14,000 approved letters with their inputs.",
    "Shop assistant with three house rules on top of a hosted model. There is no training data.",
    "Our staff asks about the handbook, 4,200 pages that change daily. Each answer must cite the page.",
    "We have 20k pairs where raters picked the better of two replies. The model is already SFT'd.",
    "5 billion tokens of Welsh that the model never saw, then 30k instruction pairs.",
]
DENIED = [
    ("We do not need citations.", {"rag"}),
    ("Sources needn't be cited.", {"rag"}),
    ("We don't need live data.", {"rag"}),
    ("Nothing changes, there are no updates.", {"rag"}),
    ("Retrieval is not wanted.", {"rag"}),
    ("There is no corpus to pre-train on.", {"continual_pretraining"}),
    ("We won't train a reward model.", {"reward_model"}),
    ("There are no thumbs and no ratings.", {"kto"}),
    ("Es gibt keine Vergleiche.", {"dpo"}),
    ("Quellen brauchen wir nicht.", {"rag"}),
    ("No hace falta citar las fuentes.", {"rag"}),
    ("不需要标注出处。", {"rag"}),
]


@pytest.mark.parametrize(("clause", "denied"), DENIED)
@pytest.mark.parametrize("story", STORIES)
def test_a_denied_clause_never_adds_what_it_denies(story: str, clause: str, denied: set[str]) -> None:
    assert options(f"{story} {clause}") & denied <= options(story) & denied


@pytest.mark.parametrize(
    "written", ["14,000", "14000", "14k", "14 thousand", "fourteen thousand", "14 000"], ids=lambda written: written
)
def test_the_way_a_number_is_written_changes_nothing(written: str) -> None:
    story = STORIES[0].replace("14,000", written)
    plain, other = advised(STORIES[0]), advised(story)
    assert (other.primary, [s.stage for s in other.plan]) == (plain.primary, [s.stage for s in plain.plan])
    assert other.data[0].given == 14_000


PARAPHRASES = [
    (
        STORIES[2],
        "Handbook questions from employees. The 4,200 pages are revised every day, and we must show the source.",
    ),
    (STORIES[3], "Raters compared two answers each time and marked the better one, 20,000 comparisons; SFT is done."),
    (
        STORIES[4],
        "Welsh is practically unseen by the base model. Corpus: 5B tokens. Afterwards 30,000 instruction pairs.",
    ),
]


@pytest.mark.parametrize(("one", "other"), PARAPHRASES)
def test_the_same_told_otherwise_is_the_same_answer(one: str, other: str) -> None:
    assert advised(one).primary == advised(other).primary


@pytest.mark.parametrize("tokens", ["99.9M", "100M", "999.9M", "1B"])
def test_floors_hold_for_what_is_written(tokens: str) -> None:
    """0.1B and 1B exactly: below the first no pre-training, from the second without a warning."""
    found = advised(f"Continue pre-training on {tokens} tokens of Welsh text that the model never saw.")
    warned = "too_little_data" in {w.id for w in found.warnings}
    assert (found.primary == "continual_pretraining", warned) == {
        "99.9M": (False, True),
        "100M": (True, True),
        "999.9M": (True, True),
        "1B": (True, False),
    }[tokens]


@settings(max_examples=40)
@given(st.text(max_size=300))
def test_any_text_gets_advice_and_every_reason_a_quote_of_it(text: str) -> None:
    reading = read(text)
    found = advice(gather(reading.evidence, languages=tuple(reading.languages)))
    for reason in found.reasons:
        for quote in reason.quotes:
            assert quote.span is None or text[slice(*quote.span)] == quote.quote
