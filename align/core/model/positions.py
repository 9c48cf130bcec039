"""How many tokens a row may have: what the model can take, and what it was trained on.

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
from align.core.model.policy import Policy
from align.core.model.weights import without_gradient_or_dropout
from align.schemas.errors import AlignError, Problem

NAMED = 5
"""Rows that a message names."""

SCALED_BY_FACTOR = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose config may still say the length before scaling."""


class Limits(NamedTuple):
    """taken: most tokens that the model can take. trained: most that it was made for. None: as many as there are."""

    taken: int | None
    trained: int | None


def limits_for(policy: Policy, longest: int) -> Limits:
    """Return the limits as far as rows of up to ``longest`` tokens meet them.

    The config says what the model was made for. What it can take is tried out, on the CPU and with one token at the
    last position: a table may be longer than the config says (OPT's), or of a name that no config knows.
    """
    config = policy.unwrapped.config.get_text_config()
    rope = getattr(config, "rope_parameters", None)
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    told = next((number for number in named if isinstance(number, int) and number > 0), None)
    if rope:
        return Limits(None, _scaled(told, rope))
    if _takes(policy, longest, told):
        return Limits(None, told)
    low, high = 0, longest  # takes ``low``, does not take ``high``
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _takes(policy, middle, told) else (low, middle)
    return Limits(low, low)


def check_lengths(policy: Policy, limits: Limits, sets: Sequence[Examples | Sequence[Example]]) -> list[Problem]:
    """Raise AlignError that names rows longer than the model can take; warn of such as are longer than it has seen."""
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


def _scaled(told: int | None, rope: Any) -> int | None:
    """The length after scaling (YaRN 2309.00071): a factor counts from the original length where that is given."""
    if told is None or rope.get("rope_type") not in SCALED_BY_FACTOR:  # of nested ones, by kind of layer, as told
        return told
    original = rope.get("original_max_position_embeddings") or told
    return max(told, round(original * (rope.get("factor") or 1.0)))


def _takes(policy: Policy, length: int, told: int | None) -> bool:
    """Whether a row may have that many tokens."""
    device = next(policy.parameters()).device
    if device.type != "cpu":  # there an index past a table ends the process
        return told is None or length <= told
    if policy.takes_positions:
        ids, positions = torch.ones(1, 1, dtype=torch.long), torch.full((1, 1), length - 1)
    elif told is None or length <= told:
        return True
    else:
        ids, positions = torch.ones(1, length, dtype=torch.long), torch.arange(length)[None]
    try:
        with without_gradient_or_dropout(policy):
            policy._run(ids, positions, None)
    except (IndexError, RuntimeError):  # of a table, of a gathered or a sliced one
        return False
    return True


def longest_sequence(examples: Examples | Sequence[Example]) -> int:
    """Tokens of the longest sequence; of a store only the few longest examples are read."""
    if not hasattr(examples, "lengths"):
        return max((max(example.lengths) for example in examples), default=0)
    longest = 0
    for i in np.argsort(-examples.lengths, kind="stable"):
        if examples.lengths[i] <= longest:  # of all its sequences together
            break
        longest = max(longest, *examples[int(i)].lengths)
    return longest


def rows_over(sets: Iterable[Examples | Sequence[Example]], limit: int) -> tuple[str, str]:
    """The first rows with a sequence longer than a limit, by name, and how many there are."""
    over = list[tuple[str, int]]()
    for examples in sets:
        places = np.flatnonzero(examples.lengths > limit) if hasattr(examples, "lengths") else range(len(examples))
        found = (examples[int(i)] for i in places)
        over += [(example.source, max(example.lengths)) for example in found if max(example.lengths) > limit]
    names = list(dict.fromkeys(source for source, _ in over))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    counted = f"{len(names):,} row{'s' * (len(names) != 1)}, the longest of {max(n for _, n in over):,} tokens"
    return ", ".join(names[:NAMED]) + more, counted
