"""The formulas beside what a GPU's allocator counted (benchmarks/results/gpu_memory.json), run by run."""

from __future__ import annotations

import json
import runpy
import statistics
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_the_formulas_are_within_a_tenth_of_what_a_gpu_took() -> None:
    compared = runpy.run_path(str(BENCHMARKS / "gpu" / "compare.py"))["compared"]
    checks = json.loads((BENCHMARKS / "results" / "gpu_memory.json").read_text())["checks"]
    training: list[float] = []
    for name, phase, measured, says in compared(checks):
        assert says == pytest.approx(measured, rel=0.1 if phase == "generation" else 0.05), (name, phase)
        training += [says / measured] if phase == "training" else []
    assert len(training) >= 40
    assert statistics.median(training) == pytest.approx(1, abs=0.02)
