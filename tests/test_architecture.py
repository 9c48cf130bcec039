"""docs/architecture.md names the files that really are called, in rooms that really import each other as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from align.schemas.run import Run, Stage

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "align"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
FILE = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|toml|md)|\w+\.py)`")
ROOM = re.compile(r"`((?!STAGE)[\w./-]+/)`")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the lines of all tables in a text, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {line for line, rule in pairwise(lines) if re.fullmatch(r"[|\s-]+", rule)}
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line not in heads]
    return [row for row in cells if not re.fullmatch(r"[\s-]*", "".join(row))]


def walk_of_page(title: str) -> list[list[str]]:
    """Return the files of each numbered step of a walk."""
    return [[f"align/{file}" for file in FILE.findall(row[-1])] for row in rows(section(title))]


def flat(steps: list[list[str]]) -> list[str]:
    return [file for step in steps for file in step]


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the files that are called, in order of the first call, by a process of its own."""
    out = tmp_path_factory.mktemp("walks") / "figures.json"
    command = [sys.executable, str(ROOT / "tools/legibility.py"), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    return {name: list(figures[f"walk_{name}"]["files"]) for name in ("sft", "grpo", "advice")}


@pytest.mark.parametrize("pattern", [FILE, ROOM])
def test_every_file_and_folder_that_is_named_exists(pattern: re.Pattern[str]) -> None:
    named = set(pattern.findall(PAGE))
    missing = [name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()]
    assert named and sorted(missing) == []


def test_every_name_is_in_the_file_that_the_page_says() -> None:
    named = re.findall(r"`([A-Za-z_.]+)`(?:(?: and `([A-Za-z_.]+)`)?) in `([\w./-]+\.py)`", PAGE)
    assert len(named) > 10
    for first, second, file in named:
        text = (PACKAGE / file).read_text(encoding="utf-8")
        for name in filter(None, (first, second)):
            owner, _, last = name.rpartition(".")
            assert re.search(rf"^\s*(?:(?:class|def) )?{last}\b", text, re.MULTILINE), f"{name} is not in {file}"
            assert not owner or re.search(rf"^(?:class {owner}\b|    \w*{owner})", text, re.MULTILINE), name


def test_sft_is_walked_through_the_files_that_it_calls(walks: dict[str, list[str]]) -> None:
    steps = walk_of_page("A row through SFT")
    helpers = section("A row through SFT").rpartition("\nUsed all along")[2]
    named = [*flat(steps), *(f"align/{file}" for file in FILE.findall(helpers))]
    assert sorted(named) == sorted(walks["sft"]), "each once, and no other"
    begins = [walks["sft"].index(step[0]) for step in steps]
    assert begins == sorted(begins), "steps in the order in which their first files are called"


def test_grpo_is_walked_through_the_files_that_it_calls_beside_those(walks: dict[str, list[str]]) -> None:
    named = flat(walk_of_page("A prompt through GRPO"))
    assert sorted(named) == sorted(set(walks["grpo"]) - set(walks["sft"])), "each once, and no other"
    assert set(walks["sft"]) - set(walks["grpo"]) == {
        "align/plugins/algorithms/sft.py",
        "align/core/training/data_stage.py",
    }
    others = FILE.findall(section("A prompt through GRPO").rpartition("\nCalled only")[2])
    assert others and not {f"align/{file}" for file in others} & set(walks["grpo"])


def test_advice_is_walked_through_the_files_that_it_calls(walks: dict[str, list[str]]) -> None:
    named = flat(walk_of_page("A brief through advice"))
    assert sorted(named) == sorted(walks["advice"]), "each once, and no other"


def test_every_section_of_the_run_file_has_a_file_that_reads_it() -> None:
    named = {name for row in rows(section("Which file reads a setting")) for name in re.findall(r"`(\w+)`", row[0])}
    assert named == (Run.model_fields.keys() | Stage.model_fields.keys()) - {"stages", "name"}


def test_rooms_of_core_are_in_the_order_that_import_linter_holds() -> None:
    names = [row[0].strip("`/").removeprefix("core/") for row in rows(section("Rooms")) if row[0].startswith("`core/")]
    rooms = names[1:]  # the first is core itself
    packages = [path.parent.name for path in (PACKAGE / "core").glob("*/__init__.py")]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (each for each in contracts if each.get("containers") == ["align.core"])
    level = {room: place for place, line in enumerate(reversed(contract["layers"])) for room in line.split(" | ")}
    assert sorted(rooms) == sorted(packages) == sorted(level)
    assert [level[room] for room in rooms] == sorted(level.values()), "what others import comes first"
