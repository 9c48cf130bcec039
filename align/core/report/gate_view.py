"""The result of ``align gate`` as the report shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.report.samples import conversation, shortened
from align.schemas.errors import AlignError

MOST_FLIPS = 1_000


@dataclass(frozen=True, slots=True)
class GateUnit:
    """A domain or an eval: its paired difference, turned so that above 0 is better, and the verdict.

    ``low`` to ``high`` is the interval of the difference; ``margin`` the loss that is accepted, above 0; None of a unit
    that is only watched. baseline, candidate: the scores, None for a domain of several evals.
    """

    name: str
    verdict: str
    diff: float
    low: float
    high: float
    margin: float | None = None
    role: str = ""
    baseline: float | None = None
    candidate: float | None = None
    rows: int | None = None
    gained: int | None = None
    lost: int | None = None
    rows_needed: int | None = None
    """Rows that the margin needs, where these do not support it."""
    blocking: bool = False


@dataclass(frozen=True, slots=True)
class GateFlip:
    """An item that one side gets right and the other does not. change: of its score, above 0 where it got better."""

    eval: str
    change: float
    prompt: str
    expected: str
    baseline: str
    candidate: str


@dataclass(frozen=True, slots=True)
class GateView:
    """A gate's verdict, and what it rests on.

    verdict: pass, regressed, inconclusive, invalid or refused. baseline, candidate: names of the models. problems: why
    two runs cannot be compared. checks: other limits as (name, sentence, whether it holds).
    """

    verdict: str
    baseline: str
    candidate: str
    domains: tuple[GateUnit, ...] = ()
    evals: tuple[GateUnit, ...] = ()
    flips: tuple[GateFlip, ...] = ()
    checks: tuple[tuple[str, str, bool], ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    blocking: tuple[str, ...] = ()
    """Names of the units and checks that led to the verdict."""

    @property
    def scale(self) -> tuple[float, float]:
        """Return the ends of the forest plot's axis: they hold every interval, every margin and 0."""
        units = [*self.domains, *self.evals]
        ends = [end for unit in units for end in (unit.low, unit.high, unit.diff, -(unit.margin or 0.0))]
        low, high = min([0.0, *filter(math.isfinite, ends)]), max([0.0, *filter(math.isfinite, ends)])
        room = 0.08 * (high - low or 1.0)
        return low - room, high + room

    @classmethod
    def read(cls, path: Path) -> GateView:
        """Read what ``align gate --json`` wrote. Raises AlignError for another file."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_json(values)
        except OSError as error:
            raise AlignError(f"cannot be read: {error.strerror}", where=str(path)) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            fix = "write it with `align gate ... --json FILE`"
            raise AlignError("is not the JSON of a gate", fix, where=str(path)) from None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GateView:
        """Return the view of a gate's JSON (``GateReport.to_json``). Raises KeyError or TypeError for other values."""
        result = values["result"] or {}
        blocking = frozenset(result.get("blocking", ()))
        flips = [_flip(flip) for of_eval in values["flips"].values() for flip in of_eval]
        checks = [(each["name"], _limits(each), each["verdict"] != "failed") for each in values["checks"]]
        return cls(
            verdict=str(values["outcome"]),
            baseline=str(values["baseline"]["model"]),
            candidate=str(values["candidate"]["model"]),
            domains=tuple(_unit(each, blocking) for each in result.get("domains", ())),
            evals=tuple(_unit(each, blocking) for each in result.get("benchmarks", ())),
            flips=tuple(flips[:MOST_FLIPS]),
            checks=tuple(checks),
            problems=tuple(values["problems"]),
            warnings=tuple(values["warnings"]),
            blocking=tuple(result.get("blocking", ())),
        )


def _unit(values: Mapping[str, Any], blocking: frozenset[str]) -> GateUnit:
    measured, support = values["comparison"], values.get("support") or {}
    watched = values["margin"] is None
    untold = values["verdict"] == "inconclusive"
    return GateUnit(
        name=values["name"],
        verdict="no clear change" if watched and values["verdict"] == "inconclusive" else values["verdict"],
        diff=_number(measured["difference"]),
        low=_number(measured["low"]),
        high=_number(measured["high"]),
        margin=values["margin"],
        role=values["role"],
        baseline=values["baseline"],
        candidate=values["candidate"],
        rows=measured["rows"],
        gained=measured.get("gained"),
        lost=measured.get("lost"),
        rows_needed=support["rows_needed"] if untold and not support.get("supported", True) else None,
        blocking=values["name"] in blocking,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _limits(check: Mapping[str, Any]) -> str:
    low, high = check["least"], check["most"]
    limits = [f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else ""]
    return f"{check['value']:.3g}; {' and '.join(filter(None, limits))}"


def _flip(values: Mapping[str, Any]) -> GateFlip:
    sides = {name: shortened("\n\n".join(_texts(values[name]))) for name in ("prompt", "baseline", "candidate")}
    expected = values["target"]
    return GateFlip(
        values["eval"], float(values["change"]), expected="" if expected is None else _text(expected), **sides
    )


def _texts(value: Any) -> Sequence[str]:
    """Return a prompt or the outputs of all samples as texts, whatever they are nested in."""
    if isinstance(value, list) and not all(isinstance(each, Mapping) and "role" in each for each in value):
        return [text for each in value for text in _texts(each)]
    return [_text(value)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else conversation(json.dumps(value, ensure_ascii=False))
