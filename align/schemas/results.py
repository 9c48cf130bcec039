"""Results of a run, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StageResult:
    """A finished stage."""

    name: str
    directory: Path
    export: Path
    metrics: Mapping[str, float]
