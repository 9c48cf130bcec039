"""Kill ranks and supervisors of runs over two ranks at random times; each must end with the bits of one left alone.

    python -m benchmarks.crash_campaign                                   # 8 kills in each setting
    python -m benchmarks.crash_campaign --settings ddp-grpo --kills 3 --short

A setting is a strategy with a run: offline (sft) or online (grpo), of all weights or of an adapter (lora).
SIGKILL comes at a time that is uniform over the run's length: while it reads, loads, samples, takes a step, writes or
rotates a checkpoint, exports. One kill in four waits for the next checkpoint to be written. Then the same command
starts again, until the run has ended. Compared are the log, the weights, optimizer states and random states of the last
checkpoint, the export and every completion.

Processes are forked, not started (tests/core/forked_ranks.py), so that a kill costs a second and not ten.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from align.schemas.run import Run
from tests.core import forked_ranks
from tests.core.runs import run_for, write_rows

RESULTS = Path(__file__).parent / "results" / "crash_campaign.json"
RANKS = 2
LORA = {"model": {"adapter": {"r": 4}}}
LONG = {"train": {"num_train_epochs": 6}}
"""30 steps, so that they take longer than starting does."""
RUNS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", LONG),
    "sft-lora": ("sft", LONG | LORA),
    "grpo": ("grpo", {}),
    "grpo-lora": ("grpo", LORA),
}
"""Algorithm, and sections laid over the tests' small run."""
STRATEGIES: Mapping[str, dict[str, Any]] = {
    "ddp": {"type": "ddp"},
    "fsdp": {"type": "fsdp", "settings": {"checkpoints": "whole"}},
    "sharded": {"type": "fsdp", "settings": {"checkpoints": "sharded"}},
}
"""The last: fsdp, whose ranks write a checkpoint's parts by themselves."""
SETTINGS = [f"{strategy}-{run}" for strategy in STRATEGIES for run in RUNS]
AIMED = 0.25
"""Share of the kills that wait for a checkpoint to be written."""
TARGETS = ("rank 0", "rank 1", "supervisor")


