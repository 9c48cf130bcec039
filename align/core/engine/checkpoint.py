"""Checkpoints that are complete or absent, checksummed, and loaded without executing code.

A checkpoint is a directory ``step-00000012`` holding ``state.pt`` and ``MANIFEST.json``, and where each rank writes its
own part of the sharded tensors, those files (``align.core.engine.sharded_checkpoint``). It is written next to
its path as ``.tmp-...``, every file is fsynced, the manifest (sha256 and size of each file, and of its own content)
comes last, then one rename puts it in place and the parent is fsynced. The newest is found by looking, never by a
pointer. Neither torch nor safetensors notices a flipped bit; the manifest does.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.serialization import get_crc32_options, set_crc32_options

from align.core.algorithm.contract import Algorithm
from align.core.engine import sharded_checkpoint
from align.core.engine.sharded_checkpoint import ShardReader
from align.core.util import atomic_files
from align.core.util.profile import profiled
from align.core.util.system_errors import explain
from align.schemas.errors import AlignError, Problem
from align.schemas.run import Stage

Result = TypeVar("Result")

FORMAT = 3
"""2: the manifest has a sum of its own, and the state says whether training has ended."""
STATE = "state.pt"
MANIFEST = "MANIFEST.json"
SHARDED = "sharded"
"""Key of the manifest: the tensors that ranks wrote by themselves, and where each part of them is."""
_NAME = re.compile(r"step-(\d{8})")


def save(directory: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write ``state`` as a checkpoint at ``directory``; ``facts`` go into the manifest as they are.

    Raises AlignError when the disk refuses; what was there before stays as it was.
    """
    temporary = atomic_files.partial(directory)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        sums = _write_state(temporary, state)
        _put_in_place(temporary, directory, {**facts, "files": {STATE: sums}})
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError where the disk is full
        shutil.rmtree(temporary, ignore_errors=True)
        raise _not_written(directory, error) from error


