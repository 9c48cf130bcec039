"""The time that `align advise` takes as a whole process; benchmarks/advice.py measures how well it reads.

    python -m benchmarks.advisor

A one-page brief and five megabytes of several kinds: briefs one after another, their words in any order, one word
without an end, bytes. The best of five runs (of three for the large ones) with start-up; wall, and of the CPU, which
other work on the machine stretches little; ``load`` is the number of processes that wanted one before.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.advisor import grading

CASES = Path(__file__).parents[1] / "tests/advisor/cases"
RESULT = Path(__file__).parent / "results/advisor.json"
SIZE = 5_000_000
ALLOWED = (0, 1, 3)


def texts() -> dict[str, str]:
    """The large descriptions, by kind."""
    rng = random.Random(0)
    briefs = [case["description"] for case in grading.cases(CASES / "dev.yaml") if case["kind"] == "prose"]
    words = " ".join(briefs).split()
    pages = "\n\n".join(briefs)
    return {
        "briefs one after another": (pages * (SIZE // len(pages) + 1))[:SIZE],
        "their words in any order": " ".join(rng.choices(words, k=SIZE // 5))[:SIZE],
        "one word": "a" * SIZE,
        "bytes": rng.randbytes(SIZE).decode("utf-8", "replace"),
    }


def seconds(text: str, times: int) -> dict[str, float]:
    """The best of some whole runs of `align advise` on a description."""
    with tempfile.TemporaryDirectory() as folder:
        brief = Path(folder) / "brief.md"
        brief.write_text(text, encoding="utf-8")
        return best([sys.executable, "-m", "align", "advise", str(brief), "--format", "json"], times)


def best(command: list[str], times: int) -> dict[str, float]:
    """The least wall and CPU seconds of some runs of a command."""
    runs = [_run(command) for _ in range(times)]
    return {"wall": round(min(wall for wall, _ in runs), 3), "cpu": round(min(cpu for _, cpu in runs), 3)}


def _run(command: list[str]) -> tuple[float, float]:
    # Modules are compiled once, as those of an installed package are: the best run is one that finds them so.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in ALLOWED:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    page = next(
        case["description"] for case in grading.cases(CASES / "dev.yaml") if "facility-management" in case["id"]
    )
    result = {
        "command": "python -m benchmarks.advisor",
        "load": round(os.getloadavg()[0], 1),
        "seconds": {
            "python itself": best([sys.executable, "-c", "pass"], 5),
            "a page": seconds(page, 5),
            **{f"5 MB, {kind}": seconds(text, 3) for kind, text in texts().items()},
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
