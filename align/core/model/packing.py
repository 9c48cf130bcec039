"""Whether a model's sequences may share a row, tried out on real rows.

transformers keeps packed sequences apart by their ``position_ids`` (a position that does not follow the last begins a
sequence) where it is given no attention mask and no cache. A model that carries state along a row, by recurrence or
convolution, mixes them all the same, and one that takes no positions cannot be told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from align.core.data.collate import collate
from align.core.data.examples import Example, Examples
from align.core.data.examples import Sequence as TokenSequence
from align.core.data.plan import Layout
from align.core.model.policy import Policy, Scores

log = logging.getLogger(__name__)

VARLEN = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""Attention that computes only the blocks of a packed row which lie within sequences."""

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far rounding alone may move a log-probability."""


ROWS, LENGTH = 4, 64
"""How many sequences the probe takes, and how many tokens of each."""


def probe(policy: Policy, examples: Examples | Sequence[Example], pad_id: int = 0) -> bool:
    """Whether the model scores the first of these examples the same in one row as each sequence in its own.

    Runs where the model is. Leaves its mode, its attention and the random state as they were.
    """
    if not policy.takes_positions:
        return False
    sequences = [s for i in range(min(ROWS, len(examples))) for s in examples[i].sequences]
    alone = [_beginning(s) for s in (sequences if len(sequences) > 1 else 2 * sequences)[:ROWS]]
    parameter, training = next(policy.parameters()), policy.training
    policy.eval()
    try:
        with torch.no_grad(), _attention(policy, parameter.device):
            packed = _scores(policy, alone, pad_id)
            single = torch.cat([_scores(policy, [one], pad_id) for one in alone])
    finally:
        policy.train(training)
    return bool(((packed - single).abs() <= TOLERANCE[parameter.dtype] * (1 + single.abs())).all())


def _beginning(sequence: TokenSequence) -> Example:
    """Its first tokens, all scored: there is something to compare even where a prompt is long."""
    tokens = sequence.tokens[:LENGTH]
    return Example("probe", (TokenSequence("text", tokens, np.arange(len(tokens)) > 0),))


@contextmanager
def _attention(policy: Policy, device: torch.device) -> Iterator[None]:
    """A GPU's attention kernels replaced by sdpa while the model is still on the CPU."""
    model: Any = policy.unwrapped
    chosen = model.config._attn_implementation
    if device.type != "cpu" or chosen not in VARLEN:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.config._attn_implementation = chosen


def _scores(policy: Policy, examples: Sequence[Example], pad_id: int) -> Tensor:
    scores: Scores = policy(collate(examples, "packed", pad_id).to(next(policy.parameters()).device))
    return scores.logp_T if scores.score_B is None else scores.score_B


def layout_for(
    policy: Policy,
    device: str,
    wanted: Literal["auto", "packed", "padded"],
    examples: Examples | Sequence[Example],
    pad_id: int = 0,
) -> Layout:
    """The layout to train in on ``device`` (``cpu`` or ``cuda``), which the model need not be on yet.

    ``auto`` packs on a GPU whose attention skips what lies between sequences, and pads elsewhere: without such a
    kernel a packed row pays for its whole square. A model that mixes packed sequences runs padded, with a warning.

    examples: real rows for the probe.
    """
    serves = device == "cuda" and policy.unwrapped.config._attn_implementation in VARLEN
    if wanted == "padded" or (wanted == "auto" and not serves):
        return "padded"
    if not probe(policy, examples, pad_id):
        log.warning("%s cannot keep packed sequences apart: it runs padded", type(policy.unwrapped).__name__)
        return "padded"
    return "packed"
