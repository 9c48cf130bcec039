"""align's algorithms beside TRL's: seconds of the processor a step, memory, the curve, and where the time goes.

    python benchmarks/side_by_side.py sft --model 42m
    python benchmarks/side_by_side.py all --model 0.85m

Prints a table of each and writes results/side_by_side/ALGORITHM-MODEL.json. align, TRL's default and TRL's best setting
(see trl_side.py) learn from the same rows in the same order, and take turns step by step on one core. Fails where rows
or order differ, or where the curves of an algorithm without sampling differ by more than rounding. Online algorithms
sample, each side its own completions: there the prompts are compared. ``grpo-long`` has prompts of 470 tokens instead
of 50. Where a reference is measured before the first step, its seconds are spread over the steps. PPO has no
counterpart among TRL's trainers and runs alone; its step is the mean over a phase's.

``--model`` takes 0.85m, 42m or a directory. The share of the roofline is of the operations that a step needs (nothing
padded or computed twice, every sequence by itself, the head at scored tokens only) at the speed of a product of float32
matrices right before the step.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(
    dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "TRL_EXPERIMENTAL_SILENCE"), "1"),
    TOKENIZERS_PARALLELISM="false",
    CUDA_VISIBLE_DEVICES="",
)

import align_side
import trl_side
import turns
from align_side import Task
from figures import RESULTS, Figure, figure, ratios, show, write
from transformers import AutoConfig
from workload import MODELS, assert_same_rows, curve_difference, make_model, make_rows, write_rows

ALGORITHMS = ("sft", "reward_model", "dpo", "kto", "rloo", "grpo", "grpo-long", "ppo")
ALONE = ("ppo",)
BATCHES = {"0.85m": 16, "42m": 4, "tiny": 8}
"""Rows or pairs of a step; a directory's model gets 2. Online: twice as many completions, at least one group of 8."""
BETAS = {"dpo": 0.1, "kto": 0.1, "grpo": 0.04, "rloo": 0.05}
PHASE = 4
"""Steps that PPO takes on the same completions: its default."""
STEPS = {"0.85m": 10, "tiny": 4}
SLOW_STEPS = {"sft": 10, "reward_model": 6, "dpo": 6, "kto": 4, "grpo-long": 4}
"""Measured steps, by the model or, of larger ones, by the algorithm (others 6): all of them take some 20 minutes."""
ROUNDING = 1e-3
"""Largest relative difference of losses and gradient norms that may pass as rounding; 1e-5 to 1e-4 is seen."""
ROUNDING_BF16 = 0.1


def main() -> int:
    """Run the comparisons, print and write each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("algorithms", nargs="+", choices=(*ALGORITHMS, "all"), help="what to train by")
    parser.add_argument("--model", default="0.85m", help=f"{', '.join(MODELS)}, or a model's directory")
    parser.add_argument("--steps", type=int, help="measured steps")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=("padded", "best"), help="leave this setting of TRL out"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 by autocast on both sides, in place of float32")
    parser.add_argument("--out", type=Path, default=RESULTS / "side_by_side", help="directory of the results")
    arguments = parser.parse_args()
    model, failed = Path(arguments.model).name, False
    for algorithm in ALGORITHMS if "all" in arguments.algorithms else arguments.algorithms:
        work = Path(tempfile.mkdtemp(prefix="align-side-by-side-"))
        try:
            figures, details = compare(make_task(algorithm, arguments, work), arguments.warmup, arguments.without)
        except RuntimeError as error:
            print(f"\n{algorithm}, {model}: {error}", flush=True)
            failed = True
            continue
        finally:
            shutil.rmtree(work, ignore_errors=True)
        print(f"\n{algorithm}, {model}\n{show(figures)}\n{_shares(details['sides'])}", flush=True)
        flag, suffix = (" --bf16", "-bf16") if arguments.bf16 else ("", "")
        command = f"python benchmarks/side_by_side.py {algorithm} --model {model} --steps {details['steps']}{flag}"
        write(arguments.out / f"{algorithm}-{model}{suffix}.json", command, figures, details)
    return int(failed)


def make_task(name: str, arguments: argparse.Namespace, work: Path) -> Task:
    """Make the model and exactly the rows that all steps take."""
    algorithm = name.removesuffix("-long")
    batch = BATCHES.get(arguments.model, 2)
    online = algorithm in ("grpo", "rloo", "ppo")
    if online:
        batch = max(8, 2 * batch)
    measured = arguments.steps or STEPS.get(arguments.model) or SLOW_STEPS.get(name, 6)
    steps = arguments.warmup + measured
    if algorithm in ALONE:  # whole phases, the first of which is the warm-up
        steps = PHASE * (1 + -(-measured // PHASE))
    group = 1 if algorithm == "ppo" or not online else 8
    rows = make_rows(algorithm, (steps + 1) * batch // group, name.endswith("-long"))
    model = make_model(arguments.model, work / "model", reward=algorithm == "reward_model")
    return Task(
        algorithm,
        model,
        write_rows(rows, work / "rows.jsonl"),
        work,
        batch,
        steps,
        BETAS.get(algorithm),
        bf16=arguments.bf16,
    )


def compare(task: Task, warmup: int, without: Sequence[str]) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Run the sides in turns; return the figures of the comparison and the rest. Raises where the sides differ."""
    sides: dict[str, Any] = {"align": partial(align_side.measure, task)}
    if task.algorithm not in ALONE:
        settings: list[trl_side.Setting] = ["padded"] if task.online else ["padded", "best"]
        for setting in settings:
            if setting not in without:
                sides[f"trl {setting}"] = partial(trl_side.measure, task, setting)
    found = turns.in_turns(sides, task.work)
    assert_same_rows(found)
    differences = {name: curve_difference(found["align"], other) for name, other in found.items() if name != "align"}
    for name, difference in () if task.online else differences.items():
        if not difference <= (ROUNDING_BF16 if task.bf16 else ROUNDING):
            raise RuntimeError(f"the curve of align differs from that of {name} by {difference:.1e}")
    if task.algorithm in ALONE:
        warmup = PHASE
    for side in found.values():
        side["per_step"] = per_step(side, task)[warmup:]
        if task.algorithm in ALONE:
            side["per_step"] = means(side["per_step"], PHASE)
    details = {
        "batch": task.batch,
        "steps": task.steps - warmup,
        "warmup": warmup,
        "curve_difference": {} if task.online else differences,
        "sides": {name: side_facts(side, warmup) for name, side in found.items()},
    }
    return figures_of(found, task, warmup), details


