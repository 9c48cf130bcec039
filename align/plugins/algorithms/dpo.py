"""Direct preference optimisation and its family: prefer the better answer, without a reward model.

Symbols in the docstrings of the losses: y_w is the better answer, y_l the worse, r = log π(y|x) − log π_ref(y|x), β the
strength of the tie to π_ref, ε ``label_smoothing``, σ the logistic function, and Δ as in ``Ratios``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid

from align import Algorithm, Batch, LossOutput, LossTerm
from align.algorithms import logistic, preference_metrics
from align.settings import Fraction

LossName = Literal[
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
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


class Ratios(NamedTuple):
    """The quantities that losses are computed from, per pair [E] or per token [T]."""

    chosen_E: Tensor
    """r_w: log π(y_w|x) − log π_ref(y_w|x), summed over the answer's tokens."""
    rejected_E: Tensor
    """r_l, the same of the worse answer."""
    delta_E: Tensor
    """Δ = h(r_w) − h(r_l), where h is the f-divergence's map (``divergence_map``; the identity for reverse_kl)."""
    delta_mean_E: Tensor
    """Δ̄: Δ with each h(r) divided by its answer's length first."""
    chosen_logp_T: Tensor
    """log π of each token of the better answers."""


def sigmoid(ratios: Ratios, config: DPO.Config) -> Tensor:
    """−(1−ε) log σ(βΔ) − ε log σ(−βΔ). DPO, 2305.18290 Eq 7; with ε > 0 conservative DPO (Mitchell 2023)."""
    return logistic(config.beta * ratios.delta_E, config.label_smoothing)


def sigmoid_norm(ratios: Ratios, config: DPO.Config) -> Tensor:
    """−log σ(βΔ̄), Δ̄ of length-normalised log-ratios. Tülu 3, 2411.15124 (which uses β = 5)."""
    return logistic(config.beta * ratios.delta_mean_E)


def robust(ratios: Ratios, config: DPO.Config) -> Tensor:
    """[−(1−ε) log σ(βΔ) + ε log σ(−βΔ)] / (1−2ε). rDPO, 2403.00409: unbiased when labels flip with probability ε."""
    x, eps = config.beta * ratios.delta_E, config.label_smoothing
    return (-(1 - eps) * logsigmoid(x) + eps * logsigmoid(-x)) / (1 - 2 * eps)


def hinge(ratios: Ratios, config: DPO.Config) -> Tensor:
    """max(0, 1 − βΔ). SLiC-HF, 2305.10425, on log-ratios as in RSO, 2309.06657."""
    return torch.relu(1 - config.beta * ratios.delta_E)


def ipo(ratios: Ratios, config: DPO.Config) -> Tensor:
    """(Δ̄ − 1/(2τ))², τ = β. IPO, 2310.12036 Eq 17; over length-normalised ratios, as its authors ran it."""
    return (ratios.delta_mean_E - 1 / (2 * config.beta)).square()


def exo_pair(ratios: Ratios, config: DPO.Config) -> Tensor:
    """KL( [σ(βΔ), σ(−βΔ)] ‖ [1−ε, ε] ). EXO, 2402.00856 Eq 16 for two answers; needs ε > 0 (the paper: 1e-3)."""
    x, eps = config.beta * ratios.delta_E, config.label_smoothing
    better = torch.sigmoid(x) * (logsigmoid(x) - math.log1p(-eps))
    return better + torch.sigmoid(-x) * (logsigmoid(-x) - math.log(eps))


def nca_pair(ratios: Ratios, config: DPO.Config) -> Tensor:
    """−log σ(βr_w) − ½ log σ(−βr_w) − ½ log σ(−βr_l). NCA, 2402.05369: absolute rewards, not their difference."""
    better, worse = config.beta * ratios.chosen_E, config.beta * ratios.rejected_E
    return logistic(better) + 0.5 * logistic(-better) + 0.5 * logistic(-worse)


def bco_pair(ratios: Ratios, config: DPO.Config) -> Tensor:
    """−log σ(βr_w) − log σ(−βr_l). BCO, 2404.04656, without the paper's running shift δ (as in TRL)."""
    return logistic(config.beta * ratios.chosen_E) + logistic(-config.beta * ratios.rejected_E)


def sppo_hard(ratios: Ratios, config: DPO.Config) -> Tensor:
    """(r_w − 1/(2β))² + (r_l + 1/(2β))². SPPO, 2405.00675 Eq 4.7 with η = 1/β and win rates 1 and 0."""
    return (ratios.chosen_E - 0.5 / config.beta).square() + (ratios.rejected_E + 0.5 / config.beta).square()


def apo_zero(ratios: Ratios, config: DPO.Config) -> Tensor:
    """1 − σ(βr_w) + σ(βr_l). APO, 2408.06266 Eq 7: where the better answers beat the model's own."""
    return torch.sigmoid(-config.beta * ratios.chosen_E) + torch.sigmoid(config.beta * ratios.rejected_E)


def apo_down(ratios: Ratios, config: DPO.Config) -> Tensor:
    """σ(βr_w) + 1 − σ(β(r_w − r_l)). APO, 2408.06266 Eq 8: where the model's own beat even the better answers."""
    gap_E = ratios.chosen_E - ratios.rejected_E
    return torch.sigmoid(config.beta * ratios.chosen_E) + torch.sigmoid(-config.beta * gap_E)


