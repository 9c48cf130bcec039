"""Sampling of completions, token by token, from a Hugging Face causal language model with its own forward pass.

A prompt is read once for all its completions, prompts of similar length share a batch (padded on the left), only the
last position goes through the head, and finished completions leave the batch. Each completion has its own random
numbers, so it does not depend on the other rows of its batch (beyond rounding).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from align.core.generation.generator_base import CompletionGroups, Interrupt, Request, Sample, Tokens
from align.core.models.policy import without_gradient_or_dropout
from align.schemas.errors import AlignError
from align.schemas.run import Sampling

# --- key-value cache -------------------------------------------------------------------------------------------------
#
# A reader runs the model over a batch of prompts, then over one more token of each row at a time: with a cache, or
# without one for models that keep other states.
#
# The cache is allocated for the longest completion at once. Measured on one CPU core, milliseconds per token step for
# 64 rows of 32 + 96 tokens, four layers of width 128: cache grown by concatenation 7.1, allocated beforehand 6.0;
# padded rows cost 5 % more, with grouped heads 40 %.


def can_cache(network: PreTrainedModel) -> bool:
    """Return True if the model's cache is only keys and values.

    Recurrent states can be neither shared by the completions of a prompt nor reordered when rows leave the batch.
    """
    layers = DynamicCache(config=network.config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return plain and not network._is_stateful


class CachedReader:
    """A reader with a key-value cache. The P prompts are read once each, left padded; then B rows continue them.

    of_B: the prompt that row b continues. room: largest number of tokens that follow a prompt. context: the model's
    largest number of positions. logits_BV: the model's logits after each row's last token so far.
    """

    def __init__(
        self, network: PreTrainedModel, prompts: Sequence[Tokens], of_B: Tensor, room: int, context: int
    ) -> None:
        self.network, self.context = network, context
        self._takes = frozenset(inspect.signature(network.forward).parameters)
        length_P, longest = np.array([len(prompt) for prompt in prompts]), max(map(len, prompts))
        padding_P1 = (longest - length_P)[:, None]
        real_PL = np.arange(longest) >= padding_P1
        ids_PL = np.zeros(real_PL.shape, np.int64)
        ids_PL[real_PL] = np.concatenate(prompts)
        position_PL = np.maximum(np.arange(longest) - padding_P1, 0)
        self._cache = DynamicCache(config=network.config)
        self._mask_BL: Tensor | None = None
        # Without a mask attention can use its fast causal kernel, so none is made for prompts of one length.
        mask_PL = None if real_PL.all() else self._tensor(real_PL.astype(np.int64))
        logits_PV = self._run(self._tensor(ids_PL), self._tensor(position_PL), mask_PL)
        if mask_PL is not None:
            self._mask_BL = torch.cat([mask_PL[of_B], mask_PL.new_ones(len(of_B), room)], 1)
        self._position_B, self._read = self._tensor(length_P)[of_B], longest
        self.logits_BV = logits_PV[of_B]
        self._cache.layers = [self._expanded(layer, of_B, longest + room) for layer in self._cache.layers]

    @staticmethod
    def _expanded(layer: Any, of_B: Tensor, size: int) -> Any:
        """Return a layer of the prompts' cache with one row for each completion.

        A sliding-window layer is bounded already, so only layers of full attention are allocated at their final size.
        """
        if type(layer) is DynamicLayer:
            return _PreallocatedLayer(layer, of_B, size)
        layer.batch_select_indices(of_B)
        return layer

    def read(self, token_B: Tensor) -> Tensor:
        """Append one token to each row, and return the logits [B, V] after it."""
        self._read += 1
        mask_BL = None if self._mask_BL is None else self._mask_BL[:, : self._read]
        # A finished row stays until the batch is compacted; its position may not run past a learned table's end.
        position_B1 = self._position_B[:, None].clamp(max=self.context - 1)
        self._position_B = self._position_B + 1
        return self._run(token_B[:, None], position_B1, mask_BL)

    def keep(self, rows_K: Tensor) -> None:
        """Continue with these rows only."""
        self._cache.batch_select_indices(rows_K)
        self._position_B = self._position_B[rows_K]
        self._mask_BL = None if self._mask_BL is None else self._mask_BL[rows_K]

    def _run(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        given = {"position_ids": positions, "attention_mask": mask, "logits_to_keep": 1}
        given = {name: value for name, value in given.items() if name in self._takes and value is not None}
        output: Any = self.network(input_ids=ids, past_key_values=self._cache, use_cache=True, **given)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(values).to(next(self.network.parameters()).device)


class UncachedReader:
    """A reader without a cache, for models with other states: each token costs a pass over the whole row.

    All rows have one length, since such a model would carry its state through padding.
    """

    def __init__(
        self, network: PreTrainedModel, prompts: Sequence[Tokens], of_B: Tensor, room: int, context: int
    ) -> None:
        self.network = network
        self._keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(network.forward).parameters else {}
        self._ids_BL = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(of_B.device)
        self.logits_BV = self._run()[of_B]
        self._ids_BL = self._ids_BL[of_B]

    def read(self, token_B: Tensor) -> Tensor:
        """Append one token to each row, and return the logits [B, V] after it."""
        self._ids_BL = torch.cat([self._ids_BL, token_B[:, None]], 1)
        return self._run()

    def keep(self, rows_K: Tensor) -> None:
        """Continue with these rows only."""
        self._ids_BL = self._ids_BL[rows_K]

    def _run(self) -> Tensor:
        output: Any = self.network(input_ids=self._ids_BL, use_cache=False, **self._keep)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


class _PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values [B, heads, room, width], allocated at their final size.

    A new token is written behind the filled part; ``DynamicLayer`` copies the whole cache to append one.
    """

    def __init__(self, layer: Any, rows_B: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(layer.keys, layer.values)
        self._whole = [_with_room(part, rows_B, layer.keys.shape[2], room) for part in (layer.keys, layer.values)]
        self._show(layer.keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens, and return all of them so far."""
        start, end = self._filled, self._filled + key_states.shape[2]
        for whole, states in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, start:end] = states
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        self._whole = [_with_room(whole, indices, self._filled, whole.shape[2]) for whole in self._whole]
        self._show(self._filled)

    def _show(self, filled: int) -> tuple[Tensor, Tensor]:
        self._filled = filled
        keys, values = (whole[:, :, :filled] for whole in self._whole)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(part: Tensor, rows_B: Tensor, filled: int, room: int) -> Tensor:
    """Return a new tensor of size ``room`` along axis 2, with the filled part of these rows copied into it."""
    whole = part.new_empty(len(rows_B), part.shape[1], room, part.shape[3])
    whole[:, :, :filled] = part[rows_B, :, :filled]
    return whole


# --- drawing the next token ------------------------------------------------------------------------------------------
#
# Each row of logits [B, V] is drawn from by itself, with one uniform number u of its own.
#
#     l' = l / r where l > 0, l r where l <= 0, for tokens seen before    repetition penalty (1909.05858, section 4.1)
#     x  = l' / temperature
#     top-k   x >= the k-th largest of x
#     top-p   the fewest likeliest tokens whose probabilities reach p     (1904.09751, section 3.1)
#     min-p   w >= min_p                                                  (2407.01082, section 3)
#     w  = exp(x - max x),  P = w / sum w,  token = the first i with w_0 + ... + w_i > u sum w
#
# in this order, as in ``transformers``. vLLM applies min-p before top-k, which keeps the same tokens unless top-p cuts
# too. Ties at a threshold: top-k and min-p keep all of them (as ``transformers`` and vLLM do), top-p the fewest, lowest
# ids first (the others leave it to their sort). The likeliest token always stays.

BLOCK = 128
"""Probabilities per block. Blocks are summed first and the sums searched: a running sum over a whole vocabulary takes
five times as long."""

NUCLEUS = 128
"""Number of likeliest tokens in which a nucleus is searched before whole rows are sorted."""


def uniforms(seed: int, count: int) -> NDArray[np.float64]:
    """Return [count] numbers in [0, 1) of a seed (Philox4x64); a longer stream begins with the shorter one."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def seed_of(seed: int, place: int, number: int) -> int:
    """Return the seed of one completion, in [0, 2**63).

    seed: of the run. place: number of prompts before this one in the run. number: the completion's index in its group.
    """
    low, high = np.random.SeedSequence((seed, place, number)).generate_state(2, np.uint32)
    return int(high) % 2**31 * 2**32 + int(low)


def draw_tokens(
    logits_BV: Tensor, sampling: Sampling, u_B: Tensor, seen_BV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row [B]; return it with its log-probability [B] (float32) under the sampled distribution.

    u_B: float64 in [0, 1). seen_BV: True for tokens of prompt and completion, needed for a repetition penalty. At
    temperature 0 the token is the likeliest one (after the penalty), and its log-probability the model's own.
    Raises AlignError for logits that are NaN or infinite.
    """
    logits_BV = logits_BV.float()
    x_BV = process_logits(logits_BV, sampling, seen_BV)
    if sampling.temperature == 0:
        token_B = x_BV.argmax(-1)  # of equals the first
        logp_B = logits_BV.gather(1, token_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
    else:
        top_B = x_BV.amax(-1)
        token_B, total_B = _inverse_cdf((x_BV - top_B[:, None]).exp_(), u_B)
        logp_B = x_BV.gather(1, token_B[:, None])[:, 0] - top_B - total_B.log().float()
    if not bool(logp_B.isfinite().all()):
        raise AlignError("the model's logits are not finite", "check the weights: training may have gone wrong")
    return token_B, logp_B


def process_logits(logits_BV: Tensor, sampling: Sampling, seen_BV: Tensor | None = None) -> Tensor:
    """Return x [B, V]: logits after penalty and temperature, -inf for tokens that are cut.

    At temperature 0 only the penalty is applied.
    """
    x_BV = logits_BV.float()
    if sampling.repetition_penalty != 1:
        assert seen_BV is not None, "a repetition penalty needs to know the tokens seen"
        r = sampling.repetition_penalty
        penalised_BV = torch.where(x_BV > 0, x_BV / r, x_BV * r)
        x_BV = torch.where(seen_BV, penalised_BV, x_BV)
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


def _inverse_cdf(w_BV: Tensor, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row the first i with w_0 + ... + w_i > u sum w, and sum w, both from float64 sums.

    The block that holds i is searched first, then i in the block.
    """
    vocabulary = w_BV.shape[1]
    blocks, left = divmod(vocabulary, BLOCK)
    whole_BK, rest_B1 = w_BV[:, : vocabulary - left].reshape(len(w_BV), blocks, BLOCK), w_BV[:, vocabulary - left :]
    sum_BK = torch.cat([part.sum(-1, dtype=torch.float64).view(len(w_BV), -1) for part in (whole_BK, rest_B1)], 1)
    upto_BK = sum_BK.cumsum(-1)
    total_B = upto_BK[:, -1]
    aim_B1 = (u_B * total_B)[:, None]
    block_B1 = torch.searchsorted(upto_BK, _below_total(aim_B1, upto_BK), right=True).clamp_(max=blocks)
    at_BN = block_B1 * BLOCK + torch.arange(BLOCK, device=w_BV.device)
    inside_BN = w_BV.gather(1, at_BN.clamp(max=vocabulary - 1)).double().masked_fill_(at_BN >= vocabulary, 0).cumsum(-1)
    aim_B1 = (aim_B1 - (upto_BK - sum_BK).gather(1, block_B1)).clamp_(min=0)
    token_B = block_B1 * BLOCK + torch.searchsorted(inside_BN, _below_total(aim_B1, inside_BN), right=True)
    return token_B[:, 0].clamp_(max=vocabulary - 1), total_B


def _below_total(aim_B1: Tensor, upto_BN: Tensor) -> Tensor:
    """Return the aim, or the number just below the last sum if rounding took it past that: one sum must exceed it."""
    last_B1 = upto_BN[:, -1:]
    return torch.minimum(aim_B1, last_B1.nextafter(torch.zeros_like(last_B1)))


def _nucleus(x_BV: Tensor, p: float) -> Tensor:
    """Return True [B, V] for the fewest tokens of each row whose probabilities reach p; of ties the lowest ids.

    The likeliest few usually reach it, so whole rows are sorted only if they do not.
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


# --- decoding loop ---------------------------------------------------------------------------------------------------

COMPACT_AT = 1 / 8
"""Share of a batch's rows that must be finished before they are removed, which copies the cache. Measured with 128
rows: at 1/2 a fifth slower, at 1/4 a twentieth, and below 1/8 slower again."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A network that samples completions.

    tokenizer: decodes completions in search of stop strings. ends: token ids that end a completion. context: largest
    number of tokens in prompt and completion together. tokens: largest number of tokens in a batch, in which each row
    counts as the longest prompt plus the longest completion.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    context: int
    tokens: int

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop: Callable[[], bool] = lambda: False,
        on_token: Callable[[int, int, int], None] | None = None,
        on_group: Callable[[int, Sequence[Sample]], None] | None = None,
    ) -> list[list[Sample]]:
        """Return the completions of each request, in the order of its seeds; see ``Generator.generate``.

        Raises AlignError for empty and overlong prompts and for sharded weights, Interrupt when ``stop`` returns True.
        """
        _check(self, requests)
        groups = CompletionGroups(requests, on_group)
        cached = can_cache(self.network)
        # Left padding needs explicit positions: without them the model would count the padding.
        padded = cached and "position_ids" in inspect.signature(self.network.forward).parameters
        reader = CachedReader if cached else UncachedReader
        with without_gradient_or_dropout(self.network):
            for batch in _batches(requests, sampling.max_completion_length, self.tokens, padded):
                for row, sample in self._batch(batch, requests, sampling, reader, stop, on_token):
                    groups.add(row.request, row.answer, sample)
        return groups.samples

    def _batch(
        self,
        rows: list[_Row],
        requests: Sequence[Request],
        sampling: Sampling,
        reader_type: type[CachedReader] | type[UncachedReader],
        stop: Callable[[], bool],
        on_token: Callable[[int, int, int], None] | None,
    ) -> Iterator[tuple[_Row, Sample]]:
        """Yield each row with its sample, as it is finished.

        Arrays along B hold the rows that the reader still has; ``place_B`` gives their index in ``rows``.
        """
        device = next(self.network.parameters()).device
        which = list(dict.fromkeys(row.request for row in rows))
        prompts = [requests[i].prompt for i in which]
        room_B = np.array([self.context - len(requests[row.request].prompt) for row in rows])
        limit_B = np.minimum(sampling.max_completion_length, room_B)
        longest = int(limit_B.max())
        random_BT = np.stack([uniforms(requests[r.request].seeds[r.answer], longest) for r in rows])
        random_TB = torch.from_numpy(random_BT.T.copy()).to(device)
        token_BT, logp_BT = np.zeros(random_BT.shape, np.int32), np.zeros(random_BT.shape, np.float32)
        ends = np.array([*self.ends, *sampling.stop_token_ids], np.int64)
        stop_strings = _StopStrings(self.tokenizer, sampling.stop) if sampling.stop else None

        of_B = torch.tensor([which.index(row.request) for row in rows], device=device)
        if stop():
            raise Interrupt
        reader = reader_type(self.network, prompts, of_B, longest, self.context)
        logits_BV, seen_BV = reader.logits_BV, None
        if sampling.repetition_penalty != 1:
            seen_PV = torch.zeros(len(prompts), logits_BV.shape[1], dtype=torch.bool, device=device)
            for seen_V, prompt in zip(seen_PV, prompts, strict=True):
                seen_V[torch.from_numpy(prompt.astype(np.int64)).to(device)] = True
            seen_BV = seen_PV[of_B]
        place_B = np.arange(len(rows))
        running_B = np.ones(len(rows), bool)  # by index in ``rows``
        for t in range(longest):
            if stop():
                raise Interrupt
            drawn_B, logp_B = draw_tokens(logits_BV, sampling, random_TB[t, place_B], seen_BV)
            if seen_BV is not None:
                seen_BV.scatter_(1, drawn_B[:, None], True)
            token_B = drawn_B.cpu().numpy()
            token_BT[place_B, t], logp_BT[place_B, t] = token_B, logp_B.cpu().numpy()
            over_B = np.isin(token_B, ends)
            if on_token is not None or stop_strings is not None:
                for i in np.flatnonzero(running_B[place_B]):
                    row, token = rows[place_B[i]], int(token_B[i])
                    if on_token is not None:
                        on_token(row.request, row.answer, token)
                    if stop_strings is not None:
                        over_B[i] |= stop_strings.complete(token_BT[place_B[i], : t + 1])
            for i in np.flatnonzero(running_B[place_B] & (over_B | (t + 1 == limit_B[place_B]))):
                place = place_B[i]
                running_B[place] = False
                finish: Literal["stop", "length"] = "stop" if over_B[i] else "length"
                yield rows[place], Sample(token_BT[place, : t + 1].copy(), logp_BT[place, : t + 1].copy(), finish)
            left_B = running_B[place_B]
            if not left_B.any():
                return
            if left_B.mean() <= 1 - COMPACT_AT:
                place_B, kept_B = place_B[left_B], torch.from_numpy(np.flatnonzero(left_B)).to(device)
                reader.keep(kept_B)
                drawn_B, seen_BV = drawn_B[kept_B], None if seen_BV is None else seen_BV[kept_B]
            logits_BV = reader.read(drawn_B)


class _Row(NamedTuple):
    """A row of a batch: the index of a request, and of the completion among its seeds."""

    request: int
    answer: int


class _StopStrings:
    """A search for stop strings in growing completions, which decodes no more of their ends than can hold one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        # A character has at most four bytes and a token at least one; the first few may be part of a character.
        self.window = 4 * max(map(len, stop)) + 4
        self.special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]

    def complete(self, tokens_T: Any) -> bool:
        """Return True if the last token completes a stop string. Special tokens are no text and are left out."""
        text_tokens = tokens_T[-2 * self.window :]
        text_tokens = text_tokens[~np.isin(text_tokens, self.special)]
        if len(text_tokens) < self.window:  # many special tokens: the window reaches further back
            text_tokens = tokens_T[~np.isin(tokens_T, self.special)]
        text = str(self.tokenizer.decode(text_tokens[-self.window :].tolist()))
        return any(string in text for string in self.stop)


def _batches(requests: Sequence[Request], answer: int, tokens: int, padded: bool) -> list[list[_Row]]:
    """Return the rows sorted by prompt length, longest first, in batches of at most ``tokens`` tokens.

    answer: tokens of the longest completion. Unless ``padded``, a batch has prompts of one length only.
    """
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
    batches: list[list[_Row]] = []
    width = 0
    for i in order:
        length = len(requests[i].prompt)
        for number in range(len(requests[i].seeds)):
            full = not batches or (len(batches[-1]) + 1) * (width + answer) > tokens
            if full or (length != width and not padded):
                batches.append([])
                width = length
            batches[-1].append(_Row(i, number))
    return batches


def _check(decoder: Decoder, requests: Sequence[Request]) -> None:
    for request in requests:
        if not len(request.prompt):
            raise AlignError("an empty prompt", "a model goes on from at least one token")
        if len(request.prompt) >= decoder.context:
            what = f"a prompt of {len(request.prompt)} tokens leaves no room for an answer"
            raise AlignError(what, f"the context is {decoder.context} tokens; shorten the prompt")
    if any(isinstance(parameter, DTensor) for parameter in decoder.network.parameters()):
        what = "the generator local cannot sample from weights that are sharded over devices"
        raise AlignError(what, "use the generator vllm, or the strategy ddp")
