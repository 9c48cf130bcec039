"""Arena-Hard on prompts of our own, with models and judges whose win rates are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from align import AlignError
from align.evals import Generate
from align.plugins.evals.judged.arena_hard import ArenaHard, read_verdict
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals.judged import always, judge, prefers, user, write_jsonl

COUNT = 30
STRICT = ("So: [[A>>B]]", "So: [[B>>A]]", "So: [[A=B]]")
WEAK = ("So: [[A>B]]", "So: [[B>A]]", "So: [[A=B]]")


def v2_answers(mark: str, count: int = COUNT) -> list[dict[str, Any]]:
    return [
        {
            "uid": f"u{n}",
            "ans_id": f"a{n}",
            "model": "base",
            "messages": [
                {"role": "user", "content": f"Prompt {n}"},
                {"role": "assistant", "content": {"answer": f"{mark} {n} " + "word " * (5 + n)}},
            ],
            "tstamp": 1.0,
            "metadata": {"token_len": 7 + n},
        }
        for n in range(count)
    ]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    rows = [
        {
            "uid": f"u{n}",
            "category": "creative_writing" if n % 3 == 2 else "hard_prompt",
            "subcategory": ("coding", "math", "creative_writing")[n % 3],
            "prompt": f"Prompt {n}",
        }
        for n in range(COUNT)
    ]
    return {
        "data": write_jsonl(tmp_path / "question.jsonl", rows),
        "baseline": write_jsonl(tmp_path / "base.jsonl", v2_answers("<base>")),
    }


def even(prompt: Any, _seed: int) -> str:
    """A model whose answers are now longer, now shorter than the baseline's."""
    n = int(user(prompt).split()[1])
    return "<model> " + "word " * (5 + n + (-1) ** n * 3)


@pytest.mark.parametrize("labels", [STRICT, WEAK])
@pytest.mark.parametrize(("marked", "rate"), [("<model>", 1.0), ("<base>", 0.0)])
def test_a_fair_judge_finds_the_better_side_in_both_games(
    settings: dict[str, Any], labels: tuple[str, str, str], marked: str, rate: float
) -> None:
    rows, metrics = run_eval("arena_hard", settings, ScriptedModel(even), prefers(marked, labels))
    assert (metrics["score"], metrics["win_rate"], metrics["position_bias"]) == (rate, rate, 0)
    assert metrics["style_controlled"] == pytest.approx(rate, abs=0.01)
    assert metrics["weight"] == (6 if labels is STRICT else 2)
    assert metrics["category/creative_writing"] == metrics["category/math"] == rate
    assert rows[0].valid and len(rows[0].judged) == 2 and metrics["comparable"] == 0


@pytest.mark.parametrize(
    ("verdict", "bias"), [("[[A>>B]]", 1), ("[[A>B]]", 1), ("[[A=B]]", 0), ("[[B>A]]", -1), ("[[B>>A]]", -1)]
)
def test_a_position_biased_judge_and_one_that_always_ties_give_a_half(
    settings: dict[str, Any], verdict: str, bias: float
) -> None:
    rows, metrics = run_eval("arena_hard", settings, always("<model>"), always(verdict))
    assert (metrics["score"], metrics["position_bias"]) == (0.5, bias)
    assert (metrics["win_rate_low"], metrics["win_rate_high"]) == (0.5, 0.5)
    assert metrics["style_controlled"] == pytest.approx(0.5, abs=1e-6)
    assert all(row.valid and row.score == 0.5 for row in rows)


def test_strict_verdicts_count_three_times_over_all_games(settings: dict[str, Any]) -> None:
    """Two of three prompts lost strictly, 3 + 3 each; the third won, 1 + 1: 20 of 140."""

    def verdict(text: str) -> str:
        n = int(text.split("Prompt ")[1].split()[0])
        labels, marked = (WEAK, "<model>") if n % 3 == 2 else (STRICT, "<base>")
        first = "<model>" if text.find("<model>") < text.find("<base>") else "<base>"
        return labels[0] if first == marked else labels[1]

    _, metrics = run_eval("arena_hard", settings, always("<model>"), judge(verdict))
    assert metrics["score"] == metrics["win_rate"] == pytest.approx(20 / 140)
    assert (metrics["category/creative_writing"], metrics["category/hard_prompt"]) == (1, 0)
    assert metrics["win_rate_low"] < metrics["score"] < metrics["win_rate_high"]


