"""The policy: a Hugging Face causal or sequence-classification model that scores ragged tokens.

The head runs inside the model's own forward, at the scored positions only and in chunks (``token_logprobs``). So
every computation of the model before its head takes place, sharded parameters are gathered when the head reads them,
and logits of all tokens exist only where they fit a budget. The model's operations on logits after the head (a scale,
a soft cap) are measured once.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from align.core.data.batch import Batch, MicroBatch
from align.core.models.architecture import from_peft, score_head
from align.core.models.tree_mask import tree_mask
from align.core.util.profile import profiled
from align.schemas.engine import KEPT, LOGITS, TILE
from align.schemas.errors import AlignError

if TYPE_CHECKING:
    from peft.tuners.trainable_tokens import TrainableTokensLayer

T = TypeVar("T")

# --- log-probabilities -----------------------------------------------------------------------------------------------

# Log-probabilities of given tokens without ever holding the full logits.
#
#     z_T,V = softcap(scale * (hidden_T,D @ W_V,D^T + bias_V)) / temperature
#     logp_t = z[t, target_t] - logsumexp_v z[t, v]
#
# With p = softmax(z_t), and e the unit vector of target_t,
#
#     d logp_t / d hidden_t = W^T u_t        d logp_t / d W = u_t hidden_t^T        u_t = dz_t^T (e - p)
#
# where dz_t is the slope of scale, cap and temperature. The first is one vector [D] for each token, whatever the loss
# is, so forward computes it while u exists. The second is a sum over tokens weighted by the loss's gradient, so it has
# to wait for backward. The u of the first tokens is kept until then, as far as a budget of bytes goes. All other
# tokens are taken a chunk at a time, and if the head is trained backward computes their logits again. So memory is
# O(budget + chunk * V + T * D) instead of O(T * V), for at most one matrix product more; under a frozen head (LoRA)
# nothing is kept or computed twice.
#
# Logits are made in few large products, since each product reads the whole head. Everything after that takes a tile of
# rows at a time: on a CPU one that stays in the cache through the dozen passes over it.


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


@profiled("head")
def token_logprobs(
    hidden_TD: Tensor,
    head_weight_VD: Tensor,
    head_bias: Tensor | None,
    target_T: Tensor,
    chunk: int,
    *,
    tile: int | None = None,
    keep: int = 0,
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
    tile            tokens that the operations after the matrix product take at a time; None: a chunk
    keep            bytes that may be kept for backward, so that it need not compute as many tokens' logits again; they
                    replace those tokens' chunks
    logit_scale     multiplies the head's output (Cohere, Granite)
    softcap         c of ``c * tanh(z / c)`` (Gemma 2), or None
    temperature     divides the logits, above 0
    metrics         True computes the scores without gradient too

    Matrix products run in the autocast type where autocast is on, else in the weight's own type; everything after
    them in float32 (float64 where the weight is).
    Not differentiable twice.
    """
    device = hidden_TD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_weight_VD.dtype
    trains_head = head_weight_VD.requires_grad or (head_bias is not None and head_bias.requires_grad)
    head = _Head(
        chunk=max(1, chunk),
        tile=max(1, chunk if tile is None else tile),
        keep=keep // (dtype.itemsize * len(head_weight_VD)) if torch.is_grad_enabled() and trains_head else 0,
        scale=logit_scale,
        softcap=softcap,
        temperature=temperature,
        dtype=dtype,
        metrics=metrics,
        learns=torch.is_grad_enabled() and hidden_TD.requires_grad,
    )
    scores = _TokenLogProbs.apply(hidden_TD, head_weight_VD, head_bias, target_T, head)  # type: ignore[no-untyped-call]
    return TokenScores(*scores)