def per_step(side: dict[str, Any], task: Task) -> list[float]:
    """Return the seconds of each step, with its share of the reference that was measured beforehand, for all rows."""
    reference = side["setup"].get("reference", 0.0) / (task.steps + 1)
    return [cpu + reference for cpu in side["cpu"]]


def means(values: list[float], size: int) -> list[float]:
    """Return the means of consecutive groups."""
    return [sum(values[start : start + size]) / size for start in range(0, len(values), size)]


def figures_of(found: dict[str, dict[str, Any]], task: Task, warmup: int) -> dict[str, Figure]:
    """Return the figures of a comparison."""
    ours = found["align"]
    figures: dict[str, Figure] = {}
    for name, side in found.items():
        if name != "align":
            of = ratios(ours["per_step"], side["per_step"])
            figures[f"processor time, of {name}"] = figure(of, f"of {name}")
            figures[f"peak memory, of {name}"] = figure([ours["peak_mib"] / side["peak_mib"]], f"of {name}")
    for name, side in found.items():
        figures[f"{name}: seconds a step"] = figure(side["per_step"], "CPU s", absolute=True)
        figures[f"{name}: peak memory"] = figure([side["peak_mib"]], "MiB", absolute=True)
    if not task.online and not task.bf16:
        needed = operations(task, ours)[warmup:]
        reached = [
            flops / (cpu * probe * 1e9)
            for flops, cpu, probe in zip(needed, ours["cpu"][warmup:], ours["probes"][warmup:], strict=True)
        ]
        figures["align: share of the roofline"] = figure(reached, "of float32 peak", better="higher", absolute=True)
    return figures


def operations(task: Task, side: dict[str, Any]) -> list[float]:
    """Return the operations that each step needs, forward and backward (without a reference).

    6 for each number of a matrix and token, the head only at scored tokens; causal attention over n tokens takes 6 L h
    n^2 in all (half of 12 L h n^2, 2204.02311 appendix B), where n is taken as the mean length.
    """
    config = AutoConfig.from_pretrained(task.model)
    width, layers = config.hidden_size, config.num_hidden_layers
    head_width = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_width, config.num_key_value_heads * head_width
    body = layers * (2 * width * queries + 2 * width * keys + 3 * width * config.intermediate_size)
    head = width * config.vocab_size if task.algorithm != "reward_model" else 0
    needed = []
    for tokens, scored, rows in zip(side["tokens"], side["scored"], side["rows"], strict=True):
        attention = 6 * layers * queries * tokens * tokens / len(rows)
        needed.append(6 * body * tokens + 6 * head * scored + attention)
    return needed


def side_facts(side: dict[str, Any], warmup: int) -> dict[str, Any]:
    """Return what a file of results keeps of a side beside its figures."""
    kept = ("per_step", "cpu", "seconds", "probes", "tokens", "scored", "curve", "setup", "start_mib", "peak_mib")
    return {"shares": shares(side, warmup), **{name: side[name] for name in kept}}


def shares(side: dict[str, Any], warmup: int) -> dict[str, float]:
    """Return the share of each part in the measured steps."""
    total: defaultdict[str, float] = defaultdict(float)
    for step in side["parts"][warmup:]:
        for part, seconds in step.items():
            total[part] += seconds
    whole = sum(total.values())
    return {part: round(seconds / whole, 4) for part, seconds in sorted(total.items(), key=lambda e: -e[1]) if seconds}


def _shares(sides: dict[str, Any]) -> str:
    lines = []
    for name, side in sides.items():
        parts = "  ".join(f"{part} {share:.1%}" for part, share in side["shares"].items() if share >= 0.002)
        tokens = median(side["tokens"])
        lines.append(f"{name}: {parts}  ({tokens:,.0f} tokens a step, probe {median(side['probes']):.0f} GFLOP/s)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
