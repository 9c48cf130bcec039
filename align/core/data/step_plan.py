"""The step plan: the examples of each optimizer step, and the division of a step into micro-batches. Needs no torch.

``epoch_order`` alone decides what is learned, from seed, epoch and batch size. ``plan_micro_batches`` decides only on
which rank and in which forward pass an example is computed, and which sequences share the computation of their common
prefix there; ``denominators`` counts over the whole step, so that gradients do not depend on the division.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from align.core.data.examples import Example

Layout = Literal["packed", "padded", "packed_shared", "padded_shared"]
"""``packed``: all sequences of a micro-batch in one row; ``padded``: one row each. ``_shared``: sequences with a common
prefix form a tree, in which each prefix is computed once; a tree takes the place of a sequence."""
Indices = NDArray[np.int64]

FORWARD: Mapping[str, int] = {"cpu": 64, "cuda": 4096}
"""The fixed cost of a forward and backward pass, as the number of tokens that take the same time: splitting a step
further must save more padding than that. One CPU core: 30 to 90, measured on models of 0.1M to 40M parameters (torch
2.13).

A GPU waits for the launches of its kernels: on an H200 a pass of 336M parameters takes 0.11 s for 4,096 tokens as for
8,192, so 8,192 here is 19% faster than 2,048 (benchmarks/gpu). A larger model's tokens take longer and its launches do
not: the same wait is worth some 3,000 tokens of a model of 1.2B. The figure lies between."""

PAIRS = 1000
"""Pairs of positions whose attention takes the time of one token. A padded row with a tree in it is attended to as a
whole, the square of its length, so a tree costs more the longer its branches are. On one CPU core 600 in a model of
width 128, 1,900 of width 512 (torch 2.13), in about proportion to it: a large model could share more."""

LEAST_SAVING = 0.1
"""Share of its own cost that a sequence must save by joining a tree. A few common tokens at the start of every row are
not worth a mask."""

EVEN = 4
"""Bundles of examples for each rank from which their sizes level out."""


def epoch_order(sources: ArrayLike, weights: Sequence[float], seed: int, epoch: int, batch_size: int) -> list[Indices]:
    """Return the steps of one epoch, as arrays of example indices; the last step may be short.

    sources: [N] the source of each example. weights: the mixture weight of each source.

    With equal weights an epoch is every example once. Otherwise it also has N draws, divided among the sources by
    weight (largest remainder method). Each source is an endless sequence of shuffled passes over its examples, and an
    epoch takes the next ones: an example comes again only after all others of its source, across epochs too.
    """
    sources = np.asarray(sources)
    sizes = np.bincount(sources, minlength=len(weights)) if len(sources) else np.zeros(len(weights), int)
    drawn = [
        np.flatnonzero(sources == source)[_stretch(int(sizes[source]), epoch * quota, quota, (seed, source))]
        for source, quota in enumerate(_quotas(sizes, weights))
    ]
    order = np.concatenate([np.empty(0, np.int64), *drawn])
    order = order[np.random.default_rng([seed, epoch, len(weights)]).permutation(len(order))]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _quotas(sizes: Indices, weights: Sequence[float]) -> list[int]:
    """Return the number of draws that each source gets in an epoch; they add up to the number of examples."""
    if len(set(weights)) <= 1:
        return [int(size) for size in sizes]
    shares = np.where(sizes > 0, np.asarray(weights, float), 0.0)
    exact = sizes.sum() * shares / max(shares.sum(), np.finfo(float).tiny)
    quotas = np.floor(exact).astype(int)
    quotas[np.argsort(quotas - exact, kind="stable")[: int(sizes.sum() - quotas.sum())]] += 1
    return [int(quota) for quota in quotas]


def _stretch(size: int, start: int, length: int, key: tuple[int, int]) -> Indices:
    """Return items ``start ... start + length`` of an endless sequence of shuffled passes over ``range(size)``."""
    if not length:
        return np.empty(0, np.int64)
    first, last = start // size, (start + length - 1) // size
    passes = [np.random.default_rng([*key, number]).permutation(size) for number in range(first, last + 1)]
    return np.concatenate(passes)[start - first * size :][:length]


class MicroPlan(NamedTuple):
    """One micro-batch of a step.

    examples  positions of its examples in the step, ascending
    trees     for each of these examples the tree of each of its sequences, by number; empty if no prefix is shared
    """

    examples: list[int]
    trees: Sequence[tuple[int, ...]]


def plan_micro_batches(
    examples: Sequence[Example],
    world_size: int,
    micro_tokens: int | None,
    micro_size: int | None,
    layout: Layout,
    forward: int = FORWARD["cpu"],
) -> list[list[MicroPlan]]:
    """Divide one step into ``[rank][micro-batch]``; see ``make_micro_batches`` for the arguments.

    In a shared layout sequences with a common prefix form trees where that costs less, and the examples of a tree
    share a micro-batch. A tree keeps to the same limits, and is made smaller where ranks would wait for it.
    """
    lengths = [example.lengths for example in examples]
    if not layout.endswith("shared"):
        ranks = make_micro_batches(lengths, world_size, micro_tokens, micro_size, layout, forward)
        return [[MicroPlan(micro, ()) for micro in rank] for rank in ranks]

    limit = micro_tokens or sum(map(sum, lengths))
    branches = walk([sequence.tokens for example in examples for sequence in example.sequences])
    best, trees, lowest_cost = list[list[list[int]]](), list[tuple[int, ...]](), math.inf
    while True:
        bundles, tree_of = _plant(lengths, branches, layout, limit, micro_size or len(examples))
        ranks, cost = _divide(bundles, world_size, micro_tokens, micro_size, layout, forward)
        if cost < lowest_cost:
            best, trees, lowest_cost = ranks, tree_of, cost
        # A large tree keeps one rank busy while others wait: smaller ones compute a prefix twice and may end sooner.
        several = [bundle.tokens for bundle in bundles if len(bundle.examples) > 1]
        if not several or len(bundles) >= EVEN * world_size or world_size == 1:
            break
        limit = max(several) * 3 // 4
    return [[_planned(micro, trees) for micro in rank] for rank in best]


def _planned(micro: list[int], trees: Sequence[tuple[int, ...]]) -> MicroPlan:
    mine = [trees[i] for i in micro]
    numbers = [number for each in mine for number in each]
    return MicroPlan(micro, mine if len(set(numbers)) < len(numbers) else ())


def make_micro_batches(
    lengths: Sequence[tuple[int, ...]],
    world_size: int,
    micro_tokens: int | None,
    micro_size: int | None,
    layout: Layout,
    forward: int = FORWARD["cpu"],
) -> list[list[list[int]]]:
    """Divide one step into ``[rank][micro-batch][position of the example in the step]``, without shared prefixes.

    lengths       tokens of each sequence of each example; an example's sequences stay together
    micro_tokens  most tokens in a micro-batch, padding included; an example longer than that gets its own
    micro_size    most examples in a micro-batch
    forward       the fixed cost of a pass in tokens: ``FORWARD`` of the device

    Every rank gets the same number of micro-batches, at least one; those at the same position cost about the same,
    the most expensive first. With fewer examples than micro-batches some micro-batches are empty.
    """
    return _divide(_single(lengths), world_size, micro_tokens, micro_size, layout, forward)[0]


class _Bundle(NamedTuple):
    """Examples that must share a micro-batch: their positions in the step, rows, longest row and tokens to compute."""

    examples: list[int]
    rows: int
    width: int
    tokens: int


def _single(lengths: Sequence[tuple[int, ...]]) -> list[_Bundle]:
    return [_Bundle([i], len(each), max(each, default=0), sum(each)) for i, each in enumerate(lengths)]


def _divide(
    bundles: Sequence[_Bundle],
    world_size: int,
    micro_tokens: int | None,
    micro_size: int | None,
    layout: Layout,
    forward: int,
) -> tuple[list[list[list[int]]], float]:
    """Return the division of a step into micro-batches, and the cost of its most expensive rank in tokens."""
    most = micro_size or max(1, sum(len(bundle.examples) for bundle in bundles))
    step = _Packed(bundles, most) if layout.startswith("packed") else _Padded(bundles, most)
    tokens = sum(bundle.tokens for bundle in bundles)
    limit = micro_tokens or step.cost(range(len(bundles)))
    per_rank = max(1, -(-len(step.fill(limit)) // world_size))
    best: list[list[list[int]]] = [[[] for _ in range(per_rank)] for _ in range(world_size)]
    lowest_cost = math.inf
    # More micro-batches mean less padding but more forward passes. The search ends when even a division without any
    # padding would cost more than the best one found.
    while per_rank <= max(1, len(bundles)) and tokens / world_size + forward * per_rank < lowest_cost:
        ranks = _deal(_level(step, per_rank * world_size, limit, tokens), step, world_size, per_rank)
        cost = max(sum(map(step.cost, rank)) for rank in ranks) + forward * per_rank
        if cost < lowest_cost:
            best, lowest_cost = ranks, cost
        per_rank += max(1, per_rank // 4)
    return [[sorted(i for b in micro for i in bundles[b].examples) for micro in rank] for rank in best], lowest_cost


class _Padded:
    """A padded step: rows are as wide as the longest of their group, so bundles of similar width go together."""

    def __init__(self, bundles: Sequence[_Bundle], size: int) -> None:
        self.size, self.count = size, [len(bundle.examples) for bundle in bundles]
        self.rows, self.width = [bundle.rows for bundle in bundles], [bundle.width for bundle in bundles]
        self.order = sorted(range(len(bundles)), key=lambda i: -self.width[i])

    def cost(self, group: Sequence[int]) -> int:
        """Return the positions computed for a group of bundles, padding included."""
        return sum(self.rows[i] for i in group) * max((self.width[i] for i in group), default=0)

    def fill(self, limit: int) -> list[list[int]]:
        """Put every bundle into a group; no group costs more than the limit unless it is one bundle."""
        groups: list[list[int]] = []
        rows, count = 0, 0
        for i in self.order:
            rows, count = rows + self.rows[i], count + self.count[i]
            if groups and count <= self.size and rows * self.width[groups[-1][0]] <= limit:
                groups[-1].append(i)
            else:
                groups.append([i])
                rows, count = self.rows[i], self.count[i]
        return groups


class _Packed:
    """A packed step: one row without padding; groups are filled by first fit, largest bundle first."""

    def __init__(self, bundles: Sequence[_Bundle], size: int) -> None:
        self.size, self.count = size, [len(bundle.examples) for bundle in bundles]
        self.tokens = [bundle.tokens for bundle in bundles]
        self.order = sorted(range(len(bundles)), key=lambda i: -self.tokens[i])

    def cost(self, group: Sequence[int]) -> int:
        """Return the positions computed for a group of bundles."""
        return sum(self.tokens[i] for i in group)

    def fill(self, limit: int) -> list[list[int]]:
        """Put every bundle into a group; no group costs more than the limit unless it is one bundle."""
        groups: list[list[int]] = []
        room: list[int] = []
        places: list[int] = []
        for i in self.order:
            for group, free in enumerate(room):
                if self.tokens[i] <= free and self.count[i] <= places[group]:
                    groups[group].append(i)
                    room[group] -= self.tokens[i]
                    places[group] -= self.count[i]
                    break
            else:
                groups.append([i])
                room.append(limit - self.tokens[i])
                places.append(self.size - self.count[i])
        return groups


def _level(step: _Padded | _Packed, count: int, limit: int, tokens: int) -> list[list[int]]:
    """Return at most ``count`` groups with the lowest possible cost of the most expensive one, by binary search."""
    groups = step.fill(limit)
    low, high = -(-tokens // count), limit
    while low < high:
        middle = (low + high) // 2
        found = step.fill(middle)
        if len(found) <= count:
            groups, high = found, middle
        else:
            low = middle + 1
    return groups


def _deal(groups: list[list[int]], step: _Padded | _Packed, world_size: int, per_rank: int) -> list[list[list[int]]]:
    """Assign groups to ranks in rounds, the most expensive first, each to the rank with the lowest cost so far."""
    groups = sorted(groups, key=lambda group: -step.cost(group))
    groups += [[] for _ in range(world_size * per_rank - len(groups))]
    ranks: list[list[list[int]]] = [[] for _ in range(world_size)]
    for start in range(0, len(groups), world_size):
        least = sorted(range(world_size), key=lambda rank: sum(map(step.cost, ranks[rank])))
        for rank, group in zip(least, groups[start : start + world_size], strict=True):
            ranks[rank].append(group)
    return ranks


# --- shared prefixes -------------------------------------------------------------------------------------------------
#
# Sequences in the order of their bytes: those that share any prefix are neighbours, and what a sequence shares with
# all before it, it shares with its neighbour. So a tree is a run of neighbours, and its positions are, sequence after
# sequence, the tokens that follow the prefix shared with the neighbour: a depth-first walk.


class Branch(NamedTuple):
    """A sequence of a tree: its index, and the tokens at its start that its neighbour before it has computed."""

    sequence: int
    shared: int


def walk(sequences: Sequence[NDArray[np.int32]]) -> list[Branch]:
    """Return token sequences in an order in which each shares its longest known prefix with the one before it."""
    keys = [tokens.tobytes() for tokens in sequences]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    shared = [0, *(common_prefix(sequences[a], sequences[b]) for a, b in pairwise(order))]
    return [Branch(sequence, tokens) for sequence, tokens in zip(order, shared, strict=False)]


def common_prefix(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """Return the number of tokens at which two sequences begin alike."""
    shorter = min(len(a), len(b))
    differ = a[:shorter] != b[:shorter]
    first = int(differ.argmax()) if shorter else 0
    return first if shorter and differ[first] else shorter


def tree_sizes(sequences: Sequence[NDArray[np.int32]], numbers: Sequence[int]) -> list[int]:
    """Return the number of positions of each tree. numbers: the tree of each sequence."""
    members = dict[int, list[NDArray[np.int32]]]()
    for tokens, number in zip(sequences, numbers, strict=True):
        members.setdefault(number, []).append(tokens)
    return [sum(len(mine[branch]) - shared for branch, shared in walk(mine)) for mine in members.values()]


def share_prefixes(examples: Sequence[Example], layout: Layout) -> list[tuple[int, ...]]:
    """Return for each example the tree of each of its sequences, where sharing costs less; no limit on a tree."""
    lengths = [example.lengths for example in examples]
    branches = walk([sequence.tokens for example in examples for sequence in example.sequences])
    return _plant(lengths, branches, layout, sum(map(sum, lengths)), len(examples))[1]


def _plant(
    lengths: Sequence[tuple[int, ...]], branches: Sequence[Branch], layout: Layout, limit: int, size: int
) -> tuple[list[_Bundle], list[tuple[int, ...]]]:
    """Return the examples in bundles, those that share a tree in one, and the tree of each sequence.

    limit: most positions in a bundle of several examples. size: most examples in a bundle. Greedy: in the order of
    ``walk`` a sequence joins the tree of its neighbour or begins a new one.
    """
    padded = layout.startswith("padded")
    owner = [i for i, each in enumerate(lengths) for _ in each]
    flat = [length for each in lengths for length in each]
    bundles, bundle_of = _single(lengths), list(range(len(lengths)))
    tree_of = list(range(len(owner)))
    tree = before = -1
    positions = 0  # of the tree
    for sequence, shared in branches:
        length = flat[sequence]
        if shared and _pays(positions, length, shared, padded):
            mine, other = bundle_of[owner[sequence]], bundle_of[owner[before]]
            merged = _merged(bundles[other], bundles[mine], mine == other, positions + length - shared, shared)
            cost = merged.rows * merged.width if padded else merged.tokens
            fits = cost <= limit and len(merged.examples) <= size
            if fits or (mine == other and cost <= bundles[mine].rows * bundles[mine].width):
                for i in bundles[mine].examples:
                    bundle_of[i] = other
                bundles[other], tree_of[sequence], before = merged, tree, sequence
                positions += length - shared
                continue
        tree, before, positions = sequence, sequence, length
    edges = [0, *accumulate(map(len, lengths))]
    trees = [tuple(tree_of[a:b]) for a, b in pairwise(edges)]
    return [bundle for i, bundle in enumerate(bundles) if bundle_of[i] == i], trees


def _pays(positions: int, length: int, shared: int, padded: bool) -> bool:
    """Return True if a sequence costs less as a branch of a tree of so many positions than in a row of its own."""
    saved = float(shared)
    if padded:  # attention to the whole row, the other branches included, which are masked and computed all the same
        row = positions + length - shared
        saved += (positions**2 + length**2 - row**2) / PAIRS
        return saved >= LEAST_SAVING * (length + length**2 / PAIRS)
    return saved >= LEAST_SAVING * length


def _merged(a: _Bundle, b: _Bundle, same: bool, row: int, shared: int) -> _Bundle:
    """Return the bundle in which a row of ``b`` has become a branch of a row of ``a``, ``row`` positions long then."""
    if same:
        return a._replace(rows=a.rows - 1, width=max(a.width, row), tokens=a.tokens - shared)
    rows, width = a.rows + b.rows - 1, max(a.width, b.width, row)
    return _Bundle(a.examples + b.examples, rows, width, a.tokens + b.tokens - shared)


def denominators(examples: Sequence[Example]) -> dict[str, float]:
    """Return the denominators of a step's sums: how many of each unit the whole step holds.

    ``token`` scored tokens, ``sequence``, ``example``, and ``token:ROLE`` for each role that occurs. Each token counts
    with the weight of its message, so averages are weighted ones, and a message of weight 0 acts as if it were not
    scored.
    """
    sequences = [sequence for example in examples for sequence in example.sequences]
    counts = {"token": 0.0, "sequence": float(len(sequences)), "example": float(len(examples))}
    for sequence in sequences:
        for unit in ("token", f"token:{sequence.role}"):
            counts[unit] = counts.get(unit, 0.0) + sequence.counts
    return counts
