"""Log-probabilities of given tokens without ever holding the full logits.

    z_T,V = softcap(scale * (hidden_T,D @ W_V,D^T + bias_V)) / temperature
    logp_t = z[t, target_t] - logsumexp_v z[t, v]

The head is applied to a chunk of tokens at a time. Forward keeps two numbers a token (the logsumexp, split); backward
makes each chunk's logits again and turns them into gradients in place:

    d logp_t / d z[t, v] = [v = target_t] - softmax(z_t)[v]

So memory is O(chunk * V) instead of O(T * V), for one matrix product more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TokenScores(NamedTuple):
    """What the head says about each scored token; all [T].

    logp_T     log-probability of the target; carries gradient
    entropy_T  entropy of the distribution in nats
    correct_T  1 where the target was the likeliest token, else 0
    logit_T    mean of z over the vocabulary
    The last three carry no gradient and are None where metrics were not asked for.
    """

    logp_T: Tensor
    entropy_T: Tensor | None = None
    correct_T: Tensor | None = None
    logit_T: Tensor | None = None


def token_logprobs(
    hidden_TD: Tensor,
    head_weight_VD: Tensor,
    head_bias: Tensor | None,
    target_T: Tensor,
    chunk: int,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    metrics: bool = True,
) -> TokenScores:
    """Score ``target_T`` under the head, ``chunk`` tokens at a time.

    hidden_TD       hidden states that predict the targets [T, D]
    head_weight_VD  the head's weight [V, D]; head_bias [V] or None
    logit_scale     multiplies the head's output (Cohere, Granite)
    softcap         c of ``c * tanh(z / c)`` (Gemma 2), or None
    temperature     divides what the softmax sees

    Matrix products run in the autocast type where autocast is on, else in the weight's own type; everything after
    them in float32 (float64 where the weight is).
    Not differentiable twice.
    """
    device = hidden_TD.device.type
    autocast = torch.is_autocast_enabled(device)
    shape = _Head(
        chunk=max(1, chunk),
        scale=logit_scale,
        softcap=softcap,
        temperature=temperature,
        dtype=torch.get_autocast_dtype(device) if autocast else head_weight_VD.dtype,
    )
    scores = _TokenLogProbs.apply(hidden_TD, head_weight_VD, head_bias, target_T, shape, metrics)  # type: ignore[no-untyped-call]
    return TokenScores(*scores)


@dataclass(frozen=True, slots=True)
class _Head:
    """How hidden states become z, and in what portions."""

    chunk: int
    scale: float
    softcap: float | None
    temperature: float
    dtype: torch.dtype

    def chunks(self, tokens: int) -> Iterator[slice]:
        for start in range(0, tokens, self.chunk):
            yield slice(start, min(start + self.chunk, tokens))

    def capped(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Logits before the temperature: [c, D] -> [c, V], in float32 or better."""
        z = torch.nn.functional.linear(hidden, weight, bias)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.scale != 1.0:
            z = z.mul_(self.scale)
        if self.softcap is not None:
            z = z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z


class _TokenLogProbs(torch.autograd.Function):
    """(hidden_TD, weight_VD, bias_V) -> logp_T, and metrics without gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: _Head, metrics: bool
    ) -> tuple[Tensor, ...]:
        exact = torch.promote_types(head.dtype, torch.float32)
        logp, peak, lse, entropy, correct, logit = (hidden.new_empty(len(target), dtype=exact) for _ in range(6))
        with torch.autocast(hidden.device.type, enabled=False):
            x, w, b = hidden.to(head.dtype), weight.to(head.dtype), None if bias is None else bias.to(head.dtype)
            for part in head.chunks(len(target)):
                z = head.capped(x[part], w, b)
                if head.temperature != 1.0:
                    z = z.div_(head.temperature)
                # Relative to the largest, as log_softmax does: at z = 1e4 a float32 has no digits left for log-sums.
                peak[part], best = z.max(-1)
                z = z.sub_(peak[part, None])
                lse[part] = z.logsumexp(-1)
                logp[part] = z.gather(-1, target[part, None])[:, 0] - lse[part]
                if metrics:
                    correct[part] = (best == target[part]).to(exact)
                    logit[part] = z.mean(-1) + peak[part]
                    entropy[part] = torch.special.entr(z.sub_(lse[part, None]).exp_()).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, target, peak, lse)
        ctx.head = head
        if not metrics:
            return (logp,)
        ctx.mark_non_differentiable(entropy, correct, logit)
        return logp, entropy, correct, logit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, peak, lse = ctx.saved_tensors
        head: _Head = ctx.head
        needs_hidden, needs_weight, needs_bias, *_rest = ctx.needs_input_grad
        # The weight's gradient is summed over chunks, so in float32 even for a bfloat16 weight.
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=lse.dtype) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=lse.dtype) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            x, w, b = hidden.to(head.dtype), weight.to(head.dtype), None if bias is None else bias.to(head.dtype)
            for part in head.chunks(len(target)):
                g = (grad_logp[part] / head.temperature)[:, None]
                z = head.capped(x[part], w, b)
                slope = None if head.softcap is None else 1 - (z / head.softcap).square_()
                d_z = z.div_(head.temperature).sub_(peak[part, None]).sub_(lse[part, None]).exp_().mul_(-g)
                d_z.scatter_add_(-1, target[part, None], g)
                if slope is not None:
                    d_z = d_z.mul_(slope)
                if head.scale != 1.0:
                    d_z = d_z.mul_(head.scale)
                if d_bias is not None:
                    d_bias += d_z.sum(0)
                d_z = d_z.to(head.dtype)
                if d_hidden is not None:
                    d_hidden[part] = d_z @ w
                if d_weight is not None:
                    _add_product(d_weight, d_z, x[part])
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _add_product(total_VD: Tensor, d_z_cV: Tensor, x_cD: Tensor) -> None:
    """Add d_z^T x to the total, without a second [V, D] where the types allow it."""
    if total_VD.dtype == x_cD.dtype:
        total_VD.addmm_(d_z_cV.T, x_cD)
    else:
        total_VD += d_z_cV.T @ x_cD
