"""The formulas of ``align estimate`` beside what gpu_memory.json measured.

    python benchmarks/gpu/compare.py gpu_memory.json

For every measured run: GiB of live tensors at the fullest instant of a training step and of a phase of answers, what
the formulas say of the same stage, model and micro-batches (of their allowance for a CUDA context, workspaces and
fragmentation only the workspaces, which torch counts), and their ratio.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from align.advisor.estimate import engine_memory
from align.advisor.estimate.engine_memory import MemoryLayout
from align.advisor.estimate.memory_formulas import BASE
from align.advisor.estimate.model_shape import ModelShape, from_config
from align.core.estimation.batches import needs_of
from align.core.plugin_system.registry import registry
from align.schemas.engine import LOGITS, Batches, Micro
from align.schemas.run import Stage

GIB = 2**30
WORKSPACES = 2**26
"""Bytes of cuBLAS's workspaces: 32 MiB for each thread that multiplies, forward's and backward's, on Hopper."""


@contextmanager
def head_before() -> Iterator[None]:
    """Count the head as it was until 2026-11-30, for runs recorded with it: three float32 copies of a chunk.

    In 16 bits 14 bytes a logit from the second chunk on; in backward 8, or in 16 bits 10 or the product and 6. Nothing
    was kept. Drop this when gpu_memory.json has been measured again.
    """

    def chunk(shape: ModelShape, micro: Micro) -> tuple[int, bool]:
        most = LOGITS["cuda"] // shape.vocab
        return max(1, min(micro.scored, most)) * shape.vocab, micro.scored > most

    def logits(shape: ModelShape, how: MemoryLayout, micro: Micro, trains: bool = True) -> float:
        size, several = chunk(shape, micro)
        return (14.0 if how.kind.compute == 2 and several else 12.0) * size + engine_memory.head_cast(shape, how)

    def logits_back(shape: ModelShape, how: MemoryLayout, micro: Micro) -> float:
        size, several = chunk(shape, micro)
        if how.kind.compute == 4:
            return (8.0 if several else 4.0) * size
        product = 2.0 * shape.embedding + 6.0 * size
        return max(product, 10.0 * size if several else 0.0) + engine_memory.head_cast(shape, how)

    with patch.multiple(engine_memory, logits=logits, logits_back=logits_back, kept_tokens=lambda *_: 0):
        yield


def estimated(check: dict[str, Any]) -> dict[str, float]:
    """Bytes of each phase by the formulas, of the base the workspaces alone."""
    stage = Stage.model_validate(check["stage"])
    algorithm: Any = registry.build("algorithm", stage.algorithm)
    if stage.rollout is not None:
        algorithm.configure(stage.rollout)
    needs = needs_of(algorithm)
    packed = check["layout"] == "packed" and check["attention"] == "sdpa"  # transformers makes a mask of the positions
    micros = tuple(Micro(m["rows"], m["length"], m["scored"], bool(m["masked"]) or packed) for m in check["micros"])
    answers = check["answers_at_once"] or 0
    batches = Batches(
        micros, answers, answers // needs.group, check["prompt_tokens"] or 0, check["max_tokens"] or 0, measured=True
    )
    how = engine_memory.layout_of(stage, "cuda", 1)
    shape = from_config({"model_type": "llama", **check["config"]})
    with head_before() if "kept_logits_bytes" not in check else nullcontext():
        phases = engine_memory.stage_memory(stage, needs, shape, how, batches)
    return {phase: sum(parts.values()) - BASE + WORKSPACES for phase, parts in phases.items()}


def compared(checks: dict[str, Any]) -> Iterator[tuple[str, str, float, float]]:
    """Of every measured run and phase: its name, the phase, bytes measured, bytes by the formulas."""
    for name, check in checks.items():
        if "stage" not in check:
            continue
        found = {"training": check["bytes_by_step"][-1]}
        if "kept_logits_bytes" in check:  # earlier runs sampled with another cache, of which no formula is left
            found["generation"] = check["bytes_between"][-1]
        says = estimated(check)
        for phase, most in found.items():
            if phase in says:
                yield name, phase, most - check["bytes_at_start"], says[phase]


def main() -> int:
    """A table, and how far the ratios lie apart."""
    ratios: dict[str, list[float]] = {"training": [], "generation": []}
    for name, phase, measured, says in compared(json.loads(Path(sys.argv[1]).read_text())["checks"]):
        ratios[phase].append(says / measured if measured > 0 else float("nan"))
        told = f"measured {measured / GIB:7.3f}  formulas {says / GIB:7.3f}  ratio {ratios[phase][-1]:.3f}"
        print(f"{name:64} {phase:10} {told}")
    for phase, of in ratios.items():
        if not of:
            print(f"{phase}: no run recorded with today's code")
            continue
        print(f"{phase}: ratio {min(of):.3f} to {max(of):.3f}, median {statistics.median(of):.3f}, {len(of)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
