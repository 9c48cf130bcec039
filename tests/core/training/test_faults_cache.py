"""The cache's locks: one for each entry, with an end, and a message that names what is waited for."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.core.util.atomic_files import longest_wait, making
from align.schemas.errors import AlignError
from tests.core.work import environment_here

HOLD = """
import sys
from pathlib import Path
from align.core.util import atomic_files
atomic_files.REPORTED_AFTER = 0.0
with atomic_files.making(Path(sys.argv[1])) as waited:
    print("made", waited, flush=True)
    sys.stdin.read()
"""


def hold(entry: Path, **settings: str) -> subprocess.Popen[str]:
    """Another process that makes the entry until its stdin is closed."""
    arguments = [sys.executable, "-P", "-c", HOLD, str(entry)]
    pipe = subprocess.PIPE
    environment = environment_here() | settings
    return subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def test_each_entry_has_its_own_lock_and_a_dead_holder_has_none(tmp_path: Path) -> None:
    with hold(tmp_path / "one") as other:
        assert other.stdout is not None and other.stdout.readline() == "made False\n"
        assert (tmp_path / ".lock-one").read_text().startswith(f"process {other.pid} on ")
        with making(tmp_path / "two") as waited:  # would hang, were the lock one for all
            assert not waited
        other.kill()
    with making(tmp_path / "one") as waited:  # of a killed process the kernel releases it
        assert not waited
    assert not list(tmp_path.iterdir())


def test_the_second_waits_and_learns_that_it_did(tmp_path: Path) -> None:
    with hold(tmp_path / "one") as first:
        assert first.stdout is not None and first.stdout.readline()
        with hold(tmp_path / "one", ALIGN_CACHE_WAIT="100") as second:
            assert second.stdout is not None and second.stderr is not None
            assert second.stderr.readline().startswith(f"{tmp_path / 'one'}: process {first.pid} on ")
            first.kill()
            assert second.stdout.readline() == "made True\n"
            second.kill()


def test_a_holder_that_never_ends_is_named_and_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_CACHE_WAIT", "0.3")
    with hold(tmp_path / "one") as other:
        assert other.stdout is not None and other.stdout.readline()
        with making(tmp_path / "one") as waited:  # goes on all the same
            assert waited
        assert (tmp_path / ".lock-one").exists()  # the holder's still
        other.kill()
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path / 'one'}: process {other.pid} on ") and "it is made here too" in said
    monkeypatch.setenv("ALIGN_CACHE_WAIT", "soon")
    with pytest.raises(AlignError, match="is 'soon'"):
        longest_wait()


def test_only_the_first_of_a_group_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("align.core.util.atomic_files.REPORTED_AFTER", 0.0)
    monkeypatch.setattr("align.core.util.atomic_files.LONGEST_WAIT", 0.4)
    descriptor = os.open(tmp_path / ".lock-one", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for rank, reports in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with making(tmp_path / "one"):
            pass
        assert ("at most 0.4 s" in capsys.readouterr().err) == reports
    os.close(descriptor)


def test_a_cache_without_locks_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with making(tmp_path / "file" / "one") as waited:
        assert not waited
    with making(tmp_path / ("x" * 252)) as waited:  # .lock-xxx... is too long a name
        assert not waited
