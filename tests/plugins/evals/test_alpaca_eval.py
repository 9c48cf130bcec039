"""AlpacaEval on instructions of our own, with models and judges whose win rates are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align import AlignError
from align.evals import Generate, LogLikelihood
from align.plugins.evals.judged.alpaca_eval import AlpacaEval, read_label, read_template
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals.judged import always, judge, prefers, user, write_jsonl

COUNT = 40
LABELS = ("m", "M", "?")


def instruction(n: int) -> str:
    return f"Instruction number {n}."


def length(n: int) -> int:
    """Lengths of the baseline's outputs, all different."""
    return 60 + (n * 37) % 101


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    rows = [
        {
            "instruction": instruction(n),
            "output": f"<base> {n} ".ljust(length(n), "b"),
            "generator": "gpt4_1106_preview",
            "dataset": "koala" if n % 2 else "vicuna",
        }
        for n in range(COUNT)
    ]
    path = tmp_path / "alpaca_eval.json"
    path.write_text(json.dumps(rows))
    return {"data": str(path)}


def model(prompt: Any, _seed: int) -> str:
    """A model with outputs of about the baseline's lengths."""
    return "<model> ".ljust(length(int(user(prompt).split()[2][:-1])), "m")


@pytest.mark.parametrize(("marked", "rate"), [("<model>", 1.0), ("<base>", 0.0)])
def test_a_fair_judge_finds_the_better_side_in_both_orders(settings: dict[str, Any], marked: str, rate: float) -> None:
    rows, metrics = run_eval("alpaca_eval", settings, ScriptedModel(model), prefers(marked, LABELS))
    assert (metrics["win_rate"], metrics["discrete_win_rate"], metrics["position_bias"]) == (rate, rate, 0)
    assert metrics["score"] == pytest.approx(rate, abs=0.01)
    assert metrics["length_controlled_win_rate"] == pytest.approx(rate, abs=0.01)
    assert metrics["category/koala"] == rate and metrics["comparable"] == 0
    assert len(rows) == COUNT and rows[0].valid and len(rows[0].judged) == 2
    assert rows[0].target["baseline"].startswith("<base>")


@pytest.mark.parametrize(("label", "bias"), [("m", 1.0), ("M", -1.0)])
def test_a_position_biased_judge_gives_a_half_and_is_exposed(settings: dict[str, Any], label: str, bias: float) -> None:
    _, metrics = run_eval("alpaca_eval", settings, ScriptedModel(model), always(label))
    assert (metrics["win_rate"], metrics["discrete_win_rate"], metrics["position_bias"]) == (0.5, 0.5, bias)
    assert metrics["score"] == pytest.approx(0.5, abs=1e-6)


def test_one_order_by_hash_asks_once_and_shows_each_side_first_in_about_half_of_the_pairs(
    settings: dict[str, Any],
) -> None:
    one = settings | {"orders": "hash"}
    rows, metrics = run_eval("alpaca_eval", one, ScriptedModel(model), prefers("<model>", LABELS))
    assert metrics["win_rate"] == 1 and {len(row.judged) for row in rows} == {1}
    _, metrics = run_eval("alpaca_eval", one, ScriptedModel(model), always("m"))
    assert 0.25 < metrics["win_rate"] < 0.75


def test_a_judge_with_likelihoods_gives_its_probability(settings: dict[str, Any]) -> None:
    def logp(context: Any, label: str) -> float:
        """p(model's answer) = 0.8 wherever it stands."""
        text = user(context)
        first = text.find("<model>") < text.find("<base>")
        assert label in LABELS[:2]
        return math.log(0.4 if (label == "m") == first else 0.1)

    scoring = ScriptedModel(lambda prompt, seed: "M", logp)
    rows, metrics = run_eval("alpaca_eval", settings, ScriptedModel(model), scoring)
    assert metrics["win_rate"] == pytest.approx(0.8) and metrics["discrete_win_rate"] == 1
    assert metrics["position_bias"] == pytest.approx(0)
    assert all(isinstance(query, LogLikelihood) for query in scoring.asked)
    assert rows[0].extracted == "0.8 0.8" and len(rows[0].judged) == 4
    _, metrics = run_eval("alpaca_eval", settings | {"preference": "text"}, ScriptedModel(model), scoring)
    assert metrics["win_rate"] == 0.5 and metrics["position_bias"] == -1


