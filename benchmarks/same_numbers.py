"""The same run on 1, 2 and 4 processes, under ddp and fsdp: how far its numbers lie apart, for every algorithm.

    python -m benchmarks.same_numbers                         # the whole matrix, in float32 and in float64
    python -m benchmarks.same_numbers --worlds 2 --steps 4 --dtypes float64 --algorithms sft grpo

Whole runs on tiny models over real gloo processes, from reading the rows to the export. Each is compared with the
same run on one process:

* loss: the largest difference on the curve, over the largest loss on it; the gradient's norm and held-out losses alike;
* weights: the distance of the final weights over the distance that training moved them;
* samples: whether every completion, of every phase, has the same text, length, end and reward.

Then runs that are killed halfway and go on over other processes (``2 -> 1``): as far from the run on one process, and
saying that they are equal to rounding only.

float32 shows what users see. float64 shows that it is rounding: a wrong average differs as much in both.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

from align.schemas.run import Run
from tests.core import forked_ranks
from tests.core.runs import ONLINE, run_for, write_rows

RESULTS = Path(__file__).parent / "results" / "same_numbers.json"
LORA = {"model": {"adapter": {"r": 4}}}


@dataclass(frozen=True, slots=True)
class Case:
    """An algorithm, with sections laid over those of the tests' small runs."""

    algorithm: str
    sections: Mapping[str, Any] = field(default_factory=dict)

    @property
    def online(self) -> bool:
        """True if it samples completions."""
        return self.algorithm in ONLINE


CASES: Mapping[str, Case] = {
    **{name: Case(name) for name in ("sft", "pretrain", "reward_model", "dpo", "simpo", "orpo", "cpo", "kto")},
    "sft-lora": Case("sft", LORA),
    "dpo-lora": Case("dpo", LORA),
    **{name: Case(name) for name in ONLINE},
    "grpo-lora": Case("grpo", LORA),
}
"""What is compared, by the name of its stage."""


RESUMES = (
    ("ddp", 2, "single", 1),
    ("single", 1, "fsdp", 2),
    ("fsdp", 2, "ddp", 4),
    ("single", 1, "ddp", 2),
    ("fsdp", 2, "single", 1),
    ("fsdp", 2, "fsdp", 4),
    ("ddp", 2, "ddp", 4),
    ("ddp", 2, "fsdp", 2),
    ("fsdp", 2, "ddp", 2),
)
"""Strategy and processes that save, then those that go on."""
RESUMED = ("sft", "sft-lora", "ppo", "grpo-lora")
"""The cases that go on over other processes: whole and adapter, with a critic, in the middle of a phase."""


def run_of(
    names: Sequence[str],
    root: Path,
    output: Path,
    strategy: str,
    world: int,
    dtype: str,
    steps: int,
    often: bool = False,
) -> Run:
    """Return a run with one stage for each case. root: holds the model, and the rows once they are made.

    often: a checkpoint at every step.
    """
    stages = []
    for name in names:
        case = CASES[name]
        rows = root / f"{case.algorithm}.jsonl"
        if not rows.exists():
            write_rows(case.algorithm, rows)
        sections: dict[str, Any] = {"devices": {"count": world, "strategy": {"type": strategy}}}
        sections["model"] = {"dtype": dtype, **case.sections.get("model", {})}
        if case.algorithm == "best_of_n":
            sections["train"] = {"batch_size": 64}
            sections["data"] = {"validation_fraction": 0.0}
        else:
            sections["train"] = {"max_steps": steps}
            sections["validation"] = {"eval_steps": math.ceil(steps / 2)}
            sections["checkpoint"] = {"save_steps": 1 if often else steps}
        made = run_for(case.algorithm, root / "model", rows, output, **sections)
        stages.append(made.stages[0].model_copy(update={"name": name}))
    return made.model_copy(update={"stages": stages})


