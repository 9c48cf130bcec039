"""The length and layout of rows: how many tokens a model takes, and if its sequences can share a row or a prefix.

transformers keeps packed sequences apart by their ``position_ids`` (a position that does not follow the last begins a
sequence) where it is given no attention mask and no cache. A model that carries state along a row, by recurrence or
convolution, mixes packed sequences, and a model without ``position_ids`` cannot tell them apart. ``probe`` therefore
tries it out on real rows, and so it does for rows that are trees (``align.core.models.tree_mask``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from align.core.data.batch import collate
from align.core.data.examples import Example, Examples, TokenSequence
from align.core.data.step_plan import Layout, share_prefixes
from align.core.models.policy import Policy, Scores, has_dropout, without_gradient_or_dropout
from align.core.models.tree_mask import IMPLEMENTATIONS
from align.schemas.errors import AlignError, Problem

# --- limits on the length of a row -----------------------------------------------------------------------------------
#
# A model with a table of positions (learned, or computed once) fails past its end. One that computes positions as it
# goes (rotary embeddings) runs on, but has not seen them in training: a warning, since training on longer rows is how
# a context is extended.

MAX_NAMED = 5
"""Largest number of rows that a message names."""

SCALED_BY_FACTOR = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose config may still say the length before scaling."""


class LengthLimits(NamedTuple):
    """Largest numbers of tokens in a row.

    taken: the model fails on longer rows. trained: it was not trained on longer rows. None: no limit is known.
    """

    taken: int | None
    trained: int | None


def limits_for(policy: Policy, longest: int) -> LengthLimits:
    """Return the limits, so far as rows of up to ``longest`` tokens can exceed them.

    The length that the model was trained on is in its config. The length that it can take is found by trying, on the
    CPU and with one token at the last position: a table may be longer than the config says (OPT's), or its length may
    be in no config.
    """
    config = policy.unwrapped.config.get_text_config()
    rope = getattr(config, "rope_parameters", None)
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    stated = next((number for number in named if isinstance(number, int) and number > 0), None)
    if rope:
        return LengthLimits(None, _scaled(stated, rope))
    if _takes(policy, longest, stated):
        return LengthLimits(None, stated)
    low, high = 0, longest  # bisection: the model takes ``low`` tokens and not ``high``
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _takes(policy, middle, stated) else (low, middle)
    return LengthLimits(low, low)


def longest_row(policy: Policy, wanted: int) -> int:
    """Return the largest number of tokens in a row by either limit; ``wanted`` where rows up to there meet none."""
    return min((limit for limit in limits_for(policy, wanted) if limit is not None), default=wanted)


def check_lengths(policy: Policy, limits: LengthLimits, sets: Sequence[Examples | Sequence[Example]]) -> list[Problem]:
    """Raise AlignError for rows longer than the model can take; return warnings about rows longer than it has seen.

    Longer rows than a rotary model has seen are a warning only: training on them is how a context is extended.
    """
    longest = max(map(longest_sequence, sets), default=0)
    kind = type(policy.unwrapped).__name__
    if limits.taken is not None and longest > limits.taken:
        cut = "and choose data.truncation_mode: drop, keep_start or keep_end (split, for text)"
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
            f"data.max_length: {limits.trained} with data.truncation_mode, or scale the positions in config.json "
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
    """Return True if the model can take a row of ``length`` tokens. stated: the config's limit, None without one."""
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
    """Return the number of tokens in the longest sequence; of a store only the few longest examples are read."""
    if not hasattr(examples, "lengths"):
        return max((max(example.lengths) for example in examples), default=0)
    longest = 0
    for i in np.argsort(-examples.lengths, kind="stable"):
        if examples.lengths[i] <= longest:  # a store's length is the sum over an example's sequences: an upper bound
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
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    counted = f"{len(names):,} row{'s' * (len(names) != 1)}, the longest of {max(n for _, n in over):,} tokens"
    return ", ".join(names[:MAX_NAMED]) + more, counted


# --- layout of rows --------------------------------------------------------------------------------------------------

log = logging.getLogger(__name__)

VARLEN = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""Attention that computes only the blocks of a packed row which lie within sequences."""

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest change of a log-probability by rounding alone, relative to 1 + its size."""

LENGTHS = (64, 61, 57, 53)
"""Lengths of the sequences that the probe packs: unequal, so that no sequence begins at a multiple of a chunk size."""

