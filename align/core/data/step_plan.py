"""The step plan: the examples of each optimizer step, and the division of a step into micro-batches. Needs no torch.

``epoch_order`` alone decides what is learned, from seed, epoch and batch size. ``make_micro_batches`` decides only on
which rank and in which forward pass an example is computed, and ``denominators`` counts over the whole step, so that
gradients do not depend on the division.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from align.core.data.examples import Example

Layout = Literal["packed", "padded"]
Indices = NDArray[np.int64]

FORWARD: Mapping[str, int] = {"cpu": 64, "cuda": 4096}
"""The fixed cost of a forward and backward pass, as the number of tokens that take the same time: splitting a step
further must save more padding than that. One CPU core: 30 to 90, measured on models of 0.1M to 40M parameters (torch
2.13).

A GPU waits for the launches of its kernels: on an H200 a pass of 336M parameters takes 0.11 s for 4,096 tokens as for
8,192, so 8,192 here is 19% faster than 2,048 (benchmarks/gpu). A larger model's tokens take longer and its launches do
not: the same wait is worth some 3,000 tokens of a model of 1.2B. The figure lies between."""


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


def make_micro_batches(
    lengths: Sequence[tuple[int, ...]],
    world_size: int,
    micro_tokens: int | None,
    micro_size: int | None,
    layout: Layout,
    forward: int = FORWARD["cpu"],
) -> list[list[list[int]]]:
    """Divide one step into ``[rank][micro-batch][position of the example in the step]``.

    lengths       tokens of each sequence of each example; an example's sequences stay together
    micro_tokens  most tokens in a micro-batch, padding included; an example longer than that gets its own
    micro_size    most examples in a micro-batch
    forward       the fixed cost of a pass in tokens: ``FORWARD`` of the device

    Every rank gets the same number of micro-batches, at least one; those at the same position cost about the same,
    the most expensive first. With fewer examples than micro-batches some micro-batches are empty.
    """
    most = micro_size or max(1, len(lengths))
    step = _Packed(lengths, most) if layout == "packed" else _Padded(lengths, most)
    tokens = sum(map(sum, lengths))
    limit = micro_tokens or step.cost(range(len(lengths)))
    per_rank = max(1, -(-len(step.fill(limit)) // world_size))
    best: list[list[list[int]]] = [[[] for _ in range(per_rank)] for _ in range(world_size)]
    lowest_cost = math.inf
    # More micro-batches mean less padding but more forward passes. The search ends when even a division without any
    # padding would cost more than the best one found.
    while per_rank <= max(1, len(lengths)) and tokens / world_size + forward * per_rank < lowest_cost:
        ranks = _deal(_level(step, per_rank * world_size, limit, tokens), step, world_size, per_rank)
        cost = max(sum(map(step.cost, rank)) for rank in ranks) + forward * per_rank
        if cost < lowest_cost:
            best, lowest_cost = ranks, cost
        per_rank += max(1, per_rank // 4)
    return [[sorted(micro) for micro in rank] for rank in best]


class _Padded:
    """A padded step: rows are as wide as the longest of their group, so examples of similar length go together."""

    def __init__(self, lengths: Sequence[tuple[int, ...]], size: int) -> None:
        self.size, self.rows = size, [len(each) for each in lengths]
        self.width = [max(each, default=0) for each in lengths]
        self.order = sorted(range(len(lengths)), key=lambda i: -self.width[i])

    def cost(self, group: Sequence[int]) -> int:
        """Return the positions computed for a group, padding included."""
        return sum(self.rows[i] for i in group) * max((self.width[i] for i in group), default=0)

    def fill(self, limit: int) -> list[list[int]]:
        """Put every example into a group; no group costs more than the limit unless it is one example."""
        groups: list[list[int]] = []
        rows = 0
        for i in self.order:
            rows += self.rows[i]
            if groups and len(groups[-1]) < self.size and rows * self.width[groups[-1][0]] <= limit:
                groups[-1].append(i)
            else:
                groups.append([i])
                rows = self.rows[i]
        return groups


class _Packed:
    """A packed step: one row without padding; groups are filled by first fit, longest example first."""

    def __init__(self, lengths: Sequence[tuple[int, ...]], size: int) -> None:
        self.size, self.tokens = size, [sum(each) for each in lengths]
        self.order = sorted(range(len(lengths)), key=lambda i: -self.tokens[i])

    def cost(self, group: Sequence[int]) -> int:
        """Return the positions computed for a group."""
        return sum(self.tokens[i] for i in group)

    def fill(self, limit: int) -> list[list[int]]:
        """Put every example into a group; no group costs more than the limit unless it is one example."""
        groups: list[list[int]] = []
        room: list[int] = []
        for i in self.order:
            for group, free in enumerate(room):
                if self.tokens[i] <= free and len(groups[group]) < self.size:
                    groups[group].append(i)
                    room[group] -= self.tokens[i]
                    break
            else:
                groups.append([i])
                room.append(limit - self.tokens[i])
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