def curve(stage: Path, metric: str) -> list[float]:
    """Return a metric's values in the order of the log; empty where there is no log."""
    log = stage / "metrics.csv"
    if not log.exists():
        return []
    with open(log, newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def apart(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the largest difference of two curves over the largest value of the first; None where both are empty."""
    if len(one) != len(other):
        return math.inf
    scale = max(map(abs, one), default=0.0)
    gaps = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return max(gaps) / (scale or 1.0) if gaps else None


def samples(stage: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return every completion of every phase: its prompt's row, text, length, end and rewards."""
    from align.core.training.sample_log import read_samples

    columns = ("source", "completion", "length", "finish", "reward", "parts")
    found = {}
    for file in sorted((stage / "samples").glob("*.parquet")):
        found[file.name] = [tuple(str(row[name]) for name in columns) for row in read_samples(file)]
    return found


def weights_apart(one: Path, other: Path, start: Path) -> float | None:
    """Return the distance of two exports over the distance of the first from the start; None where rows are made.

    For an adapter both distances are of the adapter's own weights, whose second half begins at zero.
    """
    import torch
    from safetensors.torch import load_file

    files = [place / "export" / "model.safetensors" for place in (one, other)]
    if not files[0].exists():
        return None
    first, second = (load_file(file) for file in files)
    before = load_file(start / "model.safetensors")
    shared = [name for name in first if name in before]
    moved = torch.cat([(first[name].double() - before[name].double()).flatten() for name in shared]).norm()
    gap = torch.cat([(first[name].double() - second[name].double()).flatten() for name in first]).norm()
    return float(gap / moved)


def compared(one: Path, other: Path, start: Path, case: Case) -> dict[str, Any]:
    """Return how far two finished stages lie apart; ``start``: the model that both began with."""
    found: dict[str, Any] = {name: apart(curve(one, name), curve(other, name)) for name in ("loss", "grad_norm")}
    held_out = "val/reward" if case.online else "val/loss"
    found["held_out"] = apart(curve(one, held_out), curve(other, held_out))
    found["weights"] = weights_apart(one, other, start)
    if case.algorithm == "best_of_n":
        rows = [(stage / "export" / "rows.jsonl").read_bytes() for stage in (one, other)]
        found["same_samples"] = rows[0] == rows[1] and rows[0] != b""
    elif case.online:
        mine, theirs = samples(one), samples(other)
        found["phases"] = len(mine)
        found["same_samples"] = mine == theirs
    return found


def finished(run: Run, root: Path) -> float:
    """Run it to its end, and return the seconds it took. Raises RuntimeError with its last lines if it fails."""
    log, since = root / "log", time.monotonic()
    if forked_ranks.ended(forked_ranks.start_run(run, log)):
        raise RuntimeError(log.read_text(errors="replace")[-3000:])
    return time.monotonic() - since


def killed(run: Run, root: Path, step: int) -> None:
    """Kill a run of one stage as soon as a step is saved. Raises RuntimeError if it ends before."""
    from align.core.engine import checkpoint

    (stage,) = run.stages
    place = Path(run.output) / stage.name / "checkpoints"
    pid = forked_ranks.start_run(run, root / "log")
    while checkpoint.last_step(place) < step:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise RuntimeError((root / "log").read_text(errors="replace")[-3000:])
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    forked_ranks.ended(pid)


def resumed(
    names: Sequence[str], changes: Sequence[tuple[str, int, str, int]], dtypes: Sequence[str], steps: int, root: Path
) -> Iterator[dict[str, Any]]:
    """Yield one line for each dtype, case and change of processes in the middle of a run."""
    model = root / "model"
    for dtype in dtypes if names else ():
        here = root / f"resumed-{dtype}"
        here.mkdir()
        alone = here / "alone"
        finished(run_of(names, root, alone, "single", 1, dtype, steps), root)
        for name in names:
            for before, count, after, other in changes:
                change = f"{before} {count} -> {after} {other}"
                output = here / f"{name}-{change}"
                line: dict[str, Any] = {"dtype": dtype, "case": name, "resumed": change}
                (root / "log").write_text("")
                try:
                    killed(run_of([name], root, output, before, count, dtype, steps, often=True), root, steps // 2)
                    (root / "log").write_text("")
                    finished(run_of([name], root, output, after, other, dtype, steps, often=True), root)
                except RuntimeError as error:
                    yield line | {"refused": _first_line(error)}
                    continue
                says = "and not to the bit" in (root / "log").read_text()
                yield line | compared(alone / name, output / name, model, CASES[name]) | {"says_so": says}
                shutil.rmtree(output)
        shutil.rmtree(here)


def matrix(
    names: Sequence[str],
    strategies: Sequence[str],
    worlds: Sequence[int],
    dtypes: Sequence[str],
    steps: int,
    root: Path,
) -> Iterator[dict[str, Any]]:
    """Yield one line for each dtype, case, strategy and number of processes; what is refused has a ``refused``."""
    model = root / "model"
    for dtype in dtypes:
        here = root / dtype
        here.mkdir()
        alone = here / "single-1"
        finished(run_of(names, root, alone, "single", 1, dtype, steps), root)
        for strategy in strategies:
            for world in worlds:
                output = here / f"{strategy}-{world}"
                for name in names:
                    line: dict[str, Any] = {"dtype": dtype, "case": name, "strategy": strategy, "processes": world}
                    run = run_of([name], root, output / name, strategy, world, dtype, steps)
                    try:
                        finished(run, root)
                    except RuntimeError as error:
                        yield line | {"refused": _first_line(error)}
                        continue
                    yield line | compared(alone / name, output / name / name, model, CASES[name])
                    shutil.rmtree(output / name)
        shutil.rmtree(here)


def _first_line(error: RuntimeError) -> str:
    lines = str(error).strip().splitlines()
    reasons = [line for line in lines if "cannot" in line or line.startswith(("KeyError", "RuntimeError"))]
    return (reasons or lines)[-1]


def shown(line: Mapping[str, Any]) -> str:
    """Return a line of the matrix as text."""
    processes = line.get("resumed") or f"{line['strategy']} {line['processes']}"
    where = f"{line['dtype']:8} {line['case']:13} {processes:20} "
    if "refused" in line:
        return where + line["refused"]
    numbers = [
        f"{name} {line[name]:.1e}" for name in ("loss", "grad_norm", "held_out", "weights") if line[name] is not None
    ]
    if "same_samples" in line:
        numbers.append("same samples" if line["same_samples"] else "OTHER SAMPLES")
    if not line.get("says_so", True):
        numbers.append("SAYS NOTHING")
    return where + "  ".join(numbers)


def main() -> None:
    """Measure, print and write the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--algorithms", nargs="+", choices=CASES, default=list(CASES))
    options.add_argument("--strategies", nargs="+", default=["ddp", "fsdp"])
    options.add_argument("--worlds", nargs="+", type=int, default=[2, 4])
    options.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--resumed", nargs="*", choices=CASES, default=RESUMED, help="cases that go on over others")
    options.add_argument("--changes", type=int, default=len(RESUMES), help="so many changes of the processes")
    options.add_argument("--out", type=Path, default=RESULTS)
    given = options.parse_args()
    forked_ranks.import_everything()
    from tests.tiny import save_tiny

    lines, since = [], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        save_tiny(root / "model")
        lines_here = chain(
            matrix(given.algorithms, given.strategies, given.worlds, given.dtypes, given.steps, root),
            resumed(given.resumed, RESUMES[: given.changes], given.dtypes, given.steps, root),
        )
        for line in lines_here:
            lines.append(line)
            print(shown(line), flush=True)
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python -m benchmarks.same_numbers", *sys.argv[1:]]),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "lightning", "transformers", "peft")},
        "cores": os.cpu_count(),
        "seconds": round(time.monotonic() - since),
        "steps": given.steps,
        "lines": lines,
    }
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
