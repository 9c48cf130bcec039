"""What the code sandbox costs: milliseconds for a run, against the same interpreter without it.

    python benchmarks/sandbox.py

Of 100 runs each, one at a time: a bare ``python -P -s -S -c pass``, a program, and ten function
calls, for every choice of layers that the machine has; then answers scored per second by the ``code`` reward, with ten
calls each, on all processors. Writes results/sandbox.json.
"""

from __future__ import annotations

import json
import marshal
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from align.core.rewards.reward_base import Answer, RewardContext
from align.core.sandbox.sandbox import ENVIRONMENT, TRIAL, Layers, Sandbox, SandboxError, python
from align.core.sandbox.sandbox_runtime import landlock
from align.plugins.rewards.code import Code

RUNS = 100
SOURCE = "def f(x):\n    return sorted(set(x))"
LAYERS = {
    "namespaces, Landlock, seccomp": Layers(True, True),
    "namespaces, seccomp": Layers(True, False),
    "Landlock, seccomp": Layers(False, True),
}


def measured(run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds: of wall time, median and quickest (what it takes when nothing else runs), and of processor time."""
    times, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / RUNS
    return {"median": round(statistics.median(times), 1), "least": round(min(times), 1), "processor": round(used, 1)}


def works(sandbox: Sandbox) -> bool:
    try:
        return sandbox.program(TRIAL, "", time.monotonic() + 30).output == b"42\n"
    except SandboxError:
        return False


def answers_per_second() -> float:
    reward = Code(Code.Config())
    reward.open(RewardContext(Path("unused")))
    tests = [{"input": [[n, 1, n]], "output": sorted({n, 1}), "function": "f"} for n in range(10)]
    answers = [Answer("", "", f"```python\n{SOURCE}\n```", columns={"tests": tests})] * (2 * RUNS)
    start = time.perf_counter()
    scores = reward.score(answers)
    seconds = time.perf_counter() - start
    reward.close()
    assert all(score.value == 1.0 for score in scores)
    return round(len(answers) / seconds, 1)


def main() -> None:
    calls = [("f", marshal.dumps((([n, 1, n],), {})), ()) for n in range(10)]
    bare = [python(), "-P", "-s", "-S", "-c", "pass"]
    results: dict[str, object] = {
        "bare interpreter, ms": measured(lambda: subprocess.run(bare, env=ENVIRONMENT, check=True))
    }
    for name, layers in LAYERS.items():
        sandbox = Sandbox(layers)
        if works(sandbox):
            results[name] = {
                "a program, ms": measured(lambda s=sandbox: s.program("print(1)", "", time.monotonic() + 30)),
                "ten calls, ms": measured(lambda s=sandbox: s.calls(SOURCE, calls, time.monotonic() + 30)),
            }
    results["answers per second, all processors"] = answers_per_second()
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "runs": RUNS,
        "versions": {"python": platform.python_version(), "kernel": platform.release().split("-")[0]},
        "landlock_abi": landlock.abi(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "load": round(os.getloadavg()[0], 1),
        "results": results,
    }
    text = json.dumps(report, indent=2)
    Path(__file__).parent.joinpath("results", "sandbox.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
