"""Do several GPUs learn what one learns? Tiny models in float32, each strategy, whole runs by ``align train``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from correct import Correct, apart, expect, losses_of
from recording import Bench, spread

ALGORITHMS = ("sft", "dpo", "grpo", "ppo")
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"type": "ddp"},
    "fsdp": {"type": "fsdp"},
    "fsdp, zero2": {"type": "fsdp", "reshard_after_forward": False},
    "fsdp, offload": {"type": "fsdp", "offload": True},
    "fsdp, sharded checkpoints": {"type": "fsdp", "checkpoints": "sharded"},
    "fsdp, replicas of two": {"type": "fsdp", "shard_size": 2},
}
LEAST = {"fsdp, replicas of two": 4}
"""Devices that a strategy needs to be another one than plain fsdp, where that is more than two."""
TOLERANCE = 1e-4
"""Of each loss, and of the final weights over the distance that training moved them."""


class Several:
    """Each algorithm on one device, once, and then on all."""

    def __init__(self, bench: Bench) -> None:
        self.work = Correct(bench)
        self.device, self.count = bench.device, 2 if bench.quick else torch.cuda.device_count()
        self.alone: dict[str, Path] = {}

    def same(self, algorithm: str, strategy: str) -> dict[str, Any]:
        """Compare the losses and the final weights of all devices with those of one."""
        needed = LEAST.get(strategy, 2)
        if self.count < needed:
            return {"skipped": f"needs {needed} GPUs"}
        if algorithm not in self.alone:
            self.alone[algorithm] = self.work.train(f"{algorithm} alone", algorithm, self.device)
        devices = {"strategy": STRATEGIES[strategy], "count": self.count}
        run = self.work.run(f"{algorithm} {strategy}", algorithm, self.device, devices=devices)
        one, all_ = self.alone[algorithm], self.work.commanded(run)
        found = {
            "devices": self.count,
            **spread(losses_of(one), losses_of(all_))._asdict(),
            "weights": apart(self.work.model, one, all_, algorithm),
        }
        expect(found["most"] < TOLERANCE, f"losses differ by {found['most']}")
        expect(found["weights"]["share"] < TOLERANCE, f"weights differ by {found['weights']['share']} of their way")
        return found


def main(bench: Bench) -> None:
    """Every strategy; a check without its GPUs is recorded as skipped."""
    several = Several(bench)
    for strategy in STRATEGIES:
        for algorithm in ALGORITHMS:
            bench.check(f"{algorithm}, {strategy}", partial(several.same, algorithm, strategy))
