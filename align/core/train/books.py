"""The engine's books: sums and counts over an optimizer step, all micro-batches and all ranks.

One flat vector a step carries everything that ranks must agree on (loss, metrics, flags), so one collective does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from align.core.algorithm.base import Metric, Outcome

Reduce = Literal["mean", "sum", "min", "max"]
_START: Mapping[str, float] = {"mean": 0.0, "sum": 0.0, "min": float("inf"), "max": float("-inf")}


class Books:
    """Metrics of one step (or one evaluation) being added up.

    Every rank must enter the same names in the same order; a rank with nothing to add enters empty tensors.
    """

    def __init__(self) -> None:
        self._how: dict[str, Reduce] = {}
        self._value: dict[str, Tensor] = {}
        self._count: dict[str, Tensor] = {}

    def add(self, name: str, entry: Metric | Tensor, count: float | None = None) -> None:
        """Enter values. ``count`` replaces their number as the mean's denominator share."""
        metric = entry if isinstance(entry, Metric) else Metric(entry)
        values = metric.values.detach().double().flatten()
        if name not in self._how:
            self._how[name] = metric.reduce
            self._value[name] = torch.full((), _START[metric.reduce], dtype=torch.float64, device=values.device)
            self._count[name] = torch.zeros((), dtype=torch.float64, device=values.device)
        if metric.reduce in ("mean", "sum"):
            self._value[name] = self._value[name] + values.sum()
        elif values.numel():
            extreme = values.min() if metric.reduce == "min" else values.max()
            pick = torch.minimum if metric.reduce == "min" else torch.maximum
            self._value[name] = pick(self._value[name], extreme)
        self._count[name] = self._count[name] + (values.numel() if count is None else count)

    def close(self) -> dict[str, float]:
        """Reduce over all ranks and return plain numbers; a mean over nothing is left out. Collective."""
        if not self._how:
            return {}
        table = torch.stack([torch.stack(list(self._value.values())), torch.stack(list(self._count.values()))])
        tables = gather(table)
        result: dict[str, float] = {}
        for column, (name, how) in enumerate(self._how.items()):
            values, count = tables[:, 0, column], float(tables[:, 1, column].sum())
            if count == 0 and how != "sum":
                continue
            if how == "mean":
                result[name] = float(values.sum()) / count
            else:
                result[name] = float(values.sum() if how == "sum" else values.min() if how == "min" else values.max())
        return result


class HeldOut:
    """Sums over one held-out set; its loss is made as a step's, with the whole set as the step."""

    def __init__(self) -> None:
        self.books = Books()
        self.counts: Counter[str] = Counter()
        self.terms: list[tuple[str, float]] = []

    def enter(self, outcome: Outcome) -> None:
        """One micro-batch."""
        self.terms = [(term.per, term.weight) for term in outcome.terms]
        for index, term in enumerate(outcome.terms):
            self.books.add(f"_term{index}", Metric(term.values, "sum"))
        for name, metric in outcome.metrics.items():
            self.books.add(name, metric)

    def close(self) -> dict[str, float]:
        """The set's metrics, ``loss`` first. Collective."""
        metrics = self.books.close()
        sums = [metrics.pop(f"_term{index}") for index in range(len(self.terms))]
        loss = sum(w * x / max(self.counts[per], 1) for (per, w), x in zip(self.terms, sums, strict=True))
        return {"loss": loss, **metrics}


def gather(table: Tensor) -> Tensor:
    """[...] on each rank -> [world, ...] on the CPU of all of them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return table.cpu()[None]
    parts = [torch.empty_like(table) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, table)
    return torch.stack(parts).cpu()
