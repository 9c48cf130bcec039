"""Checkpoints: complete or absent, damage found, no code executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from align.core.engine import callbacks, checkpoint
from align.core.util import atomic_files
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
    path, told = checkpoint.latest_valid(tmp_path)
    if (how, name) == ("flip_bit", checkpoint.MANIFEST) and path and path.name == "step-00000003":
        pytest.fail("a manifest that differs was taken for sound")
    assert path == tmp_path / "step-00000002"
    assert len(told) == 1 and "step-00000003" in told[0]
    assert checkpoint.load(path)["weights"].tolist() == [2.0] * 64


def test_without_a_sound_one_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest_valid(tmp_path / "nowhere") == (None, [])
    saved(tmp_path, 1)
    truncate(tmp_path / "step-00000001" / checkpoint.STATE)
    path, told = checkpoint.latest_valid(tmp_path)
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


def test_what_was_just_written_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is taken on the way to the disk; another process, or this one of an older checkpoint, reads it."""
    read: list[Path] = []
    whole = atomic_files.sha256
    monkeypatch.setattr(atomic_files, "sha256", lambda path: read.append(path) or whole(path))
    saved(tmp_path, 1, 2, 3)
    checkpoint.rotate(tmp_path, keep=2, protect=None)
    assert checkpoint.steps(tmp_path) == [3, 2] and checkpoint.fault_of(tmp_path / "step-00000003") is None
    assert read == []
    assert checkpoint.facts(tmp_path / "step-00000003")["files"] == {
        checkpoint.STATE: atomic_files.file_sums(tmp_path / "step-00000003")[checkpoint.STATE]
    }
    read.clear()
    assert checkpoint.fault_of(tmp_path / "step-00000002") is None and len(read) == 1
    monkeypatch.setattr(checkpoint, "_written", {})  # as after a restart
    assert checkpoint.fault_of(tmp_path / "step-00000003") is None and len(read) == 2


@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.MANIFEST])
def test_what_was_touched_since_it_was_written_is_read_again(name: str, tmp_path: Path) -> None:
    saved(tmp_path, 1)
    file = tmp_path / "step-00000001" / name
    before = file.stat()
    flip_bit(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # a time that says that nothing happened
    assert checkpoint.fault_of(tmp_path / "step-00000001") is not None
    file.unlink()
    assert "missing" in (checkpoint.fault_of(tmp_path / "step-00000001") or "")


def test_writing_in_pieces_writes_and_hashes_everything(tmp_path: Path) -> None:
    """Sizes around the piece's, so that a lost or doubled end would show; torch's own checksums are off only inside."""
    piece = atomic_files.HashingWriter.PIECE
    state = {
        str(size): torch.randint(0, 255, (size,), dtype=torch.uint8) for size in (1, piece - 1, piece, 2 * piece + 1)
    }
    checkpoint.save(checkpoint.at(tmp_path, 1), state, {})
    assert checkpoint.verify(tmp_path / "step-00000001") is None
    found = checkpoint.load(tmp_path / "step-00000001")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    assert torch.serialization.get_crc32_options()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_number_that_is_not_finite_is_found(dtype: torch.dtype) -> None:
    sound = [torch.zeros(0, dtype=dtype), torch.linspace(-3, 3, 1000).to(dtype), torch.ones((), dtype=dtype)]
    assert checkpoint.all_finite(iter(sound)) and checkpoint.all_finite([])
    largest = torch.full((99,), torch.finfo(dtype).max, dtype=dtype)  # whose sum would not be finite
    assert checkpoint.all_finite([*sound, largest, -largest])
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 501, 999):
            one = sound[1].clone()
            one[place] = bad
            assert not checkpoint.all_finite([*sound, one]), (bad, place)


def test_links_and_files_in_the_place_of_a_checkpoint_are_replaced(tmp_path: Path) -> None:
    """One that was moved to another disk keeps its content there; the link goes."""
    root = tmp_path / "checkpoints"
    saved(root, 1, 2, 3)
    shutil.move(root / "step-00000001", tmp_path / "moved")
    os.symlink(tmp_path / "moved", root / "step-00000001")
    shutil.rmtree(root / "step-00000002")
    (root / "step-00000002").write_text("no directory")
    saved(root, 2)
    assert checkpoint.verify(root / "step-00000002") is None
    checkpoint.rotate(root, keep=2, protect=None)
    assert checkpoint.steps(root) == [3, 2] and (tmp_path / "moved" / checkpoint.STATE).is_file()


