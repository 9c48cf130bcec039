"""Runs and policies that a gate or the runner cannot use: a message that names what is wrong, never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from align import AlignError
from align.api.evaluating import evaluate
from align.api.gating import gate, gate_calibrate
from align.cli.gate import gate as command
from align.core.config.suite_file import load_policy, load_suite
from align.core.evaluation.eval import Generate, Item, LogLikelihood, Reply
from align.core.evaluation.store import RowList
from align.core.inference.eval_models import BadQuery, ServerModel
from align.core.inference.eval_runner import EvalRunner
from align.core.util.http import Client
from align.settings import Sampling
from tests.core.evaluation.stored_runs import Numbered, accurate, store

POLICY = "domains:\n  d: {margin: 0.1, evals: {a: 1}}\n"


class Refusing:
    """A model whose context is too short for one prompt of a batch."""

    likelihoods = False
    identity: Mapping[str, Any] = {}

    def generate(self, wanted: Sequence[tuple[Generate, int]]) -> list[Reply]:
        """Refuse the prompt of item a3."""
        place = [query.prompt for query, _ in wanted].index("a3")
        raise BadQuery(place, AlignError("has 900 tokens", "shorten it", where="eval"))

    def loglikelihood(self, wanted: Sequence[LogLikelihood]) -> list[Reply]:
        """Never called."""
        raise AssertionError


def numbered(count: int = 5) -> tuple[Numbered, Sequence[Item]]:
    """Return an eval and its items."""
    made = Numbered(Numbered.Config(count=count))
    return made, made.load()


def test_a_prompt_that_a_model_cannot_take_is_named_by_its_item() -> None:
    made, items = numbered()
    with pytest.raises(AlignError) as caught:
        EvalRunner(made, "sums", {"model": Refusing()}).measure(items, 1, RowList())
    (problem,) = caught.value.problems
    assert (problem.where, problem.what, problem.fix) == ("eval sums: item 'a3'", "has 900 tokens", "shorten it")


@pytest.mark.parametrize("message", [{"content": None}, {}])
def test_a_servers_answer_without_text_or_calls_is_an_error_and_no_zero(message: dict[str, Any]) -> None:
    with Client("http://127.0.0.1:1/v1", key=None, timeout=1.0) as client:
        answer = {"choices": [{"finish_reason": "stop", "message": message}]}
        with pytest.raises(AlignError, match="answered without text"):
            ServerModel(client, "m")._reply(answer, Generate([{"role": "user", "content": "hi"}], Sampling()))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a directory with two runs of one item each, and two of many."""
    for name, count in (("one", 1), ("uno", 1), ("many", 40), ("multi", 40)):
        store(tmp_path / name, accurate({"a": 0.5}), {"a": {"count": count}})
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


def test_a_single_item_is_not_comparable(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.api.gating._evals", lambda _: {"a": Numbered(Numbered.Config())})
    report = gate(runs / "one", runs / "uno", runs / "policy.yaml")
    assert report.status == 3
    assert "a: a single item" in report.problems[0]
    with pytest.raises(AlignError, match="a single item"):
        gate_calibrate([runs / "one", runs / "uno"])


@pytest.mark.parametrize("name", ["rows.jsonl", "metrics.json"])
def test_a_run_that_lost_a_file_is_refused(runs: Path, name: str) -> None:
    shutil.copytree(runs / "many", runs / "lost")
    (runs / "lost" / name).unlink()
    with pytest.raises(AlignError, match=r"is missing\n.*measure again"):
        gate(runs / "lost", runs / "multi", runs / "policy.yaml")


@pytest.mark.parametrize("fault", [OSError(2, "No such file or directory", "/proc/x"), RuntimeError("a bug")])
def test_no_failure_of_the_gate_ends_with_the_status_of_a_regression(
    runs: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fails(*_: object) -> None:
        raise fault

    monkeypatch.setattr("align.api.gating.gate", fails)
    both = ["--baseline", str(runs / "many"), "--candidate", str(runs / "multi")]
    ended = CliRunner().invoke(command, [*both, "--policy", str(runs / "policy.yaml")])
    assert ended.exit_code == 4
    assert ("Traceback" in ended.output) == isinstance(fault, RuntimeError)


@pytest.mark.parametrize(
    "text",
    [
        POLICY.replace("0.1", "1.0e-300"),
        POLICY.replace("0.1", "5"),
        "alpha: 1.0e-300\n" + POLICY,
        "safety: {a: 1.0e-300}\n",
    ],
)
def test_numbers_without_meaning_in_a_policy_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(AlignError, match=r"policy.yaml line \d"):
        load_policy(tmp_path / "policy.yaml")


def test_an_unknown_eval_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text("evals:\n  - {type: gsm8kk}\n")
    with pytest.raises(AlignError, match=r"suite.yaml line 2.*\n.*gsm8kk.*\n.*did you mean 'gsm8k'"):
        load_suite(tmp_path / "suite.yaml")


def test_an_empty_model_is_not_the_working_directory(tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="is empty"):
        evaluate("", "math", tmp_path / "out")
