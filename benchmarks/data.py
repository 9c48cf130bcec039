"""Preparing data beside TRL: conversations to tokens, processor time and memory.

    python benchmarks/data.py MODEL [--rows 20000 100000] [--rounds 3]

MODEL is a directory or hub id with a fast tokenizer and a chat template; SmolLM2-135M-Instruct was used. Conversations
of one to three turns are written as JSONL. Then three commands take turns, each a process of its own, with one worker:

    align, cold     align train --check with an empty cache: reads, checks, renders, masks and keeps the tokens
    align, again    the same a second time
    TRL             SFTTrainer of the same file, without a step; the caches of datasets are off

TRL learns from all tokens here; align masks the prompts and makes all its checks. Processor time is that of the process
and its children. Each command also runs with 100 rows: what it takes is start-up, which is taken off. Writes
results/data.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from figures import RESULTS, Figure, figure, ratios, show, write

FEW = 100
"""Rows of the run that stands for start-up."""
SIDES = ("align, cold", "align, again", "TRL")
WORDS = [
    *("so", "we", "add", "the", "two", "numbers", "then", "carry", "one", "over", "and", "check", "that", "it", "is"),
    *("right", "because", "first", "take", "tens", "units", "sum", "hence", "now", "again", "write", "down", "step"),
    *("by", "result", "total", "count", "plus", "from", "with", "both", "next", "last"),
]
RUN = """\
output: {work}/run
model: {{path: {model}}}
data: {{dataset_num_proc: 1, max_length: 2048}}
stages:
  - name: sft
    data: {{train: {rows}}}
    algorithm: sft
"""


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory or hub id with a tokenizer and a chat template")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000], help="numbers of conversations")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each command")
    parser.add_argument("--trl", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trl:
        prepare_with_trl(arguments.model, arguments.trl)
        return 0
    figures: dict[str, Figure] = {}
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        for count in (FEW, *arguments.rows):
            found = [one_round(arguments.model, write_rows(count, work), work) for _ in range(arguments.rounds)]
            seconds[str(count)] = {side: [cpu for cpu, _ in (turn[side] for turn in found)] for side in SIDES}
            if count == FEW:
                continue
            for side in SIDES:
                figures[f"{count} rows, {side}, peak memory"] = figure(
                    [peak for _, peak in (turn[side] for turn in found)], "MB", absolute=True
                )
            figures |= time_figures(count, seconds[str(count)], seconds[str(FEW)])
            print(show(figures), flush=True)
    command = f"python benchmarks/data.py MODEL --rows {' '.join(map(str, arguments.rows))} --rounds {arguments.rounds}"
    write(RESULTS / "data.json", command, figures, {"processor_seconds": seconds, "model": Path(arguments.model).name})
    return 0


def time_figures(count: int, found: dict[str, list[float]], few: dict[str, list[float]]) -> dict[str, Figure]:
    """Return the processor time of each side, and its ratio to TRL's, both without start-up."""
    figures: dict[str, Figure] = {}
    without = {side: [cpu - median(few[side]) for cpu in found[side]] for side in SIDES}
    for side in SIDES:
        figures[f"{count} rows, {side}, without start-up"] = figure(without[side], "CPU s", absolute=True)
    for side in SIDES[:2]:
        shares = ratios(without[side], without["TRL"])
        figures[f"{count} rows, {side} / TRL, without start-up"] = figure(shares, "ratio")
    return figures


def one_round(model: str, rows: Path, work: Path) -> dict[str, tuple[float, float]]:
    """Return the processor seconds and the peak memory in MB of each side, one right after the other."""
    cache = work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    run = work / "run.yaml"
    run.write_text(RUN.format(work=work, model=model, rows=rows))
    align = [sys.executable, "-m", "align", "train", str(run), "--check", "--quiet"]
    trl = [sys.executable, __file__, model, "--trl", str(rows)]
    return {side: measured(trl if side == "TRL" else align, work, cache) for side in SIDES}


def measured(command: list[str], work: Path, cache: Path) -> tuple[float, float]:
    """Run a command; return its processor seconds with its children's, and the largest resident size in MB."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ALIGN_CACHE": str(cache),
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(output.read().decode(errors="replace")[-2000:])
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def prepare_with_trl(model: str, rows: str) -> None:
    """Have TRL read and tokenise the rows, in this process."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    with tempfile.TemporaryDirectory() as directory:
        dataset = datasets.load_dataset("json", data_files=rows, split="train", cache_dir=directory)
        config = SFTConfig(output_dir=directory, max_length=2048, report_to=[], use_cpu=True, bf16=False)
        SFTTrainer(model=model, args=config, train_dataset=dataset)


def write_rows(count: int, work: Path) -> Path:
    """Write conversations of one to three turns; the same for the same count."""
    path, dice = work / f"{count}.jsonl", random.Random(1)
    if path.exists():
        return path
    with path.open("w") as file:
        for i in range(count):
            messages = []
            for _ in range(dice.choice([1, 1, 2, 3])):
                question = " ".join(dice.choice(WORDS) for _ in range(dice.randint(5, 30)))
                answer = " ".join(dice.choice(WORDS) for _ in range(dice.randint(10, 60)))
                messages += [
                    {"role": "user", "content": f"{question} {i}?"},
                    {"role": "assistant", "content": f"{answer}."},
                ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
