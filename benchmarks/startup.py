"""Processor time until a command has answered, each in a process of its own.

    python benchmarks/startup.py
    python benchmarks/startup.py --beside OTHER      # another checkout of align, which takes turns: ratios

``floor`` is what no program can do without that loads a model with transformers: both imports, the tokenizer and the
model. Where scikit-learn is installed transformers imports it, and pandas with it: ``details`` says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import figures
import workload

ROOT = Path(__file__).parents[1]
FLOOR = (
    "import torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
    "T.from_pretrained('model'); M.from_pretrained('model')"
)
ALIGN = ["-m", "align"]
COMMANDS: dict[str, list[str]] = {
    "floor": ["-c", FLOOR],
    "import align": ["-c", "import align"],
    "--help": [*ALIGN, "--help"],
    "plugins list": [*ALIGN, "plugins", "list"],
    "advise": [*ALIGN, "advise", "--text", "It must keep 27 rules of our style guide; we have 6000 examples."],
    "data check, 1,000 rows": [*ALIGN, "data", "check", "1000.jsonl", "--quiet"],
    "train --check, 100 rows, cold": [*ALIGN, "train", "run.yaml", "--check", "--quiet"],
    "train --check, 100 rows, again": [*ALIGN, "train", "run.yaml", "--check", "--quiet"],
    "train, 1 step and export": [*ALIGN, "train", "run.yaml", "--quiet"],
    "eval list": [*ALIGN, "eval", "list"],
}
COLD = "train --check, 100 rows, cold"


def main() -> None:
    """Measure, print and write the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--beside", type=Path, help="another checkout of align")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--out", type=Path, default=figures.RESULTS / "startup.json")
    given = options.parse_args()
    checkouts = {"align": ROOT} | ({"other": given.beside.resolve()} if given.beside else {})
    with tempfile.TemporaryDirectory() as scratch:
        seconds = measured(checkouts, Path(scratch), given.rounds)
    found = {
        f"startup/{name}": figures.figure(each, "s", absolute=True)
        for (whose, name), each in seconds.items()
        if whose == "align"
    }
    check = seconds["align", "train --check, 100 rows, again"]
    against = figures.ratios(check, seconds["align", "floor"])
    found["startup/train --check beside floor"] = figures.figure(against, "x")
    details: dict[str, object] = {"scikit-learn": importlib.util.find_spec("sklearn") is not None}
    if given.beside:
        pairs = {name: (seconds["align", name], seconds["other", name]) for name in COMMANDS if name != "floor"}
        details["beside another checkout"] = {
            name: round(figures.figure(figures.ratios(*pair), "x").value, 3) for name, pair in pairs.items()
        }
    print(figures.show(found), details, sep="\n")
    figures.write(given.out, "python benchmarks/startup.py", found, details)


def measured(checkouts: dict[str, Path], directory: Path, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of processor time of each command, by (checkout, command)."""
    workload.make_model("0.85m", directory / "model")
    for count in (100, 1000):
        workload.write_rows(workload.make_rows("sft", count), directory / f"{count}.jsonl")
    stage = {
        "name": "sft",
        "algorithm": {"type": "sft"},
        "model": {"path": "model"},
        "data": {"train": "100.jsonl", "max_length": 2048},
        "train": {"max_steps": 1, "batch_size": 8},
    }
    (directory / "run.yaml").write_text(json.dumps({"output": "out", "stages": [stage]}))
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn in range(rounds + 1):  # the first one warms up: it compiles modules and fills the system's cache
        for name, command in COMMANDS.items():
            for whose, checkout in checkouts.items():
                shutil.rmtree(directory / "out", ignore_errors=True)
                cache = directory / f"cache-{whose}"
                if name == COLD:
                    shutil.rmtree(cache, ignore_errors=True)
                spent = processor_time(command, checkout, cache, directory)
                if turn:
                    seconds[whose, name].append(spent)
    return seconds


def processor_time(command: list[str], checkout: Path, cache: Path, directory: Path) -> float:
    """Run Python with these arguments, and return the processor time of the process and its children, in seconds."""
    given = {"PYTHONPATH": str(checkout), "ALIGN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    given["PYTHONDONTWRITEBYTECODE"] = ""  # else the run that warms up compiles for nobody
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=directory,
        env={**os.environ, **given},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        output = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output.decode(errors='replace')}")
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
