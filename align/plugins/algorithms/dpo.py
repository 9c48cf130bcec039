"""Direct preference optimisation and its family: prefer the better answer, without a reward model.

The equations are in ``equations``; this class computes the quantities that they read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from align import Algorithm, Batch, LossOutput, LossTerm
from align.algorithms import preference_metrics
from align.plugins.algorithms.dpo_equations import DIVERGENCES, LOSSES, reads
from align.settings import Fraction

Loss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]


def tail_weight_T(batch: Batch, alpha: float) -> Tensor:
    """1 for the tokens up to the shorter answer's length, α for those beyond it. LD-DPO, 2409.06411."""
    length_B = batch.length_B
    shared_E = torch.minimum(batch.select("chosen", length_B), batch.select("rejected", length_B))
    beyond_T = batch.position_T >= batch.expand_to_tokens(shared_E[batch.example_B])
    return torch.ones_like(batch.logp_T).masked_fill(beyond_T, alpha)


class DPO(Algorithm):
    """Learns from pairs, tied to a reference.

    The trust-region variant (TR-DPO, 2404.09656) is the stage's ``reference: {type: moving-average}``.
    """

    name = "dpo"
    paper = "https://arxiv.org/abs/2305.18290"
    learns_from = ("preference",)
    learning_rate = 1e-6
    """TRL 1.16's DPOConfig, and the paper's appendix B."""
    dropout = False

    class Config(Algorithm.Config):
        """Settings of direct preference optimisation. One that the chosen loss does not read is refused."""

        loss_type: Loss | Annotated[dict[Loss, PositiveFloat], Field(min_length=1)] = "sigmoid"
        """One loss, or several with their weights: ``{sigmoid: 0.8, bco_pair: 0.2, sft: 1.0}`` (MPO, 2411.10442). TRL
        has the weights apart, in loss_weights."""
        beta: PositiveFloat = 0.1
        """Strength of the tie to the reference (DPO, 2305.18290); IPO's τ. Length-normalised losses want more:
        Tülu 3 (2411.15124) uses 5 with ``sigmoid_norm``."""
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
        """Probability that a label is wrong: cDPO with ``sigmoid``, rDPO with ``robust`` (2403.00409 uses 0.1), and
        ε of ``exo_pair`` (2402.00856 uses 0.001)."""
        f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
        """The divergence from the reference that is held down (f-DPO, 2309.16240)."""
        f_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
        """α of ``alpha_divergence`` as in 2309.16240. TRL's f_alpha_divergence_coef is 1 − α (0.5 is its default)."""
        ld_alpha: Fraction | None = None
        """Weight of the log-probabilities beyond the shorter answer's length (LD-DPO, 2409.06411); null is 1."""
        discopop_tau: PositiveFloat = 0.05
        """τ of ``discopop`` (2406.08414)."""

        @property
        def weights(self) -> dict[str, float]:
            """Losses and their weights."""
            return {self.loss_type: 1.0} if isinstance(self.loss_type, str) else dict(self.loss_type.items())

        @model_validator(mode="after")
        def _read_and_possible(self) -> DPO.Config:
            problems = list(self._problems())
            if problems:
                raise ValueError("\n".join(problems))
            return self

        def _problems(self) -> Iterator[str]:
            chosen = " + ".join(repr(name) for name in self.weights)
            for setting in sorted(self.model_fields_set - {"loss_type"}):
                if not any(setting in _settings_of(name, self.f_divergence_type) for name in self.weights):
                    readers = ", ".join(name for name in LOSSES if setting in _settings_of(name, "alpha_divergence"))
                    under = " with f_divergence_type alpha_divergence" if setting == "f_alpha" else ""
                    yield f"{setting} is not read by loss_type {chosen}; it is read by {readers}{under}"
            if "exo_pair" in self.weights and self.label_smoothing == 0:
                yield "label_smoothing must be above 0 with loss_type 'exo_pair'; its paper uses 0.001"
            for name in self.weights:
                if (
                    self.f_divergence_type != "reverse_kl"
                    and name != "sft"
                    and "f_divergence_type" not in _settings_of(name)
                ):
                    yield (
                        f"f_divergence_type does not go with loss_type {name!r}: a divergence other than reverse_kl is "
                        "right in differences of rewards only, and this loss uses the rewards themselves"
                    )

    config: Config

    @property
    def uses_reference(self) -> bool:
        """Every loss of the family, or its metrics, measures the distance to it."""
        return True

    def loss(self, batch: Batch) -> LossOutput:
        """One value per pair for each loss named, per token for sft."""
        config = self.config
        assert batch.ref_logp_T is not None, "the engine gives reference log-probabilities to uses_reference"
        ratio_T = batch.logp_T - batch.ref_logp_T
        if config.ld_alpha is not None:
            ratio_T = ratio_T * tail_weight_T(batch, config.ld_alpha)
        ratio_B = batch.sum_per_sequence(ratio_T)
        h_B = _call(DIVERGENCES[config.f_divergence_type], {"ratio": ratio_B, "f_alpha": config.f_alpha})
        h_mean_B = h_B / batch.length_B
        values: dict[str, Any] = {
            "chosen_E": batch.select("chosen", ratio_B),
            "rejected_E": batch.select("rejected", ratio_B),
            "delta_E": batch.select("chosen", h_B) - batch.select("rejected", h_B),
            "delta_mean_E": batch.select("chosen", h_mean_B) - batch.select("rejected", h_mean_B),
            "chosen_logp_T": batch.tokens_of("chosen", batch.logp_T),
        } | config.model_dump()
        terms = [
            LossTerm(_call(LOSSES[name].values, values), LOSSES[name].per, weight)
            for name, weight in config.weights.items()
        ]
        rewards = config.beta * values["chosen_E"], config.beta * values["rejected_E"]
        return LossOutput(terms, preference_metrics(batch, *rewards))


def _call(function: Any, values: Mapping[str, Any]) -> Tensor:
    """Call a function of the tables with the values that it has as parameters."""
    result: Tensor = function(**{name: values[name] for name in reads(function)})
    return result


def _settings_of(loss: str, divergence: str = "alpha_divergence") -> frozenset[str]:
    """Return the settings that a loss reads, itself or through the quantities that it is computed from."""
    asks = reads(LOSSES[loss].values)
    if asks & {"delta_E", "delta_mean_E"}:
        asks |= {"f_divergence_type"} | reads(DIVERGENCES[divergence])
    return asks if loss == "sft" else asks | {"ld_alpha"}
