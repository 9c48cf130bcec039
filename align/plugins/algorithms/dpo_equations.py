"""The DPO family as a table of equations. Each gives one value per pair unless its docstring says otherwise.

A function's parameters name what it reads; ``reads`` returns them, so that a setting which the chosen loss ignores can
be refused. They may be

    chosen_E, rejected_E   r_w, r_l: log π(y|x) − log π_ref(y|x), summed over the answer's tokens
    delta_E                Δ = h(r_w) − h(r_l), where h is the f-divergence's map (the identity for reverse_kl)
    delta_mean_E           Δ with each h(r) divided by its answer's length first
    chosen_logp_T          log π of each token of the better answers
    beta, label_smoothing, discopop_tau   the settings of those names; β is the strength of the tie to π_ref

ε is ``label_smoothing``, σ the logistic function, y_w the better answer, y_l the worse.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.algorithms import logistic


def sigmoid(delta_E: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """−(1−ε) log σ(βΔ) − ε log σ(−βΔ). DPO, 2305.18290 Eq 7; with ε > 0 conservative DPO (Mitchell 2023)."""
    return logistic(beta * delta_E, label_smoothing)


def sigmoid_norm(delta_mean_E: Tensor, beta: float) -> Tensor:
    """−log σ(βΔ̄), Δ̄ of length-normalised log-ratios. Tülu 3, 2411.15124 (which uses β = 5)."""
    return logistic(beta * delta_mean_E)


def robust(delta_E: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """[−(1−ε) log σ(βΔ) + ε log σ(−βΔ)] / (1−2ε). rDPO, 2403.00409: unbiased when labels flip with probability ε."""
    x = beta * delta_E
    return (-(1 - label_smoothing) * logsigmoid(x) + label_smoothing * logsigmoid(-x)) / (1 - 2 * label_smoothing)


def hinge(delta_E: Tensor, beta: float) -> Tensor:
    """max(0, 1 − βΔ). SLiC-HF, 2305.10425, on log-ratios as in RSO, 2309.06657."""
    return torch.relu(1 - beta * delta_E)


def ipo(delta_mean_E: Tensor, beta: float) -> Tensor:
    """(Δ̄ − 1/(2τ))², τ = β. IPO, 2310.12036 Eq 17; over length-normalised ratios, as its authors told TRL they ran."""
    return (delta_mean_E - 1 / (2 * beta)).square()


def exo_pair(delta_E: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """KL( [σ(βΔ), σ(−βΔ)] ‖ [1−ε, ε] ). EXO, 2402.00856 Eq 16 for two answers; needs ε > 0 (the paper: 1e-3)."""
    x = beta * delta_E
    better = torch.sigmoid(x) * (logsigmoid(x) - math.log1p(-label_smoothing))
    return better + torch.sigmoid(-x) * (logsigmoid(-x) - math.log(label_smoothing))


def nca_pair(chosen_E: Tensor, rejected_E: Tensor, beta: float) -> Tensor:
    """−log σ(βr_w) − ½ log σ(−βr_w) − ½ log σ(−βr_l). NCA, 2402.05369: absolute rewards, not their difference."""
    return logistic(beta * chosen_E) + 0.5 * logistic(-beta * chosen_E) + 0.5 * logistic(-beta * rejected_E)


def bco_pair(chosen_E: Tensor, rejected_E: Tensor, beta: float) -> Tensor:
    """−log σ(βr_w) − log σ(−βr_l). BCO, 2404.04656, without the paper's running shift δ (as in TRL)."""
    return logistic(beta * chosen_E) + logistic(-beta * rejected_E)


def sppo_hard(chosen_E: Tensor, rejected_E: Tensor, beta: float) -> Tensor:
    """(r_w − 1/(2β))² + (r_l + 1/(2β))². SPPO, 2405.00675 Eq 4.7 with η = 1/β and win rates 1 and 0."""
    return (chosen_E - 0.5 / beta).square() + (rejected_E + 0.5 / beta).square()


def apo_zero(chosen_E: Tensor, rejected_E: Tensor, beta: float) -> Tensor:
    """1 − σ(βr_w) + σ(βr_l). APO, 2408.06266 Eq 7: where the better answers beat the model's own."""
    return torch.sigmoid(-beta * chosen_E) + torch.sigmoid(beta * rejected_E)


def apo_down(chosen_E: Tensor, rejected_E: Tensor, beta: float) -> Tensor:
    """σ(βr_w) + 1 − σ(β(r_w − r_l)). APO, 2408.06266 Eq 8: where the model's own beat even the better answers."""
    return torch.sigmoid(beta * chosen_E) + torch.sigmoid(-beta * (chosen_E - rejected_E))


def discopop(delta_E: Tensor, beta: float, discopop_tau: float) -> Tensor:
    """−(1−s) log σ(βΔ) + s e^(−βΔ), s = σ(βΔ/τ). DiscoPOP, 2406.08414 Eq 5 (τ = 0.05).

    s e^(−x) is taken as exp(log s − x): e^(−x) alone overflows where s vanishes.
    """
    x = beta * delta_E
    gate = x / discopop_tau
    return torch.sigmoid(-gate) * logistic(x) + torch.exp(logsigmoid(gate) - x)


def sft(chosen_logp_T: Tensor) -> Tensor:
    """−log π(y_w,t | x, y_w,<t), per token of the better answers. The generation loss of MPO, 2411.10442."""
    return -chosen_logp_T


class Equation(NamedTuple):
    """A row of the table: the function and what one of its values stands for (see ``LossTerm.per``)."""

    values: Callable[..., Tensor]
    per: str = "example"


LOSSES: Mapping[str, Equation] = {
    f.__name__: Equation(f)
    for f in (sigmoid, sigmoid_norm, robust, hinge, ipo, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down)
} | {"discopop": Equation(discopop), "sft": Equation(sft, "token:chosen")}
"""By TRL's names. aot and aot_unpaired are left out: they sort the pairs of a batch, so that a pair's value depends
on which others share its micro-batch, and no exact average over the step exists."""


def reverse_kl(ratio: Tensor) -> Tensor:
    """f'(u) = log u + 1, up to a constant that cancels in Δ: plain DPO. u = π/π_ref, ``ratio`` = log u."""
    return ratio


def forward_kl(ratio: Tensor) -> Tensor:
    """f'(u) = −1/u, plus 1: 1 − e^(−log u)."""
    return alpha_divergence(ratio, 1.0)


def js_divergence(ratio: Tensor) -> Tensor:
    """f'(u) = log(2u / (1+u)) = log 2 + log σ(log u)."""
    return math.log(2) + logsigmoid(ratio)


def alpha_divergence(ratio: Tensor, f_alpha: float) -> Tensor:
    """f'(u) = (1 − u^(−α)) / α, 0 < α < 1. α → 0 is reverse_kl, α = 1 forward_kl.

    The exponent stops at 80, or it would overflow. TRL's coefficient is 1 − α of the paper (same at its default ½).
    """
    return (1 - torch.exp((-f_alpha * ratio).clamp(max=80))) / f_alpha


DIVERGENCES: Mapping[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (reverse_kl, forward_kl, js_divergence, alpha_divergence)
}
"""h of Δ, by TRL's names: f-DPO, 2309.16240 Table 1. The map is right only in differences, where log Z(x) cancels."""


@functools.cache
def reads(function: Callable[..., Tensor]) -> frozenset[str]:
    """Return the names of the parameters of a function of these tables."""
    return frozenset(inspect.signature(function).parameters)
