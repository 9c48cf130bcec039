"""Benchmarks that compare likelihoods, on models of known score: right, wrong, broken, undecided, always the first."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from align import AlignError
from align.plugins.evals.static.gpqa import order_of
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals.static_rows import GPQA, MMLU, MMLU_SHOTS, TRUTHFULQA, write

GOLDEN_ORDERS = [(0, 1, 3, 2), (0, 2, 1, 3), (1, 0, 3, 2), (3, 0, 2, 1)]


@pytest.fixture
def mmlu(tmp_path: Path) -> dict[str, str]:
    return {"data": write(tmp_path / "test.jsonl", MMLU), "shots": write(tmp_path / "dev.jsonl", MMLU_SHOTS)}


def last_question(context: Any) -> str:
    """Return the part of a prompt after its last example."""
    text = context if isinstance(context, str) else context[-1]["content"]
    return str(text).rpartition("\n\n")[2]


def right_letter(context: Any) -> str:
    """Solve the last sum of a prompt."""
    question = last_question(context)
    found = re.search(r"What is (\d+)\+", question)
    assert found
    chosen = re.search(rf"([A-D])\. {2 * int(found[1])}\n", question)
    assert chosen
    return chosen[1]


def prefers(letter: Callable[[Any], str]) -> ScriptedModel:
    return ScriptedModel(logp=lambda context, text: -1.0 if text.strip() == letter(context) else -2.0)


def test_a_perfect_model_scores_one_and_a_wrong_one_zero(mmlu: dict[str, Any]) -> None:
    rows, metrics = run_eval("mmlu", mmlu, prefers(right_letter))
    assert metrics == {"score": 1.0, "macro": 1.0}
    assert len(rows) == 12
    assert {row.extracted for row in rows} == set("ABCD")
    assert all(row.valid for row in rows)
    wrong = prefers(lambda context: "ABCDA"["ABCD".index(right_letter(context)) + 1])
    assert run_eval("mmlu", mmlu, wrong)[1]["score"] == 0.0


def test_the_prompt_has_the_subjects_first_five_examples(mmlu: dict[str, Any]) -> None:
    model = prefers(right_letter)
    rows, _ = run_eval("mmlu", mmlu, model)
    row = next(row for row in rows if row.tags == ["anatomy"])
    prompt = row.prompts[0]["context"]
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about anatomy.\n\nWhat is 50+50?"
    )
    assert len(re.findall("Answer: [A-D]\n\n", prompt)) == 5
    assert prompt.endswith("\nAnswer:")
    assert [each["continuation"] for each in row.prompts] == [" A", " B", " C", " D"]
    assert (row.cluster_id, row.outputs) == ("anatomy", [-1.0 if i == row.target else -2.0 for i in range(4)])
    assert "abstract algebra." in next(row for row in rows if row.tags == ["abstract_algebra"]).prompts[0]["context"]


def test_through_the_chat_template_letters_follow_without_a_space(mmlu: dict[str, Any]) -> None:
    rows, metrics = run_eval("mmlu", {**mmlu, "chat": True}, prefers(right_letter))
    assert metrics["score"] == 1.0
    assert [each["continuation"] for each in rows[0].prompts] == ["A", "B", "C", "D"]
    assert rows[0].prompts[0]["context"][0]["role"] == "user"


def test_the_micro_average_is_no_macro_average(mmlu: dict[str, Any]) -> None:
    in_algebra = prefers(lambda context: right_letter(context) if "algebra" in context else "none")
    rows, metrics = run_eval("mmlu", mmlu, in_algebra)
    assert metrics == {"score": pytest.approx(8 / 12), "macro": 0.5}
    assert sum(not row.valid for row in rows) == 4


def test_always_the_first_letter_scores_its_share_and_undecided_scores_nothing(mmlu: dict[str, Any]) -> None:
    assert run_eval("mmlu", mmlu, prefers(lambda context: "A"))[1]["score"] == 0.25
    rows, metrics = run_eval("mmlu", mmlu, ScriptedModel(logp=lambda context, text: -3.0))
    assert metrics["score"] == 0.0
    assert {(row.valid, row.error, row.extracted) for row in rows} == {(False, "4 choices are equally likely", None)}


def test_a_model_of_nan_is_an_error(mmlu: dict[str, Any]) -> None:
    with pytest.raises(AlignError, match="log-probability is nan"):
        run_eval("mmlu", mmlu, ScriptedModel(logp=lambda context, text: math.nan))


def test_equal_rows_are_two_items_and_ids_do_not_depend_on_the_order(tmp_path: Path) -> None:
    forward = write(tmp_path / "a.jsonl", [*MMLU, MMLU[0]])
    backward = write(tmp_path / "b.jsonl", [*reversed(MMLU), {**MMLU[0], "extra": 1}])
    first, second = (
        run_eval("mmlu", {"data": data, "num_fewshot": 0}, prefers(right_letter))[0] for data in (forward, backward)
    )
    assert len({row.item_id for row in first}) == 13
    assert first == second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, "answer: Input should be less than or equal to 3"),
        ({"choices": ["a", "b"]}, "choices: List should have at least 4 items"),
        ({"question": None}, "question: Input should be a valid string"),
    ],
)
def test_rows_in_another_form_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = write(tmp_path / "test.jsonl", [MMLU[0], {**MMLU[1], **change}])
    with pytest.raises(AlignError, match=rf"test.jsonl:2\n    {message}"):
        run_eval("mmlu", {"data": data, "num_fewshot": 0}, prefers(right_letter))


def test_a_column_with_another_name_is_renamed(tmp_path: Path) -> None:
    rows = [{("topic" if key == "subject" else key): value for key, value in row.items()} for row in MMLU]
    settings = {"data": write(tmp_path / "test.jsonl", rows), "num_fewshot": 0}
    with pytest.raises(AlignError, match=r"has no column 'subject'\n.*rename one with columns: \{subject: ITS_NAME\}"):
        run_eval("mmlu", settings, prefers(right_letter))
    renamed = {**settings, "columns": {"subject": "topic"}}
    assert run_eval("mmlu", renamed, prefers(right_letter))[1]["score"] == 1.0


def test_examples_that_are_missing_are_an_error_with_its_fix(mmlu: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="needs 5 examples for its prompts\n    shots: FILE"):
        run_eval("mmlu", {"data": mmlu["data"]}, prefers(right_letter))
    few = write(tmp_path / "few.jsonl", MMLU_SHOTS[:7])
    with pytest.raises(AlignError, match="has 2 examples of 'abstract_algebra', and 5 are wanted"):
        run_eval("mmlu", {**mmlu, "shots": few}, prefers(right_letter))


def test_examples_come_from_the_dev_file_of_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "mmlu"
    directory.mkdir()
    write(directory / "dev.jsonl", MMLU_SHOTS)
    write(directory / "test.jsonl", MMLU)
    rows, metrics = run_eval("mmlu", {"data": str(directory)}, prefers(right_letter))
    assert (len(rows), metrics["score"]) == (12, 1.0)


def true_share(truth: float, lie: float) -> ScriptedModel:
    return ScriptedModel(logp=lambda context, text: truth if text.strip().startswith("true") else lie)


@pytest.fixture
def truthfulqa(tmp_path: Path) -> dict[str, Any]:
    return {"data": write(tmp_path / "truthful_qa.jsonl", TRUTHFULQA)}


def test_truthfulqa_knows_truth_from_lies(truthfulqa: dict[str, Any]) -> None:
    rows, metrics = run_eval("truthfulqa_mc1", truthfulqa, true_share(-1, -2))
    assert metrics == {"score": 1.0}
    assert rows[0].extracted == f"true {rows[0].prompts[0]['context'][-5]}"
    assert rows[0].prompts[0]["context"].count("\n\nQ: ") == 6
    assert run_eval("truthfulqa_mc1", truthfulqa, true_share(-2, -1))[1]["score"] == 0
    expected = math.exp(-1) / (math.exp(-1) + math.exp(-3))
    assert run_eval("truthfulqa_mc2", truthfulqa, true_share(-1, -3))[1]["score"] == pytest.approx(expected)


def test_a_broken_model_does_not_win_truthfulqa(truthfulqa: dict[str, Any]) -> None:
    """lm-eval 0.4.13 scores 1.0 on MC1 for both of these models: argmax takes the first of equals, and of nan."""
    rows, metrics = run_eval("truthfulqa_mc1", truthfulqa, true_share(-5, -5))
    assert metrics["score"] == 0.0
    assert not any(row.valid for row in rows)
    for name in ("truthfulqa_mc1", "truthfulqa_mc2"):
        with pytest.raises(AlignError, match="log-probability is nan"):
            run_eval(name, truthfulqa, true_share(math.nan, math.nan))


def test_answers_too_long_for_float64_have_their_share(truthfulqa: dict[str, Any]) -> None:
    metrics = run_eval("truthfulqa_mc2", truthfulqa, true_share(-5001, -5000))[1]
    assert metrics["score"] == pytest.approx(1 / (1 + math.e))


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("truthfulqa_mc1", {"choices": ["a", "b"], "labels": [1, 1]}, "true and false answers are both needed"),
        ("truthfulqa_mc1", {"choices": ["a", "b", "c"], "labels": [1, 1, 0]}, "needs one true answer"),
        ("truthfulqa_mc2", {"choices": ["a", "b"], "labels": [1]}, "1 labels for 2 choices"),
    ],
)
def test_truthfulqa_refuses_targets_it_cannot_score(
    tmp_path: Path, name: str, targets: dict[str, Any], message: str
) -> None:
    row = {**TRUTHFULQA[0], "mc1_targets": targets, "mc2_targets": targets}
    with pytest.raises(AlignError, match=message):
        run_eval(name, {"data": write(tmp_path / "rows.jsonl", [row])}, true_share(-1, -2))


@pytest.fixture
def gpqa(tmp_path: Path) -> dict[str, Any]:
    return {"data": write(tmp_path / "gpqa.jsonl", GPQA)}


def test_gpqa_by_likelihood(gpqa: dict[str, Any]) -> None:
    def right(context: Any, text: str) -> float:
        letter = text.strip(" ()")
        return -1.0 if f"({letter}) the right one" in str(context) else -2.0

    rows, metrics = run_eval("gpqa_likelihood", gpqa, ScriptedModel(logp=right))
    assert metrics["score"] == 1.0
    assert rows[0].prompts[0]["continuation"] == " (A)"
    assert "[title]" not in rows[0].prompts[0]["context"]
    first = ScriptedModel(logp=lambda context, text: -1.0 if "A" in text else -2.0)
    assert 0 < run_eval("gpqa_likelihood", {**gpqa, "permutations": 24}, first)[1]["score"] == 0.25


def test_the_order_of_choices_follows_from_the_id_alone() -> None:
    assert {order_of("rec001", repeat) for repeat in range(24)} == set(permutations(range(4)))
    for record in ("rec001", "rec002", "recX"):
        assert {order_of(record, repeat).index(0) for repeat in range(4)} == {0, 1, 2, 3}
    golden = [order_of(f"rec{n:03}", 0) for n in range(4)]
    assert golden == GOLDEN_ORDERS


def test_permutations_are_items_of_one_cluster(gpqa: dict[str, Any]) -> None:
    model = ScriptedModel(logp=lambda context, text: -float(ord(text[2])))
    rows, _ = run_eval("gpqa_likelihood", {**gpqa, "permutations": 3}, model)
    assert len(rows) == 36
    clusters = {row.cluster_id for row in rows}
    assert clusters == {row["Record ID"] for row in GPQA}
    assert len({(row.cluster_id, row.prompt_sha) for row in rows}) == 36