FIRST_ROWS = 512
"""Number of rows in which common prefixes are looked for, before a model is tried with them."""

SIZE = re.compile(r"(^|_)(window|window_size|chunk_size|local_attention)$|^index_topk$")
"""Names of config fields for how far attention reaches: ``sliding_window``, ``attention_chunk_size``, ..."""

SMALL = 11
"""The value that the probe sets in place of such a size, so that its short rows span several windows or chunks."""

CHEAP = 1024
"""The largest size that is tried unchanged (rows of twice as many tokens) if setting it smaller has no effect."""


def probe(policy: Policy, examples: Examples | Sequence[Example], pad_id: int = 0, layout: Layout = "packed") -> bool:
    """Return True if the model scores sequences of these examples the same in this layout as each in its own row.

    layout: ``packed``, or a shared one, for which sequences with common prefixes are made of the examples' tokens.
    Attention windows and chunks in the config are made small for the probe, so that a few hundred tokens show if they
    are counted within each sequence or, like the chunks of Llama 4, along the row. If the smaller value has no effect,
    the size itself is tried, up to ``CHEAP`` tokens. For larger sizes the result is False, so the model is not packed.
    Runs on the model's device. Leaves its mode, its attention, its config and the random state as they were.
    """
    if not policy.takes_positions:
        return False
    most = limits_for(policy, max(LENGTHS)).taken or max(LENGTHS)
    sequences = [s for i in range(min(len(LENGTHS), len(examples))) for s in examples[i].sequences]
    lengths = [min(most, length) for length in LENGTHS]
    parameter, training, sizes = next(policy.parameters()), policy.training, _sizes(policy)
    policy.eval()
    try:
        with torch.no_grad(), _attention(policy, parameter.device):
            with _made_small(policy, sizes):
                if not _apart(policy, _laid_out(sequences, lengths, layout), pad_id, layout):
                    return False
            effective = {size for name, size in sizes.items() if _has_effect(policy, name, size, sequences, pad_id)}
            # ModernBERT names a window in its config, and attention reads a second field of half that size.
            ineffective = {size for size in sizes.values() if not {size, size // 2} & effective}
            if not ineffective:
                return True
            size = max(ineffective)
            if size > CHEAP:
                return False
            most = limits_for(policy, size + max(LENGTHS)).taken or size + max(LENGTHS)
            rows = -(-2 * size // most) + 1  # together longer than two windows or chunks, whatever the positions allow
            alone = _laid_out(sequences, [max(1, most - 3 * i) for i in range(rows)], layout)
            return _apart(policy, alone, pad_id, layout)
    finally:
        policy.train(training)


def _sizes(policy: Policy) -> dict[str, int]:
    """Return the config's fields for how far attention reaches, in tokens; empty if all layers use full attention."""
    config = policy.unwrapped.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds and all(kind == "full_attention" for kind in kinds):
        return {}
    found = {name: value for name, value in vars(config).items() if SIZE.search(name)}
    return {name: value for name, value in found.items() if type(value) is int and value > SMALL}


@contextmanager
def _made_small(policy: Policy, sizes: Mapping[str, int]) -> Iterator[None]:
    """Replace each size by ``SMALL``, in configs and in modules that copied it from there."""
    holders: list[Any] = list(policy.unwrapped.modules())
    holders += list({id(m.config): m.config for m in holders if hasattr(m, "config")}.values())
    changed = [(h, name, size) for h in holders for name, size in sizes.items() if vars(h).get(name) == size]
    for holder, name, _ in changed:
        setattr(holder, name, SMALL)
    try:
        yield
    finally:
        for holder, name, size in changed:
            setattr(holder, name, size)


def _has_effect(policy: Policy, name: str, size: int, sequences: Sequence[TokenSequence], pad_id: int) -> bool:
    """Return True if a smaller size changes the model's scores of one sequence."""
    most = limits_for(policy, max(LENGTHS)).taken or max(LENGTHS)
    (row,) = _laid_out(sequences, [most])
    before = _scores(policy, [row], pad_id)
    with _made_small(policy, {name: size}):
        return not torch.equal(before, _scores(policy, [row], pad_id))


def _laid_out(sequences: Sequence[TokenSequence], lengths: Sequence[int], layout: Layout = "packed") -> list[Example]:
    """Return sequences of these lengths, all tokens scored; tokens are repeated if a sequence has too few.

    For a shared layout they begin as the first does, each for another number of tokens.
    """
    made = []
    first = np.resize(sequences[0].tokens, max(lengths))
    for i, length in enumerate(lengths):
        tokens = np.resize(sequences[i % len(sequences)].tokens, length)
        if layout.endswith("shared") and i:
            # The branches are long, so that an attention window counted along the row would cut their prefix off.
            begin = length // (3 + i)
            tokens = np.concatenate([first[:begin], np.roll(tokens, i)[begin:]])
        made.append(Example("probe", (TokenSequence("text", tokens, np.arange(length) > 0),)))
    return made


def _apart(policy: Policy, alone: Sequence[Example], pad_id: int, layout: Layout) -> bool:
    """Return True if sequences have the same scores in this layout as each has by itself."""
    trees = None
    if layout.endswith("shared"):  # all but the last are one tree; the last is a second row, padded
        trees = [(int(i == len(alone) - 1),) for i in range(len(alone))]
    packed = _scores(policy, alone, pad_id, layout, trees)
    single = torch.cat([_scores(policy, [one], pad_id) for one in alone])
    tolerance = TOLERANCE[next(policy.parameters()).dtype]
    return bool(((packed - single).abs() <= tolerance * (1 + single.abs())).all())


@contextmanager
def _attention(policy: Policy, device: torch.device) -> Iterator[None]:
    """Use sdpa instead of a GPU's attention kernel while the model is still on the CPU."""
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


def _scores(
    policy: Policy,
    examples: Sequence[Example],
    pad_id: int,
    layout: Layout = "packed",
    trees: Sequence[tuple[int, ...]] | None = None,
) -> Tensor:
    scores: Scores = policy(collate(examples, layout, pad_id, trees=trees).to(next(policy.parameters()).device))
    if scores.value_T is not None:
        return scores.value_T
    return scores.logp_T if scores.score_B is None else scores.score_B


def layout_for(
    policy: Policy,
    device: str,
    wanted: Literal["auto", "packed", "padded"],
    examples: Examples | Sequence[Example],
    pad_id: int = 0,
    *,
    share: bool = False,
    critic: Policy | None = None,
) -> Layout:
    """Return the layout to train in on ``device`` (``cpu`` or ``cuda``), where the model need not be yet.

    ``auto`` packs on a GPU whose attention skips the blocks between sequences, and pads elsewhere: without such a
    kernel the cost of a packed row is the square of its whole length. A model that mixes packed sequences runs padded,
    with a warning. examples: real rows for the probe. share: take a shared layout if the policy, and the critic where
    there is one, give the same numbers in it; see ``can_share``.
    """
    serves = device == "cuda" and policy.unwrapped.config._attn_implementation in VARLEN
    layout: Layout = "padded" if wanted == "padded" or (wanted == "auto" and not serves) else "packed"
    if layout == "packed" and not probe(policy, examples, pad_id):
        log.warning("%s cannot keep packed sequences apart: it runs padded", type(policy.unwrapped).__name__)
        layout = "padded"
    if not share:
        return layout
    shared: Layout = "packed_shared" if layout == "packed" else "padded_shared"
    able = all(can_share(network, examples, pad_id, shared) for network in (policy, critic) if network is not None)
    return shared if able else layout


def worth_sharing(examples: Examples | Sequence[Example]) -> bool:
    """Return True if sharing the prefixes of the first of these examples would pay."""
    first = [examples[i] for i in range(min(FIRST_ROWS, len(examples)))]
    trees = [tree for each in share_prefixes(first, "padded_shared") for tree in each]
    return len(set(trees)) < len(trees)


def can_share(policy: Policy, examples: Examples | Sequence[Example], pad_id: int, layout: Layout) -> bool:
    """Return True if a model gives the same numbers where sequences share the computation of a prefix.

    Not under dropout, whose noise in the prefix would then be the same for all its sequences, nor with flash attention,
    which knows no trees. Whether any other model can is tried; one that cannot is named in a warning.
    """
    if has_dropout(policy) or policy.unwrapped.config._attn_implementation not in IMPLEMENTATIONS:
        return False
    if probe(policy, examples, pad_id, layout):
        return True
    name = type(policy.unwrapped).__name__
    log.warning("%s cannot share the prefix of sequences: each is computed by itself", name)
    return False
