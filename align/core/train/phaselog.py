"""The record of a phase's answers: a file of samples, a table on the terminal, and the notice to plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from align.core.online.collect import Asked
from align.core.plugin_system.registry import registry
from align.core.rewards.scorer import Scored
from align.core.training.run_directory import StageDirectory
from align.core.training.sample_log import show_samples, write_samples
from align.schemas.rollout import Rollout
from align.schemas.run import Run


class PhaseLog:
    """A callable that gets every phase's answers, on one process."""

    def __init__(self, run: Run, place: StageDirectory, rollout: Rollout) -> None:
        self.run, self.place, self.rollout = run, place, rollout

    def __call__(self, phase: int, asked: Sequence[Asked], scored: Sequence[Scored]) -> None:
        """Write ``STAGE/samples/phase-000001.parquet``, show a table, and send the notice ``rollouts_scored``."""
        rows = _rows(asked, scored)
        if self.rollout.samples == "parquet":
            write_samples(self.place.path / "samples" / f"phase-{phase + 1:06d}.parquet", rows)
        if self.rollout.show:
            show_samples(Console(stderr=True), rows, self.rollout.show)
        registry.notify("rollouts_scored", run=self.run, phase=phase + 1, rollouts=rows)


def _rows(asked: Sequence[Asked], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    rewards = iter(scored)
    rows = []
    for each in asked:
        for heard in each.answers:
            score = next(rewards)
            rows.append(
                {
                    "source": each.source,
                    "group": each.place,
                    "prompt": each.content,
                    "completion": heard.text,
                    "length": len(heard.tokens),
                    "finish": heard.finish,
                    "reward": score.reward,
                    "parts": score.parts,
                    "outcomes": score.outcomes,
                    "gold": None if heard.gold is None else heard.gold.value,
                    "sampled_logp": heard.logp.tolist(),
                }
            )
    return rows
