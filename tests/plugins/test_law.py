"""The law of the house for each of our algorithms: a step's gradient does not depend on how the step is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from align.core.algorithm.contract import Algorithm, LossOutput, LossTerm
from align.core.data.batch import Batch
from align.plugins.algorithms.cpo import CPO
from align.plugins.algorithms.dpo import DPO, LOSSES
from align.plugins.algorithms.grpo import GRPO
from align.plugins.algorithms.kto import KTO
from align.plugins.algorithms.online_dpo import OnlineDPO
from align.plugins.algorithms.orpo import ORPO
from align.plugins.algorithms.ppo import PPO
from align.plugins.algorithms.pretrain import Pretrain
from align.plugins.algorithms.reinforce import Reinforce
from align.plugins.algorithms.reward_model import RewardModel
from align.plugins.algorithms.rloo import RLOO
from align.plugins.algorithms.sft import SFT
from align.plugins.algorithms.simpo import SimPO
from align.testing import CUTS, check_algorithm

EVERY: list[tuple[type[Algorithm], dict[str, Any]]] = [
    (SFT, {}),
    (SFT, {"loss_type": "dft"}),
    (Pretrain, {}),
    (RewardModel, {}),
    (RewardModel, {"center_rewards_coefficient": 0.01}),
    (SimPO, {}),
    (CPO, {"label_smoothing": 0.1}),
    (ORPO, {}),
    (KTO, {"desirable_weight": 1.3}),
    (KTO, {"loss_type": "apo_zero_unpaired"}),
    (DPO, {"loss_type": {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}}),
    (DPO, {"ld_alpha": 0.5, "f_divergence_type": "js_divergence"}),
    *(
        (DPO, {"loss_type": loss} | ({"label_smoothing": 0.1} if loss in ("exo_pair", "robust") else {}))
        for loss in LOSSES
    ),
    (RLOO, {}),
    (RLOO, {"normalize_advantages": True, "beta": 0}),
    (Reinforce, {}),
    (Reinforce, {"baseline": "group", "num_generations": 4, "kl_in": "loss", "kl_estimator": "k2"}),
    (Reinforce, {"baseline": "moving", "normalize_advantages": False, "averaging": "constant"}),
    (GRPO, {}),
    (GRPO, {"scale_rewards": "none", "averaging": "constant", "beta": 0.1}),
    (
        GRPO,
        {
            "scale_rewards": "batch",
            "averaging": "sequence",
            "importance_sampling_level": "sequence",
            "beta": 0.1,
            "kl_in": "reward",
        },
    ),
    (GRPO, {"objective": "cispo", "beta": 0.1, "kl_estimator": "k1"}),
    (GRPO, {"delta": 3.0}),
    (PPO, {}),
    (PPO, {"cliprange_value": None, "normalize_advantages": False, "beta": 0.0}),
    (OnlineDPO, {}),
    (OnlineDPO, {"num_generations": 4}),
]


ours = pytest.mark.parametrize(("algorithm", "chosen"), EVERY, ids=lambda x: getattr(x, "name", str(x)))
tokens = st.integers(1, 30)


@ours
def test_law_in_float32(algorithm: type[Algorithm], chosen: dict[str, Any]) -> None:
    """To rounding: sums of some 60 tokens, whose gradients cancel to about a tenth of their size (measured: 7 eps)."""
    check_algorithm(algorithm, chosen, dtype=torch.float32, tolerance=64 * torch.finfo(torch.float32).eps)


@ours
@settings(
    max_examples=2, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)  # shrinking takes minutes
@given(lengths=st.lists(st.tuples(tokens, tokens, tokens), min_size=8, max_size=8))
def test_law_for_any_lengths(
    algorithm: type[Algorithm], chosen: dict[str, Any], lengths: list[tuple[int, int, int]]
) -> None:
    check_algorithm(algorithm, chosen, lengths=lengths, cuts={name: CUTS[name] for name in list(CUTS)[-2:]})


class Breaker(Algorithm):
    """A slot for losses that break the law."""

    name = "breaker"
    paper = "none"
    learns_from = ("preference",)
    learning_rate = 1.0


class Undescribed(Breaker):
    class Config(Algorithm.Config):
        strength: float = 1.0


class Paperless(Breaker):
    paper = ""


class MeanInside(Breaker):
    def loss(self, batch: Batch) -> LossOutput:
        """A mean of means."""
        return LossOutput([LossTerm(-batch.logp_T.mean()[None], "example")], {})


class Sorted(Breaker):
    def loss(self, batch: Batch) -> LossOutput:
        """aot's sort: a pair's value depends on its neighbours."""
        logp_B = batch.sum_per_sequence(batch.logp_T)
        gap_E = batch.select("chosen", logp_B).sort().values - batch.select("rejected", logp_B).sort().values
        return LossOutput([LossTerm(gap_E.square(), "example")], {})


class Fickle(Breaker):
    def loss(self, batch: Batch) -> LossOutput:
        """A metric that only some micro-batches have."""
        metrics = {"long": batch.logp_T} if batch.logp_T.numel() > 10 else {}
        return LossOutput([LossTerm(-batch.logp_T, "token")], metrics)


class Infinite(Breaker):
    def loss(self, batch: Batch) -> LossOutput:
        """Not a number."""
        return LossOutput([LossTerm(-batch.logp_T / 0, "token")], {})


class Constant(Breaker):
    def loss(self, batch: Batch) -> LossOutput:
        """Nothing to learn from."""
        return LossOutput([LossTerm(-batch.logp_T.detach(), "token")], {})


class Recentred(RLOO):
    def loss(self, batch: Batch) -> LossOutput:
        """Advantages made relative to the micro-batch: credit where it does not belong."""
        advantage_T = batch.token_data["advantage"] - batch.token_data["advantage"].mean()
        return LossOutput([LossTerm(-advantage_T * batch.logp_T, "token")], {})


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Recentred, "the step's gradient differs by .* of its norm"),
        (Undescribed, "setting 'strength' has no docstring"),
        (Paperless, "does not say its 'paper'"),
        (MeanInside, "1 values per example, of which the micro-batch has 8"),
        (Sorted, "cut as 2x4: the step's gradient differs by .* of its norm"),
        (Fickle, "terms or metrics differ between micro-batches"),
        (Infinite, "not finite"),
        (Constant, "no parameter gets a gradient"),
    ],
)
def test_the_kit_tells_what_is_wrong(algorithm: type[Algorithm], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_algorithm(algorithm)
