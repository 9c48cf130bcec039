"""Answers token by token from a Hugging Face causal language model: its own forward pass, a cache, and nothing else.

A prompt is read once for all its answers, prompts of similar length share a batch (padded on the left), only the last
position goes through the head, and finished answers leave the batch. What is drawn for an answer follows from the
logits of its own row and from its own random numbers, so not from what else is in the batch (beyond rounding).
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

from align.core.generation.base import Interrupt, Request, Sample, Tokens
from align.core.models.policy import without_gradient_or_dropout
from align.schemas.errors import AlignError
from align.schemas.run import Sampling

# A batch of prompts read by a model, and then a token at a time: with its cache, or without where there is none.
#
# Measured on one CPU core, milliseconds a token step for 64 rows of 32 + 96 tokens, four layers of width 128: cache
# grown by concatenation 7.1, in room made beforehand 6.0; padded rows cost 5 % more, with grouped heads 40 %.


def can_cache(network: PreTrainedModel) -> bool:
    """Whether all that the model remembers are keys and values; recurrent states cannot be shared and rearranged."""
    layers = DynamicCache(config=network.config).layers
    return not network._is_stateful and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
    )


class Cached:
    """Prompts [P] read once each and left padded; then B rows that go on from them, row b from prompt ``of_B[b]``.

    logits_BV: what the model says after each row's last token. room: most tokens that follow.
    """

    def __init__(
        self, network: PreTrainedModel, prompts: Sequence[Tokens], of_B: Tensor, room: int, context: int
    ) -> None:
        self.network, self.context = network, context
        self._takes = frozenset(inspect.signature(network.forward).parameters)
        length_P, longest = np.array([len(prompt) for prompt in prompts]), max(map(len, prompts))
        real_PL = np.arange(longest) >= (longest - length_P)[:, None]
        ids_PL = np.zeros(real_PL.shape, np.int64)
        ids_PL[real_PL] = np.concatenate(prompts)
        place_PL = np.maximum(np.arange(longest) - (longest - length_P)[:, None], 0)
        self._cache = DynamicCache(config=network.config)
        self._mask_BL: Tensor | None = None
        mask_PL = None if real_PL.all() else self._tensor(real_PL.astype(np.int64))
        logits_PV = self._run(self._tensor(ids_PL), self._tensor(place_PL), mask_PL)
        if mask_PL is not None:
            self._mask_BL = torch.cat([mask_PL[of_B], mask_PL.new_ones(len(of_B), room)], 1)
        self._place_B, self._read = self._tensor(length_P)[of_B], longest
        self.logits_BV = logits_PV[of_B]
        self._cache.layers = [
            _Roomy(layer, of_B, longest + room) if type(layer) is DynamicLayer else _selected(layer, of_B)
            for layer in self._cache.layers
        ]

    def read(self, token_B: Tensor) -> Tensor:
        """What the model says [B, V] after one more token of each row."""
        self._read += 1
        mask_BL = None if self._mask_BL is None else self._mask_BL[:, : self._read]
        place_B1 = self._place_B[:, None].clamp(max=self.context - 1)  # of a finished row that is still here
        self._place_B = self._place_B + 1
        return self._run(token_B[:, None], place_B1, mask_BL)

    def keep(self, rows_K: Tensor) -> None:
        """Go on with these rows only."""
        self._cache.batch_select_indices(rows_K)
        self._place_B = self._place_B[rows_K]
        self._mask_BL = None if self._mask_BL is None else self._mask_BL[rows_K]

    def _run(self, ids: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        given = {"position_ids": places, "attention_mask": mask, "logits_to_keep": 1}
        given = {name: value for name, value in given.items() if name in self._takes and value is not None}
        output: Any = self.network(input_ids=ids, past_key_values=self._cache, use_cache=True, **given)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(values).to(next(self.network.parameters()).device)


class Uncached:
    """The same for rows of one length and a model that keeps states: everything is read again for every token."""

    def __init__(
        self, network: PreTrainedModel, prompts: Sequence[Tokens], of_B: Tensor, room: int, context: int
    ) -> None:
        self.network = network
        self._keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(network.forward).parameters else {}
        self._ids_BL = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(of_B.device)
        self.logits_BV = self._run()[of_B]
        self._ids_BL = self._ids_BL[of_B]

    def read(self, token_B: Tensor) -> Tensor:
        """What the model says [B, V] after one more token of each row."""
        self._ids_BL = torch.cat([self._ids_BL, token_B[:, None]], 1)
        return self._run()

    def keep(self, rows_K: Tensor) -> None:
        """Go on with these rows only."""
        self._ids_BL = self._ids_BL[rows_K]

    def _run(self) -> Tensor:
        output: Any = self.network(input_ids=self._ids_BL, use_cache=False, **self._keep)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


class _Roomy(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values [B, heads, room, width] of which the first are filled: a new token is written, nothing copied."""

    def __init__(self, layer: Any, rows_B: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(layer.keys, layer.values)
        self._whole = [_with_room(part, rows_B, layer.keys.shape[2], room) for part in (layer.keys, layer.values)]
        self._show(layer.keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write behind what is filled; all of that."""
        start, end = self._filled, self._filled + key_states.shape[2]
        for whole, states in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, start:end] = states
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows."""
        self._whole = [_with_room(whole, indices, self._filled, whole.shape[2]) for whole in self._whole]
        self._show(self._filled)

    def _show(self, filled: int) -> tuple[Tensor, Tensor]:
        self._filled = filled
        keys, values = (whole[:, :, :filled] for whole in self._whole)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(part: Tensor, rows_B: Tensor, filled: int, room: int) -> Tensor:
    """These rows of what is filled, in new room."""
    whole = part.new_empty(len(rows_B), part.shape[1], room, part.shape[3])
    whole[:, :, :filled] = part[rows_B, :, :filled]
    return whole


def _selected(layer: Any, rows_B: Tensor) -> Any:
    layer.batch_select_indices(rows_B)
    return layer


# How the next token is drawn from logits [B, V]: each row by itself, with one uniform number of its own.
#
#     l' = l / r where l > 0, l r where l <= 0, for tokens seen before    repetition penalty (1909.05858, section 4.1)
#     x  = l' / temperature
#     top-k   x >= the k-th largest of x
#     top-p   the fewest likeliest tokens whose probabilities reach p     (1904.09751, section 3.1)
#     min-p   w >= min_p                                                  (2407.01082, section 3)
#     w  = exp(x - max x),  P = w / sum w,  token = the first i with w_0 + ... + w_i > u sum w
#
# in this order, as ``transformers``; vLLM puts min-p before top-k, which keeps the same tokens but where top-p cuts
# on. Equals at an edge: top-k and min-p keep all (as ``transformers`` and vLLM do), top-p the fewest, lowest ids first
# (both leave it to their sort). Whatever is cut, the likeliest token stays.

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


LEAVE = 1 / 8
"""Share of a batch's rows that are finished before they are taken out: taking out copies the cache. Measured with 128
rows: at 1/2 a fifth slower, at 1/4 a twentieth, and at less than 1/8 slower again."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sample completions from a network in this process, prompts of similar length in one batch.

    ends: token ids that end an answer. context: most tokens of prompt and answer together. tokens: most tokens of
    prompts and answers in one batch, each row counted with the longest prompt and the longest answer.
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
    ) -> list[list[Sample]]:
        """As ``Generator.generate``. Raises AlignError for empty and overlong prompts, and for sharded weights."""
        _check(self, requests)
        samples: list[list[Sample | None]] = [[None] * len(request.seeds) for request in requests]
        whole = can_cache(self.network)
        padded = whole and "position_ids" in inspect.signature(self.network.forward).parameters
        with without_gradient_or_dropout(self.network):
            for batch in _batches(requests, sampling.max_completion_length, self.tokens, padded):
                for row, sample in self._batch(
                    batch, requests, sampling, Cached if whole else Uncached, stop, on_token
                ):
                    samples[row.request][row.answer] = sample
        return [[sample for sample in group if sample is not None] for group in samples]

    def _batch(
        self,
        rows: list[_Row],
        requests: Sequence[Request],
        sampling: Sampling,
        reads: type[Cached] | type[Uncached],
        stop: Callable[[], bool],
        on_token: Callable[[int, int, int], None] | None,
    ) -> Iterator[tuple[_Row, Sample]]:
        """Each row's sample, as it is finished."""
        device = next(self.network.parameters()).device
        which = list(dict.fromkeys(row.request for row in rows))
        prompts = [requests[i].prompt for i in which]
        limit_B = np.array(
            [min(sampling.max_completion_length, self.context - len(requests[r.request].prompt)) for r in rows]
        )
        longest = int(limit_B.max())
        random_BT = np.stack([uniforms(requests[r.request].seeds[r.answer], longest) for r in rows])
        random_TB = torch.from_numpy(random_BT.T.copy()).to(device)
        said_BT, logp_BT = np.zeros(random_BT.shape, np.int32), np.zeros(random_BT.shape, np.float32)
        ends = np.array([*self.ends, *sampling.stop_token_ids], np.int64)
        spelling = _Spelling(self.tokenizer, sampling.stop) if sampling.stop else None

        of_B = torch.tensor([which.index(row.request) for row in rows], device=device)
        if stop():
            raise Interrupt
        reader = reads(self.network, prompts, of_B, longest, self.context)
        logits_BV, seen_BV = reader.logits_BV, None
        if sampling.repetition_penalty != 1:
            seen_PV = torch.zeros(len(prompts), logits_BV.shape[1], dtype=torch.bool, device=device)
            for seen_V, prompt in zip(seen_PV, prompts, strict=True):
                seen_V[torch.from_numpy(prompt.astype(np.int64)).to(device)] = True
            seen_BV = seen_PV[of_B]
        place_B = np.arange(len(rows))  # where the rows of the reader stand in ``rows``
        running_B = np.ones(len(rows), bool)
        for t in range(longest):
            if stop():
                raise Interrupt
            drawn_B, logp_B = draw(logits_BV, sampling, random_TB[t, place_B], seen_BV)
            if seen_BV is not None:
                seen_BV.scatter_(1, drawn_B[:, None], True)
            token_B = drawn_B.cpu().numpy()
            said_BT[place_B, t], logp_BT[place_B, t] = token_B, logp_B.cpu().numpy()
            over_B = np.isin(token_B, ends)
            for i in np.flatnonzero(running_B[place_B]) if on_token or spelling else ():
                row, token = rows[place_B[i]], int(token_B[i])
                if on_token is not None:
                    on_token(row.request, row.answer, token)
                if spelling is not None:
                    over_B[i] |= spelling.stops(said_BT[place_B[i], : t + 1])
            for i in np.flatnonzero(running_B[place_B] & (over_B | (t + 1 == limit_B[place_B]))):
                place = place_B[i]
                running_B[place] = False
                finish: Literal["stop", "length"] = "stop" if over_B[i] else "length"
                yield rows[place], Sample(said_BT[place, : t + 1].copy(), logp_BT[place, : t + 1].copy(), finish)
            left_B = running_B[place_B]
            if not left_B.any():
                return
            if left_B.mean() <= 1 - LEAVE:
                place_B, kept_B = place_B[left_B], torch.from_numpy(np.flatnonzero(left_B)).to(device)
                reader.keep(kept_B)
                drawn_B, seen_BV = drawn_B[kept_B], None if seen_BV is None else seen_BV[kept_B]
            logits_BV = reader.read(drawn_B)


class _Row(NamedTuple):
    """Which answer of which request."""

    request: int
    answer: int


class _Spelling:
    """Finds stop strings in answers as they grow, by decoding no more of their ends than could hold one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        # a character is at most four bytes and a token at least one; the first few may be half a character
        self.window = 4 * max(map(len, stop)) + 4
        self.unspelt = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]

    def stops(self, tokens_T: Any) -> bool:
        """Whether the last token completes a stop string."""
        spelt = tokens_T[-2 * self.window :]
        spelt = spelt[~np.isin(spelt, self.unspelt)]
        if len(spelt) < self.window:
            spelt = tokens_T[~np.isin(tokens_T, self.unspelt)]
        text = str(self.tokenizer.decode(spelt[-self.window :].tolist()))
        return any(string in text for string in self.stop)


def _batches(requests: Sequence[Request], answer: int, tokens: int, padded: bool) -> list[list[_Row]]:
    """All rows by prompt length, longest first, cut where a batch is full; if not padded also where lengths differ."""
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
        what = "the generator local cannot speak for weights that are sharded over devices"
        raise AlignError(what, "use the generator vllm, or the strategy ddp")
