"""The head alone beside full logits: time of forward and backward, and of a pass without gradient; memory.

    python benchmarks/head.py [--rounds 7] [--shapes 400x512x32000 ...]

``tokens x width x vocabulary``, float32, one thread, the head learns. Three sides take turns in one process:

    align          ``token_logprobs`` with the policy's own sizes, metrics (entropy, accuracy, mean logit) included; in
                   the pass without gradient they are left out, as they are there
    cross entropy  of full logits, and nothing else
    TRL's          that, and the entropy and accuracy that its trainers report; without gradient log_softmax alone

All give the loss's gradient for hidden states and head, or with ``no gradient`` log-probabilities. Losses and
gradients must agree, else it fails. Peak memory is that of a process of its own for each side (getrusage), less what
was resident before. Writes results/head.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from figures import RESULTS, Figure, figure, ratios, show, write
from torch import Tensor
from torch.nn import functional

from align.core.models.policy import token_logprobs
from align.schemas.engine import KEPT, LOGITS, TILE

SHAPES = ("400x512x32000", "200x576x49152", "100x896x151936")
Inputs = tuple[Tensor, Tensor, Tensor]


def align(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Score with the policy's own sizes; metrics only where there is gradient."""
    vocabulary = len(weight)
    scores = token_logprobs(
        hidden,
        weight,
        None,
        target,
        LOGITS["cpu"] // vocabulary,
        tile=TILE["cpu"] // vocabulary,
        keep=KEPT["cpu"],
        metrics=torch.is_grad_enabled(),
    )
    return scores.logp_T


def cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Full logits and their cross entropy."""
    return -functional.cross_entropy(hidden @ weight.T, target, reduction="none")


def trl(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Cross entropy as TRL's SFTTrainer has it in training, with the metrics it reports; else log_softmax."""
    logits = hidden @ weight.T
    if not torch.is_grad_enabled():
        return logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    logp = -functional.cross_entropy(logits, target, reduction="none")
    with torch.no_grad():
        log_p = logits.log_softmax(-1)
        -(log_p.exp() * log_p).sum(-1)
        (logits.argmax(-1) == target).float().mean()
    return logp


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "align": align,
    "cross entropy": cross_entropy,
    "TRL's": trl,
}


def draw(shape: str) -> Inputs:
    """Return hidden states, a head and targets."""
    tokens, width, vocabulary = map(int, shape.split("x"))
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width).requires_grad_()
    weight = (torch.randn(vocabulary, width) * width**-0.5).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (tokens,))


def once(side: str, inputs: Inputs, gradient: bool) -> Tensor:
    """Run one side; gradients are left in the inputs."""
    hidden, weight, _ = inputs
    hidden.grad = weight.grad = None
    with torch.set_grad_enabled(gradient):
        logp_T = SIDES[side](*inputs)
    if gradient:
        logp_T.mean().backward()
    return logp_T.detach()


def check(inputs: Inputs) -> float:
    """Return the largest relative distance of a result or gradient from that of full logits. Fails above 1e-5."""
    found = []
    for side in ("align", "cross entropy"):
        logp_T = once(side, inputs, True)
        found.append([logp_T, *(x.grad for x in inputs[:2])])
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
    if worst > 1e-5:
        sys.exit(f"align's head is {worst} from full logits")
    return worst


def peak() -> int:
    """Return the highest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_alone(side: str, shape: str, answer: Connection) -> None:
    """Send the bytes that forward and backward add to the peak."""
    torch.set_num_threads(1)
    once(side, draw("8x16x100"), True)  # so that libraries and their scratch space are loaded
    inputs = draw(shape)
    before = peak()
    once(side, inputs, True)
    answer.send(peak() - before)


def memory(side: str, shape: str) -> float:
    """Return ``memory_alone`` in MiB, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=memory_alone, args=(side, shape, there))
    process.start()
    there.close()
    found: int = here.recv()
    process.join()
    return found / 2**20


def measure(shape: str, rounds: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Return the figures of one shape, and the distance of its results."""
    inputs = draw(shape)
    figures: dict[str, Figure] = {}
    distance = check(inputs)
    for kind, gradient in (("forward and backward", True), ("no gradient", False)):
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for turn in range(rounds + 1):
            for side in SIDES:
                started = time.process_time()
                once(side, inputs, gradient)
                if turn:  # the first warms up
                    seconds[side].append(time.process_time() - started)
        name = f"head, {shape}, {kind}"
        for side, own in seconds.items():
            figures[f"{name}: {side}"] = figure(own, "CPU s", absolute=True)
            if side != "align":
                figures[f"{name}: align / {side}"] = figure(ratios(seconds["align"], own), "ratio")
    return figures, {"distance": distance}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="tokens x width x vocabulary")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Figure] = {}
    details: dict[str, Any] = {"kept_bytes": KEPT["cpu"], "logits": LOGITS["cpu"], "tile": TILE["cpu"]}
    for shape in given.shapes:  # first, while this process is small: children inherit the peak of its resident set
        for side in SIDES:
            figures[f"head, {shape}, peak: {side}"] = figure([memory(side, shape)], "MiB", absolute=True)
    for shape in given.shapes:
        found, details[shape] = measure(shape, given.rounds)
        print(show(found), flush=True)
        figures |= found
    command = f"python benchmarks/head.py --rounds {given.rounds} --shapes {' '.join(given.shapes)}"
    write(RESULTS / "head.json", command, figures, details, packages=("torch",))


if __name__ == "__main__":
    main()