def test_a_judge_that_cannot_be_read_gives_a_half_and_rows_that_are_not_valid(settings: dict[str, Any]) -> None:
    rows, metrics = run_eval("alpaca_eval", settings, ScriptedModel(model), always("I like both."))
    assert (metrics["win_rate"], metrics["unreadable"], metrics["discrete_win_rate"]) == (0.5, 1.0, 0.5)
    assert not any(row.valid for row in rows) and rows[0].error == "no verdict m or M"
    half = judge(lambda text: "m" if text.find("<model>") < text.find("<base>") else "none")
    rows, metrics = run_eval("alpaca_eval", settings, ScriptedModel(model), half)
    assert (metrics["win_rate"], metrics["unreadable"]) == (0.75, 0.5) and not rows[0].valid


def test_a_refusing_model_is_judged_like_any_other(settings: dict[str, Any]) -> None:
    fair = judge(lambda text: "M" if text.find("Sorry") < text.find("<base>") else "m")
    rows, metrics = run_eval("alpaca_eval", settings, always("Sorry, I can't."), fair)
    assert metrics["win_rate"] == 0 and all(row.valid for row in rows)


def loves_length(context: Any, label: str) -> float:
    """A judge that goes by length, with a logistic in its difference, the same in both orders."""
    text = user(context)
    parts = [part.split("\n<<<")[0] for part in text.split(">>> answer ")[1:]]
    first, second = (len(part.split("\n", 1)[1]) for part in parts)
    p = 1 / (1 + math.exp((second - first) / 60))
    return math.log(p if label == "m" else 1 - p)


def test_length_control_takes_out_what_padding_gained(settings: dict[str, Any]) -> None:
    def padded(prompt: Any, seed: int) -> str:
        n = int(user(prompt).split()[2][:-1])
        return model(prompt, seed) + "x" * (n * 53 % 199)

    rows, metrics = run_eval("alpaca_eval", settings, ScriptedModel(padded), ScriptedModel(None, loves_length))
    assert metrics["length"] > metrics["baseline_length"] + 80
    assert metrics["win_rate"] > 0.72
    assert metrics["score"] < metrics["win_rate"] - 0.12
    assert metrics["score"] == pytest.approx(metrics["length_controlled_win_rate"], abs=0.05)
    assert (
        metrics["length_controlled_low"] <= metrics["length_controlled_win_rate"] <= metrics["length_controlled_high"]
    )
    made = AlpacaEval(AlpacaEval.Config(data=settings["data"]))
    assert made.headline(rows) == metrics["score"] != made.headline(rows[:20])