@dataclass(frozen=True, slots=True)
class _Head:
    """Settings of one call: the function from hidden states to z, and the outputs to compute.

    chunk, tile, keep: in tokens. dtype: of matrix products. learns: True if the hidden states need a gradient.
    """

    chunk: int
    tile: int
    keep: int
    scale: float
    softcap: float | None
    temperature: float
    dtype: torch.dtype
    metrics: bool
    learns: bool

    def parts(self, tokens: int) -> list[slice]:
        """Return the slices of one matrix product each: the tokens whose u is kept, then chunks."""
        kept = min(self.keep, tokens)
        chunks = [slice(start, min(start + self.chunk, tokens)) for start in range(kept, tokens, self.chunk)]
        return [slice(0, kept), *chunks] if kept else chunks

    def tiles(self, part: slice, z: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the tokens of each tile of a part, and its rows of z."""
        for start in range(0, len(z), self.tile):
            rows = z[start : start + self.tile]
            yield slice(part.start + start, part.start + start + len(rows)), rows

    def logits(self, raw: Tensor, slope: bool) -> tuple[Tensor, Tensor | None]:
        """Map the head's output [t, V] to z in float32 or better, in its own memory if it has that type.

        With ``slope`` return the soft cap's derivative [t, V] too.
        """
        z = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1.0:
            z = z.mul_(self.scale)
        capped = None
        if self.softcap is not None:
            z = z.div_(self.softcap).tanh_()
            capped = 1 - z.square() if slope else None
            z = z.mul_(self.softcap)
        return z if self.temperature == 1.0 else z.div_(self.temperature), capped

    def unit(self, p: Tensor, total: Tensor, target: Tensor, slope: Tensor | None, out: Tensor) -> Tensor:
        """Write u of the module's equations [t, V] to ``out`` and return it; p / total [t, 1] are probabilities."""
        u = torch.div(p, -total, out=out).scatter_add_(-1, target, torch.ones_like(total))
        if slope is not None:
            u = u.mul_(slope)
        factor = self.scale / self.temperature
        return u if factor == 1.0 else u.mul_(factor)

    def score(self, raw: Tensor, target: Tensor, scores: Tensor, needs_u: bool) -> None:
        """Score a tile, [t, V] of the head's output and [t, 1] of tokens, and with ``needs_u`` replace it by its u.

        scores [6, t, 1]: receives logp, the largest z, the sum of exp(z - largest), and with metrics the last three of
        ``TokenScores``.
        """
        logp, peak, total, entropy, correct, logit = scores
        z, slope = self.logits(raw, needs_u)
        # Subtract the largest logit, as log_softmax does: at z = 1e4 a float32 has too few digits for log-sums.
        if self.metrics:
            best = torch.max(z, -1, keepdim=True)
            peak.copy_(best.values)
            correct.copy_(best.indices == target)
        else:
            torch.amax(z, -1, keepdim=True, out=peak)  # without the place of the largest, which takes longer
        z = z.sub_(peak)
        own = z.gather(-1, target)
        if self.metrics:
            logit.copy_(z.mean(-1, keepdim=True) + peak)
        p = z.exp() if self.metrics else z.exp_()
        torch.sum(p, -1, keepdim=True, out=total)
        lse = total.log()
        logp.copy_(own - lse)
        if self.metrics:
            z = z.clamp_(min=torch.finfo(z.dtype).min)  # a masked logit has p = 0, and 0 * -inf is NaN
            entropy.copy_(lse - z.mul_(p).sum(-1, keepdim=True) / total)
        if needs_u:
            raw.copy_(self.unit(p, total, target, slope, out=z))


class _TokenLogProbs(torch.autograd.Function):
    """(hidden_TD, weight_VD, bias_V) -> logp_T, and metrics without gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: _Head
    ) -> tuple[Tensor, ...]:
        exact, tokens, vocabulary = torch.promote_types(head.dtype, torch.float32), len(target), len(weight)
        scores = hidden.new_empty(6, tokens, 1, dtype=exact)
        d_hidden = torch.empty_like(hidden) if head.learns else None
        kept = hidden.new_empty(min(head.keep, tokens), vocabulary, dtype=head.dtype)
        # One block for all chunks: on a CPU the pages of a fresh one cost as much as a pass over it.
        chunk = hidden.new_empty(min(head.chunk, tokens - len(kept)), vocabulary, dtype=head.dtype)
        needs_u = head.learns or head.keep > 0
        with torch.autocast(hidden.device.type, enabled=False):
            x, w, b = hidden.to(head.dtype), weight.to(head.dtype), None if bias is None else bias.to(head.dtype)
            for part in head.parts(tokens):
                u = kept if part.stop <= len(kept) else chunk[: part.stop - part.start]
                _linear(x[part], w, b, out=u)
                for rows, raw in head.tiles(part, u):
                    head.score(raw, target[rows, None], scores[:, rows], needs_u)
                if d_hidden is not None:
                    d_hidden[part] = u @ w
        logp, peak, total, entropy, correct, logit = (each.clone() for each in scores[..., 0])
        ctx.save_for_backward(hidden, weight, bias, target, peak, total, d_hidden, kept)
        ctx.head = head
        if not head.metrics:
            return (logp,)
        ctx.mark_non_differentiable(entropy, correct, logit)
        return logp, entropy, correct, logit

    @staticmethod
    @once_differentiable
    @profiled("head")
    def backward(ctx: Any, grad_logp: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, peak, total, d_hidden, kept = ctx.saved_tensors
        head: _Head = ctx.head
        _, needs_weight, needs_bias, *_rest = ctx.needs_input_grad
        d_weight = None
        d_bias = torch.zeros_like(bias, dtype=total.dtype) if needs_bias else None
        parts = head.parts(len(target)) if needs_weight or needs_bias else []
        # Accumulated over parts in float32 even for a bfloat16 weight, whose 8 bits would lose small terms.
        sums = total.dtype if len(parts) > 1 else head.dtype
        size = max((part.stop - part.start for part in parts if part.start >= len(kept)), default=0)
        chunk = hidden.new_empty(size, len(weight), dtype=head.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            x, w, b = hidden.to(head.dtype), weight.to(head.dtype), None if bias is None else bias.to(head.dtype)
            for part in parts:
                u = kept if part.stop <= len(kept) else chunk[: part.stop - part.start]
                if u is not kept:
                    _linear(x[part], w, b, out=u)
                    for rows, raw in head.tiles(part, u):
                        z, slope = head.logits(raw, True)
                        p = z.sub_(peak[rows, None]).exp_()
                        raw.copy_(head.unit(p, total[rows, None], target[rows, None], slope, out=z))
                if d_bias is not None:
                    for rows, u_tV in head.tiles(part, u):
                        d_bias += grad_logp[rows] @ u_tV.to(total.dtype)
                if needs_weight:
                    # The loss's gradient multiplies the hidden states: there are fewer of them than of u.
                    weighted = (x[part] * grad_logp[part, None]).to(head.dtype)
                    d_weight = _plus_product(d_weight, u, weighted, sums)
        if needs_weight and d_weight is None:
            d_weight = torch.zeros_like(weight)
        return (
            None if d_hidden is None else (d_hidden * grad_logp[:, None]).to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
        )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write x weight^T + bias to memory that exists."""
    if bias is None:
        torch.mm(x, weight.T, out=out)
    else:
        torch.addmm(bias, x, weight.T, out=out)


def _plus_product(total_VD: Tensor | None, u_cV: Tensor, x_cD: Tensor, dtype: torch.dtype) -> Tensor:
    """Return total + u^T x in ``dtype``; in the total's memory, without a second matrix [V, D] if the types agree."""
    if total_VD is None:
        return (u_cV.T @ x_cD).to(dtype)
    if total_VD.dtype == x_cD.dtype:
        return total_VD.addmm_(u_cV.T, x_cD)
    return total_VD.add_(u_cV.T @ x_cD)


class Scores(NamedTuple):
    """The output of ``Policy.forward``. Only ``logp_T``, ``score_B``, ``value_T`` and ``anchor`` carry gradient.

    logp_T, entropy_T, correct_T, logit_T: of each scored token, see ``TokenScores``. Under a reward or value head
    ``logp_T`` is NaN, so that a loss which reads it by mistake is not finite. score_B: a reward head's score of each
    sequence. value_T: a value head's estimate for the state before each scored token.
    anchor: 0.0, tied to the graph: added to a loss without tokens, it gives every parameter a zero gradient.
    """

    logp_T: Tensor
    entropy_T: Tensor | None
    correct_T: Tensor | None
    logit_T: Tensor | None
    score_B: Tensor | None
    anchor: Tensor
    value_T: Tensor | None = None


class Tail(NamedTuple):
    """The model's map from head output x to logits: ``softcap * tanh(scale * x / softcap)``, or ``scale * x``."""

    scale: float
    softcap: float | None


class Policy(nn.Module):
    """A model with a head that scores tokens.

    model        a ``*ForCausalLM`` (head ``language``) or ``*ForSequenceClassification`` with one label (``reward``,
                 read at each sequence's last token, or ``value``, read before every scored token), wrapped by peft or
                 not
    metrics      True computes entropy, correctness and mean logit too
    temperature  divides the logits

    Raises AlignError for a model without a linear head of the right width.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Literal["language", "reward", "value"] = "language",
        *,
        metrics: bool = True,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.head, self.metrics, self.temperature = model, head, metrics, temperature
        self._takes = frozenset(inspect.signature(self.unwrapped.forward).parameters)
        self._head_layers()  # a model without a head that can be used is refused here, not at the first step

    @property
    def unwrapped(self) -> PreTrainedModel:
        """The transformers model itself, without peft around it. Its adapters, if any, are inside its layers."""
        model: Any = self.model
        return cast(PreTrainedModel, model.get_base_model() if hasattr(model, "get_base_model") else model)

    @property
    def device(self) -> torch.device:
        """The device that computes, where batches go."""
        return device_of(self)

    @contextmanager
    def at_temperature(self, temperature: float) -> Iterator[None]:
        """Score at another temperature than training does."""
        before, self.temperature = self.temperature, temperature
        try:
            yield
        finally:
            self.temperature = before

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return ``function(*args, **kwargs)``, to which FSDP2 may add the hooks of a forward pass of this policy."""
        return function(*args, **kwargs)

    @property
    def takes_positions(self) -> bool:
        """True if the model takes ``position_ids``, which packing needs."""
        return "position_ids" in self._takes

    @profiled("forward")
    def forward(self, micro: MicroBatch) -> Scores:
        """Score a micro-batch. The network runs even if no token is scored, so that all ranks join its collectives."""
        if self.head != "language":
            return self._scores(micro)
        tail = self.tail
        # Where the layers' activations are computed again to save memory, so are logits.
        keep = dict.fromkeys(KEPT, 0) if self.unwrapped.is_gradient_checkpointing else KEPT
        found: list[TokenScores] = []

        def head(layer: nn.Linear | TrainableTokensLayer, hidden_RLD: Tensor) -> Tensor:
            weight_VD, bias_V = _weights(layer)
            device, vocabulary = hidden_RLD.device.type, len(weight_VD)
            scores = token_logprobs(
                hidden_RLD.flatten(0, -2)[micro.predict_T],
                weight_VD,
                bias_V,
                micro.target_T,
                LOGITS[device] // vocabulary,
                tile=TILE[device] // vocabulary,
                keep=keep[device],
                logit_scale=tail.scale,
                softcap=tail.softcap,
                temperature=self.temperature,
                metrics=self.metrics,
            )
            # The loss must use the layer's own output: FSDP2's hooks on that output start the gather for backward.
            output = scores.logp_T.view(1, -1, 1)
            found.append(scores._replace(logp_T=output.view(-1)))
            return output

        with self._head_as(head):
            self._run(micro.input_ids_RL, micro.position_ids_RL, micro.attention_mask_RL, micro.subtree_end_RL)
        (scores,) = found
        return Scores(*scores, score_B=None, anchor=scores.logp_T[:0].sum())

    def _scores(self, micro: MicroBatch) -> Scores:
        found: list[Tensor] = []
        hook = self._head_module().register_forward_hook(lambda _module, _inputs, output: found.append(output))
        try:
            self._run(micro.input_ids_RL, micro.position_ids_RL, micro.attention_mask_RL, micro.subtree_end_RL)
        finally:
            hook.remove()
        (score_RL1,) = found
        score = score_RL1.flatten()
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        nothing_T, anchor = score.new_full(micro.target_T.shape, math.nan), score[:0].sum()
        if self.head == "value":
            return Scores(nothing_T, None, None, None, None, anchor, value_T=score[micro.predict_T])
        return Scores(nothing_T, None, None, None, score[micro.last_B], anchor)

    def batch(
        self,
        micro: MicroBatch,
        scores: Scores,
        step: Mapping[str, Tensor] | None = None,
        ref_logp_T: Tensor | None = None,
        value_T: Tensor | None = None,
    ) -> Batch:
        """Return the batch that an algorithm's loss gets.

        step: scalars of the optimizer step. ref_logp_T [T]: replaces that of the micro-batch. value_T [T]: a critic's.
        """
        return Batch(
            logp_T=scores.logp_T,
            sequence_T=micro.sequence_T,
            position_T=micro.position_T,
            example_B=micro.example_B,
            role_B=micro.role_B,
            roles=micro.roles,
            examples=micro.examples,
            columns=micro.columns,
            ref_logp_T=micro.ref_logp_T if ref_logp_T is None else ref_logp_T,
            token_data=micro.token_data,
            value_T=value_T,
            score_B=scores.score_B,
            entropy_T=scores.entropy_T,
            correct_T=scores.correct_T,
            logit_T=scores.logit_T,
            step=step or {},
            sequence_of=micro.sequence_of,
            tokens_by_role=micro.tokens_by_role,
        )

    @cached_property
    def tail(self) -> Tail:
        """The scale and soft cap after the head, measured by running the model with known numbers as head output.

        Configs name these differently from model to model, so they are not read from there.
        Raises AlignError if the measured function is neither a scale nor a soft cap.
        """
        device = device_of(self.model)
        tiny, huge = 2.0**-30, 2.0**30  # tanh is linear at the first (gives scale), saturated at the second (gives cap)
        points = torch.tensor([tiny, huge, -8.0, -1.0, 0.0, 0.5, 8.0], dtype=torch.float64, device=device)
        one = torch.zeros(1, 1, dtype=torch.long, device=device)
        random = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with torch.no_grad(), random, self._head_as(lambda _layer, _hidden: points.view(1, -1, 1)):
            seen = self._run(one, one, None).logits.flatten().double()
        scale, top = float(seen[0]) / tiny, float(seen[1])
        scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale
        tail = Tail(scale, None if math.isclose(top, scale * huge, rel_tol=1e-3) else top)
        expected = points * scale if tail.softcap is None else top * torch.tanh(points * scale / top)
        if not torch.allclose(seen, expected, rtol=1e-4, atol=1e-6):
            raise AlignError(
                f"{type(self.unwrapped).__name__} changes its logits in a way that align does not know",
                "use a model whose logits are its head's output, scaled or soft-capped",
            )
        return tail

    def _run(
        self,
        input_ids_RL: Tensor,
        position_ids_RL: Tensor,
        attention_mask_RL: Tensor | None,
        subtree_end_RL: Tensor | None = None,
    ) -> Any:
        """Call the model's own forward, without a key-value cache."""
        masked: AbstractContextManager[None] = nullcontext()
        if subtree_end_RL is not None:
            # Without any mask transformers takes a position that does not follow the last for the start of a sequence.
            attention_mask_RL = torch.ones_like(input_ids_RL)
            masked = tree_mask(position_ids_RL, subtree_end_RL)
        given = {"position_ids": position_ids_RL, "attention_mask": attention_mask_RL, "use_cache": False}
        with masked:
            return self.model(input_ids=input_ids_RL, **{k: v for k, v in given.items() if k in self._takes})

    def _head_module(self) -> Any:
        model: Any = self.unwrapped
        if self.head == "language":
            return model.get_output_embeddings()
        return score_head(model)

    def _head_layers(self) -> list[nn.Linear | TrainableTokensLayer]:
        """Return the layers one of which runs as the head: a single one, or the original and the trained one.

        The trained one is peft's copy under ``modules_to_save``, or its layer with some rows replaced
        (``trainable_token_indices``).
        """
        module, name = self._head_module(), type(self.unwrapped).__name__
        layers: list[Any] = [module]
        if from_peft(module):
            from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

            if isinstance(module, ModulesToSaveWrapper):
                layers = [module.original_module, *module.modules_to_save.values()]
            elif isinstance(module, TrainableTokensWrapper):
                layers = [module.token_adapter]  # which runs when its adapter is off too
        if not all(_is_linear(layer) for layer in layers):
            fix = "take a sequence-classification model with num_labels=1"
            if self.head == "language":
                fix = (
                    "take a causal language model, and leave its head out of model.adapter.target_modules; "
                    "model.adapter.modules_to_save trains it whole"
                )
            raise AlignError(f"the head of {name} is {type(module).__name__}, not a plain linear layer", fix)
        if self.head != "language" and any(layer.out_features != 1 for layer in layers):
            raise AlignError(f"the head of {name} gives {layers[0].out_features} scores", "set num_labels=1")
        return layers

    @contextmanager
    def _head_as(self, head: Callable[[Any, Tensor], Tensor]) -> Iterator[None]:
        """Replace the forward of the head's layers by ``head``. Hooks on the layers still run."""
        layers = self._head_layers()
        for layer in layers:
            layer.forward = partial(head, layer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _is_linear(layer: Any) -> bool:
    if not from_peft(layer):
        return isinstance(layer, nn.Linear)
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    if not isinstance(layer, TrainableTokensLayer):
        return False
    layer = layer.get_base_layer()
    return isinstance(layer, nn.Linear) and layer.bias is None  # the forward for trained tokens would drop a bias


def _weights(layer: nn.Linear | TrainableTokensLayer) -> tuple[Tensor, Tensor | None]:
    """Return a head's weight [V, D], with the rows of trained tokens in place, and its bias [V] or None."""
    if not isinstance(layer, nn.Linear):
        active = [] if layer.disable_adapters else layer.active_adapters
        return layer.get_merged_weights(active), None
    return _whole(layer.weight), None if layer.bias is None else _whole(layer.bias)


def _whole(parameter: Tensor) -> Tensor:
    """Gather a sharded parameter, differentiably; return any other as it is."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


# --- helpers for any module ------------------------------------------------------------------------------------------


def device_of(module: nn.Module) -> torch.device:
    """Return the device that computes; sharded weights may be kept in the host's memory."""
    parameter = next(module.parameters())
    if isinstance(parameter, DTensor) and parameter.device.type != parameter.device_mesh.device_type:
        return torch.device(parameter.device_mesh.device_type, torch.cuda.current_device())
    return parameter.device


def reshard(module: nn.Module) -> None:
    """Drop FSDP2's gathered copies of weights, which keep their values when the shards change; else do nothing."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def decoder_layers(network: nn.Module) -> list[nn.Module]:
    """Return a network's layers: the members of its stacks of modules of one class, each with weights."""
    stacks = (part for part in network.modules() if isinstance(part, nn.ModuleList) and len(part))
    return [layer for stack in stacks if _is_decoder(stack) for layer in stack]


def _is_decoder(stack: nn.ModuleList) -> bool:
    with_weights = [part for part in stack if next(part.parameters(), None) is not None]
    return len({type(part) for part in stack}) == 1 and len(with_weights) == len(stack)


@contextmanager
def layer_by_layer(policy: Policy, device: torch.device) -> Iterator[None]:
    """Run a policy that is on the CPU on a device that it does not fit: each decoder layer is there only while it runs.

    Every pass copies all layers to the device, so it is slow: for a few passes before the policy is sharded. Without
    gradient only. Afterwards all of it is on the CPU.
    """
    layers = decoder_layers(policy)
    inside = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}

    def move_others(to: torch.device) -> None:
        for tensor in (*policy.parameters(), *policy.buffers()):
            if id(tensor) not in inside:
                tensor.data = tensor.data.to(to)

    hooks = [layer.register_forward_pre_hook(lambda layer, _: _moved(layer, device)) for layer in layers]
    # Also after an exception: what is left on the device would be in the way of the next layer.
    back = [layer.register_forward_hook(_to_cpu, always_call=True) for layer in layers]
    move_others(device)
    try:
        yield
    finally:
        move_others(torch.device("cpu"))
        for hook in (*hooks, *back):
            hook.remove()


def _moved(layer: nn.Module, device: torch.device) -> None:
    layer.to(device)


def _to_cpu(layer: nn.Module, inputs: Any, output: Any) -> None:
    layer.to("cpu")


def weights_hash(module: nn.Module) -> str:
    """Return the sha256 over every named tensor of a module; see ``tensors_hash``."""
    return tensors_hash({n: v for n, v in module.state_dict().items() if isinstance(v, Tensor)})


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over named tensors: name, type, shape and bytes of each, in the order of the names.

    Sharded tensors are gathered first, so with them every rank must call this.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        whole = whole.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(whole.dtype), list(whole.shape)]).encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def nonfinite(module: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers that hold a NaN or an infinity."""
    floating = ((n, v) for n, v in module.state_dict().items() if isinstance(v, Tensor) and v.is_floating_point())
    return [name for name, value in floating if not bool(torch.isfinite(value).all())]


@contextmanager
def without_gradient_or_dropout(module: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and without a graph; afterwards every module is back in its own mode.

    A policy scores without its metrics here, which take a fifth of the head's time and are read in training and
    validation only. The 16-bit copies of weights that autocast caches are dropped at both ends: copies that are made
    here have no gradient, and a later training step would use them and leave the weights without one.
    """
    training = [part for part in module.modules() if part.training]
    measuring = [part for part in module.modules() if isinstance(part, Policy) and part.metrics]
    for part in training:
        part.training = False
    for policy in measuring:
        policy.metrics = False
    torch.clear_autocast_cache()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()
        for part in training:
            part.training = True
        for policy in measuring:
            policy.metrics = True


def set_dropout(module: nn.Module, on: bool) -> None:
    """Switch the model's own dropout on or off without leaving training mode.

    transformers keeps the rates in ``nn.Dropout`` modules, in plain attributes of a module (Llama's attention) and in
    the config (Falcon). Off sets them to 0 and remembers them; on restores them. Evaluation mode would not do, since
    gradient checkpointing works only in training mode. An adapter's dropout has a setting of its own and is not
    changed.
    """
    for name, part in module.named_modules():
        if "lora_dropout" in name:
            continue
        if on:
            for holder, rates in part.__dict__.pop("_dropout_rates", ()):
                holder.__dict__.update(rates)
            continue
        holders = (part, getattr(part, "config", None))
        if found := [(holder, rates) for holder in holders if (rates := _rates(holder))]:
            part.__dict__["_dropout_rates"] = found
            for holder, rates in found:
                holder.__dict__.update(dict.fromkeys(rates, 0.0))


def has_dropout(module: nn.Module) -> bool:
    """Return True if the module drops anything in training, an adapter's inputs included."""
    return any(_rates(part) for part in module.modules())


def _rates(holder: object) -> dict[str, float]:
    """Return the positive dropout rates among an object's attributes, by name."""
    is_dropout = isinstance(holder, nn.modules.dropout._DropoutNd)  # which calls its rate ``p``
    rates = dict[str, float]()
    for name, value in getattr(holder, "__dict__", {}).items():
        names_rate = "drop" in name or (is_dropout and name == "p")
        if names_rate and isinstance(value, float) and value > 0:
            rates[name] = value
    return rates
