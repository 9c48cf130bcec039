"""Best of n: samples several answers and keeps the best, as rows that a later stage can learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from align import Content, RowGenerator
from align.rewards import reaches, tied
from align.rl import best_of_k, kl_bound, pass_at_k, powers_of_two


class BestOfN(RowGenerator):
    """Samples ``num_generations`` answers to each prompt and writes rows of the best.

    ``data.train: stage:NAME`` of a later stage reads them.
    With a later ``sft`` stage it is rejection sampling (RAFT, 2304.06767), with ``dpo`` best-against-worst pairs.
    """

    name = "best_of_n"
    paper = "https://arxiv.org/abs/2401.01879"
    learning_rate = 0.0
    """It learns nothing."""

    class Config(RowGenerator.Config):
        """Settings of best of n."""

        num_generations: Annotated[int, Field(ge=2)] = 16
        """n, answers to each prompt (2401.01879: the KL to the model grows as log n only)."""
        make: Literal["completions", "pairs"] = "completions"
        """Rows of the best answer (RAFT, 2304.06767), or of the best and the worst."""
        minimum: float | None = None
        """A prompt whose best reward is below this makes no row: with a verifier 1, so that only right answers are
        taught (RFT, 2308.01825); null: all make one."""
        success: float = 1.0
        """An answer with at least this reward is right, for pass@k (2107.03374)."""

    config: Config

    def curves(self, rewards: Sequence[Sequence[float | None]]) -> dict[str, float]:
        """``pass@k`` and ``best@k`` for k = 1, 2, 4, ..., n, over prompts with k scored answers; ``kl_bound``."""
        scored: list[list[float]] = []
        for group in rewards:
            scored.append([reward for reward in group if reward is not None])
        curves = {"kl_bound": kl_bound(self.config.num_generations)}
        for k in powers_of_two(self.config.num_generations):
            if known := [each for each in scored if len(each) >= k]:
                right = [self._successes(each) for each in known]
                passes = [pass_at_k(len(each), c, k) for each, c in zip(known, right, strict=True)]
                curves[f"pass@{k}"] = float(np.mean(passes))
                curves[f"best@{k}"] = float(np.mean([best_of_k(each, k) for each in known]))
        return curves

    def _successes(self, rewards: Sequence[float]) -> int:
        return sum(reaches(reward, self.config.success) for reward in rewards)

    def rows(self, prompt: Content, answers: Sequence[tuple[str, float | None]]) -> list[dict[str, Any]]:
        """The training rows of one prompt: one, or none where nothing scored, was good enough or made a difference.

        Answers come as (text, reward); among equals the first is taken. A prompt of messages gets messages.
        """
        scored = [(reward, text) for text, reward in answers if reward is not None]
        if not scored:
            return []
        best, worst = max(scored, key=lambda each: each[0]), min(scored, key=lambda each: each[0])
        if self.config.minimum is not None and not reaches(best[0], self.config.minimum):
            return []

        def as_content(text: str) -> Any:
            return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]

        if self.config.make == "completions":
            return [{"prompt": prompt, "completion": as_content(best[1])}]
        if tied((best[0], worst[0])):
            return []
        return [{"prompt": prompt, "chosen": as_content(best[1]), "rejected": as_content(worst[1])}]
