"""Answers from passages of our own, with models and judges whose scores are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align import AlignError
from align.plugins.evals.judged.retrieval import NO_ANSWER, Claim, claims_of, refuses
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals.judged import always, judge, user, write_jsonl


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    rows = [
        {
            "id": "height",
            "question": "How high is the tower?",
            "passages": [{"id": "a", "text": "The tower is 90 m high."}, {"id": "b", "text": "The bridge is red."}],
            "relevant": ["a", "z"],
            "answer": "90 m",
        },
        {"id": "none", "question": "Who built it?", "passages": ["It stands in a park."], "answerable": False},
    ]
    return {"data": write_jsonl(tmp_path / "questions.jsonl", rows)}


def parts(text: str) -> tuple[str, str]:
    """The passages and the claim that a judge was shown."""
    _, passages, _, claim = text.split("\n>>> ")
    return passages, claim


def strict(text: str) -> str:
    passages, claim = parts(text)
    return "[[supported]]" if "90 m" in claim and "90 m" in passages else "[[unsupported]]"


def answers(text: str) -> ScriptedModel:
    return ScriptedModel(lambda prompt, _: text if "tower" in user(prompt) else NO_ANSWER)


@pytest.mark.parametrize(
    ("text", "score", "faithfulness", "citations"),
    [
        ("It is 90 m high. [1]", 1, 1, 1),
        ("It is 90 m high [2].", 0.5, 1, 0),
        ("It is 90 m high [7].", 0.5, 1, 0),
        ("It is 90 m high.", 0.5, 1, 0),
        ("It is 70 m high [1].", 0, 0, 0),
        ("It is 90 m high [1]. It is old [1].", 0.5, 0.5, 0.5),
        ("It is 90 m high [1]. " + "And so on. " * 9, 0.1, 0.1, 0.1),
    ],
)
def test_claims_are_held_against_all_passages_and_against_those_cited(
    settings: dict[str, Any], text: str, score: float, faithfulness: float, citations: float
) -> None:
    rows, metrics = run_eval("retrieval", settings, answers(text), judge(strict))
    assert metrics["category/answerable"] == pytest.approx(score) and metrics["category/unanswerable"] == 1
    assert metrics["faithfulness"] == pytest.approx(faithfulness)
    assert metrics["citation_correctness"] == pytest.approx(citations)
    assert metrics["context_precision"] == 0.5 and metrics["context_recall"] == 0.5
    assert metrics["answer_found"] == float("90 m" in text) and metrics["refusal"] == 1
    assert all(row.valid for row in rows)


def test_refusals_count_where_there_is_no_answer_and_only_there(settings: dict[str, Any]) -> None:
    _, metrics = run_eval("retrieval", settings, always(NO_ANSWER), judge(strict))
    assert (metrics["category/answerable"], metrics["category/unanswerable"]) == (0, 1)
    assert (metrics["refusal"], metrics["false_refusal"]) == (1, 1)
    _, metrics = run_eval("retrieval", settings, always("It is 90 m high [1]."), judge(strict))
    assert (metrics["category/answerable"], metrics["category/unanswerable"]) == (1, 0)
    assert (metrics["refusal"], metrics["false_refusal"]) == (0, 0)


def test_without_citations_faithfulness_is_the_score(settings: dict[str, Any]) -> None:
    grader = judge(strict)
    _, metrics = run_eval("retrieval", settings | {"citations": False}, answers("It is 90 m high."), grader)
    assert metrics["score"] == 1 and "citation_correctness" not in metrics and len(grader.asked) == 1


def test_unreadable_verdicts_and_empty_answers_are_not_valid(settings: dict[str, Any]) -> None:
    rows, metrics = run_eval("retrieval", settings, answers("It is 90 m high [1]."), always("Who knows."))
    assert metrics["category/answerable"] == 0.5 and metrics["unreadable"] == 1
    assert [row.valid for row in rows if row.item_id == "height"] == [False]
    rows, metrics = run_eval("retrieval", settings, answers("..."), judge(strict))
    assert metrics["category/answerable"] == 0 and sum(row.valid for row in rows) == 1


def test_sentences_citations_and_refusals_are_read() -> None:
    found = claims_of("One fact [2][1]. Another! [3, 1] A third\nLast 3.5 m high.[2]")
    assert found == [
        Claim("One fact.", (1, 2)),
        Claim("Another!", (1, 3)),
        Claim("A third", ()),
        Claim("Last 3.5 m high.", (2,)),
    ]
    assert refuses("the passages do not answer this!") and not refuses("It says 3.") and claims_of("[1]") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": 3}, "question"),
        ({"passages": "text"}, "no list 'passages'"),
        ({"passages": [{"id": "a"}]}, "passage 1"),
        ({"relevant": "a"}, "'relevant'"),
        ({"answerable": "no"}, "'answerable'"),
        ({"answer": 3}, "'answer'"),
    ],
)
def test_rows_in_another_form_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"question": "?", "passages": ["text"]} | change
    with pytest.raises(AlignError, match=message):
        run_eval("retrieval", {"data": write_jsonl(tmp_path / "bad.jsonl", [row])}, always("x"), always("x"))
