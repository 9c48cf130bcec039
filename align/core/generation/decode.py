"""Sampling of completions, token by token, from a Hugging Face causal language model with its own forward pass.

A prompt is read once for all its completions, prompts of similar length share a batch, only the last position goes
through the head, and finished completions make room for waiting prompts. Each completion has its own random numbers,
so it does not depend on the other rows of its batch (beyond rounding).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.core.generation.generator_base import CompletionGroups, Interrupt, Request, Sample
from align.core.generation.kv_cache import Reader, ReaderSize, can_cache, can_group, open_reader, takes
from align.core.generation.sharded import is_sharded
from align.core.models.policy import device_of, without_gradient_or_dropout
from align.schemas.errors import AlignError
from align.schemas.run import Sampling

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

FEW = 1024
"""Vocabulary that is summed at once: below it the additional operations of blocks take longer than their sums save."""

LAST = 1 - 2**-52
"""Largest uniform number that is used: times a sum of weights it is less than the sum, also after rounding."""

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
    if not math.isfinite(logp_B.sum()):
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
    u_B = u_B.clamp(max=LAST)
    if vocabulary <= FEW:
        upto_BV = w_BV.cumsum(-1, dtype=torch.float64)
        total_B = upto_BV[:, -1]
        token_B = torch.searchsorted(upto_BV, (u_B * total_B)[:, None], right=True)[:, 0]
        return token_B.clamp_(max=vocabulary - 1), total_B  # sums that are NaN are passed over
    blocks, left = divmod(vocabulary, BLOCK)
    sum_BK = w_BV[:, : vocabulary - left].reshape(len(w_BV), blocks, BLOCK).sum(-1, dtype=torch.float64)
    if left:
        sum_BK = torch.cat([sum_BK, w_BV[:, vocabulary - left :].sum(-1, True, dtype=torch.float64)], 1)
    upto_BK = sum_BK.cumsum(-1)
    total_B = upto_BK[:, -1]
    aim_B1 = (u_B * total_B)[:, None]
    block_B1 = torch.searchsorted(upto_BK, aim_B1, right=True).clamp_(max=upto_BK.shape[1] - 1)
    at_BN = block_B1 * BLOCK + torch.arange(BLOCK, device=w_BV.device)
    inside_BN = w_BV.gather(1, at_BN.clamp(max=vocabulary - 1) if left else at_BN).double()
    if left:
        inside_BN = inside_BN.masked_fill_(at_BN >= vocabulary, 0)
    inside_BN = inside_BN.cumsum(-1)
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
"""Share of a batch's rows that must be finished before they are removed or make room for others. Measured with 128
rows that are only removed: at 1/2 a fifth slower, at 1/4 a twentieth, and below 1/8 slower again."""

SIMILAR = 3 / 4
"""Shares of the widest row that a row must have to be in a batch with it: narrower rows get a batch of more rows."""


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

        A network whose weights are sharded is sampled from in ``independent_passes``.
        Raises AlignError for empty and overlong prompts, Interrupt when ``stop`` returns True.
        """
        _check(self, requests)
        groups = CompletionGroups(requests, on_group)
        # Inference mode takes a tenth less time, for a small model. What FSDP2 gathers in it could not be trained with.
        no_graph = torch.no_grad if is_sharded(self.network) else torch.inference_mode
        try:
            with without_gradient_or_dropout(self.network):
                for rows in _batches(self, requests, sampling.max_completion_length):
                    batch = _Batch(self, rows, requests, sampling, on_token)
                    while batch:
                        # Not while a group is scored, which may make tensors that are used elsewhere.
                        with no_graph():
                            finished = batch.step(stop)
                        for row, sample in finished:
                            groups.add(row.request, row.answer, sample)
        finally:
            _restore_buffers(self.network)
        return groups.samples


def _restore_buffers(network: PreTrainedModel) -> None:
    """Make ordinary tensors of buffers that a pass in inference mode replaced (some rotary frequencies).

    DDP writes to buffers, which only inference mode may do to its own.
    """
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


class _Row(NamedTuple):
    """A row of a batch: the index of a request, and of the completion among its seeds."""

    request: int
    answer: int


class _Rows(NamedTuple):
    """The rows that share a reader: whole groups, or parts of groups, that begin in this order.

    most: number of rows at a time.
    """

    groups: list[list[_Row]]
    most: int


