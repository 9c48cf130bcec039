"""A checkpoint, from finite weights to a rotated directory, beside a plain ``torch.save`` of the same state.

    python benchmarks/checkpoint.py                  # the state of SmolLM2-135M with AdamW: 1.6 GB, twice on the disk
    python benchmarks/checkpoint.py --share 0.05     # a twentieth of its layers, to try it

The sides take turns; both flush to the disk. align's also hashes every byte, looks for numbers that are not finite,
removes older checkpoints and asks for the newest one, as training does at a save and at the hand-over to the export.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import figures
import torch

from align.core.engine import checkpoint

VOCABULARY, WIDTH, INNER, KEYS, LAYERS = 49_152, 576, 1536, 192, 30
"""The shape of SmolLM2-135M: 134.5 million parameters, the head tied to the embeddings."""


def main() -> None:
    """Measure, print and write the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--share", type=float, default=1.0, help="of the layers and the vocabulary")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--directory", type=Path, help="on the disk to measure; a temporary one by default")
    options.add_argument("--out", type=Path, default=figures.RESULTS / "checkpoint.json")
    given = options.parse_args()
    torch.set_num_threads(1)
    state = made(given.share)
    size = sum(t.numel() * t.element_size() for part in state.values() for t in part.values())
    with tempfile.TemporaryDirectory(dir=given.directory) as scratch:
        seconds = measured(state, Path(scratch), given.rounds)
    found = {f"checkpoint/{name}": figures.figure(each, "s", absolute=True) for name, each in seconds.items()}
    against = figures.ratios(seconds["align"], seconds["torch.save"])
    found["checkpoint/align beside torch.save"] = figures.figure(against, "x")
    print(figures.show(found))
    details = {"bytes": size, "share": given.share, "time": "processor time of the process"}
    figures.write(given.out, "python benchmarks/checkpoint.py", found, details)


def made(share: float) -> dict[str, dict[str, torch.Tensor]]:
    """Return weights and both moments as a checkpoint holds them."""
    torch.manual_seed(0)
    shapes = {"embeddings": (round(VOCABULARY * share), WIDTH)}
    for layer in range(round(LAYERS * share) or 1):
        for name, rows in (("q", WIDTH), ("k", KEYS), ("v", KEYS), ("o", WIDTH), ("gate", INNER), ("up", INNER)):
            shapes[f"{layer}.{name}"] = (rows, WIDTH)
        shapes[f"{layer}.down"] = (WIDTH, INNER)
        shapes |= {f"{layer}.norm{which}": (WIDTH,) for which in range(2)}  # type: ignore[dict-item]
    return {
        part: {name: torch.randn(shape) for name, shape in shapes.items()} for part in ("weights", "mean", "square")
    }


def measured(state: dict[str, dict[str, torch.Tensor]], directory: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of processor time of each side and of align's parts, by name."""
    seconds: dict[str, list[float]] = defaultdict(list)
    plain, root = directory / "plain.pt", directory / "checkpoints"

    @contextmanager
    def timed(*names: str) -> Iterator[None]:
        began = time.process_time()
        yield
        for name in names:
            seconds[name].append(time.process_time() - began)

    for step in range(1, rounds + 2):  # the first round warms up
        gc.collect()
        with timed("torch.save"):
            save_plainly(state, plain)
        plain.unlink()
        with timed("align"):
            with timed("align: finite"):
                assert checkpoint.all_finite(state["weights"].values())
            with timed("align: write and hash"):
                checkpoint.save(checkpoint.at(root, step), state, {})
            with timed("align: rotate, hand over"):
                checkpoint.rotate(root, 1, None)
                assert checkpoint.fault_of(checkpoint.at(root, step)) is None
    assert checkpoint.verify(checkpoint.at(root, rounds + 1)) is None
    shutil.rmtree(root)
    return {name: each[1:] for name, each in seconds.items()}


def save_plainly(state: Any, path: Path) -> None:
    """Write a state with torch alone, and flush it."""
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
