"""MT-Bench on eight questions of our own, with models and judges whose scores are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align import AlignError
from align.evals import Generate
from align.plugins.evals.judged.judging import Game
from align.plugins.evals.judged.mt_bench import MTBench, agreed, read_grade, read_winner
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals.judged import always, judge, prefers, user, write_jsonl

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
WITH_REFERENCE = ("reasoning", "math", "coding")


def answers(model: str, mark: str) -> list[dict[str, Any]]:
    """Rows in FastChat's format of model answers."""
    return [
        {
            "question_id": 81 + n,
            "answer_id": f"a{n}",
            "model_id": model,
            "choices": [{"index": 0, "turns": [f"{mark} one {n}", f"{mark} two {n}"]}],
            "tstamp": 1.5,
        }
        for n in range(len(CATEGORIES))
    ]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    questions = [
        {"question_id": 81 + n, "category": category, "turns": [f"Q{n} first", f"Q{n} second"]}
        for n, category in enumerate(CATEGORIES)
    ]
    return {
        "data": write_jsonl(tmp_path / "question.jsonl", questions),
        "references": write_jsonl(tmp_path / "reference.jsonl", answers("gpt-4", "<reference>")),
    }


@pytest.fixture
def pairwise(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return settings | {"baseline": write_jsonl(tmp_path / "baseline.jsonl", answers("base", "<base>"))}


def talks(prompt: Any, _seed: int) -> str:
    """A model whose second answer shows that it saw its first."""
    return "<model> first" if len(prompt) == 1 else f"<model> after {prompt[1]['content']!r}"


def test_both_turns_are_graded_and_the_scores_are_means(settings: dict[str, Any]) -> None:
    grader = judge(lambda text: "Fine. Rating: [[9]]" if "second" in text else "Rating: [[6.5]] or [[1]]")
    rows, metrics = run_eval("mt_bench", settings, ScriptedModel(talks), grader)
    assert (metrics["score"], metrics["turn_1"], metrics["turn_2"]) == (7.75, 6.5, 9.0)
    assert metrics["unreadable"] == 0 and metrics["category/math"] == 7.75
    assert [row.cluster_id for row in rows] == [row.item_id for row in rows]
    assert rows[0].extracted == "6.5 9" and rows[0].valid
    assert rows[0].outputs == ["<model> first", "<model> after '<model> first'"]
    assert len(rows[0].judged) == 2


def test_the_model_is_asked_with_the_temperature_of_the_category_and_its_own_first_answer(
    settings: dict[str, Any],
) -> None:
    model = ScriptedModel(talks)
    run_eval("mt_bench", settings, model, always("[[5]]"))
    asked = [query for query in model.asked if isinstance(query, Generate)]
    by_question = {str(query.prompt[0]["content"]): query.sampling for query in asked}  # type: ignore[index]
    temperatures = [by_question[f"Q{n} first"].temperature for n in range(8)]
    assert temperatures == [0.7, 0.7, 0, 0, 0, 0, 0.1, 0.1]
    assert {query.sampling.max_completion_length for query in asked} == {1024}
    assert {len(query.prompt) for query in asked} == {1, 3}


def test_the_judge_sees_references_where_the_category_has_them_and_the_whole_dialogue_for_turn_two(
    settings: dict[str, Any],
) -> None:
    grader = always("[[5]]")
    rows, _ = run_eval("mt_bench", settings, ScriptedModel(talks), grader)
    seen = [user(query.prompt) for query in grader.asked if isinstance(query, Generate)]
    assert {query.sampling.temperature for query in grader.asked if isinstance(query, Generate)} == {0}
    for n, category in enumerate(CATEGORIES):
        first, second = (text for text in seen if f"Q{n} first" in text)
        needed = category in WITH_REFERENCE
        assert (f"<reference> one {n}" in first, f"<reference> two {n}" in first) == (needed, False)
        assert (f"<reference> one {n}" in second, f"<reference> two {n}" in second) == (needed, needed)
        assert "second" not in first and "<model> after" not in first
        assert f"Q{n} second" in second and "<model> first" in second and "<model> after" in second
        assert "{" not in first + second
    assert {row.target["reference"] is not None for row in rows if row.tags == ["math"]} == {True}


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Rating: [[7]]", 7),
        ("[[8.5]]", 8.5),
        ("[6]", 6),
        ("[3] and [[9]]", 9),
        ("[[10]]", 10),
        ("[[0]]", None),
        ("[[100]]", None),
        ("[[five]]", None),
        ("I cannot rate this.", None),
        ("", None),
    ],
)
def test_a_grade_is_the_first_in_double_brackets_else_in_single_ones(text: str, grade: float | None) -> None:
    assert read_grade(text) == grade