class _Batch:
    """The rows on their way through one reader. Finished rows leave it, and waiting groups take their places.

    Arrays along B have the reader's rows: those running, and those finished but not removed yet. Arrays along S have a
    place for each row at a time, ``place_B``. group_B: the number of each row's group, in the order they begin in.
    """

    def __init__(
        self,
        decoder: Decoder,
        rows: _Rows,
        requests: Sequence[Request],
        sampling: Sampling,
        on_token: Callable[[int, int, int], None] | None,
    ) -> None:
        self.requests, self.sampling, self.on_token = requests, sampling, on_token
        self.context, self.most = decoder.context, rows.most
        self.device = device_of(decoder.network)
        self.waiting = deque(rows.groups)
        lengths = [len(requests[group[0].request].prompt) for group in rows.groups]
        longest_completion = min(sampling.max_completion_length, self.context - min(lengths))
        # Twice the prompts that fill a batch: the last rows of a group keep their prompt while others begin.
        largest_group = max(map(len, rows.groups))
        self.prompts = min(len(rows.groups), rows.most, 2 * math.ceil(rows.most / largest_group) + 1)
        size = ReaderSize(rows.most, self.prompts, max(lengths), longest_completion, self.context)
        self.reader: Reader = open_reader(decoder.network, size)
        self.stop_strings = _StopStrings(decoder.tokenizer, sampling.stop) if sampling.stop else None
        self.ends = frozenset([*decoder.ends, *sampling.stop_token_ids])

        self.token_ST = np.zeros((rows.most, longest_completion), np.int32)
        self.logp_ST = np.zeros(self.token_ST.shape, np.float32)
        self.random_ST = np.zeros(self.token_ST.shape)
        self.free = list(range(rows.most))
        self.rows: list[_Row] = []
        self.place_B, self.length_B, self.limit_B, self.group_B = (np.zeros(0, np.int64) for _ in range(4))
        self.begun = 0
        self.running_B = np.zeros(0, bool)
        self.drawn_B = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.seen_BV: Tensor | None = None

    def __bool__(self) -> bool:
        """Return True until all rows are finished."""
        return bool(self.waiting) or bool(self.running_B.any())

    def step(self, stop: Callable[[], bool]) -> list[tuple[_Row, Sample]]:
        """Draw a token for rows that begin now, or for all others; return those finished. Raises Interrupt."""
        if stop():
            raise Interrupt
        running = int(self.running_B.sum())
        begins = self._groups_that_fit(running)
        finished = len(self.rows) - running
        if begins or finished >= COMPACT_AT * len(self.rows):
            self._remove_finished()
        if begins:
            first = len(self.rows)
            return list(self._draw(self._begin(begins), first))
        return list(self._draw(self.reader.read(self.drawn_B), 0))

    def _groups_that_fit(self, running: int) -> int:
        """Return the number of waiting groups to begin now; few at a time are not worth a pass over their prompts."""
        room = self.most - running
        if not self.waiting or (running and room < COMPACT_AT * self.most):
            return 0
        # By group: the reader has the prompt of a request once for each part of it that runs.
        prompts = len(np.unique(self.group_B[self.running_B]))
        count = rows = 0
        for group in self.waiting:
            if rows + len(group) > room or prompts + count == self.prompts:
                break
            count, rows = count + 1, rows + len(group)
        return count

    def _begin(self, count: int) -> Tensor:
        """Let groups join the batch, and return the logits [N, V] after the prompts of their rows."""
        groups = [self.waiting.popleft() for _ in range(count)]
        rows = [row for group in groups for row in group]
        prompts = [self.requests[group[0].request].prompt for group in groups]
        of_N = np.repeat(np.arange(count), [len(group) for group in groups])
        logits_NV = self.reader.add(prompts, of_N)
        place_N = np.array([self.free.pop() for _ in rows])
        length_N = np.array([len(prompt) for prompt in prompts])[of_N]
        limit_N = np.minimum(self.sampling.max_completion_length, self.context - length_N)
        for row, place, limit in zip(rows, place_N, limit_N, strict=True):
            self.random_ST[place, :limit] = uniforms(self.requests[row.request].seeds[row.answer], int(limit))
        self.rows += rows
        self.place_B = np.concatenate([self.place_B, place_N])
        self.length_B = np.concatenate([self.length_B, np.zeros(len(rows), np.int64)])
        self.limit_B = np.concatenate([self.limit_B, limit_N])
        self.group_B = np.concatenate([self.group_B, self.begun + of_N])
        self.begun += count
        self.running_B = np.concatenate([self.running_B, np.ones(len(rows), bool)])
        if self.sampling.repetition_penalty != 1:
            seen_PV = torch.zeros(count, logits_NV.shape[1], dtype=torch.bool, device=self.device)
            for seen_V, prompt in zip(seen_PV, prompts, strict=True):
                seen_V[torch.from_numpy(prompt.astype(np.int64)).to(self.device)] = True
            seen_NV = seen_PV[torch.from_numpy(of_N).to(self.device)]
            self.seen_BV = seen_NV if self.seen_BV is None else torch.cat([self.seen_BV, seen_NV])
        return logits_NV

    def _draw(self, logits_NV: Tensor, first: int) -> Iterator[tuple[_Row, Sample]]:
        """Draw a token for each row from ``first`` on, and yield those that are finished with it."""
        place_N, length_N = self.place_B[first:], self.length_B[first:]
        running_N, limit_N = self.running_B[first:], self.limit_B[first:]
        at_N = np.minimum(length_N, limit_N - 1)  # finished rows go on until they are removed
        u_N = torch.from_numpy(self.random_ST[place_N, at_N]).to(self.device)
        seen_NV = None if self.seen_BV is None else self.seen_BV[first:]
        drawn_N, logp_N = draw_tokens(logits_NV, self.sampling, u_N, seen_NV)
        if seen_NV is not None:
            seen_NV.scatter_(1, drawn_N[:, None], True)
        self.drawn_B = torch.cat([self.drawn_B, drawn_N]) if first else drawn_N
        token_N = drawn_N.cpu().numpy()
        self.token_ST[place_N, at_N], self.logp_ST[place_N, at_N] = token_N, logp_N.cpu().numpy()
        length_N += 1
        over_N = np.array([token in self.ends for token in token_N.tolist()])
        if self.on_token is not None or self.stop_strings is not None:
            for i in np.flatnonzero(running_N):
                row = self.rows[first + i]
                if self.on_token is not None:
                    self.on_token(row.request, row.answer, int(token_N[i]))
                if self.stop_strings is not None:
                    over_N[i] |= self.stop_strings.complete(self.token_ST[place_N[i], : length_N[i]])
        for i in np.flatnonzero(running_N & (over_N | (length_N >= limit_N))):
            running_N[i] = False
            place, length = place_N[i], length_N[i]
            finish: Literal["stop", "length"] = "stop" if over_N[i] else "length"
            sample = Sample(self.token_ST[place, :length].copy(), self.logp_ST[place, :length].copy(), finish)
            yield self.rows[first + i], sample

    def _remove_finished(self) -> None:
        if self.running_B.all():
            return
        self.free += self.place_B[~self.running_B].tolist()
        order_B = self.reader.keep(np.flatnonzero(self.running_B))
        self.rows = [self.rows[i] for i in order_B]
        self.place_B, self.length_B, self.limit_B, self.group_B = (
            array[order_B] for array in (self.place_B, self.length_B, self.limit_B, self.group_B)
        )
        self.running_B = self.running_B[order_B]
        order = torch.from_numpy(order_B).to(self.device)
        self.drawn_B = self.drawn_B[order]
        self.seen_BV = None if self.seen_BV is None else self.seen_BV[order]


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


