"""A working directory in which every module of the standard library has an impostor that must never be executed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import align
from align.core.util import child_processes
from align.core.util.error_line import HOME

ROOT = str(Path(__file__).parents[3])
INSTALLED = "import sys; sys.path.remove('')\n"
"""The installed `align` has the working directory off its path, but not its children's."""
SCORE = """
from pathlib import Path
from align.core.rewards.reward_base import Answer, RewardContext
from align.core.rewards.worker_pool import Workers
from align.schemas.run import RewardChoice

choice = RewardChoice(type="python", settings={"file": "mine.py", "function": "f"})
workers = Workers(choice, 30.0, count=1, place=RewardContext(Path(".")))
print([(score.value, score.why) for score in workers.score([Answer("p", "c", "c")])])
workers.close()
"""
TOKENISE = """
import operator
from align.core.util.child_processes import ordered_map

print(list(ordered_map(operator.mul, 2, [1, 2, 3], 1)))
"""
RANKS = """
from align.core.util.liveness import Limits
from align.core.engine.processes import run_workers

assert run_workers(['--version'], 2, Limits(100.0, 100.0)) is None
"""


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    for name in sys.stdlib_module_names:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'a').write('{name} ')\n1 / 0\n")
    return tmp_path


def run(where: Path, *arguments: str, path: str = ROOT) -> subprocess.CompletedProcess[str]:
    """A Python in a directory; by default the suite's own path reaches it, as an installation would."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not (where / "sprung").exists(), (where / "sprung").read_text()
    return done


class TestImpostorsAreNotExecuted:
    def test_in_reward_workers_nor_by_the_rewards_own_file(self, trapped: Path) -> None:
        (trapped / "neighbour.py").write_text("import colorsys\nWORTH = 2.0\n")
        (trapped / "mine.py").write_text(
            "import random, dis, wave\nfrom neighbour import WORTH\n\n"
            "def f(completions):\n    import poplib\n    return [WORTH for _ in completions]\n"
        )
        done = run(trapped, "-c", INSTALLED + SCORE)
        assert done.stdout == "[(2.0, '')]\n", done.stderr

    def test_in_ranks(self, trapped: Path) -> None:
        done = run(trapped, "-c", INSTALLED + RANKS)
        assert done.returncode == 0 and done.stdout.count("align, version") == 2, done.stderr

    def test_in_tokenising_processes(self, trapped: Path) -> None:
        done = run(trapped, "-c", INSTALLED + TOKENISE)
        assert done.stdout == "[2, 4, 6]\n", done.stderr

    def test_by_python_m_align(self, tmp_path: Path) -> None:
        """What align imports, that is: before there is any of it Python has imported runpy."""
        for name in ("click", "rich", "asyncio", "random"):
            (tmp_path / f"{name}.py").write_text("1 / 0")
        done = run(tmp_path, "-m", "align", "--help")
        assert done.returncode == 0 and "quickstart" in done.stdout, done.stderr


class TestWhatIsWantedIsFound:
    def test_a_checkout_that_is_not_installed(self) -> None:
        """Its children have no other way to find it."""
        for start in (["-c", "import sys\n" + RANKS], ["-m", "align", "--version"]):
            done = run(Path(ROOT), *start, path="")
            assert done.returncode == 0 and "align, version" in done.stdout, done.stderr

    @pytest.mark.parametrize("entry", [".", "modules"])
    def test_what_pythonpath_names(self, tmp_path: Path, entry: str) -> None:
        (tmp_path / "modules").mkdir()
        (tmp_path / entry / "helper_of_mine.py").write_text("WORTH = 3.0\n")
        (tmp_path / "mine.py").write_text(
            "def f(completions):\n    from helper_of_mine import WORTH\n    return [WORTH for _ in completions]\n"
        )
        done = run(tmp_path, "-c", INSTALLED + SCORE, path=os.pathsep.join([ROOT, entry]))
        assert done.stdout == "[(3.0, '')]\n", done.stderr


def test_what_a_library_appends_of_its_own_stays_behind_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """``setuptools/_vendor`` has a ``typing_extensions``, which must not come before the one that is installed."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    packages = Path(pytest.__file__).parents[1]
    appended = [str(packages / "setuptools" / "_vendor"), str(packages), "/somewhere/else"]
    monkeypatch.setattr(sys, "path", [*sys.path, *appended])
    found = child_processes.import_path()
    assert "/somewhere/else" in found
    assert [entry for entry in found if Path(entry).is_relative_to(packages)] == []


def test_home_is_where_align_is_imported_from() -> None:
    """A file that moves within the package must not move it."""
    assert (HOME / "align" / "__init__.py").samefile(align.__file__)
