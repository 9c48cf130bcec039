"""What happens when a process fails: what is said and when, how the run ends, and that it goes on to the same bits.

    python -m benchmarks.faults                  # every fault, about ten minutes on an idle machine
    python -m benchmarks.faults killed stopped   # some of them

Each row is a real run of two gloo processes on this machine, with a fault brought about once two steps are saved. After
it the run is resumed, and its log and weights are compared with those of a run that was left alone. The tests hold what
is said and the exit status (tests/core/training/test_faults_*.py); this measures the times.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.core.config import run_file
from align.core.engine import processes
from benchmarks import figures
from tests.core.ranks import alive, wait_for_step, workers_of
from tests.core.runs import run_for, write_rows
from tests.tiny import save_tiny

REWARD = """
import os, time

def reward(completions, **_):
    if os.environ.get("RANK") == "1" and os.environ.get("FAULT"):
        with open(os.environ["FAULT_BEGAN"], "x" if os.environ["FAULT"] != "slow" else "w") as file:
            file.write(str(time.time()))
        if os.environ["FAULT"] == "exception":
            raise ValueError("the reward of rank 1 fails")
        if os.environ["FAULT"] == "hangs":
            time.sleep(1e6)
        if os.environ["FAULT"] == "gil":
            sum(range(10**13))
        if os.environ["FAULT"] == "slow":
            time.sleep(1.0)
    return [float(len(completion)) for completion in completions]
"""
Workers = Sequence[int]


@dataclass(frozen=True)
class Fault:
    """A row. said: a part of the message; bring: brings it about, None where the reward does (``FAULT``).

    status: of the command; ends: False where the run goes on to its end. torchrun: it starts the processes.
    """

    said: str
    status: int
    bring: Callable[[subprocess.Popen[bytes], Workers], None] | None = None
    algorithm: str = "sft"
    devices: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0
    ends: bool = True
    torchrun: bool = False


def kill(rank: int, number: int) -> Callable[[subprocess.Popen[bytes], Workers], None]:
    """Return what sends a signal to a rank; -1 is the launcher."""
    return lambda launcher, workers: os.kill(launcher.pid if rank < 0 else workers[rank], number)


def no_room(rank: int) -> Callable[[subprocess.Popen[bytes], Workers], None]:
    """Return what lets a rank write no file of more than a few bytes, as on a full disk."""

    def limit(launcher: subprocess.Popen[bytes], workers: Workers) -> None:
        resource.prlimit(workers[rank], resource.RLIMIT_FSIZE, (50, 50))

    return limit


FAULTS = {
    "killed": Fault("rank 1 on {host} (", 2, kill(1, signal.SIGKILL)),
    "stopped": Fault("gives up waiting for it", 2, kill(1, signal.SIGSTOP), devices={"heartbeat": 5}),
    "exception": Fault("the reward of rank 1 fails", 2, algorithm="grpo"),
    "hangs": Fault("no end after", 2, algorithm="grpo", devices={"timeout": 10}),
    "gil": Fault("a call in C that holds the GIL", 2, algorithm="grpo", devices={"timeout": 40}),
    "slow": Fault("rank 1 on {host} is the slowest", 0, algorithm="grpo", epochs=6, ends=False),
    "no room on rank 0": Fault("would be larger than files may be here", 2, no_room(0)),
    "no room on rank 1": Fault("", 0, no_room(1), ends=False),
    "signal": Fault("stopped by SIGTERM after step", 128 + signal.SIGTERM, kill(1, signal.SIGTERM)),
    "launcher killed": Fault("", -signal.SIGKILL, kill(-1, signal.SIGKILL)),
    "never starts": Fault("has not started for", 2, devices={"timeout": 10}),
    "killed under torchrun": Fault("", 0, kill(1, signal.SIGKILL), ends=False, torchrun=True, epochs=30),
}


class Started:
    """A command whose lines on stderr are kept with the time at which they came."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.time(), line.decode(errors="replace").rstrip()))

    def wait(self, seconds: float = 900.0) -> int:
        status = self.process.wait(seconds)
        self._reader.join(10)
        return status


