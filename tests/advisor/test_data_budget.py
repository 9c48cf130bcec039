"""Data given against data needed, in one unit."""

from __future__ import annotations

import pytest

from align.advisor.data_budget import budget_of, denied, enough, format_count, some, tokens
from align.schemas.project import DataSet
from tests.advisor.deciding import LIMIT, facts, rows


def body(kind: str, **size: int) -> DataSet:
    return DataSet.model_validate({"kind": kind, "size": size})


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"tokens": 7, "bytes": 4000}, 7),
        ({"bytes": 4000}, 1000),
        ({"docs": 3}, 6000),
        ({"rows": 3}, 6000),
        ({}, None),
    ],
)
def test_text_is_counted_in_tokens(size: dict[str, int], expected: int | None) -> None:
    assert tokens(body("corpus", **size), LIMIT) == expected, "4 bytes a token, 2,000 tokens a document"


def test_examples_of_which_only_the_tokens_are_known_count_by_these() -> None:
    """202M tokens of instruction data are plenty, 90K are thin (rubric: 1K to 1B)."""
    assert not budget_of(body("sft_pairs", tokens=202_000_000), "sft", LIMIT).thin
    few = budget_of(body("sft_pairs", tokens=90_000), "sft", LIMIT)
    assert (few.thin, few.hopeless, few.unit) == (True, False, "tokens")
    assert budget_of(body("sft_pairs", tokens=90_000, rows=800), "sft", LIMIT).unit == "rows"


def test_unknown_numbers_are_given_the_doubt() -> None:
    unknown = facts(data=[rows("sft_pairs")])
    assert enough(unknown, "sft_pairs", LIMIT) and some(unknown, "sft_pairs", LIMIT)
    assert not enough(facts(), "sft_pairs", LIMIT)


def test_what_is_denied() -> None:
    assert denied(facts(data=[]), "sft_pairs")
    assert denied(facts(data=[rows("sft_pairs", 0)]), "sft_pairs")
    assert not denied(facts(data=[rows("prompts", 5)]), "sft_pairs"), "nothing is said of it"
    assert not denied(facts(data=[rows("sft_pairs", 5)]), "sft_pairs")


@pytest.mark.parametrize(
    ("number", "words"), [(5e9, "5 billion"), (12_345, "12,345"), (2_870_000_000, "2.87 billion"), (3e8, "300 million")]
)
def test_sizes_in_words(number: float, words: str) -> None:
    assert format_count(number) == words
