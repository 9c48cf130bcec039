"""How the next token is drawn from logits [B, V]: each row by itself, with one uniform number of its own.

    l' = l / r where l > 0, l r where l <= 0, for tokens seen before    repetition penalty (1909.05858, section 4.1)
    x  = l' / temperature
    top-k   x >= the k-th largest of x
    top-p   the fewest likeliest tokens whose probabilities reach p     (1904.09751, section 3.1)
    min-p   w >= min_p                                                  (2407.01082, section 3)
    w  = exp(x - max x),  P = w / sum w,  token = the first i with w_0 + ... + w_i > u sum w

in this order, as ``transformers``; vLLM puts min-p before top-k, which keeps the same tokens but where top-p cuts on.
Equals at an edge: top-k and min-p keep all (as ``transformers`` and vLLM do), top-p the fewest, lowest ids first (both
leave it to their sort). Whatever is cut, the likeliest token stays.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.schemas.errors import AlignError
from align.schemas.rollout import Sampling

BLOCK = 128
"""Probabilities that are summed before the sums are: a running sum over a whole vocabulary takes five times as long."""

NUCLEUS = 128
"""Likeliest tokens among which a nucleus is looked for, before whole rows are sorted."""


def uniforms(seed: int, count: int) -> NDArray[np.float64]:
    """[count] numbers in [0, 1) that follow from the seed alone (Philox4x64); a longer stream begins as a shorter."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def seed_of(seed: int, place: int, number: int) -> int:
    """The seed of one answer: of the run, the prompt's place in it, and the answer's number in its group."""
    low, high = np.random.SeedSequence((seed, place, number)).generate_state(2, np.uint32)
    return int(high) % 2**31 * 2**32 + int(low)


def draw(logits_BV: Tensor, sampling: Sampling, u_B: Tensor, seen_BV: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A token for each row [B], and its log-probability [B] (float32) under what it was drawn from.

    u_B: float64 in [0, 1). seen_BV: tokens of prompt and answer, needed for a repetition penalty. At temperature 0 the
    likeliest token (after the penalty), and its log-probability under the model's own distribution.
    Raises AlignError where logits are NaN or infinite.
    """
    logits_BV = logits_BV.float()
    x_BV = shaped(logits_BV, sampling, seen_BV)
    if sampling.temperature == 0:
        token_B = x_BV.argmax(-1)  # of equals the first
        logp_B = logits_BV.gather(1, token_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
    else:
        top_B = x_BV.amax(-1)
        token_B, total_B = _inverse((x_BV - top_B[:, None]).exp_(), u_B)
        logp_B = x_BV.gather(1, token_B[:, None])[:, 0] - top_B - total_B.log().float()
    if not bool(logp_B.isfinite().all()):
        raise AlignError("the model's logits are not finite", "check the weights: training may have gone wrong")
    return token_B, logp_B


def shaped(logits_BV: Tensor, sampling: Sampling, seen_BV: Tensor | None = None) -> Tensor:
    """x: penalised, divided by the temperature, and -inf where a token is cut. At temperature 0 only penalised."""
    x_BV = logits_BV.float()
    if sampling.repetition_penalty != 1:
        assert seen_BV is not None, "a repetition penalty needs to know the tokens seen"
        r = sampling.repetition_penalty
        x_BV = torch.where(seen_BV, torch.where(x_BV > 0, x_BV / r, x_BV * r), x_BV)
    if sampling.temperature == 0:
        return x_BV
    if sampling.temperature != 1:
        x_BV = x_BV / sampling.temperature
    if 0 < sampling.top_k < x_BV.shape[1]:
        x_BV = x_BV.masked_fill(x_BV < x_BV.topk(sampling.top_k).values[:, -1:], -math.inf)
    if sampling.top_p < 1:
        x_BV = x_BV.masked_fill(~_nucleus(x_BV, sampling.top_p), -math.inf)
    if sampling.min_p > 0:
        x_BV = x_BV.masked_fill((x_BV - x_BV.amax(-1, keepdim=True)).exp() < sampling.min_p, -math.inf)
    return x_BV


def _inverse(w_BV: Tensor, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first i with w_0 + ... + w_i > u sum w, and that sum, in float64: first the block that holds it is found."""
    vocabulary = w_BV.shape[1]
    blocks, left = divmod(vocabulary, BLOCK)
    whole_BK, rest_B1 = w_BV[:, : vocabulary - left].reshape(len(w_BV), blocks, BLOCK), w_BV[:, vocabulary - left :]
    sum_BK = torch.cat([part.sum(-1, dtype=torch.float64).view(len(w_BV), -1) for part in (whole_BK, rest_B1)], 1)
    upto_BK = sum_BK.cumsum(-1)
    total_B = upto_BK[:, -1]
    aim_B1 = (u_B * total_B)[:, None]
    block_B1 = torch.searchsorted(upto_BK, _short_of(aim_B1, upto_BK), right=True).clamp_(max=blocks)
    at_BN = block_B1 * BLOCK + torch.arange(BLOCK, device=w_BV.device)
    inside_BN = w_BV.gather(1, at_BN.clamp(max=vocabulary - 1)).double().masked_fill_(at_BN >= vocabulary, 0).cumsum(-1)
    aim_B1 = (aim_B1 - (upto_BK - sum_BK).gather(1, block_B1)).clamp_(min=0)
    token_B = block_B1 * BLOCK + torch.searchsorted(inside_BN, _short_of(aim_B1, inside_BN), right=True)
    return token_B[:, 0].clamp_(max=vocabulary - 1), total_B


def _short_of(aim_B1: Tensor, upto_BN: Tensor) -> Tensor:
    """The aim, less than the last of the sums whatever was rounded, so that one of them exceeds it."""
    last_B1 = upto_BN[:, -1:]
    return torch.minimum(aim_B1, last_B1.nextafter(torch.zeros_like(last_B1)))


def _nucleus(x_BV: Tensor, p: float) -> Tensor:
    """The fewest tokens of each row that reach p: all above the least of them, and of its equals the first.

    The likeliest few usually reach it; only where they do not is everything sorted.
    """
    w_BV = (x_BV - x_BV.amax(-1, keepdim=True)).exp_()
    aim_B1 = p * w_BV.sum(-1, keepdim=True, dtype=torch.float64)
    vocabulary = w_BV.shape[1]
    for count in (min(NUCLEUS, vocabulary), vocabulary):
        most_BC = w_BV.topk(count).values
        before_BC = most_BC.cumsum(-1, dtype=torch.float64) - most_BC
        if count == vocabulary or bool((before_BC[:, -1:] + most_BC[:, -1:] >= aim_B1).all()):
            break
    kept_B1 = (before_BC < aim_B1).sum(-1, keepdim=True)
    least_B1 = most_BC.gather(1, kept_B1 - 1)
    equal_BV = w_BV == least_B1
    room_B1 = kept_B1 - (most_BC > least_B1).sum(-1, keepdim=True)
    if bool((equal_BV.sum(-1, keepdim=True) > room_B1).any()):
        equal_BV &= equal_BV.cumsum(-1) <= room_B1
    return (w_BV > least_B1) | equal_BV