@dataclass
class Setting:
    """What was found in one setting. slowest_end: most seconds from a kill to the end of the whole group."""

    name: str
    short: bool
    kills: Counter[str] = field(default_factory=Counter)
    hit: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    resumed: int = 0
    mismatches: list[str] = field(default_factory=list)
    slowest_end: float = 0.0
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Return the setting as the file of results holds it."""
        return {
            "setting": self.name,
            "short": self.short,
            "kills": sum(self.kills.values()),
            "killed": dict(sorted(self.kills.items())),
            "hit": dict(sorted(self.hit.items())),
            "runs": self.runs,
            "resumed_from_a_checkpoint": self.resumed,
            "mismatches": self.mismatches,
            "slowest_end_seconds": round(self.slowest_end, 2),
            "seconds": round(self.seconds),
        }


def run_of(setting: str, root: Path, output: Path, short: bool = False) -> Run:
    """Return the run of a setting; root holds the model, and the rows once they are made. short: one pass over them."""
    strategy, _, name = setting.partition("-")
    algorithm, sections = RUNS[name]
    rows = root / f"{algorithm}.jsonl"
    if not rows.exists():
        write_rows(algorithm, rows)
    devices = {"count": RANKS, "strategy": STRATEGIES[strategy]}
    if short:
        sections = sections | {"train": {"num_train_epochs": 1}}
    return run_for(algorithm, root / "model", rows, output, devices=devices, checkpoint={"save_steps": 1}, **sections)


def fingerprint(value: Any, into: Any = None) -> str:
    """Return the sha256 of nested mappings, sequences, tensors and plain values."""
    import torch

    digest = into or hashlib.sha256()
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().view(-1).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            fingerprint(value[key], digest)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for each in value:
            fingerprint(each, digest)
    else:
        digest.update(repr(value).encode())
    return str(digest.hexdigest())


def outcome(output: Path) -> dict[str, str]:
    """Return the sha256 of everything that must not depend on interruptions, by name."""
    from align.core.engine import checkpoint
    from align.core.training.sample_log import read_samples

    stage = output / "only"
    files = [stage / "metrics.csv", *sorted((stage / "export").rglob("*.safetensors"))]
    found = {str(path.relative_to(stage)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    last = checkpoint.at(stage / "checkpoints", checkpoint.last_step(stage / "checkpoints"))
    state = checkpoint.load(last)
    for part in ("state_dict", "optimizer_states", "align"):
        found[f"checkpoint {part}"] = fingerprint(state[part])
    for path in sorted((stage / "samples").glob("*.parquet")):
        found[path.name] = fingerprint(read_samples(path))
    return found


def place_of(output: Path, steps_per_phase: int | None, started: int) -> str:
    """Return what a run that was just killed was doing, by what it has left on the disk.

    started: when, in nanoseconds of the clock; a log that is older is that of the start before.
    """
    stage = output / "only"
    if any((stage / "checkpoints").glob(".tmp-*")):
        return "writing a checkpoint"
    if (stage / "export").exists() or any(stage.glob(".tmp-*export*")):
        return "exporting"
    log = stage / "metrics.csv"
    rows = log.read_text().splitlines()[1:] if log.exists() else []
    if not rows or log.stat().st_mtime_ns < started:
        return "starting"
    step = int(rows[-1].split(",")[0])
    sampled = len(list((stage / "samples").glob("[0-9]*.parquet")))
    if steps_per_phase and step % steps_per_phase == 0 and sampled <= step // steps_per_phase:
        return "sampling and scoring"
    return "between its steps"


def campaign(setting: str, kills: int, seed: int, root: Path, short: bool) -> Setting:
    """Run a setting once to its end, then again under SIGKILLs; returns what was found."""
    dice, since, here = random.Random(f"{seed} {setting}"), time.monotonic(), root / setting
    here.mkdir()
    log, found = here / "log", Setting(setting, short)
    quiet = here / "quiet"
    if forked_ranks.ended(forked_ranks.start_run(run_of(setting, root, quiet, short), log)):
        raise RuntimeError(log.read_text(errors="replace")[-3000:])
    whole = time.monotonic() - since
    expected = outcome(quiet)
    per_phase = _steps_per_phase(quiet)
    while sum(found.kills.values()) < kills:
        output = here / f"killed-{found.runs}"
        for target, status in _attempts(setting, root, output, log, dice, whole, kills, found, per_phase, short):
            if target is None and status != 0:
                raise RuntimeError(log.read_text(errors="replace")[-3000:])
        ended_with = outcome(output)
        found.mismatches += [name for name in expected if ended_with.get(name) != expected[name]]
        found.runs += 1
        shutil.rmtree(output)
    found.seconds = time.monotonic() - since
    shutil.rmtree(here)
    return found


def _attempts(
    setting: str,
    root: Path,
    output: Path,
    log: Path,
    dice: random.Random,
    whole: float,
    kills: int,
    found: Setting,
    per_phase: int | None,
    short: bool,
) -> Iterator[tuple[str | None, int]]:
    """Start the run again and again until it has ended; yield who was killed (None: nobody) and the exit status."""
    from align.core.engine import checkpoint

    checkpoints, reach = output / "only" / "checkpoints", whole
    while True:
        found.resumed += bool(checkpoint.last_step(checkpoints))
        started = time.time_ns()
        pid = forked_ranks.start_run(run_of(setting, root, output, short), log)
        wanted = sum(found.kills.values()) < kills
        deadline = time.monotonic() + dice.uniform(0, reach) if wanted else float("inf")
        target, aimed = dice.choice(TARGETS), dice.random() < AIMED
        while time.monotonic() < deadline or (aimed and not any(checkpoints.glob(".tmp-*"))):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                yield None, os.waitstatus_to_exitcode(status)
                return
            time.sleep(0.001)
        ranks = forked_ranks.ranks_of(pid)
        if target != "supervisor" and len(ranks) < RANKS:
            target = "supervisor"  # there are no ranks yet, or no more
        victim = pid if target == "supervisor" else ranks[TARGETS.index(target)]
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        status = forked_ranks.ended(pid)
        # Of a supervisor the kernel kills the ranks; the next start does not wait for that either.
        found.slowest_end = max(found.slowest_end, time.monotonic() - killed_at)
        found.kills[target] += 1
        found.hit[place_of(output, per_phase, started)] += 1
        # Where kills always come before the first checkpoint, the machine is busier than it was.
        reach = whole if checkpoint.last_step(checkpoints) else 1.3 * reach
        yield target, status


def _steps_per_phase(output: Path) -> int | None:
    """Return the optimizer steps of a phase of a finished run; None for one that samples nothing."""
    noted = json.loads((output / "manifest.json").read_text())["stages"]["only"]
    steps: int | None = noted.get("steps_per_rollout")
    return steps


def main() -> None:
    """Kill, print and write the results; exit status 1 at a mismatch."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    options.add_argument("--kills", type=int, default=8, help="in each setting")
    options.add_argument("--short", action="store_true", help="shorter runs")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=RESULTS, help="settings measured before stay in it")
    given = options.parse_args()
    forked_ranks.import_everything()
    from tests.tiny import save_tiny

    before = json.loads(given.out.read_text())["settings"] if given.out.exists() else []
    lines = {line["setting"]: line for line in before}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        save_tiny(root / "model")
        for setting in given.settings:
            lines[setting] = campaign(setting, given.kills, given.seed, root, given.short).facts()
            print(json.dumps(lines[setting]), flush=True)
            _write(given.out, [lines[name] for name in SETTINGS if name in lines])
    sys.exit(any(line["mismatches"] for line in lines.values()))


def _write(out: Path, lines: list[dict[str, Any]]) -> None:
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.crash_campaign",
        "what": "SIGKILL at random times over two ranks; log, weights, optimizer, random states, export and "
        "completions compared to the bit with the run left alone",
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "lightning", "transformers", "peft")},
        "cores": os.cpu_count(),
        "kills": sum(line["kills"] for line in lines),
        "mismatches": sum(len(line["mismatches"]) for line in lines),
        "settings": lines,
    }
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
