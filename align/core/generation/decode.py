"""Answers token by token from a Hugging Face causal language model: its own forward pass, a cache, and nothing else.

A prompt is read once for all its answers, prompts of similar length share a batch (padded on the left), only the last
position goes through the head, and finished answers leave the batch. What is drawn for an answer follows from the
logits of its own row and from its own random numbers, so not from what else is in the batch (beyond rounding).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.core.generation.base import Interrupt, Request, Sample
from align.core.model.weights import without_gradient_or_dropout
from align.core.rollout.cache import Cached, Uncached, can_cache
from align.core.rollout.sampling import draw, uniforms
from align.schemas.errors import AlignError
from align.schemas.rollout import Sampling

LEAVE = 1 / 8
"""Share of a batch's rows that are finished before they are taken out: taking out copies the cache. Measured with 128
rows: at 1/2 a fifth slower, at 1/4 a twentieth, and at less than 1/8 slower again."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A network and what of its tokenizer matters while it speaks.

    ends: token ids that end an answer. context: most tokens of prompt and answer together. tokens: most tokens of
    prompts and answers in one batch, each row counted with the longest prompt and the longest answer.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    context: int
    tokens: int

    def answer(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop: Callable[[], bool] = lambda: False,
        heard: Callable[[int, int, int], None] | None = None,
    ) -> list[list[Sample]]:
        """As ``Generator.generate``. Raises AlignError for empty and overlong prompts, and for sharded weights."""
        _check(self, requests)
        samples: list[list[Sample | None]] = [[None] * len(request.seeds) for request in requests]
        whole = can_cache(self.network)
        padded = whole and "position_ids" in inspect.signature(self.network.forward).parameters
        with without_gradient_or_dropout(self.network):
            for batch in _batches(requests, sampling.max_completion_length, self.tokens, padded):
                for row, sample in self._batch(batch, requests, sampling, Cached if whole else Uncached, stop, heard):
                    samples[row.request][row.answer] = sample
        return [[sample for sample in group if sample is not None] for group in samples]

    def _batch(
        self,
        rows: list[_Row],
        requests: Sequence[Request],
        sampling: Sampling,
        reads: type[Cached] | type[Uncached],
        stop: Callable[[], bool],
        heard: Callable[[int, int, int], None] | None,
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
            for i in np.flatnonzero(running_B[place_B]) if heard or spelling else ():
                row, token = rows[place_B[i]], int(token_B[i])
                if heard is not None:
                    heard(row.request, row.answer, token)
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


def _check(voice: Voice, requests: Sequence[Request]) -> None:
    for request in requests:
        if not len(request.prompt):
            raise AlignError("an empty prompt", "a model goes on from at least one token")
        if len(request.prompt) >= voice.context:
            what = f"a prompt of {len(request.prompt)} tokens leaves no room for an answer"
            raise AlignError(what, f"the context is {voice.context} tokens; shorten the prompt")
    if any(isinstance(parameter, DTensor) for parameter in voice.network.parameters()):
        what = "the generator local cannot speak for weights that are sharded over devices"
        raise AlignError(what, "use the generator vllm, or the strategy ddp")
