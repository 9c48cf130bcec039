"""Checkpoints: complete or absent, damage found, no code executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align.core.engine import checkpoint
from align.schemas.errors import AlignError


def saved(root: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(checkpoint.at(root, step), {"weights": torch.full((64,), float(step))}, {"step": step})


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def from_another(path: Path) -> None:
    shutil.copy(path.parent.parent / "step-00000001" / path.name, path)


def newer_format(path: Path) -> None:
    path.write_text(json.dumps({"format": checkpoint.FORMAT + 1, "files": {}}))


DAMAGES = {
    (harm.__name__, name): harm
    for harm in (truncate, flip_bit, zero, Path.unlink, from_another)
    for name in (checkpoint.STATE, checkpoint.MANIFEST)
} | {("newer_format", checkpoint.MANIFEST): newer_format}


@pytest.mark.parametrize(("how", "name"), list(DAMAGES))
def test_damage_is_found_and_the_one_before_is_used(how: str, name: str, tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    harm: Callable[[Path], None] = DAMAGES[how, name]
    harm(tmp_path / "step-00000003" / name)
    path, told = checkpoint.newest(tmp_path)
    if (how, name) == ("flip_bit", checkpoint.MANIFEST) and path and path.name == "step-00000003":
        pytest.fail("a manifest that differs was taken for sound")
    assert path == tmp_path / "step-00000002"
    assert len(told) == 1 and "step-00000003" in told[0]
    assert checkpoint.load(path)["weights"].tolist() == [2.0] * 64


def test_without_a_sound_one_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])
    saved(tmp_path, 1)
    truncate(tmp_path / "step-00000001" / checkpoint.STATE)
    path, told = checkpoint.newest(tmp_path)
    assert path is None and len(told) == 1


def test_rotation_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5)
    checkpoint.rotate(tmp_path, keep=2, protect=2)
    assert checkpoint.steps(tmp_path) == [5, 4, 2]


def test_rotation_waits_for_a_sound_newest(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    flip_bit(tmp_path / "step-00000003" / checkpoint.STATE)
    checkpoint.rotate(tmp_path, keep=2, protect=None)
    assert checkpoint.steps(tmp_path) == [3, 2, 1]


def test_links_and_files_in_the_place_of_a_checkpoint_are_replaced(tmp_path: Path) -> None:
    """One that was moved to another disk keeps its content there; the link goes."""
    root = tmp_path / "checkpoints"
    saved(root, 1, 2, 3)
    shutil.move(root / "step-00000001", tmp_path / "moved")
    os.symlink(tmp_path / "moved", root / "step-00000001")
    shutil.rmtree(root / "step-00000002")
    (root / "step-00000002").write_text("no directory")
    saved(root, 2)
    assert checkpoint.damage(root / "step-00000002") is None
    checkpoint.rotate(root, keep=2, protect=None)
    assert checkpoint.steps(root) == [3, 2] and (tmp_path / "moved" / checkpoint.STATE).is_file()


def test_half_written_ones_are_ignored_and_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".tmp-77-step-00000002")
    assert checkpoint.steps(tmp_path) == [1]
    checkpoint.tidy(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def test_loading_executes_no_code(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    state = tmp_path / "step-00000001" / checkpoint.STATE
    torch.save({"weights": Bomb(str(tmp_path / "exploded"))}, state)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(tmp_path / "step-00000001")
    assert not (tmp_path / "exploded").exists()


def test_a_full_disk_leaves_the_earlier_ones_and_says_so(tmp_path: Path) -> None:
    """A file size limit stands in for the disk: the write fails in the middle, as on a full one."""
    saved(tmp_path, 1)
    pid = os.fork()
    if pid == 0:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.save(checkpoint.at(tmp_path, 2), {"weights": torch.zeros(1_000_000)}, {})
        except AlignError as error:
            os._exit(7 if "intact" in str(error) else 8)
        except BaseException:
            os._exit(9)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.damage(tmp_path / "step-00000001") is None
