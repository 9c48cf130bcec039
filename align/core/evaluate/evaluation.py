"""What was measured on a run's models, as ``evaluation.json`` in the run directory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from align.core.evaluate.statistics import wilson

FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Measure:
    """A share of held-out questions or pairs."""

    model: str
    """Whose: ``start``, or the stage that exported it."""
    name: str
    """What was counted (``right answers``)."""
    hits: int
    total: int

    @property
    def share(self) -> float:
        """hits / total."""
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies, at 95 % (Wilson)."""
        return wilson(self.hits, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} [{low:.0%} to {high:.0%}]".replace("%", " %")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said, and whether that was right, where this can be told."""

    model: str
    text: str
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out question and every model's answer."""

    question: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measures and samples, models in the order in which they were trained."""

    measures: tuple[Measure, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    """For a measure's name, what exactly it counts."""

    @property
    def models(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(measure.model for measure in self.measures))

    @property
    def names(self) -> list[str]:
        """Of the measures, in order."""
        return list(dict.fromkeys(measure.name for measure in self.measures))

    def find(self, model: str, name: str) -> Measure | None:
        """One measure."""
        return next((m for m in self.measures if (m.model, m.name) == (model, name)), None)

    def save(self, directory: Path) -> None:
        """Write ``evaluation.json``."""
        (directory / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Evaluation:
        """Read it back; nothing measured where there is none."""
        path = directory / FILE
        if not path.is_file():
            return cls()
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            tuple(Measure(**measure) for measure in told["measures"]),
            tuple(
                Sample(sample["question"], tuple(Answer(**answer) for answer in sample["answers"]))
                for sample in told["samples"]
            ),
            told["notes"],
        )
