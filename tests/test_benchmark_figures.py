"""Statistics of benchmarks, and what ``benchmarks/compare.py`` flags: both can be wrong without anybody noticing."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # the scripts import each other by their bare names

import compare  # noqa: E402
import draw  # noqa: E402
import figures  # noqa: E402
from figures import Figure, figure, median_interval, ratios  # noqa: E402

OLD = Figure(1.0, 0.98, 1.02, 9, "of TRL")


def test_ratios_are_of_one_turn_each() -> None:
    """The machine slows down threefold in the second turn, for both sides alike."""
    assert ratios([1.0, 3.0, 1.0], [2.0, 6.0, 4.0]) == [0.5, 0.5, 0.25]
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("n", "rank"), [(1, 1), (2, 1), (5, 1), (6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (20, 6), (30, 10)]
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(n: int, rank: int) -> None:
    """Ranks from the table of the sign test at two-sided 5 % (Conover, Practical Nonparametric Statistics, A3)."""
    values = [float(i) for i in range(1, n + 1)]
    random.Random(0).shuffle(values)
    assert median_interval(values) == (rank, n + 1 - rank)


def test_the_interval_holds_the_median_as_often_as_it_promises() -> None:
    dice = random.Random(1)
    held = 0
    for _ in range(2000):
        low, high = median_interval([dice.lognormvariate(0, 1) for _ in range(12)])
        held += low <= 1.0 <= high
    assert held / 2000 > 0.94


def test_a_figure_is_the_median_with_its_interval() -> None:
    made = figure([0.5, 0.4, 0.9], "of TRL", better="higher")
    assert made == Figure(0.5, 0.4, 0.9, 3, "of TRL", "higher", False)


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        (Figure(1.2, 1.1, 1.3, 9, ""), "worse"),
        (Figure(1.2, 1.0, 1.3, 9, ""), "unclear"),  # the noise of the new run reaches the old one
        (Figure(1.04, 1.03, 1.05, 9, ""), "same"),  # certain, but within what is tolerated
        (Figure(0.8, 0.7, 0.9, 9, ""), "better"),
        (None, "missing"),
    ],
)
def test_a_loss_is_flagged_where_it_is_more_than_noise(new: Figure | None, verdict: str) -> None:
    assert compare.judge("sft", OLD, new).verdict == verdict


def test_of_a_speed_less_is_worse() -> None:
    old, new = replace(OLD, better="higher"), replace(OLD, value=0.8, low=0.7, high=0.9, better="higher")
    assert compare.judge("decode", old, new).verdict == "worse"
    assert compare.judge("decode", new, old).verdict == "better"


def result(path: Path, figures_of: dict[str, Figure]) -> Path:
    figures.write(path, "python benchmarks/x.py", figures_of, {})
    return path


def run(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "compare.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_ends_with_the_status_that_ci_reads(tmp_path: Path) -> None:
    slower = Figure(1.2, 1.1, 1.3, 9, "of TRL")
    old = result(tmp_path / "old/sft.json", {"ratio": OLD, "seconds": replace(OLD, absolute=True)})
    new = result(tmp_path / "new/sft.json", {"ratio": OLD, "seconds": replace(slower, absolute=True)})
    found = run(old, new)
    assert found.returncode == 1 and "worse" in found.stdout and "sft: seconds" in found.stdout
    assert run(tmp_path / "old", tmp_path / "new").returncode == 1, "directories are compared file by file"
    assert run(old, old).returncode == 0
    assert run(old, result(tmp_path / "few.json", {})).returncode == 1, "a figure that is missing"
    content = json.loads(new.read_text())
    content["machine"]["cores"] = 1024
    new.write_text(json.dumps(content))
    assert run(old, new).returncode == 0, "seconds of another machine say nothing"
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "old", tmp_path / "empty").returncode == 2


def test_a_file_of_results_names_no_path_and_comes_back(tmp_path: Path) -> None:
    file = result(tmp_path / "x.json", {"ratio": OLD})
    found, rest = figures.read(file)
    assert found == {"ratio": OLD}
    assert str(tmp_path) not in file.read_text() and rest["machine"]["cores"] >= 1
    assert rest["versions"].keys() >= {"python", "torch"} and not math.isnan(found["ratio"].value)


def test_the_picture_has_a_bar_as_long_as_each_ratio_and_loads_nothing(tmp_path: Path) -> None:
    sides = {"trl padded": {"per_step": [2.0, 4.0, 1.0]}, "trl best": {"per_step": [1.0, 1.0, 0.75]}}
    for algorithm, value in (("sft", 0.5), ("dpo", 0.25)):
        made = {"processor time, of trl padded": Figure(value, value - 0.1, value + 0.1, 3, "of TRL")}
        made["align: seconds a step"] = Figure(1.25, 1, 2, 3, "CPU s")
        figures.write(tmp_path / f"{algorithm}-42m.json", "x", made, {"sides": sides})
    picture = draw.svg(draw.bars_of(tmp_path), draw.footer(tmp_path))
    root = ElementTree.fromstring(picture)
    boxes = root.findall("{http://www.w3.org/2000/svg}rect")
    widths = {
        kind: [float(box.attrib["width"]) for box in boxes if box.attrib["class"] == kind] for kind in ("align", "best")
    }
    assert widths["align"][1:] == [0.5 * draw.SCALE, 0.25 * draw.SCALE], "the first one is the legend's"
    assert widths["best"][1:] == [0.5 * draw.SCALE] * 2, "the median of 0.5, 0.25 and 0.75"
    assert "href" not in picture and "url(" not in picture and "prefers-color-scheme: dark" in picture
    assert draw.table(tmp_path)[2] == "| 42M | SFT | 0.50 (0.40 to 0.60) | – | 1.25 | – | – |"
