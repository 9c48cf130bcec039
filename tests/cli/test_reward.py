"""``align reward`` on real files."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from align.cli import main
from align.core.inference.audit import roc_auc
from align.core.inference.difficulty import zero_variance_share
from align.core.rewards.reward_base import Answer, Reward
from align.core.rewards.scorer import RunningReward
from align.schemas.errors import AlignError
from align.schemas.run import RewardChoice
from tests.tiny import save_tiny


def write(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_list_names_what_is_needed_and_imports_no_torch() -> None:
    code = "from align.cli import main; import sys; main(['reward', 'list'], standalone_mode=False)\n"
    code += "print('TORCH', 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "reward_model" in done.stdout and done.stdout.endswith("TORCH False\n")


def test_every_line_in_is_a_line_out(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "completion": "4", "solution": "4"},
        '{"broken"',
        {"prompt": "p", "solution": "4"},
        {
            "prompt": [{"role": "user", "content": "p"}],
            "completion": [{"role": "assistant", "content": "5"}],
            "solution": "4",
        },
        {"prompt": "p", "completion": "4"},
    )
    done = CliRunner().invoke(main, ["reward", "score", "exact", file, "--json"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["score"], r["outcome"]) for r in rows] == [
        (1.0, "right"),
        (None, "error"),
        (None, "error"),
        (0.0, "wrong"),
        (None, "error"),
    ]
    assert done.exit_code == 1 and "a.jsonl:2" in done.stderr and "a.jsonl:3" in done.stderr
    table = CliRunner().invoke(main, ["reward", "score", "exact", file, "--output", str(tmp_path / "out")])
    assert "1 right, 3 error, 1 wrong; mean 0.5" in table.stdout
    assert len((tmp_path / "out").read_text().splitlines()) == 5


def test_lines_that_are_asked_in_one_call_say_so(tmp_path: Path) -> None:
    """Two answers to one prompt are asked together, as the function may compare them; the third is alone."""
    rows = [{"prompt": prompt, "completion": "4", "solution": "4"} for prompt in ("p", "p", "q")]
    file = write(tmp_path / "a.jsonl", *rows)
    out = CliRunner().invoke(main, ["reward", "score", "exact", file, "--json"]).stdout.splitlines()
    assert [json.loads(line).get("together", 1) for line in out] == [2, 2, 1]
    times = [json.loads(line)["milliseconds"] for line in out]
    assert times[0] == times[1]


def test_a_function_that_fails_is_named_with_file_function_and_line(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(completions):\n    return [len(c) / 0 for c in completions]\n")
    file = write(tmp_path / "a.jsonl", {"completion": "abc"})
    done = CliRunner().invoke(main, ["reward", "score", f"{tmp_path}/f.py:f", file, "--json"])
    why = json.loads(done.stdout)["why"]
    assert all(word in why for word in ("f.py:f", "ZeroDivisionError", "(f.py, line 2)")), why


HOSTILE = {
    "sys.exit(0)": "failed: SystemExit: 0",
    "raise Mute": "failed: Mute: its message cannot be read",
    "return None": "gave a NoneType",
}


@pytest.mark.parametrize("body", HOSTILE)
def test_a_function_that_ends_the_process_or_its_own_message_fails_like_any_other(body: str, tmp_path: Path) -> None:
    mute = "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\n"
    (tmp_path / "f.py").write_text(f"import sys\n{mute}def f(completions):\n    {body}\n")
    file = write(tmp_path / "a.jsonl", {"completion": "abc"}, {"completion": "d"})
    done = CliRunner().invoke(main, ["reward", "score", f"{tmp_path}/f.py:f", file, "--json"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["outcome"] for row in rows] == ["error", "error"]
    assert all(HOSTILE[body] in row["why"] for row in rows), rows


def test_a_number_that_no_advantage_can_hold_is_no_score(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(completions):\n    return [float(c) for c in completions]\n")
    said = ["3e38", "-3e38", "1e39", "-1e308", "inf"]
    file = write(tmp_path / "a.jsonl", *({"completion": each} for each in said))
    done = CliRunner().invoke(main, ["reward", "score", f"{tmp_path}/f.py:f", file, "--json"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["score"] for row in rows] == [3e38, -3e38, None, None, None]
    assert [row["why"] for row in rows[2:]] == ["its score was 1e+39", "its score was -1e+308", "its score was inf"]


def test_a_file_that_exits_while_it_is_loaded_is_named_itself(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("import sys\nsys.exit(0)\n")
    done = CliRunner().invoke(
        main, ["reward", "score", f"{tmp_path}/f.py:f", write(tmp_path / "a.jsonl", {"completion": "abc"})]
    )
    assert done.exit_code == 2 and "f.py\n    fails to load: SystemExit: 0 (f.py, line 2)" in done.stderr


@pytest.mark.parametrize("gave", ["None", "['x', 'y']", "[1.0]", "5"])
def test_a_reward_of_a_plugin_that_gives_no_scores_is_named(gave: str, tmp_path: Path) -> None:
    class Odd(Reward):
        name = "odd"

        def score(self, answers: Sequence[Answer]) -> Any:
            return ast.literal_eval(gave)

    opened = RunningReward.__new__(RunningReward)
    opened.choice, opened.reward, opened._workers, opened._secrets = (
        RewardChoice(type="odd"),
        Odd(Odd.Config()),
        None,
        [],
    )
    with pytest.raises(AlignError, match=r"reward odd\n    (failed: |gave 1 scores for 2)"):
        opened.score([Answer("p", "a", "a")] * 2)


def test_a_function_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(completions, k=1):\n    return [k * len(c) for c in completions]\n")
    file = write(tmp_path / "a.jsonl", {"completion": "abc"})
    done = CliRunner().invoke(main, ["reward", "score", f"{tmp_path}/f.py:f", file, "--set", "k=2", "--json"])
    assert json.loads(done.stdout)["score"] == 6.0 and done.exit_code == 0


def test_audit_passes_a_sound_reward_and_fails_one_that_pays_junk(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+{i}?", "solution": str(2 * i)} for i in range(4)]
    file = write(tmp_path / "a.jsonl", *rows)
    sound = CliRunner().invoke(main, ["reward", "audit", "exact", file, "--json"])
    assert sound.exit_code == 0 and json.loads(sound.stdout)["auc"] == 1.0
    (tmp_path / "f.py").write_text("def f(completions):\n    return [1.0 for c in completions]\n")
    gamed = CliRunner().invoke(main, ["reward", "audit", f"{tmp_path}/f.py:f", file])
    assert gamed.exit_code == 1 and "FAULT pays an empty answer as much as gold in 100% of rows" in gamed.stdout


def test_audit_with_a_model_estimates_groups_of_one_score(tmp_path: Path) -> None:
    model, file = save_tiny(tmp_path / "m"), write(tmp_path / "a.jsonl", {"prompt": "the", "solution": "cat"})
    asked = [
        "reward",
        "audit",
        "exact",
        file,
        "--model",
        str(model),
        "-n",
        "4",
        "--max-completion-length",
        "4",
        "--json",
    ]
    done = CliRunner().invoke(main, asked)
    assert json.loads(done.stdout)["difficulty"]["zero_variance"] == {"4": 1.0, "8": 1.0, "16": 1.0}


def test_answers_that_cannot_be_read_are_not_right(tmp_path: Path) -> None:
    model, file = save_tiny(tmp_path / "m"), write(tmp_path / "a.jsonl", {"prompt": "the", "solution": "cat"})
    asked = ["reward", "audit", "exact", file, "--set", "after=####", "--model", str(model), "-n", "2"]
    done = CliRunner().invoke(main, [*asked, "--max-completion-length", "4", "--json"])
    said = json.loads(done.stdout)["difficulty"]
    assert (said["passed"], said["all_right"], said["none_right"]) == (0.0, 0.0, 1.0)


def test_equations() -> None:
    """Of 4 answers 2 right: pairs alike 2 of 6. Twice the size: 2 * (1/2)^8. AUC of ties is a half."""
    assert zero_variance_share([1, 1, 0, 0], 2) == pytest.approx(1 / 3)
    assert zero_variance_share([1, 1, 0, 0], 8) == pytest.approx(2 / 2**8)
    assert roc_auc([1, 1], [1, 0]) == 0.75


def test_a_row_without_an_answer_says_what_writes_one(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1+1?", "solution": "2"}\n')
    done = CliRunner().invoke(main, ["reward", "score", "math", str(file)])
    assert done.exit_code == 1 and "the answer to score (`align sample --jsonl` writes such rows)" in done.stderr


def test_a_file_of_the_wrong_kind_does_not_fill_the_screen_with_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1+1?", "solution": "2"}\n' * 1005)
    done = CliRunner().invoke(main, ["reward", "score", "math", str(file), "--quiet"])
    assert done.exit_code == 1 and done.stderr.count("the answer to score") == 5
    assert "prompts.jsonl:5\n" in done.stderr and "prompts.jsonl:6\n" not in done.stderr
    assert done.stderr.endswith("\nand 1,000 more lines that cannot be scored\n")