def test_a_judge_that_cannot_be_read_gives_the_neutral_score_and_rows_that_are_not_valid(
    settings: dict[str, Any],
) -> None:
    refusing = always("I'm sorry, I can't grade that.")
    rows, metrics = run_eval("mt_bench", settings, ScriptedModel(talks), refusing)
    assert (metrics["score"], metrics["unreadable"]) == (5.5, 1.0)
    assert not any(row.valid for row in rows) and rows[0].error == "no grade from 1 to 10 for turn 1"
    half = judge(lambda text: "[[10]]" if "second" in text else "?")
    rows, metrics = run_eval("mt_bench", settings, ScriptedModel(talks), half)
    assert (metrics["score"], metrics["turn_1"], metrics["unreadable"]) == (7.75, 5.5, 0.5)
    assert rows[0].extracted == "? 10" and not rows[0].valid


def test_a_refusing_model_is_graded_like_any_other(settings: dict[str, Any]) -> None:
    grader = judge(lambda text: "[[1]]" if "can't help" in text else "[[9]]")
    rows, metrics = run_eval("mt_bench", settings, always("Sorry, I can't help."), grader)
    assert metrics["score"] == 1.0 and all(row.valid for row in rows)


WINNERS = ("A is better: [[A]]", "B is better: [[B]]", "[[C]]")


@pytest.mark.parametrize(("marked", "score"), [("<model>", 1.0), ("<base>", 0.0)])
def test_a_fair_judge_of_pairs_finds_the_better_side_in_both_orders(
    pairwise: dict[str, Any], marked: str, score: float
) -> None:
    rows, metrics = run_eval("mt_bench_pairwise", pairwise, ScriptedModel(talks), prefers(marked, WINNERS))
    assert (metrics["score"], metrics["win"], metrics["loss"], metrics["tie"]) == (score, score, 1 - score, 0)
    assert metrics["position_bias"] == 0
    assert len(rows[0].judged) == 4 and rows[0].valid
    assert rows[0].target["baseline"][0].startswith("<base> one")


@pytest.mark.parametrize(("verdict", "bias"), [("[[A]]", 1.0), ("[[B]]", -1.0), ("[[C]]", 0.0)])
def test_a_position_biased_judge_and_one_that_always_ties_give_a_half(
    pairwise: dict[str, Any], verdict: str, bias: float
) -> None:
    rows, metrics = run_eval("mt_bench_pairwise", pairwise, ScriptedModel(talks), always(verdict))
    assert (metrics["score"], metrics["tie"], metrics["position_bias"]) == (0.5, 1.0, bias)
    assert all(row.valid for row in rows)


def test_a_pair_that_cannot_be_judged_is_a_tie_and_not_valid(pairwise: dict[str, Any]) -> None:
    rows, metrics = run_eval("mt_bench_pairwise", pairwise, ScriptedModel(talks), always("Both are nice."))
    assert (metrics["score"], metrics["unreadable"]) == (0.5, 1.0)
    assert not any(row.valid for row in rows)