def test_a_judge_that_cannot_be_read_gives_ties_and_rows_that_are_not_valid(settings: dict[str, Any]) -> None:
    rows, metrics = run_eval("arena_hard", settings, always("<model>"), always("I cannot judge."))
    assert (metrics["score"], metrics["unreadable"], metrics["weight"]) == (0.5, 1, 2)
    assert not any(row.valid for row in rows) and rows[0].extracted == "? ?"
    half = judge(lambda text: "[[A>B]]" if text.find("<model>") < text.find("<base>") else "[[A>A]]")
    rows, metrics = run_eval("arena_hard", settings, always("<model>"), half)
    assert (metrics["score"], metrics["unreadable"]) == (0.75, 0.5) and not rows[0].valid
    assert rows[0].extracted == "? A>B"


def test_a_refusing_model_is_judged_like_any_other(settings: dict[str, Any]) -> None:
    fair = judge(lambda text: STRICT[1] if text.find("Sorry") < text.find("<base>") else STRICT[0])
    rows, metrics = run_eval("arena_hard", settings, always("Sorry."), fair)
    assert metrics["score"] == 0 and all(row.valid for row in rows)


def test_style_control_takes_out_what_padding_gained(settings: dict[str, Any]) -> None:
    """The longer the answer against the baseline's, the likelier the win; the rest is a fair coin."""

    def padded(prompt: Any, _seed: int) -> str:
        n = int(user(prompt).split()[1])
        return "<model> " + "word " * ((5 + n) * (1 + n % 5))

    def verdict(text: str) -> str:
        parts = [part.split("\n<<<")[0] for part in text.split(">>> answer ")[1:]]
        a, b = (len(part.split()) for part in parts)
        n = int(text.split("Prompt ")[1].split()[0])
        if max(a, b) < 1.5 * min(a, b) or n % 7 == 0:
            return "[[A>B]]" if (n % 2 == 0) == ("<model>" in parts[0]) else "[[B>A]]"
        return "[[A>B]]" if a > b else "[[B>A]]"

    rows, metrics = run_eval("arena_hard", settings, ScriptedModel(padded), judge(verdict))
    assert metrics["tokens"] > metrics["baseline_tokens"] and metrics["win_rate"] > 0.75
    assert metrics["style_controlled"] < metrics["win_rate"] - 0.15
    assert metrics["score"] == metrics["win_rate"]
    controlled = settings | {"style_control": True}
    made = ArenaHard(ArenaHard.Config(**controlled))
    assert made.headline(rows) == pytest.approx(metrics["style_controlled"])
    assert made.headline([rows[0], *rows]) > 0  # a resample holds rows twice
    _, older = run_eval("arena_hard", controlled | {"version": "v0.1"}, ScriptedModel(padded), judge(verdict))
    assert older["score"] == older["style_controlled"] != metrics["style_controlled"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("[[A>>B]]", "A>>B"),
        ("first [[A>B]], no: [[B>A]]", "B>A"),
        ("[[a=b]]", "A=B"),
        ("[B>>A]", "B>>A"),
        ("[[B<A]]", "B<A"),
        ("[A>B] but [[A=B]]", "A=B"),
        ("[[A>>>B]]", None),
        ("[[A]]", None),
        ("A>B", None),
        ("", None),
    ],
)
def test_a_verdict_is_the_last_known_label_in_double_brackets_else_in_single_ones(text: str, label: str | None) -> None:
    assert read_verdict(text) == label


def test_own_prompts_let_the_judge_answer_first_but_not_for_stories(settings: dict[str, Any]) -> None:
    grader = always("[[A=B]]")
    run_eval("arena_hard", settings, always("<model>"), grader)
    queries = [query for query in grader.asked if isinstance(query, Generate)]
    for query in queries:
        n = int(user(query.prompt).split("Prompt ")[1].split()[0])
        assert ("answer of your own" in query.prompt[0]["content"]) == (n % 3 != 2)  # type: ignore[index]
    assert {(query.sampling.temperature, query.sampling.max_completion_length) for query in queries} == {(0, 16_000)}
    game = [user(query.prompt) for query in queries if "Prompt 4\n" in user(query.prompt)]
    assert [text.find("<base>") < text.find("<model>") for text in game] == [True, False]


