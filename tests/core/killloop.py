"""Kill a training run again and again; it must end with the same bits as one left alone.

    python -m tests.core.killloop --algorithm sft --kills 60

A fork server imports everything once; each child is one ``align train --resume`` in all but the interpreter's start,
and dies by SIGKILL at a random moment: while reading, tokenising, stepping, writing or rotating checkpoints, exporting.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.core.runs import run_for


def outcome(output: Path) -> dict[str, str]:
    """sha256 of everything that must not depend on interruptions."""
    stage = output / "only"
    kept = [stage / "metrics.csv", stage / "done.json", stage / "export" / "model.safetensors"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def child(algorithm: str, model: Path, data: Path, output: Path) -> int:
    """Fork a process that trains to the end; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ["ALIGN_CACHE"] = str(output.parent / "cache")
        sys.stderr = open(output.parent / "child.log", "a")  # noqa: SIM115 - until the process ends
        from align.core.train.launch import train

        train(run_for(algorithm, model, data, output), resume=True, progress=False)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def kill_loop(algorithm: str, model: Path, kills: int, seed: int, root: Path) -> dict[str, int]:
    """Run once to the end, then again under ``kills`` SIGKILLs; raises AssertionError at the first difference."""
    from tests.core.runs import write_rows

    data = write_rows(algorithm, root / "rows.jsonl")
    quiet = root / "quiet" / "run"
    quiet.parent.mkdir(parents=True)
    started = time.monotonic()
    _, status = os.waitpid(child(algorithm, model, data, quiet), 0)
    assert status == 0, (quiet.parent / "child.log").read_text()
    whole = time.monotonic() - started
    expected = outcome(quiet)
    dice, killed, finished, resumed, reach = random.Random(seed), 0, 0, 0, whole
    while killed < kills or not resumed:
        output = root / f"killed-{finished}" / "run"
        output.parent.mkdir(parents=True)
        while True:
            resumed += bool(list((output / "only" / "checkpoints").glob("step-*")))
            pid = child(algorithm, model, data, output)
            wanted = killed < kills or not resumed
            deadline = time.monotonic() + dice.uniform(0, reach) if wanted else float("inf")
            while time.monotonic() < deadline:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    break
                time.sleep(0.002)
            else:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                killed += 1
                # Where kills always come before the first checkpoint, the machine is busier than it was.
                reach = whole if list((output / "only" / "checkpoints").glob("step-*")) else 1.3 * reach
                continue
            assert status == 0, (output.parent / "child.log").read_text()
            break
        found = outcome(output)
        changed = sorted(name for name in found if found[name] != expected[name])
        assert not changed, f"after {killed} kills, changed: {changed}"
        finished += 1
        shutil.rmtree(output.parent)
    return {"kills": killed, "runs": finished, "resumed_from_a_checkpoint": resumed}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", default="sft")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    from tests.tiny import save_tiny

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        begun = time.monotonic()
        counts = kill_loop(options.algorithm, save_tiny(here / "model"), options.kills, options.seed, here)
        print(json.dumps({"algorithm": options.algorithm, **counts, "seconds": round(time.monotonic() - begun)}))
