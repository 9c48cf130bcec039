"""The report: geometry by hand, and runs of all kinds, half-finished ones too."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from align.core.config.run_file import dump, parse
from align.core.report import Figure, MeasureRow, MeasureTable, print_table
from align.core.report.chart import ticks
from align.core.report.curves import Curve, as_data, goals, thin
from align.core.report.facts import chosen
from align.core.report.page import IntervalBar, _bars, run_names
from align.core.report.read import read_run
from align.core.util.atomic_files import write_json
from align.schemas.errors import AlignError
from align.schemas.text import number
from tests.core.reports import SECTIONS, Shape, measures, page_of, write_run


def test_a_value_that_is_not_finite_is_counted_and_breaks_the_line(tmp_path: Path) -> None:
    curve = Curve("loss", [(0, 0.0), (1, 1.0), (2, math.nan), (3, math.inf), (4, 1.0)], [])
    assert (curve.summary, curve.range, curve.lost) == ("0 → 1, 2 not finite", ("0", "1"), 2)
    metrics = "step,epoch,loss,other\n1,0,3,nan\n2,0,nan,inf\n3,0,1.23456789,\n"
    (stage,) = read_run(write_run(tmp_path / "run", metrics=metrics)).stages
    assert as_data([(0, stage)])["charts"] == [
        {
            "name": "loss",
            "title": "loss",
            "main": True,
            "exact": False,
            "lines": [{"run": 0, "kind": "train", "x": [1, 2, 3], "y": [3, None, 1.23457]}],
        }
    ]
    page = page_of(tmp_path / "run")
    assert "loss: 1 logged values are not finite" in page and "other: no logged value is finite" in page


def test_what_is_only_rounding_beside_the_rest_is_told_as_zero() -> None:
    assert Curve("loss", [], [(0, -2.9e-8), (1, 1.31)]).ends == ("0", "1.31")


def test_ticks_by_hand() -> None:
    assert ticks(0, 1, 4) == [0, 0.5, 1]  # a quarter is more than 0.2
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(-3, 17, 4) == [-5, 0, 5, 10, 15, 20]
    assert ticks(5, 5, 4) == [2, 4, 6, 8]  # a flat line gets half its size on either side: 2.5..7.5
    assert ticks(0, 0, 4) == [-0.5, 0, 0.5]


def test_thinning_means_neighbours() -> None:
    assert thin([(0, 1.0), (1, 3.0), (2, 5.0), (3, 6.0), (4, 9.0)], 3) == [(1, 2.0), (3, 5.5), (4, 9.0)]


def test_interval_bars_by_hand() -> None:
    share = MeasureRow("", (Figure(0.25, 0.2, 0.4), None, Figure(math.nan), Figure(0.5)))
    assert _bars(share) == [IntervalBar(0.2, 0.4, 0.25), None, None, IntervalBar(0.5, 0.5, 0.5)]
    # 2..6 gets the ticks 2, 3, ... 6: four of one.
    assert _bars(MeasureRow("", (Figure(3, 2, 4), Figure(5, 4, 6)), unit="number")) == [
        IntervalBar(0, 0.5, 0.25),
        IntervalBar(0.5, 1, 0.75),
    ]


def test_numbers_are_short() -> None:
    values = [0, 1, -0.5, 3.14159, 999.7, 12_345, 2_500_000, 4e-5, -2.98e-7, 1e12, math.nan, -math.inf]
    written = ["0", "1", "−0.5", "3.14", "1000", "12.3k", "2.5M", "4e-5", "−2.98e-7", "1e12", "NaN", "−∞"]
    assert list(map(number, values)) == written


def test_a_verdict_needs_intervals_that_do_not_meet() -> None:
    low, middle, high = Figure(0.2, 0.1, 0.3), Figure(0.35, 0.25, 0.45), Figure(0.9, 0.8, 0.95)
    assert MeasureRow("", (low, middle, high)).verdict == "better"
    assert MeasureRow("", (high, low)).verdict == "worse"
    assert MeasureRow("", (high, low), better="lower").verdict == "better"
    assert MeasureRow("", (low, high), better="lower").verdict == "worse"
    assert MeasureRow("", (low, middle)).verdict == "unclear"
    assert MeasureRow("", (low, Figure(0.9))).verdict == MeasureRow("", (low, None)).verdict == "untested"


def test_a_table_has_a_figure_for_every_stage() -> None:
    with pytest.raises(ValueError, match="accuracy: 1 figures for 2 stages"):
        MeasureTable(("base", "sft"), (MeasureRow("accuracy", (None,)),))


def test_structure(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", stages=("sft", "dpo")), "A title", **measures())
    shape = Shape(page)
    assert re.findall(r'<section id="(\w+)"', page) == SECTIONS
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == [
        "What improved",
        "Curves",
        "Samples",
        "Warnings",
        "Advice, plan and cost",
        "What differs",
        "How to go on",
        "Details",
    ]
    assert re.findall(r"<h1[^>]*>(.*)</h1>", page) == re.findall(r"<title>(A title)</title>", page) == ["A title"]
    assert [tag for tag, _ in shape.tags].count("figure") == 2 * 3  # loss, a named held-out loss, one more
    void = {"meta", "link", "line", "circle", "path", "rect", "input"}
    opened = sorted(tag for tag, _ in shape.tags if tag not in void)
    assert opened == sorted(tag for tag in shape.ends if tag not in void)
    assert "20.0 %" in page and "80.0 to 95.0 %" in page and "Better, beyond chance." in page


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("step,epoch,loss\n", "Nothing was logged yet."),
        ("step,epoch,loss\n1,0,nan\n2,0,inf\n", "Nothing was logged yet."),
        ("step,epoch,loss\n1,0,nan\n2,0,3\n3,0,2\n", "3 → 2, 1 not finite"),
        ("step,epoch,loss\n1,0,3\n2,0,2\n3,0,1", "3 → 2"),  # the last line was not finished
    ],
)
def test_metrics_that_are_missing_or_no_numbers(metrics: str, said: str, tmp_path: Path) -> None:
    assert said in page_of(write_run(tmp_path / "run", metrics=metrics))


def test_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=("sft", "dpo"))
    shutil.rmtree(run / "dpo")
    (run / "manifest.json").unlink()
    (run / "sft" / "done.json").unlink()
    page = page_of(run)
    assert "<bdi>sft</bdi> <small>unfinished</small>" in page and "<bdi>dpo</bdi> <small>not begun</small>" in page
    assert "run.yaml --resume" in page and "vllm serve" not in page
    assert "No samples were taken." in page


@pytest.mark.parametrize(
    ("architecture", "adapter", "model_class"),
    [
        ("Qwen2ForCausalLM", False, "AutoModelForCausalLM"),
        ("Gemma3ForConditionalGeneration", False, "Gemma3ForConditionalGeneration"),
        ("Gemma3ForConditionalGeneration", True, "Gemma3ForConditionalGeneration"),
        (None, False, "AutoModelForCausalLM"),
    ],
)
def test_the_class_that_loads_an_export_is_the_one_that_its_config_needs(
    architecture: str | None, adapter: bool, model_class: str, tmp_path: Path
) -> None:
    """AutoModelForCausalLM was named for multimodal models too, of which it loads at most the text part."""
    run = write_run(tmp_path / "run")
    export = run / "sft" / "export"
    home = tmp_path / "base" if adapter else export
    for directory in (home, export):
        directory.mkdir(parents=True, exist_ok=True)
    if architecture is not None:
        (home / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    if adapter:
        (export / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(home)}))
    assert f"transformers.{model_class}.from_pretrained(" in page_of(run)


def test_what_was_advised_and_overridden_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "advice.json").write_text(json.dumps({"summary": "Use retrieval.", "confidence": "high"}))
    noted = {"overrides": [{"rule": "R-CPT-3", "reason": "a test of the pipeline"}]}
    (run / "manifest.json").write_text(json.dumps(noted))
    page = page_of(run)
    assert "Use retrieval. <small>confidence: high</small>" in page
    assert '<bdi>R-CPT-3</bdi> was overridden</dt><dd dir="auto">a test of the pipeline</dd>' in page
    (run / "advice.json").unlink()
    assert "What was advised" not in page_of(run)


def test_where_the_time_went_is_told_of_a_profiled_stage(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=("sft", "dpo"))
    parts = {"forward": {"share": 0.75}, "</dd>": {"share": 0.25}, "data": {"share": 0.001}}
    write_json(run / "dpo" / "profile.json", {"seconds": 1234.5, "steps": 3, "parts": parts})
    page = page_of(run)
    assert "1,234.5 s: forward 75.0%, &lt;/dd&gt; 25.0%</dd>" in page
    assert page.count("where the time of") == 1
    write_json(run / "dpo" / "profile.json", {"seconds": "long", "parts": []})
    assert "where the time of" not in page_of(run), "what no profile wrote is left out"


def test_no_run_is_told_to_the_user(tmp_path: Path) -> None:
    with pytest.raises(AlignError, match=r"has no run\.yaml"):
        page_of(tmp_path)


def test_figures_that_are_not_there(tmp_path: Path) -> None:
    figures = (None, Figure(math.nan, math.nan, math.nan), Figure(math.inf))
    rows = (MeasureRow("share", figures), MeasureRow("number", figures, unit="number"), MeasureRow("none", (None,) * 3))
    page = page_of(write_run(tmp_path / "run"), table=MeasureTable(("a", "b", "c"), rows))
    shown = page.partition("<script>")[0]  # without our own script, which has words of its own
    assert "NaN" in page and "∞" in page and "nan" not in "".join(Shape(shown).text)


def test_the_terminal_table_says_the_same_and_obeys_no_one() -> None:
    table = MeasureTable(
        ("base", "[bold]sft[/bold]"),
        (
            MeasureRow("right\x1b[2J answers", (Figure(0.25, 0.2, 0.3), Figure(0.9, 0.876, 0.926))),
            MeasureRow("perplexity", (None, Figure(3.14159)), unit="number"),
        ),
    )
    text = io.StringIO()
    print_table(table, Console(file=text, width=100, color_system=None))
    lines = [line.split("  ") for line in text.getvalue().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert [line for line in cells if line and "─" not in line[0]] == [
        ["base", "[bold]sft[/bold]"],
        ["right⟨U+001B⟩[2J answers", "25.0 %", "90.0 %"],
        ["20–30 %", "88–93 %"],
        ["perplexity", "–", "3.14"],
        ["below each figure: its 95 % confidence interval"],
    ]


def test_the_report_loads_no_torch() -> None:
    code = "import sys, align.core.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_five_models_stay_whole_in_eighty_columns() -> None:
    figures = (
        Figure(0.0, 0.0, 0.013),
        Figure(0.99, 0.971, 0.997),
        Figure(0.543, 0.487, 0.599),
        Figure(1.0, 0.987, 1.0),
        Figure(1.0, 0.987, 1.0),
    )
    text = io.StringIO()
    print_table(
        MeasureTable(("start", "base", "sft", "dpo", "grpo"), (MeasureRow("liked answer likelier", figures),)),
        Console(file=text, width=80, color_system=None),
    )
    for cell in ("liked answer likelier", "0–1 %", "97–100 %", "49–60 %", "99–100 %"):
        assert cell in text.getvalue()


GRPO_RUN = """
output: {output}
stages:
- name: one
  model: {{path: base, adapter: {{r: 8}}}}
  data: {{train: prompts.jsonl, validation_fraction: 0.2}}
  algorithm: {{type: grpo, beta: 0.04}}
  rollout: {{rewards: [math], gold: exact, sampling: {{max_completion_length: 64}}}}
