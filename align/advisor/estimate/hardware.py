"""What is known of accelerators: ``hardware.yaml``, dated and sourced."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from align.schemas.errors import AlignError, did_you_mean


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator, or any device of which only the memory is known.

    memory: bytes. bandwidth: bytes a second, 0 where unknown. peak: dense 16-bit FLOP a second, fp32: of true float32;
    0 where unknown.
    """

    name: str
    memory: float
    bandwidth: float = 0.0
    peak: float = 0.0
    fp32: float = 0.0
    bf16: bool = True


@functools.cache
def table() -> dict[str, Device]:
    """Every accelerator of the table, by its name."""
    read: dict[str, Any] = _read()
    return {row["name"]: _device(row) for row in read["gpus"]}


@functools.cache
def _read() -> dict[str, Any]:
    text = Path(__file__).with_name("hardware.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return values


def _device(row: dict[str, Any]) -> Device:
    memory, bandwidth, peak, fp32 = row["memory"] * 1e9, *(row[key] * 1e12 for key in ("bandwidth", "peak", "fp32"))
    return Device(row["name"], memory, bandwidth, peak, fp32, row.get("bf16", True))


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", re.sub(r"rtx(?=\d)", "rtx ", name.lower())))


def find(name: str, memory: float | None = None) -> Device | None:
    """The accelerator called so, with whatever other words around it ("NVIDIA A100-SXM4-80GB"), or None.

    memory: bytes; where a name has several sizes, the one that is nearest.
    """
    words = _words(name)
    matches = [
        (sum(map(len, own)), _device(row))
        for row in _read()["gpus"]
        for own in map(_words, (row["name"], *row["names"]))
        if own <= words
    ]
    if not matches:
        return None
    found = max(matches, key=lambda match: match[0])[1]
    if memory is None:
        return found
    family = [d for d in table().values() if d.name.split("-")[0] == found.name.split("-")[0]]
    return min(family, key=lambda d: (abs(d.memory - memory), d.name != found.name))


def named(name: str) -> Device:
    """The accelerator called so. Raises AlignError for one that the table lacks."""
    found = find(name)
    if found is None:
        raise AlignError(
            f"no accelerator is called {name!r}",
            did_you_mean(name, table()) + "; or give its memory: --memory GB",
            where="--device",
        )
    return found