def test_prompts_are_read_from_both_published_formats(settings: dict[str, Any], tmp_path: Path) -> None:
    def asked(config: dict[str, Any], version: str) -> tuple[Any, dict[str, float]]:
        path = tmp_path / "judge.yaml"
        path.write_text(yaml.safe_dump(config))
        grader = always("[[A=B]]")
        given = settings | {"judge_prompts": str(path), "version": version}
        _, metrics = run_eval("arena_hard", given, always("<model>"), grader, n=1)
        return grader.asked[0], metrics

    old = {
        "judge_model": "gpt",
        "regex_pattern": r"\[\[([AB<>=]+)\]\]",
        "system_prompt": "Old.",
        "prompt_template": ["{question_1} / {answer_1} / {answer_2}"],
    }
    query, metrics = asked(old, "v0.1")
    assert query.prompt[0] == {"role": "system", "content": "Old."} and query.sampling.max_completion_length == 4096
    assert " / <base>" in query.prompt[1]["content"] and "comparable" not in metrics
    new = {"judge_model": "gpt", "prompt_template": "{QUESTION} / {ANSWER_A} / {ANSWER_B}"}
    query, metrics = asked(new, "v2.0")
    assert "examiner" in query.prompt[0]["content"] and metrics["comparable"] == 0
    systems = {"hard_prompt": "Hard.", "creative_writing": "Story."}
    query, metrics = asked(new | {"system_prompt": systems}, "v2.0")
    assert query.prompt[0]["content"] in systems.values() and "comparable" not in metrics
    with pytest.raises(AlignError, match="has no prompt for creative_writing"):
        asked(new | {"system_prompt": {"hard_prompt": "Hard."}}, "v2.0")
    with pytest.raises(AlignError, match=r"its template has no \{ANSWER_B\}"):
        asked({"prompt_template": "{QUESTION} {ANSWER_A}"}, "v2.0")
    with pytest.raises(AlignError, match="has a system_prompt that is no text"):
        asked(new | {"system_prompt": [1]}, "v2.0")
    with pytest.raises(AlignError, match="has no 'prompt_template'"):
        asked({"system_prompt": "x"}, "v2.0")


def test_the_first_format_of_v01_and_a_baseline_for_each_category(settings: dict[str, Any], tmp_path: Path) -> None:
    questions = [
        {"question_id": f"q{n}", "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": f"Prompt {n}"}]}
        for n in range(3)
    ]
    answers = [
        {"question_id": f"q{n}", "choices": [{"index": 0, "turns": [{"content": f"<base> {n}"}]}]} for n in range(3)
    ]
    old = {
        "data": write_jsonl(tmp_path / "old.jsonl", questions),
        "baseline": write_jsonl(tmp_path / "gpt-4-0314.jsonl", answers),
        "version": "v0.1",
    }
    rows, metrics = run_eval("arena_hard", old, always("<model>"), prefers("<model>", STRICT))
    assert metrics["score"] == 1 and rows[0].target["baseline"].startswith("<base>")
    files = {
        "hard_prompt": settings["baseline"],
        "creative_writing": write_jsonl(tmp_path / "stories.jsonl", v2_answers("<story>")),
    }
    rows, _ = run_eval("arena_hard", settings | {"baseline": files}, always("<model>"), always("[[A=B]]"))
    for row in rows:
        assert row.target["baseline"].startswith("<story>" if "creative_writing" in row.tags else "<base>")
    few = write_jsonl(tmp_path / "few.jsonl", v2_answers("<base>", 2))
    with pytest.raises(AlignError, match=r"few.jsonl\n    has no answer of the baseline to u2"):
        run_eval("arena_hard", settings | {"baseline": few}, always("<model>"), always("[[A=B]]"))
