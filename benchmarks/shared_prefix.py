"""Speed of a step whose sequences share the computation of their prefix, against one that computes each by itself.

    python benchmarks/shared_prefix.py [--rounds 5]

Two models (0.85M parameters, vocabulary 512; 42M, vocabulary 32,000) and the shapes of GRPO steps (groups of 8, prompts
of about 470 and 50 tokens) and of a DPO step (pairs, prompts of about 60). Each is planned, laid out and computed as in
training, in float32 on one core: forward and backward, and forward alone as in a pass of the reference. Both ways take
turns in one process. Times are CPU seconds; a speed-up is the median over the rounds of plain / shared, with its
interval. Writes results/shared_prefix.json and fails where log-probabilities or gradients differ by more than rounding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from figures import RESULTS, Figure, figure, ratios, show, write
from torch import Tensor
from transformers import AutoModelForCausalLM
from workload import qwen2

from align.core.data.batch import collate
from align.core.data.examples import Example, TokenSequence
from align.core.data.step_plan import FORWARD, Layout, plan_micro_batches
from align.core.models.policy import Policy
from align.schemas.engine import MICRO_TOKENS

MODELS = ("0.85M", "42M")
SHAPES = {
    "GRPO, 2 groups of 8, prompts of 470, answers of 26-64": ("group", 2, 8, 470, (26, 64)),
    "GRPO, 2 groups of 8, prompts of 50, answers of 26-64": ("group", 2, 8, 50, (26, 64)),
    "DPO, 8 pairs, prompts of 60, answers of 60-150": ("pair", 8, 2, 60, (60, 150)),
}
"""Kind, number of prompts, sequences of each, tokens of a prompt (four fifths to six fifths of it), of an answer."""
LOGP, GRADIENT = 1e-4, 1e-4
"""Largest difference of a log-probability, and of a parameter's gradient relative to its norm."""


def model_of(name: str) -> Policy:
    """Return a model of a shape with random weights."""
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(qwen2(name.lower()))).train()


def step_of(kind: str, prompts: int, sequences: int, prompt: int, answer: tuple[int, int]) -> list[Example]:
    """Return the examples of a step: one for each completion, or one for each pair."""
    draw = np.random.default_rng(0)
    examples = []
    for _ in range(prompts):
        start = draw.integers(3, 400, int(draw.integers(prompt * 4 // 5, prompt * 6 // 5 + 1)))
        made = []
        for place in range(sequences):
            tokens = np.concatenate([start, draw.integers(3, 400, int(draw.integers(answer[0], answer[1] + 1)))])
            role = ("chosen", "rejected")[place] if kind == "pair" else "completion"
            made.append(TokenSequence(role, tokens.astype(np.int32), np.arange(len(tokens)) >= len(start)))
        examples += [Example("", tuple(made))] if kind == "pair" else [Example("", (each,)) for each in made]
    return examples


def compute(policy: Policy, examples: Sequence[Example], layout: Layout, backward: bool) -> tuple[float, Tensor, int]:
    """Run one step; return its CPU seconds, the log-probability of every scored token, the positions computed."""
    policy.zero_grad(set_to_none=True)
    counts = [sum(int(s.scored.sum()) for s in e.sequences) for e in examples]
    found, positions = [torch.empty(0)] * len(examples), 0
    started = time.process_time()
    (micros,) = plan_micro_batches(examples, 1, MICRO_TOKENS["cpu"], None, layout, FORWARD["cpu"])
    for micro in micros:
        batch = collate([examples[i] for i in micro.examples], layout, 0, like=examples, trees=micro.trees)
        with torch.set_grad_enabled(backward):
            logp_T = policy(batch).logp_T
        if backward:
            (-logp_T.sum() / sum(counts)).backward()
        positions += batch.input_ids_RL.numel()
        for i, part in zip(
            micro.examples, torch.split(logp_T.detach(), [counts[i] for i in micro.examples]), strict=True
        ):
            found[i] = part
    return time.process_time() - started, torch.cat(found), positions


def compare(policy: Policy, examples: Sequence[Example], rounds: int, backward: bool) -> tuple[Figure, dict[str, Any]]:
    """Measure both ways in turns."""
    ways: dict[str, Layout] = {"plain": "padded", "shared": "padded_shared"}
    logp, positions, gradients = dict[str, Tensor](), dict[str, int](), dict[str, list[Tensor]]()
    for way, layout in ways.items():  # the first pass warms up
        _, logp[way], positions[way] = compute(policy, examples, layout, backward)
        gradients[way] = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    times = {way: list[float]() for way in ways}
    for _ in range(rounds):
        for way, layout in ways.items():
            times[way].append(compute(policy, examples, layout, backward)[0])
    pairs = zip(gradients["plain"], gradients["shared"], strict=True)
    return figure(ratios(times["plain"], times["shared"]), "times as fast", better="higher"), {
        "cpu_seconds": {way: round(median(seconds), 3) for way, seconds in times.items()},
        "positions": positions,
        "largest_logp_difference": float((logp["plain"] - logp["shared"]).abs().max()),
        "largest_gradient_difference": max((float((a - b).norm() / (a.norm() + 1e-12)) for a, b in pairs), default=0.0),
    }


def main() -> int:
    """Measure, print, write; 1 if the two ways differ."""
    parser = argparse.ArgumentParser(description="Speed of steps with shared prefixes.")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way (default 5)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    figures, details, equal = dict[str, Figure](), dict[str, dict[str, Any]](), True
    for model in MODELS:
        policy = model_of(model)
        for shape, numbers in SHAPES.items():
            examples = step_of(*numbers)
            for name, backward in (("training", True), ("without gradient", False)):
                case = f"{model}: {shape}: {name}"
                figures[case], found = compare(policy, examples, rounds, backward)
                equal &= found["largest_logp_difference"] < LOGP and found["largest_gradient_difference"] < GRADIENT
                details[case] = found
                print(f"{show({case: figures[case]})}  {found}", flush=True)
    command = f"python benchmarks/shared_prefix.py --rounds {rounds}"
    write(RESULTS / "shared_prefix.json", command, figures, details)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
