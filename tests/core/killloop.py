"""Kill a training run again and again; it must end with the same bits as one left alone.

    python -m tests.core.killloop --algorithm sft --kills 60
    python -m tests.core.killloop --algorithm early_stop --kills 20

``early_stop`` and ``rollback`` are killed once more, right after the checkpoint that holds the decision; ``lora`` finds
its base changed once, and must refuse to go on until it is as it was.

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
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.core.forked_ranks import REFUSED, ended, fork, import_everything
from tests.core.runs import run_for


@dataclass(frozen=True)
class Case:
    """An algorithm with sections laid over ``run_for``'s. decides: it ends before its last step."""

    algorithm: str
    sections: Mapping[str, Any] = field(default_factory=dict)
    decides: bool = False


CASES: Mapping[str, Case] = {
    "early_stop": Case(
        "sft",
        {
            "optimizer": {"learning_rate": 0.05},
            "schedule": {"type": "constant", "warmup_steps": 0.0},
            "train": {"num_train_epochs": 20},
            "validation": {"eval_steps": 1, "early_stopping_patience": 3},
            "checkpoint": {"save_steps": 100, "export": "best"},
        },
        decides=True,
    ),
    "rollback": Case(
        "grpo",
        {
            "train": {"max_steps": 24, "batch_size": 8},
            "validation": {"eval_steps": 4},
            "checkpoint": {"save_steps": 4, "save_total_limit": 99},
            "rollout": {"watch": {"action": "rollback", "warmup": 1, "patience": 1, "length": 1.0001, "kl": None}},
        },
        decides=True,
    ),
    "best_of_n": Case("best_of_n", {"train": {"batch_size": 64}}),
    "lora": Case("sft", {"model": {"adapter": {"r": 2}}}),
}
"""By name; any other name is an algorithm as it is."""


def outcome(output: Path) -> dict[str, str]:
    """sha256 of everything that must not depend on interruptions."""
    stage = output / "only"
    kept = [stage / "metrics.csv", stage / "done.json", stage / "export" / "model.safetensors"]
    kept[2:] = [path for path in (kept[2], stage / "export" / "rows.jsonl") if path.exists()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def saved(output: Path) -> bool:
    """Whether a killed run has left something to go on from."""
    stage = output / "only"
    return any((stage / "checkpoints").glob("step-*")) or any((stage / "phases").glob("*.json"))


def die_once_decided() -> None:
    """Kill this process as soon as a checkpoint says that training has ended before its last step."""
    from align.core.engine import checkpoint

    save = checkpoint.save

    def save_and_die(directory: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        save(directory, state, facts)
        if state["align"]["ended"]:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save = save_and_die


def child(case: Case, model: Path, data: Path, output: Path, decided: bool = False) -> int:
    """Fork a process that trains to the end; returns its pid. decided: it dies once it has decided to stop."""

    def work() -> None:
        from align.core.training.launch import train

        if decided:
            die_once_decided()
        train(run_for(case.algorithm, model, data, output, **case.sections), resume=True, progress=False)

    return fork(work, output.parent / "child.log", {"ALIGN_CACHE": str(output.parent / "cache")})


def refuses_another_base(case: Case, model: Path, data: Path, output: Path) -> None:
    """With one bit of the base changed nothing is trained; afterwards the base is as it was."""
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    before = sorted((output / "only" / "checkpoints").glob("step-*"))
    weights.write_bytes(changed)
    status = ended(child(case, model, data, output))
    weights.write_bytes(whole)
    log = (output.parent / "child.log").read_text()
    assert status == REFUSED and "model.path (model.safetensors)" in log, log
    assert before == sorted((output / "only" / "checkpoints").glob("step-*")), "it trained on another base"


def kill_loop(name: str, model: Path, kills: int, seed: int, root: Path) -> dict[str, int]:
    """Run once to the end, then again under ``kills`` SIGKILLs; raises AssertionError at the first difference."""
    from tests.core.runs import write_rows

    case = CASES.get(name, Case(name))
    data = write_rows(case.algorithm, root / "rows.jsonl")
    quiet = root / "quiet" / "run"
    quiet.parent.mkdir(parents=True)
    started = time.monotonic()
    status = ended(child(case, model, data, quiet))
    assert status == 0, (quiet.parent / "child.log").read_text()
    whole = time.monotonic() - started
    expected = outcome(quiet)
    dice, killed, finished, resumed, reach = random.Random(seed), 0, 0, 0, whole
    to_decide, to_refuse = case.decides, name == "lora"
    while killed < kills or not resumed or to_refuse:
        output = root / f"killed-{finished}" / "run"
        output.parent.mkdir(parents=True)
        if to_decide:
            assert ended(child(case, model, data, output, decided=True)) == -signal.SIGKILL, "it decided nothing"
            killed, to_decide = killed + 1, False
        while True:
            if to_refuse and saved(output):
                refuses_another_base(case, model, data, output)
                to_refuse = False
            resumed += saved(output)
            pid = child(case, model, data, output)
            wanted = killed < kills or not resumed or to_refuse
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
                reach = whole if saved(output) else 1.3 * reach
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
    from tests.tiny import save_tiny

    import_everything()
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        begun = time.monotonic()
        counts = kill_loop(options.algorithm, save_tiny(here / "model"), options.kills, options.seed, here)
        print(json.dumps({"algorithm": options.algorithm, **counts, "seconds": round(time.monotonic() - begun)}))