def test_a_win_needs_both_orders() -> None:
    won, lost, tie, none = (Game(True, share) for share in (1.0, 0.0, 0.5, None))
    assert [agreed(won, each) for each in (won, lost, tie, none)] == [1, 0.5, 0.5, 0.5]
    assert (agreed(lost, lost), agreed(lost, none), agreed(none, won)) == (0, 0.5, 0.5)
    assert [read_winner(text) for text in ("[[A]]", "[[B]]", "[[C]]", "[A]", "A")] == ["A", "B", "C", None, None]


def published(path: Path, **changed: str) -> str:
    """A file of judge prompts in FastChat's format, with words of our own."""
    rows = [
        {
            "name": name,
            "type": "single",
            "system_prompt": "Grade.",
            "prompt_template": changed.get(name, " ".join(f"{{{each}}}" for each in needed)),
            "description": "",
            "category": "general",
            "output_format": "[[rating]]",
        }
        for name, needed in MTBench.kinds.items()
    ]
    return write_jsonl(path, rows)


def test_prompts_come_from_the_users_file_and_are_part_of_the_row(settings: dict[str, Any], tmp_path: Path) -> None:
    own, metrics = run_eval("mt_bench", settings, ScriptedModel(talks), always("[[5]]"))
    assert metrics["comparable"] == 0
    path = published(tmp_path / "judge_prompts.jsonl")
    grader = always("[[5]]")
    theirs, metrics = run_eval("mt_bench", settings | {"judge_prompts": path}, ScriptedModel(talks), grader)
    assert "comparable" not in metrics
    assert own[0].judge_prompt_sha != theirs[0].judge_prompt_sha
    first = next(query for query in grader.asked if isinstance(query, Generate) and "Q0 first" in user(query.prompt))
    assert first.prompt == [
        {"role": "system", "content": "Grade."},
        {"role": "user", "content": "Q0 first <model> first"},
    ]
    changed = run_eval("mt_bench", settings | {"judge_sampling": {"temperature": 1}}, ScriptedModel(talks), grader)[0]
    assert changed[0].judge_prompt_sha != own[0].judge_prompt_sha


def test_a_placeholder_inside_of_an_answer_stays_text(settings: dict[str, Any], tmp_path: Path) -> None:
    path = published(tmp_path / "judge_prompts.jsonl")
    grader = always("[[5]]")
    run_eval("mt_bench", settings | {"judge_prompts": path}, always("{question} {ref_answer_1} {0}"), grader)
    assert any(user(query.prompt) == "Q0 first {question} {ref_answer_1} {0}" for query in grader.asked)  # type: ignore[union-attr]


def test_mistakes_in_files_are_told_with_their_place(settings: dict[str, Any], tmp_path: Path) -> None:
    def fails(**changed: Any) -> str:
        with pytest.raises(AlignError) as error:
            run_eval("mt_bench", settings | changed, ScriptedModel(talks), always("[[5]]"))
        return str(error.value)

    bad = published(tmp_path / "bad.jsonl", **{"single-v1": "{question}"})
    assert "bad.jsonl:1\n    its template has no {answer}" in fails(judge_prompts=bad)
    few = write_jsonl(tmp_path / "few.jsonl", [{"name": "other"}])
    assert "has no prompt single-v1, single-math-v1" in fails(judge_prompts=few)
    assert "question 83 (reasoning) has no two reference answers" in fails(references=None)
    one = write_jsonl(tmp_path / "one.jsonl", [{"question_id": 1, "category": "writing", "turns": ["a"]}])
    assert "one.jsonl:1\n    has no two turns" in fails(data=one)
    none = write_jsonl(tmp_path / "none.jsonl", [{"question_id": 81}])
    assert "none.jsonl:1\n    has no choices[0].turns" in fails(references=none)


def test_a_baseline_must_be_complete(pairwise: dict[str, Any], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "part.jsonl", answers("base", "<base>")[:3])
    with pytest.raises(AlignError, match="has no two answers to question 84"):
        run_eval("mt_bench_pairwise", pairwise | {"baseline": path}, ScriptedModel(talks), always("[[A]]"))