def gamed_file(path: Path) -> str:
    """A file with the columns of df_gamed.csv: two gamed baselines."""
    rng = np.random.default_rng(3)
    lines = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for name, delta in (("verbose", -1.0), ("concise", 1.0)):
        for n in range(COUNT):
            lines.append(f"{n},{0.5 - 0.2 * delta:.3f},{delta + rng.normal() / 5:.4f},{n / 20 - 1:.3f},False,{name}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_the_full_length_control_takes_difficulties_and_gamed_rows(settings: dict[str, Any], tmp_path: Path) -> None:
    gamed = gamed_file(tmp_path / "df_gamed.csv")
    difficulty = tmp_path / "instruction_difficulty.csv"
    difficulty.write_text(",0\n" + "".join(f"{n},{n / 20 - 1:.3f}\n" for n in range(COUNT)))

    def harder(context: Any, label: str) -> float:
        """A judge that prefers the model on what is hard."""
        text = user(context)
        n = int(text.split("number ")[1].split(".")[0])
        p = 1 / (1 + math.exp(-2 * (n / 20 - 1)))
        p = p if text.find("<model>") < text.find("<base>") else 1 - p
        return math.log(p if label == "m" else 1 - p)

    grader = ScriptedModel(None, harder)
    rows, metrics = run_eval("alpaca_eval", settings | {"gamed": gamed}, ScriptedModel(model), grader)
    assert {row.metrics["difficulty"] for row in rows} == {round(n / 20 - 1, 3) for n in range(COUNT)}
    assert metrics["score"] == pytest.approx(metrics["win_rate"], abs=0.01)
    both = settings | {"gamed": gamed, "difficulty": str(difficulty)}
    assert run_eval("alpaca_eval", both, ScriptedModel(model), grader)[1]["score"] == metrics["score"]
    only = settings | {"difficulty": str(difficulty)}
    assert run_eval("alpaca_eval", only, ScriptedModel(model), grader)[1]["score"] == pytest.approx(
        metrics["score"], abs=0.01
    )
    with pytest.raises(AlignError, match="instruction 0 has no difficulty"):
        difficulty.write_text(",0\n99,0.5\n")
        run_eval("alpaca_eval", only, ScriptedModel(model), grader)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("m", "m"),
        ("M", "M"),
        (" `m`.", "m"),
        ("**M**", "M"),
        ("M is better than m", "M"),
        ("The better answer is m.", "m"),
        ("I'm not sure: m or M?", None),
        ("I'm sure it is M", "M"),
        ("model m", "m"),
        ("Maybe", None),
        ("", None),
    ],
)
def test_a_label_is_the_first_word_or_the_only_one_in_the_text(text: str, label: str | None) -> None:
    assert read_label(text) == label


CHATML = (
    "<|im_start|>system\nChoose.\n<|im_end|>\n<|im_start|>user\n{instruction}\nm: {output_1}\nM: {output_2}\n<|im_end|>"
)


def test_the_template_is_read_from_the_published_format(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "clf.txt"
    path.write_text(CHATML)
    grader = always("m")
    rows, metrics = run_eval("alpaca_eval", settings | {"judge_prompts": str(path)}, ScriptedModel(model), grader)
    assert "comparable" not in metrics
    query = next(each for each in grader.asked if isinstance(each, Generate))
    assert [message["role"] for message in query.prompt] == ["system", "user"]  # type: ignore[index]
    assert user(query.prompt).count("<model>") == user(query.prompt).count("<base>") == 1
    own, _ = run_eval("alpaca_eval", settings, ScriptedModel(model), grader)
    assert own[0].judge_prompt_sha != rows[0].judge_prompt_sha
    assert read_template("{instruction} {output_1} {output_2}\n", "x").system == ""
    with pytest.raises(AlignError, match="has messages of assistant"):
        read_template("<|im_start|>assistant\nm<|im_end|>", "x")
    path.write_text("{instruction} {output_1}")
    with pytest.raises(AlignError, match=r"its template has no \{output_2\}"):
        run_eval("alpaca_eval", settings | {"judge_prompts": str(path)}, ScriptedModel(model), grader)
    with pytest.raises(AlignError, match="cannot be read: No such file"):
        run_eval("alpaca_eval", settings | {"judge_prompts": "no.txt"}, ScriptedModel(model), grader)


def test_the_baseline_may_be_a_file_of_its_own_and_repeated_instructions_are_one_cluster(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "questions.jsonl", [{"instruction": f"Q {n}"} for n in (1, 2, 2)])
    outputs = [{"instruction": f"Q {n}", "output": f"<base> {n}", "generator": "b"} for n in (1, 2)]
    settings = {"data": data, "baseline": write_jsonl(tmp_path / "base.jsonl", outputs)}
    rows, metrics = run_eval("alpaca_eval", settings, always("<model>"), prefers("<model>", LABELS))
    assert metrics["win_rate"] == 1
    assert len({row.item_id for row in rows}) == 3 and len({row.cluster_id for row in rows}) == 2
    with pytest.raises(AlignError, match="has no output of the baseline for 'Q 1'"):
        run_eval("alpaca_eval", {"data": data}, always("x"), always("m"))
