"""Online DPO: the policy's own best and worst answers to a prompt, as a pair for DPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat

from align import Advantages, Batch, Example, LossOutput, LossTerm, Metric, Online
from align.algorithms import logistic, preference_metrics
from align.rl import Group, loss_mask, rewards, sequence_of


class OnlineDPO(Online):
    """Learns from pairs of its own fresh answers, ranked by their rewards.

    −log σ(β (r_w − r_l)), r = log π(y|x) − log π_ref(y|x), of the pair with the better answer w and the worse one l.
    2402.04792 Section 3 with DPO's loss (2305.18290 Eq 7). A tie, or fewer than two scored answers, makes no pair.
    """

    name = "online_dpo"
    paper = "https://arxiv.org/abs/2402.04792"
    learning_rate = 5e-7
    """TRL 1.16's OnlineDPOConfig."""
    uses_ratio = False

    class Config(Online.Config):
        """Settings of online DPO."""

        num_generations: Annotated[int, Field(ge=2)] = 2
        """Answers to each prompt, the best and the worst of which make the pair (2402.04792 has 2)."""
        beta: PositiveFloat = 0.1
        """Strength of the tie to the reference (TRL 1.16's OnlineDPOConfig)."""

    config: Config

    @property
    def uses_reference(self) -> bool:
        """Pairs are judged by the distance to it."""
        return True

    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """Return no values for tokens: the pairs made in ``examples`` carry all that is learned."""
        return Advantages({}, loss_mask(groups))

    def examples(self, groups: Sequence[Group], advantages: Advantages) -> list[list[Example]]:
        """A pair for each group whose best and worst rewards differ."""
        made: list[list[Example]] = []
        place = 0
        for group in groups:
            token_data = []
            for answer in range(place, place + len(group)):
                token_data.append({name: values[answer] for name, values in advantages.token_data.items()})
            place += len(group)
            made.append([])
            reward_G = rewards(group)
            if np.isnan(reward_G).all() or np.nanmin(reward_G) == np.nanmax(reward_G):
                continue
            best, worst = int(np.nanargmax(reward_G)), int(np.nanargmin(reward_G))
            pair = (
                sequence_of(group[best], token_data[best], "chosen"),
                sequence_of(group[worst], token_data[worst], "rejected"),
            )
            made[-1].append(Example(group[best].source, pair))
        return made

    def loss(self, batch: Batch) -> LossOutput:
        """One value per pair."""
        assert batch.ref_logp_T is not None, "the engine gives reference log-probabilities to uses_reference"
        ratio_T = batch.logp_T - batch.ref_logp_T
        reward_B = self.config.beta * batch.sum_per_sequence(ratio_T)
        chosen_E, rejected_E = batch.select("chosen", reward_B), batch.select("rejected", reward_B)
        values = logistic(chosen_E - rejected_E)
        metrics = preference_metrics(batch, chosen_E, rejected_E) | {"kl": Metric(ratio_T)}
        return LossOutput([LossTerm(values, "example")], metrics)