def _batches(decoder: Decoder, requests: Sequence[Request], completion: int) -> list[_Rows]:
    """Return the rows of all requests, longest prompts first, in batches of at most the decoder's number of tokens.

    completion: tokens of the longest completion.
    """
    refills = can_group(decoder.network)
    # Left padding needs explicit positions: without them the model would count the padding.
    padded = can_cache(decoder.network) and takes(decoder.network, "position_ids")
    batches: list[_Rows] = []
    width = count = 0  # of the last batch: tokens of its widest row, number of rows
    for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt)):
        own = len(requests[i].prompt) + completion
        rows = [_Row(i, number) for number in range(len(requests[i].seeds))]
        while rows:
            room = batches[-1].most - count if batches else 0
            fits = room > 0 and (padded or own == width)
            if not fits and not (refills and own >= SIMILAR * width and batches):
                width, count = own, 0
                room = max(1, decoder.tokens // width)
                batches.append(_Rows([], room))
            part = len(rows) if refills else room
            if refills and len(rows) > max(room, batches[-1].most // 2):
                # A part of a group waits for less room than the whole would.
                part = max(1, batches[-1].most // 2)
            batches[-1].groups.append(rows[:part])
            count += len(rows[:part])
            rows = rows[part:]
    return [batch._replace(most=min(batch.most, sum(map(len, batch.groups)))) for batch in batches]


def _check(decoder: Decoder, requests: Sequence[Request]) -> None:
    for request in requests:
        if not len(request.prompt):
            raise AlignError("an empty prompt", "a model goes on from at least one token")
        if len(request.prompt) >= decoder.context:
            what = f"a prompt of {len(request.prompt)} tokens leaves no room for an answer"
            raise AlignError(what, f"the context is {decoder.context} tokens; shorten the prompt")
