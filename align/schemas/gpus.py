"""The GPUs that align knows: ``gpus.yaml``, dated and sourced, and how a name finds its GPU there."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from align.schemas.errors import AlignError, did_you_mean

OLD_GEFORCE = re.compile(r"\bGTX|RTX ?20", re.IGNORECASE)
"""Series that had no bfloat16 arithmetic, for those of their GPUs that are not listed."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or any device of which only the memory is known.

    memory: bytes. bandwidth: bytes a second. peak: dense 16-bit FLOP a second; fp32: of true float32. None where
    unknown. family: the name without a size, which GPUs that differ in memory share.
    """

    name: str
    memory: float
    bandwidth: float | None = None
    peak: float | None = None
    fp32: float | None = None
    bf16: bool = True
    family: str = ""


@functools.cache
def devices() -> Mapping[str, Device]:
    """Return every listed GPU by its name, in the order of the list."""
    return {device.name: device for device, _ in _listed()}


@functools.cache
def _listed() -> list[tuple[Device, list[str]]]:
    """Return each GPU of the list with its aliases."""
    return [(_device(row), [str(alias) for alias in row["aliases"]]) for row in read()["gpus"]]


def read() -> dict[str, Any]:
    """Return the list as it stands in the file."""
    text = Path(__file__).with_name("gpus.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return values


def _device(row: Mapping[str, Any]) -> Device:
    bandwidth, peak, fp32 = (None if row[key] is None else row[key] * 1e12 for key in ("bandwidth", "peak", "fp32"))
    return Device(row["name"], row["memory"] * 1e9, bandwidth, peak, fp32, row["bf16"], row["family"])


@functools.cache
def sizes_by_word() -> Mapping[str, tuple[int, ...]]:
    """Return the sizes in GB, in ascending order, of GPUs by the one word of a sentence (``a100``, ``3090``)."""
    sizes: dict[str, set[int]] = {}
    words: dict[str, str] = {}
    for device, aliases in _listed():
        sizes.setdefault(device.family, set()).add(round(device.memory / 1e9))
        # An alias keeps its prefix: ``RTX 6000`` must not make a GPU of every 6000.
        names = [re.sub("^[RG]TX ", "", device.family), *aliases]
        words |= {name.lower(): device.family for name in names if name.isalnum()}
    return {word: tuple(sorted(sizes[family])) for word, family in words.items()}


def find(name: str, memory: float | None = None) -> Device | None:
    """Return the GPU called so, with whatever other words around it ("NVIDIA A100-SXM4-80GB"), or None.

    memory: bytes; of a family of several sizes the nearest is returned.
    """
    words = _words(name)
    matches = [(length, device) for own, length, device in _names() if own <= words]
    if not matches:
        return None
    found = max(matches, key=lambda match: match[0])[1]
    if memory is None:
        return found
    family = [device for device in devices().values() if device.family == found.family]
    return min(family, key=lambda device: (abs(device.memory - memory), device.name != found.name))


@functools.cache
def _names() -> list[tuple[frozenset[str], int, Device]]:
    """Return the words of each name and alias, their length in characters, and the GPU."""
    named = [(_words(name), device) for device, aliases in _listed() for name in (device.name, *aliases)]
    return [(words, sum(map(len, words)), device) for words, device in named]


def _words(name: str) -> frozenset[str]:
    spaced = re.sub(r"(rtx|gtx)(?=\d)", r"\1 ", name.lower())
    return frozenset(re.findall(r"[a-z0-9]+", spaced))


def named(name: str) -> Device:
    """Return the GPU called so. Raises AlignError for one that is not listed."""
    found = find(name)
    if found is None:
        raise AlignError(
            f"no accelerator is called {name!r}",
            did_you_mean(name, devices()) + "; or give its memory too: --memory GB",
            where="--device",
        )
    return found


def has_bfloat16(name: str) -> bool:
    """Return whether a GPU has bfloat16 arithmetic; of those not listed, all but old GeForce series are taken to."""
    found = find(name)
    return not OLD_GEFORCE.search(name) if found is None else found.bf16
