"""The harness that sets align beside TRL: whether it would notice an unfair comparison, and that it runs."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # the scripts import each other by their bare names

import workload  # noqa: E402

TURNS = """
import sys
from pathlib import Path
from turns import in_turns
log, fails = Path(sys.argv[1]), sys.argv[2:]
def side(name, steps):
    def run(turn):
        for step in range(steps):
            with open(log, "a") as file:
                file.write(name)
            if name in fails and step == 1:
                raise SystemExit("broken")
            turn.pass_on()
        return {"steps": steps}
    return run
print(in_turns({"a": side("a", 4), "b": side("b", 2), "c": side("c", 3)}, log.parent))
"""


def script(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own: the harness forks."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=BENCHMARKS)


def test_sides_take_turns_until_each_has_ended(tmp_path: Path) -> None:
    done = script(TURNS, str(tmp_path / "log"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == "abcabcaca"
    assert done.stdout.strip() == "{'a': {'steps': 4}, 'b': {'steps': 2}, 'c': {'steps': 3}}"


def test_a_side_that_fails_neither_stops_the_others_nor_passes(tmp_path: Path) -> None:
    done = script(TURNS, str(tmp_path / "log"), "b")
    assert (tmp_path / "log").read_text() == "abcabcaca"
    assert done.returncode == 1 and "b failed" in done.stderr and "broken" in done.stderr


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One benchmark at its tiniest."""
    out = tmp_path_factory.mktemp("results")
    command = [sys.executable, str(BENCHMARKS / "side_by_side.py"), "sft", "--model", "tiny", "--steps", "2"]
    command += ["--warmup", "1", "--without", "padded", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "processor time, of trl best" in done.stdout
    found: dict[str, Any] = json.loads((out / "sft-tiny.json").read_text())
    return found


def test_a_comparison_is_of_the_same_work(result: dict[str, Any]) -> None:
    sides = result["details"]["sides"]
    assert list(sides) == ["align", "trl best"]
    assert sides["align"]["tokens"] == sides["trl best"]["tokens"], "no row was lost, cut or padded into the count"
    assert result["details"]["curve_difference"]["trl best"] < 1e-3
    assert len(sides["align"]["cpu"]) == len(sides["trl best"]["cpu"]) == 3
    for side in sides.values():
        assert sum(side["shares"].values()) == pytest.approx(1, abs=0.01)
        assert {"forward", "backward", "optimizer", "data"} <= side["shares"].keys()
    assert result["figures"]["processor time, of trl best"]["rounds"] == 2, "the warm-up is left out"
    assert "/" not in result["command"].removeprefix("python benchmarks/")


SIDE = {
    "rows": [["r1", "r2"], ["r3", "r4"], ["r5"]],
    "curve": [{"loss": 2.0, "grad_norm": 4.0}, {"loss": 1.0, "grad_norm": 3.0}, {"loss": 0.5, "grad_norm": 1.0}],
}


@pytest.mark.parametrize(
    "change",
    [
        lambda side: side["rows"].reverse(),
        lambda side: side["rows"][1].pop(),
        lambda side: side["rows"].pop(),
    ],
)
def test_other_rows_or_another_order_end_the_comparison(change: Any) -> None:
    workload.assert_same_rows({"align": SIDE, "trl": copy.deepcopy(SIDE)})
    other = copy.deepcopy(SIDE)
    change(other)
    with pytest.raises((RuntimeError, ValueError)):
        workload.assert_same_rows({"align": SIDE, "trl": other})


def test_the_largest_difference_of_a_curve_is_found_in_any_of_its_values() -> None:
    assert workload.curve_difference(SIDE, copy.deepcopy(SIDE)) == 0
    for step in range(2):
        for name in ("loss", "grad_norm"):
            other = copy.deepcopy(SIDE)
            other["curve"][step][name] *= 1.25
            other["curve"].pop()  # TRL logs its last step after its end
            assert workload.curve_difference(SIDE, other) == pytest.approx(0.2)
    diverged = copy.deepcopy(SIDE)
    diverged["curve"][1]["loss"] = float("nan")
    assert not workload.curve_difference(SIDE, diverged) <= 1e-3
