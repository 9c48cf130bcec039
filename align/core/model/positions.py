"""Limits on the tokens of a row: what the model can take, and what it was trained on.

A model with a table of positions (learned, or computed once) fails past its end. One that computes positions as it goes
(rotary embeddings) runs on, but has never seen them: a warning, since training on longer rows is how a context is
extended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from align.core.data.examples import Example, Examples
from align.core.model.weights import without_gradient_or_dropout
from align.core.models.policy import Policy
from align.schemas.errors import AlignError, Problem

NAMED = 5
"""Most rows that a message names."""

SCALED_BY_FACTOR = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose config may still say the length before scaling."""


class Limits(NamedTuple):
    """Most tokens of a row. taken: that the model can take. trained: that it was made for. None: no limit known."""

    taken: int | None
    trained: int | None


def limits_for(policy: Policy, longest: int) -> Limits:
    """Return the limits as far as rows of up to ``longest`` tokens meet them.

    The config says what the model was made for. What it can take is found by trying, on the CPU and with one token at
    the last position: a table may be longer than the config says (OPT's), or its length may be in no config.
    """
    config = policy.unwrapped.config.get_text_config()
    rope = getattr(config, "rope_parameters", None)
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    stated = next((number for number in named if isinstance(number, int) and number > 0), None)
    if rope:
        return Limits(None, _scaled(stated, rope))
    if _takes(policy, longest, stated):
        return Limits(None, stated)
    low, high = 0, longest  # takes ``low``, does not take ``high``
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _takes(policy, middle, stated) else (low, middle)
    return Limits(low, low)


def check_lengths(policy: Policy, limits: Limits, sets: Sequence[Examples | Sequence[Example]]) -> list[Problem]:
    """Raise AlignError for rows longer than the model can take; return warnings about rows longer than it has seen.

    (A rotary model runs on them, and training on longer rows is how a context is extended.)
    """
    longest = max(map(longest_sequence, sets), default=0)
    kind = type(policy.unwrapped).__name__
    if limits.taken is not None and longest > limits.taken:
        cut = "and choose data.truncation: drop, keep_start or keep_end (split, for text)"
        rows, counted = rows_over(sets, limits.taken)
        raise AlignError(
            f"longer than the model can take: {counted}; {kind} has {limits.taken:,} positions",
            f"set data.max_length: {limits.taken} {cut}, or take a model with more positions",
            where=rows,
        )
    if limits.trained is not None and longest > limits.trained:
        rows, counted = rows_over(sets, limits.trained)
        what = f"longer than the model was made for: {counted}; the config of {kind} says {limits.trained:,} positions"
        fix = (
            f"data.max_length: {limits.trained} with data.truncation, or scale the positions in config.json "
            "(rope_parameters), unless this training is to teach it longer rows"
        )
        return [Problem(rows, what, fix, "warning")]
    return []


def _scaled(stated: int | None, rope: Any) -> int | None:
    """Return the length after scaling (YaRN, 2309.00071): ``factor`` multiplies the original length, where given."""
    # Parameters nested by kind of layer have no rope_type on top; the stated length then stands.
    if stated is None or rope.get("rope_type") not in SCALED_BY_FACTOR:
        return stated
    original = rope.get("original_max_position_embeddings") or stated
    return max(stated, round(original * (rope.get("factor") or 1.0)))


def _takes(policy: Policy, length: int, stated: int | None) -> bool:
    """Return True if a row may have that many tokens. stated: the config's limit, if it has one."""
    device = next(policy.parameters()).device
    if device.type != "cpu":  # on a GPU an index past a table is a device assert, which ends the process
        return stated is None or length <= stated
    if policy.takes_positions:
        ids, positions = torch.ones(1, 1, dtype=torch.long), torch.full((1, 1), length - 1)
    elif stated is None or length <= stated:
        return True
    else:
        ids, positions = torch.ones(1, length, dtype=torch.long), torch.arange(length)[None]
    try:
        with without_gradient_or_dropout(policy):
            policy._run(ids, positions, None)
    except (IndexError, RuntimeError):  # the first from an embedding, the second from torch.gather or a sliced buffer
        return False
    return True


def longest_sequence(examples: Examples | Sequence[Example]) -> int:
    """Return the tokens of the longest sequence; of a store only the few longest examples are read."""
    if not hasattr(examples, "lengths"):
        return max((max(example.lengths) for example in examples), default=0)
    longest = 0
    for i in np.argsort(-examples.lengths, kind="stable"):
        if examples.lengths[i] <= longest:  # a store has the length of all an example's sequences together
            break
        longest = max(longest, *examples[int(i)].lengths)
    return longest


def rows_over(sets: Iterable[Examples | Sequence[Example]], limit: int) -> tuple[str, str]:
    """Return the names of the first rows with a sequence longer than ``limit``, and a phrase that counts them all."""
    over = list[tuple[str, int]]()
    for examples in sets:
        places = np.flatnonzero(examples.lengths > limit) if hasattr(examples, "lengths") else range(len(examples))
        found = (examples[int(i)] for i in places)
        over += [(example.source, max(example.lengths)) for example in found if max(example.lengths) > limit]
    names = list(dict.fromkeys(source for source, _ in over))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    counted = f"{len(names):,} row{'s' * (len(names) != 1)}, the longest of {max(n for _, n in over):,} tokens"
    return ", ".join(names[:NAMED]) + more, counted