def _write_state(temporary: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``state.pt``, flushed to the disk; return its size and sha256."""
    with open(temporary / STATE, "wb") as file, _without_crc32():
        hashed = atomic_files.HashingWriter(file)
        torch.save(dict(state), cast(IO[bytes], hashed))
        file.flush()
        os.fsync(file.fileno())
    return hashed.sums()


def _put_in_place(temporary: Path, directory: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint whose files are there, and give it its name."""
    atomic_files.write_json(temporary / MANIFEST, {"format": FORMAT, "name": directory.name, **facts})
    _remove(directory)
    os.rename(temporary, directory)
    atomic_files.fsync_directory(directory.parent)
    _written[directory.parent] = _marks(directory)


def _not_written(directory: Path, error: OSError | RuntimeError) -> AlignError:
    explained = explain(error)
    why = str(error) if explained is None else explained.problems[0].what
    return AlignError(
        f"the checkpoint could not be written: {why}",
        "free some room or choose another output; the earlier checkpoints are intact",
        where=str(directory),
    )


def save_sharded(directory: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write ``state`` as a checkpoint whose sharded tensors are written by the ranks that hold them. Collective.

    Every rank gives the state with its own parts; of everything that is not sharded rank 0's counts, and its ``facts``.
    Until rank 0 has every rank's sums, and has written the manifest with them, the checkpoint has its temporary name.
    Raises AlignError on all ranks where one could not write; what was there before stays as it was.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    plain, tensors = sharded_checkpoint.split(dict(state))
    shared: Path | None = None

    def begin() -> str | None:
        if rank != 0:
            return None
        temporary = atomic_files.partial(directory)  # named after rank 0's process: all write into its directory
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return str(temporary)

    def write() -> tuple[str, dict[str, Any], dict[str, Any]]:
        assert shared is not None
        sums, pieces = sharded_checkpoint.write_own(tensors, shared / name)
        return name, sums, pieces

    def finish() -> None:
        if rank != 0:
            return
        assert shared is not None
        files = {STATE: _write_state(shared, plain)} | {file: sums for file, sums, _ in written}
        sharded = sharded_checkpoint.merge([(file, pieces) for file, _, pieces in written])
        _put_in_place(shared, directory, {**facts, "files": files, SHARDED: sharded})

    try:
        shared = Path(str(_on_all(begin, directory)[0]))
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        name = f"rank-{rank:05d}-of-{world_size:05d}.safetensors"
        written = _on_all(write, directory)
        _on_all(finish, directory)
    except Exception:
        if rank == 0 and shared is not None:
            shutil.rmtree(shared, ignore_errors=True)
        raise


def _on_all(work: Callable[[], Result], directory: Path) -> list[Result]:
    """Do a part of writing a checkpoint on every rank; return all results. All ranks raise what one had to raise."""
    result: Any = None
    problems: tuple[Problem, ...] = ()
    bug: Exception | None = None
    try:
        result = work()
    except AlignError as error:
        problems = error.problems
    except (OSError, RuntimeError) as error:
        problems = _not_written(directory, error).problems
    except Exception as error:  # no limit of the machine; but without it the other ranks would wait
        bug = error
        problems = (Problem(str(directory), f"the checkpoint could not be written: {error!r}"),)
    try:
        return all_gather_or_raise(result, problems)
    except AlignError:
        if bug is not None:
            raise bug from None  # its traceback shows where it is
        raise


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Let torch.save leave out its checksums: torch.load never looks at them, and they are two thirds of its time."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


_written: dict[Path, tuple[Any, ...]] = {}
"""The marks of the last checkpoint that this process wrote, by the directory of all checkpoints."""


def _marks(directory: Path) -> tuple[Any, ...]:
    """Return what the file system notes of a checkpoint's files, and changes whenever they are written to."""
    found = [os.stat(path) for path in sorted(directory.iterdir())]
    return (directory.name, *((each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found))


def fault_of(directory: Path) -> str | None:
    """Return what is wrong with a checkpoint, as ``verify`` does, but do not read again what was just written.

    Only of the last checkpoint that this process wrote is it known without reading that it is sound: it was hashed on
    its way, and its files have not been touched since.
    """
    try:
        if _written.get(directory.parent) == _marks(directory):
            return None
    except OSError:  # a file is missing
        pass
    return verify(directory)


def verify(directory: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every byte is as it was written."""
    try:
        manifest = facts(directory)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except atomic_files.Damaged as error:
        return f"{MANIFEST}: {error.why}"
    if manifest["format"] != FORMAT:
        return f"written by another align (format {manifest['format']}, this one reads {FORMAT})"
    if manifest["name"] != directory.name:  # a copy of another step's directory: whole, but not this step
        return f"it is {manifest['name']}"
    if STATE not in manifest["files"]:
        return f"{STATE} is missing from the manifest"
    return atomic_files.difference(directory, manifest["files"])


def facts(directory: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest. Raises Damaged, or FileNotFoundError if there is none."""
    return atomic_files.read_json(directory / MANIFEST)


def latest_manifest(root: Path) -> dict[str, Any] | None:
    """Return the newest undamaged manifest under ``root``, even if the tensors of its checkpoint are damaged."""
    for step in steps(root):
        try:
            return facts(at(root, step))
        except (FileNotFoundError, atomic_files.Damaged):
            continue
    return None


def refuse_other_formats(root: Path) -> None:
    """Raise AlignError if an older align wrote the newest checkpoint: it is valid, and must not be overwritten."""
    for path in (at(root, step) for step in steps(root)[:1]):
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            format = manifest["format"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # damaged
        if isinstance(format, int) and format < FORMAT:
            raise AlignError(
                f"was saved by an older align (checkpoint format {format}; this one reads {FORMAT})",
                "finish the run with that version, or choose another output",
                where=str(path),
            )


def steps(root: Path) -> list[int]:
    """Steps of the checkpoints under ``root``, newest first, sound or not."""
    found = (_NAME.fullmatch(p.name) for p in root.iterdir()) if root.is_dir() else ()
    return sorted((int(m.group(1)) for m in found if m), reverse=True)


def last_step(root: Path) -> int:
    """Step of the newest checkpoint under ``root``, sound or not; 0 where there is none."""
    return max(steps(root), default=0)


def at(root: Path, step: int) -> Path:
    """Return the directory of a step's checkpoint."""
    return root / f"step-{step:08d}"


def latest_valid(root: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint, and a sentence for each newer one that is damaged."""
    damaged: list[str] = []
    for step in steps(root):
        path = at(root, step)
        fault = verify(path)
        if fault is None:
            return path, damaged
        damaged.append(f"checkpoint {path.name} is damaged: {fault}")
    return None, damaged


def remove_partial(root: Path) -> None:
    """Remove what killed processes left half-written, at any depth."""
    atomic_files.remove_partial(root, recursive=True)


def rotate(root: Path, keep: int, protect: int | None) -> None:
    """Keep the newest ``keep`` checkpoints and the protected step; the newest must be sound first."""
    found = steps(root)
    if found and fault_of(at(root, found[0])) is None:
        for step in found[keep:]:
            if step != protect:
                _remove(at(root, step))


def _remove(directory: Path) -> None:
    """Remove a checkpoint, of one that was moved to another disk the link; or what lies in its place."""
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory)
    else:
        directory.unlink(missing_ok=True)


def load(directory: Path) -> dict[str, Any]:
    """The state of a sound checkpoint, by an unpickler that builds tensors and plain values only; all of it whole."""
    state, shards = load_sharded(directory)
    whole: dict[str, Any] = state if shards is None else sharded_checkpoint.join(state, shards.whole)
    return whole


def load_sharded(directory: Path) -> tuple[dict[str, Any], ShardReader | None]:
    """Return a sound checkpoint's state with markers for sharded tensors, and their reader, None if it is whole."""
    state: dict[str, Any] = torch.load(directory / STATE, map_location="cpu", weights_only=True)
    sharded = facts(directory).get(SHARDED)
    return state, None if sharded is None else ShardReader(directory, sharded)


def goal_of(stage: Stage, algorithm: Algorithm) -> tuple[str, str]:
    """Return the held-out metric that judges checkpoints, and ``min`` or ``max``; by default the gold reward if any."""
    metric, mode = algorithm.goal
    if stage.rollout is not None and stage.rollout.gold is not None:
        metric = "gold"
    chosen = stage.validation.metric_for_best_model or metric
    if chosen != metric and (chosen.startswith("reward") or chosen.endswith("/score")):
        mode = "max"
    return chosen, stage.validation.mode or mode


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return True if no number is NaN or infinite, on any rank. Collective.

    Each tensor is read once and nothing of its size is made: an extreme is NaN or infinite if any number is.
    """
    shards = (tensor.detach() for tensor in tensors if tensor.numel())
    local = (shard.to_local() if isinstance(shard, DTensor) else shard for shard in shards)
    finite = [torch.isfinite(torch.stack(torch.aminmax(shard))).all() for shard in local if shard.numel()]
    return all(all_gather_objects(not finite or bool(torch.stack(finite).all())))


def random_state() -> dict[str, Any]:
    """Return the states of this process's random number generators, as a checkpoint holds them.

    A resumed run then draws what it would have drawn. They are tensors and plain values, so that loading runs no code.
    """
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what ``random_state`` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_random_state(seed: int) -> None:
    """Seed this process's random number generators, those of its GPUs included. seed: 0 to 2**32 - 1."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Run a block of foreign code, and put this process's random number generators back as they were before it."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


@profiled("waiting")
def all_gather_objects(value: Any) -> list[Any]:
    """Return every rank's value, in rank order, on every rank. Collective: all ranks must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_gather_or_raise(
    value: Result, problems: Iterable[Problem] = (), kind: type[AlignError] = AlignError
) -> list[Result]:
    """Return every rank's value, in rank order; or raise on all ranks the problems that any has. Collective.

    A rank that raised by itself would leave the others waiting for it at the next collective call.
    """
    gathered = all_gather_objects((value, tuple(problems)))
    if failed := dict.fromkeys(problem for _, found in gathered for problem in found):
        raise kind("", problems=tuple(failed))
    return [each for each, _ in gathered]
