"""Memory and time of the log-probability primitive against full logits, forward and backward.

    python benchmarks/logprobs.py

4,096 scored tokens, a vocabulary of 128,256 (Llama 3's), float32. Each measurement is its own process; memory is
the peak of its resident set (getrusage), which the allocator cannot hide, less what was resident before: the hidden
states and the head's weight, which both ways need alike. What is left holds the logits or chunks, and the gradients
(the head's alone takes 1,002 MiB at width 2048, either way). Nothing is kept for backward, as under gradient
checkpointing; benchmarks/head.py measures what the policy does else.
Writes results/logprobs.json and fails unless the peak is under a fifth of that with full logits.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import resource
import sys
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from align.core.models.policy import token_logprobs
from align.schemas.engine import LOGITS

TOKENS, VOCABULARY = 4096, 128_256
CASES = {
    "full fine-tuning, width 1024": (1024, True),
    "full fine-tuning, width 2048": (2048, True),
    "frozen head (LoRA), width 2048": (2048, False),
}
MIB = 2**20


def full_logits(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """As most trainers do it."""
    return (hidden @ weight.T).log_softmax(-1).gather(-1, target[:, None])[:, 0]


def chunked(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """align's primitive with the policy's own chunk, metrics (entropy, accuracy, mean logit) included."""
    return token_logprobs(hidden, weight, None, target, LOGITS["cpu"] // len(weight)).logp_T


WAYS = {"full_logits": full_logits, "align": chunked}


def peak() -> int:
    """Highest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(way: str, width: int, trains_head: bool, answer: Connection) -> None:
    """One forward and backward; sends [peak bytes, CPU seconds, checksum of the result]."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def draw(tokens: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.empty(tokens, width).normal_().requires_grad_()
        weight = torch.empty(vocabulary, width).normal_(std=width**-0.5).requires_grad_(trains_head)
        return hidden, weight, torch.randint(vocabulary, (tokens,))

    WAYS[way](*draw(8, 100)).sum().backward()  # so that libraries and their scratch space are loaded
    inputs = draw(TOKENS, VOCABULARY)
    before, start = peak(), time.process_time()
    logp_T = WAYS[way](*inputs)
    logp_T.mean().backward()
    seconds = time.process_time() - start
    answer.send([peak() - before, seconds, float(logp_T.detach().double().sum())])


def run(way: str, width: int, trains_head: bool) -> tuple[float, float, float]:
    """``measure`` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(way, width, trains_head, there))
    process.start()
    there.close()
    bytes_, seconds, checksum = here.recv()
    process.join()
    return bytes_ / MIB, seconds, checksum


def main() -> int:
    """Measure, print, write; 1 if the promise does not hold."""
    results, kept = {}, True
    for case, (width, trains_head) in CASES.items():
        rows = {way: run(way, width, trains_head) for way in WAYS}
        share = rows["align"][0] / rows["full_logits"][0]
        kept &= share < 0.2
        results[case] = {
            **{way: {"peak_mib": round(mib), "cpu_seconds": round(s, 1)} for way, (mib, s, _) in rows.items()},
            "share_of_full_logits": round(share, 3),
            "relative_difference": abs(rows["align"][2] / rows["full_logits"][2] - 1),
        }
        print(case, json.dumps(results[case], indent=2), flush=True)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "tokens": TOKENS,
        "vocabulary": VOCABULARY,
        "dtype": "float32",
        "threads": 1,
        "logits_at_a_time": LOGITS["cpu"],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": f"{platform.system()} {platform.machine()}, CPU",
        "results": results,
    }
    target = Path(__file__).parent / "results" / "logprobs.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
