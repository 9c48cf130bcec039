"""Functions of a user's file, in three signatures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import Answer, load_function
from align.schemas.errors import AlignError
from align.schemas.run import Choice

SOURCE = """
import torch
from neighbour import BONUS

def trl(completions, solution, bonus=0.0, **columns):
    return [float(c == s) + bonus for c, s in zip(completions, solution)]

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth) + BONUS, "length": len(solution_str)}

def reward_func(queries, prompts, labels, **kwargs):
    right = torch.tensor([float(q == p + l) for q, p, l in zip(queries, prompts, labels)])
    return {"rewards": right, "scores": right, "extra_logs": {"half": right / 2}}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "neighbour.py").write_text("BONUS = 0.5\n")
    (tmp_path / "mine.py").write_text(SOURCE)
    return str(tmp_path / "mine.py")


def said(name: str, *answers: Answer, **settings: Any) -> Any:
    return registry.build("reward", Choice(type=name, settings=settings)).score(answers)


def answer(text: str, **columns: Any) -> Answer:
    return Answer("2+2=", text, text, columns=columns)


def test_trl_s(file: str) -> None:
    given = {"file": file, "function": "trl", "settings": {"bonus": 2.0}}
    scores = said("python", answer("4", solution="4"), answer("5", solution="4"), **given)
    assert [s.value for s in scores] == [3.0, 2.0]
    assert str(Path(file).parent) not in sys.path


def test_verl_s(file: str) -> None:
    row = {"data_source": "d", "reward_model": {"style": "rule", "ground_truth": "4"}}
    (score,) = said("verl", answer("4", **row), file=file)
    assert (score.value, score.parts) == (1.5, {"length": 1.0})


def test_a_part_of_verl_s_that_is_no_number_of_json_is_said_in_words(tmp_path: Path) -> None:
    source = "def compute_score(**row): return {'score': 1, 'loss': float('nan'), 'n': 2, 'note': 'text'}\n"
    (tmp_path / "f.py").write_text(source)
    (score,) = said("verl", answer("4", ground_truth="4"), file=str(tmp_path / "f.py"))
    assert (score.value, score.parts, score.why) == (1.0, {"n": 2.0}, "loss: nan; note: text")


def test_openrlhf_s(file: str) -> None:
    scores = said("openrlhf", answer("4", label="4"), answer("5", label="4"), file=file)
    assert [(s.value, s.parts) for s in scores] == [
        (1.0, {"scores": 1.0, "half": 0.5}),
        (0.0, {"scores": 0.0, "half": 0.0}),
    ]


def test_faults_name_the_file(file: str, tmp_path: Path) -> None:
    with pytest.raises(AlignError, match=r"mine.py\n    has no function 'f'\n    it has: trl, compute_score"):
        said("python", file=file, function="f")
    (tmp_path / "broken.py").write_text("1/0")
    with pytest.raises(AlignError, match=r"broken.py\n    fails to load: ZeroDivisionError"):
        said("python", file=str(tmp_path / "broken.py"), function="f")
    with pytest.raises(AlignError, match="is no Python file"):
        said("python", file=str(tmp_path / "none.py"), function="f")


def test_files_in_two_directories_have_neighbours_of_their_own(tmp_path: Path) -> None:
    """Python keeps the first ``helpers`` that it imports; the second file must not be given it."""
    worth = []
    for name, bonus in (("one", 1.0), ("two", 2.0), ("three", 3.0)):
        (tmp_path / name / "package").mkdir(parents=True)
        (tmp_path / name / "helpers.py").write_text(f"from package.inner import BONUS\nHERE = {bonus}\n")
        (tmp_path / name / "package" / "__init__.py").write_text("")
        (tmp_path / name / "package" / "inner.py").write_text(f"BONUS = {10 * bonus}\n")
        (tmp_path / name / "mine.py").write_text(
            "from helpers import BONUS, HERE\n\n\ndef f(completions):\n    return [BONUS + HERE] * len(completions)\n"
        )
        worth.append(load_function(str(tmp_path / name / "mine.py"), "f"))
    assert [f(["x"]) for f in worth] == [[11.0], [22.0], [33.0]]