class Bench:
    """The model, the rows, and the runs that were left alone."""

    def __init__(self, root: Path) -> None:
        self.root, self.model = root, save_tiny(root / "model")
        (root / "reward.py").write_text(REWARD)
        self._quiet: dict[tuple[str, int], str] = {}

    def environment(self, fault: str = "") -> dict[str, str]:
        return os.environ | {
            "ALIGN_CACHE": str(self.root / "cache"),
            "OMP_NUM_THREADS": "1",
            "FAULT": fault,
            "FAULT_BEGAN": str(self.root / f"{fault}.began"),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }

    def command(self, output: Path, fault: Fault) -> list[str]:
        """Return the command that trains a fault's run to ``output``."""
        rows = write_rows(fault.algorithm, self.root / f"{fault.algorithm}.jsonl")
        sections: dict[str, Any] = {"devices": {"count": 2, "accelerator": "cpu"} | fault.devices}
        sections["train"] = {"num_train_epochs": fault.epochs or (8 if fault.algorithm == "sft" else 1)}
        if fault.algorithm != "sft":
            reward = {"type": "python", "file": str(self.root / "reward.py"), "function": "reward"}
            sections["rollout"] = {"rewards": [reward], "sampling": {"max_completion_length": 6}}
        run = run_for(fault.algorithm, self.model, rows, output, **sections)
        file = output.with_suffix(".yaml")
        file.write_text(run_file.dump(run))
        python = [sys.executable, "-W", "ignore", "-m"]
        if fault.torchrun:
            python += ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3", "-m"]
        return [*python, "align", "train", str(file), "--quiet", "--resume"]

    def quiet(self, fault: Fault) -> str:
        """Return the bits of the same run, left alone."""
        key = (fault.algorithm, fault.epochs)
        if key not in self._quiet:
            output = self.root / f"quiet-{fault.algorithm}-{fault.epochs}"
            started = Started(
                self.command(output, Fault("", 0, algorithm=fault.algorithm, epochs=fault.epochs)), self.environment()
            )
            assert started.wait() == 0, started.lines
            self._quiet[key] = bits(output)
        return self._quiet[key]

    def measure(self, name: str, fault: Fault) -> dict[str, Any]:
        """Run with the fault, then to the end. Return what was said, when, and how it ended."""
        output = self.root / name.replace(" ", "-")
        command = self.command(output, fault)
        environment = self.environment(name if fault.bring is None else "")
        if name == "never starts":  # as where a launcher starts one process of two
            port = str(processes.free_port())
            environment |= {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
            environment |= {"MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"}
        began, started, workers = time.time(), Started(command, environment), list[int]()
        if fault.bring is not None:
            wait_for_step(started.process, output, 2)
            workers = workers_of(started.process.pid)
            began = time.time()
            fault.bring(started.process, workers)
        status = started.wait()
        ended = time.time()
        while any(map(alive, workers)) and time.time() < ended + 60:
            time.sleep(0.01)
        over = time.time()
        mark = self.root / f"{name}.began"
        if mark.exists():
            began = float(mark.read_text()) if fault.ends else began
        named = [when for when, line in started.lines if fault.said.format(host=socket.gethostname()) in line]
        again = Started(self.command(output, fault), self.environment()).wait() if fault.ends else status
        return {
            "fault": name,
            "status": status,
            "as_documented": status == fault.status and (bool(named) or not fault.said),
            "seconds_until_named": round(named[0] - began, 2) if named and fault.said else None,
            "seconds_until_all_processes_are_gone": round(over - began, 2) if fault.ends else None,
            "processes_left": sum(map(alive, workers)),
            "resumed_to_the_same_bits": again == 0 and bits(output) == self.quiet(fault),
            "limits": fault.devices,
            "said": [line for _, line in started.lines if line.strip()][-12:] if not named and fault.said else None,
        }


def bits(output: Path) -> str:
    """Return a checksum of the log and the weights that a run has left."""
    found = hashlib.sha256()
    for file in ("metrics.csv", "export/model.safetensors"):
        found.update((output / "only" / file).read_bytes())
    return found.hexdigest()


def main() -> None:
    """Measure, print and write the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("faults", nargs="*", metavar="FAULT", help=f"all of them by default: {', '.join(FAULTS)}")
    options.add_argument("--out", type=Path, default=figures.RESULTS / "faults.json")
    given = options.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        for name in given.faults or FAULTS:
            rows.append(bench.measure(name, FAULTS[name]))
            print(rows[-1], flush=True)
            write(given.out, rows)  # after each, as all of them take long


def write(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the times as figures, and the rows as they are."""
    found = {}
    for row in rows:
        for what in ("named", "all_processes_are_gone"):
            if (seconds := row[f"seconds_until_{what}"]) is not None:
                name = f"faults/{row['fault']}, {what.replace('_', ' ')}"
                found[name] = figures.figure([seconds], "s", absolute=True)
    figures.write(out, "python -m benchmarks.faults", found, {"rows": rows})


if __name__ == "__main__":
    main()
