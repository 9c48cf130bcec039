"""What all benchmarks of speed share: figures with their spread, the machine, versions, and the file of results.

A file of results is one JSON object:

    {"date", "command", "machine": {...}, "versions": {...},
     "figures": {NAME: {"value", "low", "high", "rounds", "unit", "better", "absolute"}},
     "details": {...}}                                  # whatever else a benchmark keeps

``compare.py`` reads ``figures`` alone, ``draw.py`` those of the comparison with TRL. Names, not positions, say what a
figure is of, so that figures can be added. Nothing in it names a path or a host.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "lightning", "trl", "accelerate", "datasets", "peft", "tokenizers")
COVERAGE = 0.95
"""Least probability that an interval holds the median, where there are values enough for it (six)."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number. ``low`` and ``high`` are the interval of ``median_interval``.

    absolute: comparable only with figures from a machine of the same shape; a ratio of two things that took turns in
    one run is comparable everywhere.
    """

    value: float
    low: float
    high: float
    rounds: int
    unit: str
    better: Literal["lower", "higher"] = "lower"
    absolute: bool = False


def figure(
    values: Sequence[float], unit: str, *, better: Literal["lower", "higher"] = "lower", absolute: bool = False
) -> Figure:
    """Return the median of repeated measurements with its interval."""
    low, high = median_interval(values)
    return Figure(*map(_rounded, (median(values), low, high)), len(values), unit, better, absolute)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each turn: both sides did it one right after the other, on the same state of the machine."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval that holds the true median with ``COVERAGE``, whatever the distribution of the noise is.

    From order statistics: the k-th smallest and the k-th largest of n values, where k is the largest with
    2 P(Binomial(n, 1/2) < k) <= 1 - COVERAGE. Below six values no k is, and it is the whole range.
    """
    ordered, n = sorted(values), len(values)
    below, k = 0.0, 0
    while k < n // 2:
        below += math.comb(n, k) / 2**n
        if 2 * below > 1 - COVERAGE:
            break
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def machine(threads: int | None = 1) -> dict[str, Any]:
    """Return the shape of the machine: what speed depends on, and nothing that names it. threads: that were used."""
    cpu = _proc("/proc/cpuinfo")
    flags = set(cpu.get("flags", "").split())
    vectors = [name for name in ("amx_tile", "avx512f", "avx2") if name in flags]
    memory = re.match(r"\d+", _proc("/proc/meminfo").get("MemTotal", ""))
    shape = {
        "processor": cpu.get("model name") or platform.machine(),
        "model": f"family {cpu.get('cpu family', '?')}, model {cpu.get('model', '?')}",
        "vectors": vectors[0] if vectors else "",
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[0]) / 2**20) if memory else None,
        "threads": threads,
    }
    try:
        import torch

        if torch.cuda.is_available():
            shape["gpu"] = torch.cuda.get_device_name()
    except ImportError:
        pass
    return shape


def _proc(path: str) -> dict[str, str]:
    """Return the first value of each key in a file of ``key: value`` lines; empty where there is none."""
    found: dict[str, str] = {}
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    return found


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(
    path: Path,
    command: str,
    figures: Mapping[str, Figure],
    details: Mapping[str, Any],
    *,
    threads: int | None = 1,
    packages: Iterable[str] = PACKAGES,
) -> None:
    """Write a file of results. command: what repeats it, without paths of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "machine": machine(threads),
        "versions": versions(packages),
        "figures": {name: asdict(each) for name, each in figures.items()},
        "details": details,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Return the figures of a file of results, and the rest of it. Raises ValueError for another file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        return {name: Figure(**each) for name, each in content.pop("figures").items()}, content
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no file of results") from error


def show(figures: Mapping[str, Figure]) -> str:
    """Return the figures as a table."""
    width = max(map(len, figures), default=0)
    lines = []
    for name, each in figures.items():
        spread = f"[{each.low:.4g} - {each.high:.4g}]"
        lines.append(f"{name:{width}}  {each.value:>9.4g}  {spread:22} {each.rounds:>3}  {each.unit}")
    return "\n".join(lines)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
