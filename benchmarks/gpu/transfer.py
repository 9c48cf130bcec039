"""Weights from the trainer to vLLM servers by files, NCCL and CUDA IPC; the sync gate judges what arrives."""

from __future__ import annotations

import csv
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from making import model_in, run_of, write_rows
from recording import Bench

from align.core.training.launch import train

STEPS = 3


def trained(bench: Bench, weights: str, servers: int) -> dict[str, Any]:
    """Largest difference at the gate in a few steps of grpo, which stops at the first that is more than rounding."""
    gpus = torch.cuda.device_count()
    # IPC needs the server on the trainer's GPU; NCCL refuses two members on one; files want neither.
    needed = {"files": 1, "ipc": servers, "nccl": servers + 1}[weights]
    for reason, there in (("vLLM in this interpreter", find_spec("vllm")), (f"{needed} GPUs", gpus >= needed)):
        if not there:
            return {"skipped": f"needs {reason}"}
    rows = write_rows(bench.work / "rows.jsonl", "prompt", [(8 + n % 8, 1) for n in range(32)])
    output = bench.work / f"{weights}-{servers}"
    settings: dict[str, Any] = {"type": "vllm", "mode": "server", "weights": weights, "gpu_memory_utilization": 0.2}
    settings["servers"] = servers
    run = run_of(
        {"type": "grpo"},
        model_in(bench.work, "small"),
        rows,
        output,
        rollout={"generator": settings},
        train={"max_steps": STEPS},
    )
    train(run, progress=False)
    with open(output / "only" / "metrics.csv", newline="") as file:
        gaps = [float(row["sampling/sync_gap"]) for row in csv.DictReader(file) if row.get("sampling/sync_gap")]
    return {"largest_gap": max(gaps), "syncs": len(gaps)}


def main(bench: Bench) -> None:
    """Each way to one server, and those that have one for each GPU to two; a check without its GPUs is left out."""
    for weights, servers in (("files", 1), ("files", 2), ("ipc", 1), ("nccl", 1), ("nccl", 2)):
        bench.check(f"{weights}, {servers} server{'s' * (servers > 1)}", partial(trained, bench, weights, servers))
