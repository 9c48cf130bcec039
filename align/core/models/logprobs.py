"""Log-probabilities of given tokens without ever holding the full logits.

    z_T,V = softcap(scale * (hidden_T,D @ W_V,D^T + bias_V)) / temperature
    logp_t = z[t, target_t] - logsumexp_v z[t, v]

The head is applied to a chunk of tokens at a time; with p = softmax(z_t), and e the unit vector of target_t,

    d logp_t / d hidden_t = W^T u_t        d logp_t / d W = u_t hidden_t^T        u_t = dz_t^T (e - p)

where dz_t is the slope of scale, cap and temperature. The first is one vector [D] for each token, whatever the loss
is, so forward computes it while the chunk's logits exist. The second is a sum over tokens weighted by the loss's
gradient, so backward computes each chunk's logits again, and only if the head is trained. So memory is
O(chunk * V + T * D) instead of O(T * V), for one matrix product more (none with a frozen head, as under LoRA).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TokenScores(NamedTuple):
    """The head's scores of each scored token; all [T], in float32 or better.

    logp_T     log-probability of the target; carries gradient
    entropy_T  entropy of the distribution in nats
    correct_T  1 where the target is the likeliest token, else 0
    logit_T    mean of z over the vocabulary
    The last three carry no gradient, and are None without ``metrics``.
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

    hidden_TD       hidden states [T, D], each of which predicts the target with the same index
    head_weight_VD  the head's weight [V, D]; head_bias: [V] or None
    target_T        token ids [T] in [0, V)
    chunk           tokens whose logits [chunk, V] exist at one time, at least 1
    logit_scale     multiplies the head's output (Cohere, Granite)
    softcap         c of ``c * tanh(z / c)`` (Gemma 2), or None
    temperature     divides the logits, above 0
    metrics         True computes the scores without gradient too

    Matrix products run in the autocast type where autocast is on, else in the weight's own type; everything after
    them in float32 (float64 where the weight is).
    Not differentiable twice.
    """
    device = hidden_TD.device.type
    autocast = torch.is_autocast_enabled(device)
    head = _Head(
        chunk=max(1, chunk),
        scale=logit_scale,
        softcap=softcap,
        temperature=temperature,
        dtype=torch.get_autocast_dtype(device) if autocast else head_weight_VD.dtype,
        metrics=metrics,
        learns=torch.is_grad_enabled() and hidden_TD.requires_grad,
    )
    scores = _TokenLogProbs.apply(hidden_TD, head_weight_VD, head_bias, target_T, head)  # type: ignore[no-untyped-call]
    return TokenScores(*scores)


@dataclass(frozen=True, slots=True)
class _Head:
    """Settings of one call: the function from hidden states to z, and the outputs to compute.

    dtype: of matrix products. learns: True if the hidden states need a gradient.
    """

    chunk: int
    scale: float
    softcap: float | None
    temperature: float
    dtype: torch.dtype
    metrics: bool
    learns: bool

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Yield the slices of ``chunk`` tokens each."""
        for start in range(0, tokens, self.chunk):
            yield slice(start, min(start + self.chunk, tokens))

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, slope: bool) -> tuple[Tensor, Tensor | None]:
        """Map [c, D] to z [c, V] in float32 or better; with ``slope`` return the soft cap's derivative [c, V] too."""
        z = torch.nn.functional.linear(hidden, weight, bias)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.scale != 1.0:
            z = z.mul_(self.scale)
        capped = None
        if self.softcap is not None:
            z = z.div_(self.softcap).tanh_()
            capped = 1 - z.square() if slope else None
            z = z.mul_(self.softcap)
        return z if self.temperature == 1.0 else z.div_(self.temperature), capped

    def unit(self, p: Tensor, target: Tensor, slope: Tensor | None) -> Tensor:
        """Return u of the module's equations [c, V], computed in the memory of p."""
        u = p.neg_().scatter_add_(-1, target[:, None], torch.ones_like(p[:, :1]))
        if slope is not None:
            u = u.mul_(slope)
        factor = self.scale / self.temperature
        return u if factor == 1.0 else u.mul_(factor)


class _TokenLogProbs(torch.autograd.Function):
    """(hidden_TD, weight_VD, bias_V) -> logp_T, and metrics without gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: _Head
    ) -> tuple[Tensor, ...]:
        exact = torch.promote_types(head.dtype, torch.float32)
        logp, peak, lse, entropy, correct, logit = (hidden.new_empty(len(target), dtype=exact) for _ in range(6))
        d_hidden = torch.empty_like(hidden) if head.learns else None
        with torch.autocast(hidden.device.type, enabled=False):
            x, w, b = hidden.to(head.dtype), weight.to(head.dtype), None if bias is None else bias.to(head.dtype)
            for part in head.chunks(len(target)):
                z, slope = head.logits(x[part], w, b, head.learns)
                # Subtract the largest logit, as log_softmax does: at z = 1e4 a float32 has too few digits for log-sums.
                peak[part], best = z.max(-1)
                z = z.sub_(peak[part, None])
                p = z.exp()
                total = p.sum(-1)
                lse[part] = total.log()
                logp[part] = z.gather(-1, target[part, None])[:, 0] - lse[part]
                if head.metrics:
                    correct[part] = (best == target[part]).to(exact)
                    logit[part] = z.mean(-1) + peak[part]
                    z = z.clamp_(min=torch.finfo(exact).min)  # a masked logit has p = 0, and 0 * -inf is NaN
                    entropy[part] = lse[part] - torch.linalg.vecdot(p, z) / total
                if d_hidden is not None:
                    d_hidden[part] = head.unit(p.div_(total[:, None]), target[part], slope).to(head.dtype) @ w
        ctx.save_for_backward(hidden, weight, bias, target, peak, lse, d_hidden)
        ctx.head = head
        if not head.metrics:
            return (logp,)
        ctx.mark_non_differentiable(entropy, correct, logit)
        return logp, entropy, correct, logit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, peak, lse, d_hidden = ctx.saved_tensors
        head: _Head = ctx.head
        _, needs_weight, needs_bias, *_rest = ctx.needs_input_grad
        # Accumulated over chunks in float32 even for a bfloat16 weight, whose 8 bits would lose small terms.
        d_weight = torch.zeros_like(weight, dtype=lse.dtype) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=lse.dtype) if needs_bias else None
        if needs_weight or needs_bias:
            with torch.autocast(hidden.device.type, enabled=False):
                x, w, b = hidden.to(head.dtype), weight.to(head.dtype), None if bias is None else bias.to(head.dtype)
                for part in head.chunks(len(target)):
                    z, slope = head.logits(x[part], w, b, True)
                    p = z.sub_(peak[part, None]).sub_(lse[part, None]).exp_()
                    d_z = head.unit(p, target[part], slope).mul_(grad_logp[part, None])
                    if d_bias is not None:
                        d_bias += d_z.sum(0)
                    if d_weight is not None:
                        _add_product(d_weight, d_z.to(head.dtype), x[part])
        return (
            None if d_hidden is None else (d_hidden * grad_logp[:, None]).to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
        )


def _add_product(total_VD: Tensor, d_z_cV: Tensor, x_cD: Tensor) -> None:
    """Add d_z^T x to the total; in place if the types are equal, which saves a second matrix [V, D]."""
    if total_VD.dtype == x_cD.dtype:
        total_VD.addmm_(d_z_cV.T, x_cD)
    else:
        total_VD += d_z_cV.T @ x_cD