"""


@pytest.fixture
def grpo(tmp_path: Path) -> Path:
    """A run that learns from rewards, as ``align train`` resolves and logs it; its values are by hand."""
    run = parse(GRPO_RUN.format(output=tmp_path / "run"), "run.yaml")
    place = tmp_path / "run" / "one"
    place.mkdir(parents=True)
    (tmp_path / "run" / "run.yaml").write_text(dump(run))
    names = ["loss", "reward", "kl", "grad_norm", "entropy", "clip_ratio/low_mean", "val/reward", "val/gold"]
    rows = [[1, 0, 0.01, 0.2, 0.001, 1, 2, 0, 0.25, 0.5], [2, 0, 0.02, 0.4, 0.002, 1, 2, 0, 0.75, 0.625]]
    text = "\n".join(",".join(map(str, row)) for row in [["step", "epoch", *names], *rows])
    (place / "metrics.csv").write_text(text + "\n")
    return tmp_path / "run"


def test_what_was_chosen_is_what_is_not_at_its_default(grpo: Path) -> None:
    """Of sections too that are absent by default (adapter, rollout), and of a plugin's own settings."""
    (stage,) = read_run(grpo).stages
    assert dict(chosen(stage)) == {
        "model.adapter.r": "8",
        "data.validation_fraction": "0.2",
        "algorithm.beta": "0.04",
        "rollout.sampling.max_completion_length": "64",
        "rollout.rewards": "math",
        "rollout.gold.type": "exact",
    }


