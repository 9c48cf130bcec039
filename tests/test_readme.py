"""The README is a session at a terminal: its files are written, its commands typed, and what it shows is seen."""

from __future__ import annotations

import json
import random
import re
import shlex
import types
from pathlib import Path

import pluggy
import pytest
from click.testing import CliRunner

import align
from align import hookspecs
from align.cli import main
from align.core.config import run_file
from align.quickstart import sums
from align.testing import check_algorithm
from tests.core.runs import write_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def add_rows(algorithm: str, file: Path) -> None:
    """More rows of the kind shown, the bad ones gone: 'fixed'."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    shown = [line for line in lines if line.endswith("]}\n") and '""' not in line]
    write_rows(algorithm, file, count=24)
    file.write_text("".join(shown) + file.read_text(encoding="utf-8"))


@pytest.fixture
def home(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the README's models are a tiny one, the one that the quickstart leaves as well."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen" / "Qwen3-0.6B").symlink_to(tiny_model_dir)
    (tmp_path / "quickstart" / "run" / "dpo").mkdir(parents=True)
    (tmp_path / "quickstart" / "run" / "dpo" / "export").symlink_to(tiny_model_dir)
    (tmp_path / "quickstart" / "data").mkdir()
    for seed, name in enumerate(("prompts", "prompts-held-out")):
        asked = sums.prompts([(17, 25), (58, 6)], 32, random.Random(seed))
        (tmp_path / "quickstart" / "data" / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in asked)
        )
    questions = "".join(json.dumps(row) + "\n" for row in sums.questions(sums.split_sums()[1][:40]))
    (tmp_path / "quickstart" / "data" / "eval.jsonl").write_text(questions)
    monkeypatch.delenv("COLUMNS", raising=False)  # workers of xdist set it, and pages would be wrapped to it
    return tmp_path


def test_its_files_and_commands_do_what_it_says(home: Path) -> None:
    for kind, name, text in BLOCKS:
        if name:
            (home / name).write_text(text)
        if name == "pairs.jsonl":
            add_rows("dpo", home / name)
        for command, shown in re.findall(
            r"^\$ align (.*)\n((?:(?!\$ ).*\n)*)", text if kind == "console" else "", re.M
        ):
            done = CliRunner().invoke(main, shlex.split(command))
            said = done.output.splitlines()
            assert [line for line in shown.splitlines() if line not in said] == [], done.output
            assert (done.exit_code == 0) == ("bad rows (" not in shown and "wrong" not in command), done.output
            if command.startswith("data check"):
                add_rows("sft", home / "chats.jsonl")
    (stages,) = (name for _, name, _ in BLOCKS if name == "stages.yaml")
    results = align.train(align.load(stages, ["train.max_steps=2"]), progress=False)
    assert [result.export.is_dir() for result in results] == [True, True]


def test_its_python_trains_and_its_plugin_is_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session, plugin = (text for kind, _, text in BLOCKS if kind == "python")
    (home / "run.yaml").write_text(next(text for _, name, text in BLOCKS if name == "run.yaml"))
    write_rows("sft", home / "chats.jsonl")
    exec(session, {})
    name, export, value = capsys.readouterr().out.splitlines()[-1].split()  # after the progress bar
    assert (name, Path(export).is_dir(), float(value) > 0) == ("sft", True, True)

    manager = pluggy.PluginManager("align")
    manager.add_hookspecs(hookspecs)
    module = types.ModuleType("align_focal")
    exec(plugin, vars(module))
    manager.register(module)
    manager.check_pending()
    check_algorithm(module.Focal)


def test_what_it_points_at_is_there() -> None:
    named = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"`((?:tests|docs|recipes)/[\w/.]+)`", README)
    assert len(named) > 12
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_whole_run_files_in_the_manuals_load(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for number, text in enumerate(blocks):
        if "output:" in text:
            (tmp_path / f"{number}.yaml").write_text(text)
            assert run_file.load(tmp_path / f"{number}.yaml").stages