def test_half_written_ones_are_ignored_and_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".tmp-77-step-00000002")
    assert checkpoint.steps(tmp_path) == [1]
    checkpoint.remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def rewrite(manifest: Path, **changed: object) -> None:
    """Change a manifest as something that knows its sum would."""
    facts = atomic_files.read_json(manifest)
    atomic_files.write_json(manifest, {**facts, **changed})


def test_a_sound_manifest_may_still_be_no_checkpoint_of_this_step(tmp_path: Path) -> None:
    """Each fault by itself: another format, another step's name, no tensors."""
    saved(tmp_path, 1, 2)
    manifest = tmp_path / "step-00000002" / checkpoint.MANIFEST
    sound = checkpoint.facts(tmp_path / "step-00000002")
    assert (sound["format"], sound["name"], sound["step"]) == (checkpoint.FORMAT, "step-00000002", 2)
    assert checkpoint.verify(tmp_path / "step-00000002") is None
    for changed, told in (
        ({"format": checkpoint.FORMAT + 1}, f"this one reads {checkpoint.FORMAT}"),
        ({"name": "step-00000001"}, "it is step-00000001"),
        ({"files": {}}, "state.pt is missing from the manifest"),
    ):
        rewrite(manifest, **{**sound, **changed})
        assert told in (checkpoint.verify(tmp_path / "step-00000002") or "")


def test_what_is_known_of_the_newest_outlives_its_tensors(tmp_path: Path) -> None:
    assert checkpoint.latest_manifest(tmp_path) is None and checkpoint.last_step(tmp_path / "nowhere") == 0
    saved(tmp_path, 1, 2, 3)
    (tmp_path / "step-00000004").mkdir()
    truncate(tmp_path / "step-00000003" / checkpoint.STATE)
    found = checkpoint.latest_manifest(tmp_path)
    assert found is not None and found["step"] == 3 and checkpoint.last_step(tmp_path) == 4
    truncate(tmp_path / "step-00000003" / checkpoint.MANIFEST)
    found = checkpoint.latest_manifest(tmp_path)
    assert found is not None and found["step"] == 2


def test_an_older_format_is_refused_while_it_is_the_newest(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    old, new = (tmp_path / f"step-0000000{step}" / checkpoint.MANIFEST for step in (1, 2))
    for written in ({"format": checkpoint.FORMAT}, {"format": checkpoint.FORMAT + 1}, {"format": "1"}, {}, []):
        new.write_text(json.dumps(written))
        old.write_text(json.dumps({"format": 1}))
        checkpoint.refuse_other_formats(tmp_path)
    new.write_text(json.dumps({"format": 1}))
    with pytest.raises(AlignError, match="older align") as refused:
        checkpoint.refuse_other_formats(tmp_path)
    assert "step-00000002" in str(refused.value) and "format 1" in str(refused.value)
    checkpoint.refuse_other_formats(tmp_path / "nowhere")


def test_the_manifest_says_what_lightning_is_not_told(tmp_path: Path) -> None:
    """Facts of the run, the loggers' sums and a pause; reading and removing are the functions above."""
    io = callbacks.DirectoryIO()
    io = callbacks.DirectoryIO({"settings": "s"}, lambda: {"metrics.csv": "sum"})
    one, two = (checkpoint.at(tmp_path, step) for step in (1, 2))
    io.save_checkpoint({"weights": torch.ones(2)}, str(one))
    io.save_checkpoint({"align": {"paused": [{"what": "w"}]}}, two)
    told = [[checkpoint.facts(path)[name] for name in ("settings", "logs", "paused")] for path in (one, two)]
    assert told == [["s", {"metrics.csv": "sum"}, None], ["s", {"metrics.csv": "sum"}, [{"what": "w"}]]]
    assert io.load_checkpoint(str(one))["weights"].tolist() == [1, 1]
    io.remove_checkpoint(str(one))
    io.remove_checkpoint(str(one))
    assert checkpoint.steps(tmp_path) == [2]
    assert callbacks.DirectoryIO().facts == {} and callbacks.DirectoryIO().logs() == {}


def draw() -> list[object]:
    """From every generator of the process, normal numbers too, which come in pairs."""
    return [random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(3).tolist()]


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    before = checkpoint.random_state()
    draw()  # one of each pair of normal numbers is left over
    at = checkpoint.at(tmp_path, 1)
    checkpoint.save(at, {"random": checkpoint.random_state()}, {})
    wanted = draw()
    assert draw() != wanted
    checkpoint.set_random_state(checkpoint.load(at)["random"])
    assert draw() == wanted
    checkpoint.set_random_state(before)
    assert checkpoint.all_gather_objects("alone") == ["alone"]


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
    assert checkpoint.verify(tmp_path / "step-00000001") is None