def test_the_reward_stands_first_and_is_told_before_and_after(grpo: Path) -> None:
    (stage,) = read_run(grpo).stages
    charts = as_data([(0, stage)])["charts"]
    assert [chart["name"] for chart in charts if chart["main"]] == [
        "reward",
        "gold",
        "kl",
        "entropy",
        "loss",
        "grad_norm",
    ]
    assert [chart["name"] for chart in charts if not chart["main"]] == ["clip_ratio/low_mean"]
    assert [(curve.name, *curve.ends) for curve in goals(stage)] == [
        ("reward", "0.25", "0.75"),
        ("gold", "0.5", "0.625"),
    ]
    page = page_of(grpo)
    assert "Nothing was held out" not in page
    assert page.index("<bdi>reward</bdi>") < page.index("<bdi>loss</bdi>") < page.index("<details>")
    assert "On held-out rows; higher is better." in page


def test_the_parts_of_a_reward_stand_after_it(grpo: Path) -> None:
    file = grpo / "one" / "metrics.csv"
    head, *rows = file.read_text().splitlines()
    parts = [f"{head},rewards/math/mean,rewards/length/mean", *(f"{row},1,0" for row in rows)]
    file.write_text("\n".join(parts) + "\n")
    (stage,) = read_run(grpo).stages
    charts = as_data([(0, stage)])["charts"]
    titles = [chart["title"] for chart in charts][:5]
    assert titles == ["reward", "gold reward", "reward part: length", "reward part: math", "KL to the reference"]


def test_names_of_runs_tell_them_apart(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one/run", "two/run", "three")]
    assert run_names(places[:1]) == ["one/run"]
    assert run_names(places[2:]) == ["three"]
    assert run_names(places) == ["one/run", "two/run", f"{tmp_path.name}/three"]