def discopop(ratios: Ratios, config: DPO.Config) -> Tensor:
    """−(1−s) log σ(βΔ) + s e^(−βΔ), s = σ(βΔ/τ). DiscoPOP, 2406.08414 Eq 5 (τ = 0.05).

    s e^(−x) is taken as exp(log s − x): e^(−x) alone overflows where s vanishes.
    """
    x = config.beta * ratios.delta_E
    gate = x / config.discopop_tau
    return torch.sigmoid(-gate) * logistic(x) + torch.exp(logsigmoid(gate) - x)


def sft(ratios: Ratios, config: DPO.Config) -> Tensor:
    """−log π(y_w,t | x, y_w,<t), per token of the better answers. The generation loss of MPO, 2411.10442."""
    return -ratios.chosen_logp_T


class Loss(NamedTuple):
    """A row of the table of losses.

    function: gives one value for each unit of ``per`` (see ``LossTerm.per``). settings: those that it depends on, so
    that one which the chosen losses ignore can be refused.
    """

    function: Callable[[Ratios, DPO.Config], Tensor]
    settings: frozenset[str]
    per: str = "example"


_RATIO = frozenset({"beta", "ld_alpha"})
_DELTA = _RATIO | {"f_divergence_type"}

LOSSES: Mapping[str, Loss] = {
    "sigmoid": Loss(sigmoid, _DELTA | {"label_smoothing"}),
    "sigmoid_norm": Loss(sigmoid_norm, _DELTA),
    "robust": Loss(robust, _DELTA | {"label_smoothing"}),
    "hinge": Loss(hinge, _DELTA),
    "ipo": Loss(ipo, _DELTA),
    "exo_pair": Loss(exo_pair, _DELTA | {"label_smoothing"}),
    "nca_pair": Loss(nca_pair, _RATIO),
    "bco_pair": Loss(bco_pair, _RATIO),
    "sppo_hard": Loss(sppo_hard, _RATIO),
    "apo_zero": Loss(apo_zero, _RATIO),
    "apo_down": Loss(apo_down, _RATIO),
    "discopop": Loss(discopop, _DELTA | {"discopop_tau"}),
    "sft": Loss(sft, frozenset(), "token:chosen"),
}
"""By TRL's names. aot and aot_unpaired are left out: they sort the pairs of a batch, so that a pair's value depends
on which others share its micro-batch, and no exact average over the step exists."""


def divergence_map(ratio: Tensor, divergence: Divergence, f_alpha: float) -> Tensor:
    """Return h(r) = f'(u) up to a constant, u = π/π_ref, ``ratio`` = log u: f-DPO, 2309.16240 Table 1.

    The map is right only in differences, where log Z(x) cancels.
    """
    if divergence == "reverse_kl":  # f'(u) = log u + 1: plain DPO
        return ratio
    if divergence == "js_divergence":  # f'(u) = log(2u / (1+u)) = log 2 + log σ(log u)
        return math.log(2) + logsigmoid(ratio)
    # f'(u) = (1 − u^(−α)) / α. α → 0 is reverse_kl; α = 1 is forward_kl, f'(u) = −1/u, plus 1.
    alpha = 1.0 if divergence == "forward_kl" else f_alpha
    # The exponent stops at 80, or it would overflow.
    return (1 - torch.exp((-alpha * ratio).clamp(max=80))) / alpha


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

        loss_type: LossName | Annotated[dict[LossName, PositiveFloat], Field(min_length=1)] = "sigmoid"
        """One loss, or several with their weights: ``{sigmoid: 0.8, bco_pair: 0.2, sft: 1.0}`` (MPO, 2411.10442). TRL
        has the weights apart, in loss_weights."""
        beta: PositiveFloat = 0.1
        """Strength of the tie to the reference (DPO, 2305.18290); IPO's τ. Length-normalised losses want more:
        Tülu 3 (2411.15124) uses 5 with ``sigmoid_norm``."""
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
        """Probability that a label is wrong: cDPO with ``sigmoid``, rDPO with ``robust`` (2403.00409 uses 0.1), and
        ε of ``exo_pair`` (2402.00856 uses 0.001)."""
        f_divergence_type: Divergence = "reverse_kl"
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
        h_B = divergence_map(ratio_B, config.f_divergence_type, config.f_alpha)
        h_mean_B = h_B / batch.length_B
        ratios = Ratios(
            chosen_E=batch.select("chosen", ratio_B),
            rejected_E=batch.select("rejected", ratio_B),
            delta_E=batch.select("chosen", h_B) - batch.select("rejected", h_B),
            delta_mean_E=batch.select("chosen", h_mean_B) - batch.select("rejected", h_mean_B),
            chosen_logp_T=batch.tokens_of("chosen", batch.logp_T),
        )
        terms = []
        for name, weight in config.weights.items():
            loss = LOSSES[name]
            terms.append(LossTerm(loss.function(ratios, config), loss.per, weight))
        rewards = config.beta * ratios.chosen_E, config.beta * ratios.rejected_E
        return LossOutput(terms, preference_metrics(batch, *rewards))


def _settings_of(loss: str, divergence: Divergence = "alpha_divergence") -> frozenset[str]:
    """Return the settings that a loss depends on under an f-divergence."""
    settings = LOSSES[loss].settings
    if "f_divergence_type" in settings and divergence == "alpha_divergence":
        return settings | {"f_alpha"}
    return settings
