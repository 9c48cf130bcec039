"""The checks' results as they come: each in the file before the next begins, a failure with its traceback."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

VERSIONS = ("torch", "transformers", "lightning", "peft", "tokenizers", "numpy")
GIB = 2**30


class Bench:
    """A group of checks: where it works, what it found, and when it must end. Figures in its file are kept."""

    def __init__(self, group: str, arguments: argparse.Namespace) -> None:
        self.group, self.quick, self.device = group, arguments.quick, "cpu" if arguments.quick else "cuda"
        self.ends = time.monotonic() + arguments.seconds[0]
        self.work = Path(tempfile.mkdtemp(prefix="align-gpu-"))
        self.file = Path(arguments.out) / f"gpu_{group}.json"
        self.here = environment()
        kept = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.found: dict[str, Any] = {"group": group, "environment": self.here, "checks": {}, **kept}
        os.environ["ALIGN_CACHE"] = str(self.work / "cache")

    def check(self, name: str, do: Callable[[], dict[str, Any]], again: bool = False) -> dict[str, Any]:
        """Do it, record it; what fails is recorded too, and what there is no time for is said to be left out.

        again: even where it is done already.
        """
        known: dict[str, Any] = self.found["checks"].get(name, {})
        if known.get("status") == "done" and not again:
            return known
        started = time.monotonic()
        if started > self.ends:
            outcome: dict[str, Any] = {"status": "no time"}
        else:
            try:
                outcome = {"status": "done", **do()}
            except (Exception, SystemExit) as error:
                told = traceback.format_exc().splitlines()
                outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2000], "trace": told[-24:]}
        outcome["seconds"] = round(time.monotonic() - started, 2)
        if any(self.here[name] != self.found["environment"][name] for name in ("device", "versions")):
            outcome["environment"] = self.here  # not the one that the file begins with
        self.found["checks"][name] = outcome
        partial = self.file.with_suffix(".part")
        partial.write_text(json.dumps(self.found, indent=1) + "\n")
        partial.replace(self.file)
        shown = {k: v for k, v in outcome.items() if not isinstance(v, dict | list) and k not in ("status", "seconds")}
        print(f"{outcome['status']:8} {self.group}: {name} ({outcome['seconds']} s) {shown}"[:140], flush=True)
        clear()
        return outcome


class Spread(NamedTuple):
    """Distance of two series, and of their first numbers."""

    first: float
    most: float


def spread(a: list[float], b: list[float]) -> Spread:
    """Largest absolute difference of two series of one length."""
    if len(a) != len(b):
        raise ValueError(f"series of {len(a)} and {len(b)} steps")
    gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return Spread(gaps[0], max(gaps))


def clear() -> None:
    """Give back what a check held, so that the next begins with nothing on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def environment() -> dict[str, Any]:
    """Device and versions."""
    told: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "device": "cpu",
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        told |= {
            "device": torch.cuda.get_device_name(0),
            "memory_gib": round(total / GIB, 2),
            "cuda": torch.version.cuda,
        }
        told["outside_torch_gib"] = round((total - free) / GIB, 2)
    return told
