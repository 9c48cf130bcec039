"""Curves as data for the page's script: which metrics a stage shows first, and their values, thinned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.core.report.read import StageFacts
from align.schemas.text import number

Points = Sequence[tuple[float, float]]
"""(step, value) in the order of the steps; a value may be NaN."""

MOST_POINTS = 1000
"""Points kept of a curve: more than a screen has pixels for; longer ones are means over neighbours."""
SMOOTHED_SHARE = 20
"""The start of smoothing: over about a twentieth of a curve."""

LEARNED_FROM_REWARDS = ("reward", "gold")
"""Shown first where a stage learns from rewards: the size of its loss says little."""
SAMPLED = ("kl", "entropy", "completions/mean_length")
LEARNED_FROM_ROWS = ("rewards/accuracies", "rewards/margins", "accuracy", "margin", "mean_token_accuracy", "entropy")
OPTIMIZER = ("grad_norm", "learning_rate")
MOST_PARTS = 4
"""Reward parts shown before "more"; losses by name as well."""
EXACT = ("learning_rate", "num_tokens")
"""Curves that are not smoothed, since they are set and not measured."""

TITLES = {
    "gold": "gold reward",
    "grad_norm": "gradient norm",
    "kl": "KL to the reference",
    "learning_rate": "learning rate",
    "loss": "loss",
    "mean_token_accuracy": "tokens predicted right",
    "num_tokens": "tokens seen",
    "completions/mean_length": "completion length, tokens",
    "completions/clipped_ratio": "completions cut off",
    "rewards/accuracies": "pairs ranked right",
    "rewards/margins": "reward margin of pairs",
    "reward_std": "reward spread within a prompt",
    "frac_reward_zero_std": "prompts with equal rewards",
}
"""Plain names of metrics; the others are shown under their own."""
LOWER_IS_BETTER = ("loss", "perplexity")
HIGHER_IS_BETTER = ("reward", "gold", "accuracies", "margins", "accuracy", "margin", "mean_token_accuracy")


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of a stage: the training curve and the held-out one."""

    name: str
    training: Points
    held_out: Points

    @property
    def title(self) -> str:
        """Return the metric's name in plain words."""
        if self.name.startswith("rewards/") and self.name.endswith("/mean"):
            return f"reward part: {self.name.split('/', 1)[1].removesuffix('/mean')}"
        return TITLES.get(self.name, self.name)

    @property
    def ends(self) -> tuple[str, str]:
        """Return the first and the last finite value as text; of the held-out curve, if there is one."""
        known = [y for _, y in self.held_out or self.training if math.isfinite(y)] or [math.nan]
        size = max(map(abs, known))
        # A value that is only rounding error next to the others is shown as 0.
        first, last = (number(y if not abs(y) < 1e-6 * size else 0.0) for y in (known[0], known[-1]))
        return first, last

    @property
    def lost(self) -> int:
        """Return the number of values that are not finite."""
        return sum(not math.isfinite(y) for _, y in [*self.training, *self.held_out])

    @property
    def summary(self) -> str:
        """Return ``5.98 → 3.3``."""
        first, last = self.ends
        return (f"{first} → {last}" if first != last else first) + (f", {self.lost} not finite" if self.lost else "")

    @property
    def range(self) -> tuple[str, str]:
        """Return the least and the largest finite value as text."""
        known = [y for _, y in [*self.training, *self.held_out] if math.isfinite(y)]
        return number(min(known)), number(max(known))


def curves_of(stage: StageFacts) -> dict[str, Curve]:
    """Return the curves of a stage that have a finite value, by metric."""
    names = sorted({name.removeprefix("val/") for name in stage.curves})
    found = {name: Curve(name, stage.curves.get(name, []), stage.curves.get(f"val/{name}", [])) for name in names}
    return {
        name: curve
        for name, curve in found.items()
        if any(math.isfinite(y) for _, y in [*curve.training, *curve.held_out])
    }


def main_curves(names: Sequence[str], from_rewards: bool) -> list[str]:
    """Return the metrics to show first, in order: what matters for the stage's kind of algorithm."""
    losses = sorted((name for name in names if _last(name) in LOWER_IS_BETTER), key=lambda name: (name != "loss", name))
    if from_rewards:
        rewards = sorted((n for n in names if _last(n) in LEARNED_FROM_REWARDS), key=lambda n: (n != "reward", n))
        parts = [name for name in names if name.startswith("rewards/") and name.endswith("/mean")]
        shown = [*rewards, *(parts[:MOST_PARTS] if len(parts) > 1 else []), *SAMPLED, *losses[:1], *OPTIMIZER]
    else:
        shown = [*losses[:MOST_PARTS], *LEARNED_FROM_ROWS, *OPTIMIZER]
    return [name for name in dict.fromkeys(shown) if name in names]


def goals(stage: StageFacts) -> list[Curve]:
    """Return the held-out curves of a stage that have a better side, and two values or more: what improved."""
    curves = curves_of(stage)
    first = main_curves(list(curves), stage.from_rewards)
    ordered = [*first, *(name for name in curves if name not in first)]
    return [curves[name] for name in ordered if better(name) and len(curves[name].held_out) > 1]


def better(name: str) -> str:
    """Return ``higher`` or ``lower``, the better side of a metric; "" where it has none."""
    if _last(name) in LOWER_IS_BETTER:
        return "lower"
    return "higher" if _last(name) in HIGHER_IS_BETTER else ""


def as_data(stages: Sequence[tuple[int, StageFacts]]) -> dict[str, Any]:
    """Return one stage of several runs as the page's script reads it. stages: (number of the run, its stage).

    Charts come in the order of the page; each has a line for each run and part: training and held-out rows.
    """
    by_run = [(run, curves_of(stage)) for run, stage in stages]
    names = list(dict.fromkeys(name for _, curves in by_run for name in curves))
    first = main_curves(names, any(stage.from_rewards for _, stage in stages))
    ordered = [*first, *sorted(name for name in names if name not in first)]
    charts = []
    for name in ordered:
        lines = [line for run, curves in by_run if name in curves for line in _lines(run, curves[name])]
        title = next(curves[name].title for _, curves in by_run if name in curves)
        charts.append({"name": name, "title": title, "main": name in first, "exact": name in EXACT, "lines": lines})
    tokens = {
        str(run): _columns(thin(curves["num_tokens"].training)) for run, curves in by_run if "num_tokens" in curves
    }
    return {"charts": charts, "tokens": tokens}


def _lines(run: int, curve: Curve) -> Iterator[dict[str, Any]]:
    for kind, points in (("train", curve.training), ("held", curve.held_out)):
        if points:
            yield {"run": run, "kind": kind, **_columns(thin(points))}


def _columns(points: Points) -> Mapping[str, list[float | None]]:
    """Return points as two columns; a value that is not finite is null, which breaks the line."""
    return {
        "x": [x for x, _ in points],
        "y": [float(f"{y:.6g}") if math.isfinite(y) else None for _, y in points],
    }


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """Reduce a curve to at most ``most`` points: the means over runs of neighbours."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _last(name: str) -> str:
    return name.split("/")[-1]
