"""Every check of align on a GPU, each group in its own process, results written as they come. See README.md.

python benchmarks/gpu/run.py --out DIRECTORY            all groups of one GPU, on the machine's first
python benchmarks/gpu/run.py --out DIRECTORY --quick    the same at tiny sizes on a CPU: tries the script, not align

python benchmarks/gpu/run.py --out DIRECTORY --missing  only what gpu_GROUP.json there has no figures of

Writes gpu_GROUP.json and gpu_GROUP.log to DIRECTORY for each group; exits with 1 where a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

GROUPS = {"correct": 150, "memory": 150, "mfu": 130, "speed": 80, "transfer": 240, "several": 900}
"""Seconds after which a group begins no further check."""
BY_NAME = ("transfer", "several")
"""Groups that run only where they are named: they need vLLM, and several GPUs."""
GRACE = 25
"""Seconds that its last check has left: with imports all groups of one GPU end within eight minutes."""
TOGETHER = (("correct", "memory"), ("mfu",), ("speed",), ("transfer",), ("several",))
"""Groups that run at the same time: what is timed runs alone."""


def main() -> int:
    """Run the groups; print what became of their checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--groups", nargs="+", default=[g for g in GROUPS if g not in BY_NAME], choices=list(GROUPS))
    parser.add_argument("--missing", action="store_true", help="keep what is done in the files that are there")
    parser.add_argument("--seconds", type=int, nargs="+", help="for each of --groups, in place of its own limit")
    parser.add_argument("--only", choices=list(GROUPS), help=argparse.SUPPRESS)  # what a group's own process is given
    arguments = parser.parse_args()
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    if arguments.only:
        return one_group(arguments)

    seconds = dict(zip(arguments.groups, arguments.seconds or [GROUPS[g] for g in arguments.groups], strict=True))
    for group in [] if arguments.missing else arguments.groups:
        (Path(arguments.out) / f"gpu_{group}.json").unlink(missing_ok=True)
    started, codes = time.monotonic(), []
    for together in TOGETHER:
        running = [start(group, seconds[group], arguments) for group in together if group in arguments.groups]
        codes += [process.wait() for process in running]
    print(f"{time.monotonic() - started:.0f} s in all", flush=True)
    return summary(Path(arguments.out), arguments.groups) or int(any(codes))


def start(group: str, seconds: int, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A group in a process of its own, so that a broken CUDA context ends with it."""
    command = ["timeout", "-k", "5", str(seconds + GRACE), sys.executable, "-u", str(Path(__file__).resolve())]
    command += ["--out", arguments.out, "--only", group, "--seconds", str(seconds), *["--quick"] * arguments.quick]
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    settings |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if arguments.quick else {"OMP_NUM_THREADS": "6"}
    with open(Path(arguments.out) / f"gpu_{group}.log", "wb") as log:
        return subprocess.Popen(command, env=os.environ | settings, stderr=log)


def one_group(arguments: argparse.Namespace) -> int:
    """What ``start`` started."""
    import correct
    import memory
    import mfu
    import several
    import speed
    import transfer
    from recording import Bench

    bench = Bench(arguments.only, arguments)
    for module in (correct, memory, mfu, several, speed, transfer):
        if module.__name__ == arguments.only:
            module.main(bench)
    return 0


def summary(out: Path, groups: list[str]) -> int:
    """How many checks were done, failed or had no time; 1 where one failed or a group wrote nothing."""
    bad = 0
    for group in groups:
        file = out / f"gpu_{group}.json"
        if not file.exists():
            print(f"{group}: nothing was written")
            bad = 1
            continue
        checks = json.loads(file.read_text())["checks"]
        by = {
            status: [n for n, c in checks.items() if c["status"] == status] for status in ("done", "failed", "no time")
        }
        skipped = [name for name in by["done"] if "skipped" in checks[name]]
        print(
            f"{group}: {len(by['done']) - len(skipped)} done; skipped: {skipped or 'none'}; "
            f"failed: {by['failed'] or 'none'}; no time for: {by['no time'] or 'none'}"
        )
        bad |= bool(by["failed"])
    return bad


if __name__ == "__main__":
    sys.exit(main())
