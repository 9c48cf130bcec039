"""Hostile places: full and read-only disks, paths that cannot be, limits of the process; and what the dead left behind.

Tests with a disk of their own mount one, as root may; elsewhere they are skipped. The others run everywhere.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

from align.cli import main
from align.core.config import run_file as runfile
from align.core.training import failures
from align.core.training.failures import explained_failures
from align.core.training.launch import train
from align.core.training.run_directory import StageDirectory
from align.core.util import atomic_files
from align.core.util.system_errors import explain
from align.schemas.errors import AlignError, Problem
from tests.core.disks import read_only, resize, small_disk
from tests.core.runs import run_for, write_rows
from tests.core.work import environment_here

GONE = 2**22 + 1
"""A process id that cannot be: more than the kernel gives."""


def align(*arguments: object) -> Result:
    """The command in this process; fails where it ends with a traceback."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.startswith(atomic_files.PARTIAL)]


@pytest.fixture
def run_file(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An SFT run of six steps, its output ``disk/run``."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    run = run_for("sft", tiny_model_dir, rows, tmp_path / "disk" / "run", train={"num_train_epochs": 1})
    file = tmp_path / "run.yaml"
    file.write_text(runfile.dump(run))
    return file


# --- what the system refuses, as a sentence ------------------------------------------------------------------------


WRITERS: dict[str, Callable[[Path], object]] = {
    "open": lambda path: path.write_bytes(bytes(2**20)),
    "whole_file": lambda path: atomic_files.write_atomic(path, bytes(2**20)),
    "numpy": lambda path: np.save(path, np.zeros(2**18)),
    "safetensors": lambda path: save_file({"x": torch.zeros(2**18)}, path),
    "torch": lambda path: torch.save(torch.zeros(2**18), path.open("wb")),
    "arrow": lambda path: pa.ipc.new_file(str(path), pa.schema([("x", pa.int64())])).write_batch(
        pa.record_batch([pa.array(range(2**17))], names=["x"])
    ),
    "tokenizers": lambda path: Tokenizer(BPE({str(i): i for i in range(2**16)}, [])).save(str(path)),
}


@pytest.mark.parametrize("library", sorted(WRITERS))
def test_a_full_disk_is_told_whatever_writes(library: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as place:
        with pytest.raises(Exception) as caught:  # each library has its own
            WRITERS[library](place / "file")
        found = explain(caught.value)
        if library == "numpy":  # it counts what was written, and keeps the reason to itself; align writes by whole_file
            return
        assert found is not None and "no room is left on the disk" in str(found), caught.value
        assert not leftovers(place)


def test_the_file_that_was_wanted_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as place, pytest.raises(OSError, match="No space left") as caught:
        atomic_files.write_atomic(place / "metrics.csv", bytes(2**20))
    assert caught.value.filename == str(tmp_path / "disk" / "metrics.csv")


def _no_memory(library: str) -> None:
    if library == "torch":
        torch.empty(2**60)
    elif library == "numpy":
        np.empty(2**50)
    else:
        bytes(2**60)


@pytest.mark.parametrize("library", ["torch", "numpy", "python"])
def test_memory_that_runs_out_is_told(library: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        _no_memory(library)
    found = explain(caught.value)
    assert found is not None and "memory ran out" in str(found) and "train.micro_batch_tokens" in str(found)


def test_too_many_open_files_are_told_wherever_they_are_met(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        place = StageDirectory(tmp_path)
        with pytest.raises(AlignError, match="too many files are open") as caught, explained_failures(place):
            (tmp_path / "file").write_text("")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit -n" in str(caught.value)
    linker = ImportError("libx.so: cannot open shared object file: Too many open files")
    assert "too many files are open" in str(explain(linker))


def test_what_is_no_limit_of_the_machine_keeps_its_traceback(tmp_path: Path) -> None:
    for error in (ValueError("no room"), OSError("no number"), OSError(errno.EBADF, "Bad file descriptor"), KeyError()):
        assert explain(error) is None
        with pytest.raises(type(error)), explained_failures(StageDirectory(tmp_path)):
            raise error
    told = AlignError("as it is")
    assert explain(told) is None
    with pytest.raises(AlignError, match=r"^as it is$"), explained_failures(StageDirectory(tmp_path)):
        raise told


def test_a_reason_is_found_behind_another_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(failures, "_saved", lambda _: [Problem("run", "step 2 is saved")])
    place = StageDirectory(tmp_path)
    with pytest.raises(AlignError, match="no room is left") as caught, explained_failures(place):
        hidden()
    assert [problem.what for problem in caught.value.problems] == ["no room is left on the disk", "step 2 is saved"]


# --- places that cannot be written ---------------------------------------------------------------------------------


def _places(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Of each kind the output and what is said of it."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return {
        "a file": (tmp_path / "file", "is a file, where a directory is needed"),
        "under a file": (tmp_path / "file" / "run", "a part of this path is a file"),
        "a dangling link": (tmp_path / "dangling", f"is a link to {tmp_path / 'nowhere'}, which does not exist"),
        "too long a name": (tmp_path / ("x" * 300), "its name is too long"),
        "a circle of links": (tmp_path / "circle", "is a link that leads back to itself"),
        "not permitted": (Path("/proc/run"), "/proc/run"),
    }


@pytest.mark.parametrize(
    "kind", ["a file", "under a file", "a dangling link", "too long a name", "a circle of links", "not permitted"]
)
def test_an_output_that_cannot_be_a_directory(kind: str, run_file: Path, tmp_path: Path) -> None:
    output, what = _places(tmp_path)[kind]
    done = align("train", run_file, f"output={output}", "--quiet")
    assert done.exit_code == 2 and what in done.stderr and str(output) in done.stderr
    assert (tmp_path / "file").read_text() == "mine" and not leftovers(tmp_path)


def test_other_commands_name_the_file_too(run_file: Path, tmp_path: Path) -> None:
    output, what = _places(tmp_path)["under a file"]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a", "completion": "b", "completions": ["b", "c c"]}) + "\n")
    for arguments in (
        ("reward", "score", "repetition", pairs, "--output", output / "scores.jsonl"),
        ("data", "label", pairs, output / "labels.jsonl", "--reward", "repetition"),
        ("quickstart", "--output", output),
    ):
        done = align(*arguments)
        assert done.exit_code == 2 and what in done.stderr and str(tmp_path / "file") in done.stderr, arguments


def test_a_read_only_disk(run_file: Path, tmp_path: Path) -> None:
    with read_only(tmp_path / "disk"):
        done = align("train", run_file, "--quiet")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{tmp_path / 'disk' / 'run'}\n    lies on a read-only file system\n")


def test_a_cache_that_cannot_be_written(run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full, read-only or a file: told with the setting that moves it. What it holds already serves, read-only too."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "rows.jsonl"))
    assert "set ALIGN_CACHE" in align("train", run_file, "--quiet").stderr
    cache = tmp_path / "other"
    monkeypatch.setenv("ALIGN_CACHE", str(cache))
    with small_disk(cache, 4):
        done = align("train", run_file, "--quiet")
        assert done.exit_code == 2 and "no room is left on the disk" in done.stderr and str(cache) in done.stderr
        assert "set ALIGN_CACHE to another directory" in done.stderr and not leftovers(cache)
    with read_only(cache):
        done = align("train", run_file, "--quiet")
        assert done.exit_code == 2 and "set ALIGN_CACHE to another directory" in done.stderr
    assert align("train", run_file, "--quiet", "stages.only.train.max_steps=1").exit_code == 0
    with read_only(cache):
        assert (
            align(
                "train", run_file, "--quiet", "stages.only.train.max_steps=1", f"output={tmp_path / 'again'}"
            ).exit_code
            == 0
        )


def test_no_directory_for_temporary_files(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    done = align("train", run_file, "--check", "--quiet")
    assert done.exit_code == 2 and done.stderr.startswith("TMPDIR\n    there is no directory for temporary files")


def test_a_full_standard_output() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "align", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment_here(),
            timeout=60,
        )
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "no room is left on the disk")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


# --- a disk that fills while training ------------------------------------------------------------------------------


@pytest.mark.parametrize("kibibytes", [8, 200, 1050])
def test_a_run_whose_disk_fills_up_is_told_so_and_goes_on_with_room(
    kibibytes: int, run_file: Path, tmp_path: Path
) -> None:
    """Full at the manifest, at the first checkpoint, at a later one: then resumed, and the same to the bit."""
    quiet = tmp_path / "quiet"
    assert align("train", run_file, "--quiet", f"output={quiet}").exit_code == 0
    with small_disk(tmp_path / "disk", kibibytes) as place:
        done = align("train", run_file, "--quiet")
        assert done.exit_code == 2 and "no room is left on the disk" in done.stderr and str(place) in done.stderr
        assert not leftovers(place)
        resize(place, 20_000)
        assert align("train", run_file, "--quiet", "--resume").exit_code == 0
        for name in ("metrics.csv", "export/model.safetensors"):
            assert (place / "run" / "only" / name).read_bytes() == (quiet / "only" / name).read_bytes()


def test_a_disk_that_is_full_at_the_export(run_file: Path, tmp_path: Path) -> None:
    """The step that is saved is named; with room the export is made again, and only it."""
    with small_disk(tmp_path / "disk" / "run" / "only" / ".export.partial", 64):
        run = runfile.load(run_file)
        (tmp_path / "disk" / "run" / "run.yaml").write_text(runfile.dump(run))  # a run, so that it may be gone on with
        with pytest.raises(AlignError) as caught:
            train(run, progress=False)
    assert [problem.what for problem in caught.value.problems] == ["no room is left on the disk", "step 6 is saved"]
    assert align("train", run_file, "--quiet", "--resume").exit_code == 0
    assert load_file(tmp_path / "disk" / "run" / "only" / "export" / "model.safetensors")


def test_a_file_of_lines_never_holds_half_of_one(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 90}) + "\n"
    with small_disk(tmp_path / "disk", 16) as place:
        with (
            pytest.raises(OSError, match="No space left") as caught,
            atomic_files.growing_file(place / "out.jsonl") as file,
        ):
            for _ in range(1000):
                file.write(line)
        written = (place / "out.jsonl").read_text()
    assert caught.value.filename == str(place / "out.jsonl")
    assert written == line * (len(written) // len(line)) and len(written) > 8_000


def test_a_connection_that_breaks_while_a_file_is_written_is_not_the_files_fault(tmp_path: Path) -> None:
    for writer in (atomic_files.growing_file, atomic_files.whole_file):
        with pytest.raises(ConnectionRefusedError) as caught, writer(tmp_path / "out"):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        assert caught.value.filename is None


def test_every_command_that_writes_tells_a_full_disk(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "the cat", "completion": "sat " * 20, "completions": ["a b c d", "a a a a a a a a"]}
    rows.write_text((json.dumps(row) + "\n") * 40)
    brief = tmp_path / "brief.yaml"
    brief.write_text("project: {description: answer support mail}\n")
    with small_disk(tmp_path / "disk", 4) as place:
        (place / "filler").write_bytes(b"x")
        for arguments in (
            ("reward", "score", "repetition", rows, "--output", place / "scores"),
            ("data", "label", rows, place / "labels", "--reward", "repetition"),
            ("data", "check", rows, "--html", place / "page.html"),
            ("sample", tiny_model_dir, rows, "--jsonl", place / "answers", "--max-completion-length", 4, "--quiet"),
            ("advise", "init", place / "advice.yaml"),
            ("quickstart", "--output", place / "quick"),
        ):
            done = align(*arguments)
            assert done.exit_code == 2, (arguments, done.output)
            assert "no room is left on the disk" in done.stderr and str(place) in done.stderr, (arguments, done.stderr)
            assert not leftovers(place)


# --- what dead processes left --------------------------------------------------------------------------------------


def test_leftovers_of_the_dead_go_and_the_living_keep_theirs(tmp_path: Path) -> None:
    """By the process id in the name, unless that process began after the file was written: ids come again."""
    living = [f".tmp-{os.getpid()}-a", ".tmp-1-init"]
    dead = [f".tmp-{GONE}-a", f".tmp-{os.getpid()}-old"]
    for name in [*living, *dead, ".tmp-mine", "tmp-5-x", "a.tmp-5-b"]:
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / dead[1], (1, 1))
    (tmp_path / f".tmp-{GONE}-step-1").mkdir()
    (tmp_path / f".tmp-{GONE}-step-1" / "state.pt").write_text("half")
    (tmp_path / f".tmp-{GONE}-link").symlink_to(tmp_path / "tmp-5-x")
    atomic_files.remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*living, ".tmp-mine", "tmp-5-x", "a.tmp-5-b"}


def test_a_writer_of_another_machine_keeps_its_file(tmp_path: Path) -> None:
    """Its process id says nothing here; its lock does."""
    with atomic_files.whole_file(tmp_path / "tokens.arrow") as file:
        file.write(b"half")
        (name,) = leftovers(tmp_path)
        foreign = name.rename(tmp_path / f".tmp-{GONE}-tokens.arrow")
        atomic_files.remove_partial(tmp_path)
        assert foreign.exists()
        foreign.rename(name)
    assert (tmp_path / "tokens.arrow").read_bytes() == b"half" and not leftovers(tmp_path)


def test_whatever_is_written_next_to_them_removes_them(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        (place / f".tmp-{GONE}-x").write_text("half")
    atomic_files.write_atomic(tmp_path / "a" / "labels.jsonl", b"")
    assert leftovers(tmp_path / "a" / "b") and not leftovers(tmp_path / "a")[1:]
    atomic_files.remove_partial(tmp_path, recursive=True)
    assert not leftovers(tmp_path)


def test_a_run_clears_up_after_its_killed_processes_and_the_cache(run_file: Path, tmp_path: Path) -> None:
    assert align("train", run_file, "--quiet", "stages.only.train.max_steps=1").exit_code == 0
    places = [tmp_path / "disk" / "run" / name for name in (".", "only", "only/checkpoints", "only/export")] + [
        tmp_path / "cache"
    ]
    for place in places:
        (place / f".tmp-{GONE}-x").write_text("half")
    atomic_files._swept.clear()  # as in a new process
    assert align("train", run_file, "--quiet", "stages.only.train.max_steps=1").exit_code == 0
    assert not leftovers(tmp_path / "disk")
