"""The step plan's laws: nothing lost, nothing twice, the same steps whatever the cut, and little padding."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example as at_least
from hypothesis import given
from hypothesis import strategies as st

from align.core.data.examples import Example, TokenSequence
from align.core.data.step_plan import (
    FORWARD,
    MicroPlan,
    denominators,
    epoch_order,
    make_micro_batches,
    plan_micro_batches,
    share_prefixes,
)

LENGTHS = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple), max_size=40)
LAYOUTS = st.sampled_from(["packed", "padded"])
LIMITS = st.none() | st.integers(1, 2000)
SIZES = st.none() | st.integers(1, 9)


def positions(lengths: list[tuple[int, ...]], micro: list[int], layout: str) -> int:
    """Oracle: positions in the tensor that this micro-batch becomes."""
    rows = [length for i in micro for length in lengths[i]]
    return sum(rows) if layout == "packed" else len(rows) * max(rows, default=0)


# --- epoch_order


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 17))
def test_equal_weights_take_every_example_once(sources: list[int], seed: int, epoch: int, batch_size: int) -> None:
    steps = epoch_order(np.array(sources, np.int32), [2.0] * 4, seed, epoch, batch_size)
    assert sorted(i for step in steps for i in step) == list(range(len(sources)))
    assert all(len(step) == batch_size for step in steps[:-1])
    assert len(steps) == -(-len(sources) // batch_size)


@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=4),
    st.lists(st.sampled_from([0.1, 0.5, 1.0, 3.0]), min_size=4, max_size=4),
    st.integers(0, 99),
    st.integers(1, 6),
)
def test_mixtures_draw_by_weight_and_go_round(sizes: list[int], weights: list[float], seed: int, epochs: int) -> None:
    weights = weights[: len(sizes)]
    if len(set(weights)) == 1:
        weights = [*weights[:-1], 7.0]
    sources = np.repeat(np.arange(len(sizes)), sizes)
    drawn = [np.concatenate(epoch_order(sources, weights, seed, epoch, 8)) for epoch in range(epochs)]
    for order in drawn:
        assert len(order) == len(sources)
        for source, weight in enumerate(weights):
            share = len(sources) * weight / sum(weights)
            assert abs(int((sources[order] == source).sum()) - share) < 1
    # Over all epochs an example of a source is never two draws ahead of another of the same source.
    counts = np.bincount(np.concatenate(drawn), minlength=len(sources))
    for source in range(len(sizes)):
        assert np.ptp(counts[sources == source]) <= 1


def test_order_follows_seed_and_epoch_and_nothing_else() -> None:
    sources = np.zeros(100, np.int32)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_order(sources, [1.0], seed, epoch, 7)).tolist()

    before = np.random.get_state(legacy=False)["state"]
    first = order(3, 1)
    after = np.random.get_state(legacy=False)["state"]
    assert before["pos"] == after["pos"] and (before["key"] == after["key"]).all()
    assert order(3, 1) == first
    assert order(3, 2) != first != order(4, 1)
    assert order(3, 1) == np.concatenate(epoch_order(sources, [1.0], 3, 1, 50)).tolist()


def test_a_source_without_rows_leaves_its_share_to_the_others() -> None:
    steps = epoch_order(np.array([0, 0, 2, 2]), [1.0, 5.0, 3.0], 0, 0, 4)
    assert np.bincount(steps[0], minlength=4).sum() == 4
    assert sum(np.isin(steps[0], [2, 3])) == 3
    # The last source too, of which no example says that it is there.
    assert [sorted(step.tolist()) for step in epoch_order(np.array([0, 0]), [1.0, 5.0], 0, 0, 2)] == [[0, 1]]


def test_what_is_left_of_an_epoch_goes_to_the_largest_remainders() -> None:
    """Ten draws by 6.5, 2.3 and 1.2: 6 + 2 + 1, and the tenth where 0.5 was cut off."""
    sources = np.repeat([0, 1, 2], [4, 3, 3])
    (step,) = epoch_order(sources, [6.5, 2.3, 1.2], 0, 0, 10)
    assert np.bincount(sources[step]).tolist() == [7, 2, 1]


def test_no_examples_make_no_steps() -> None:
    assert epoch_order(np.array([], np.int32), [1.0, 2.0], 0, 0, 4) == []


# --- cut


@given(LENGTHS, st.integers(1, 5), LIMITS, SIZES, LAYOUTS, st.sampled_from(sorted(FORWARD.values())))
def test_cut_keeps_its_promises(
    lengths: list[tuple[int, ...]], world_size: int, limit: int | None, size: int | None, layout: str, forward: int
) -> None:
    ranks = make_micro_batches(lengths, world_size, limit, size, layout, forward)
    micros = [micro for rank in ranks for micro in rank]
    assert sorted(i for micro in micros for i in micro) == list(range(len(lengths)))
    assert len(ranks) == world_size
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) >= 1
    for micro in micros:
        assert len(micro) <= (size or len(lengths))
        assert len(micro) <= 1 or positions(lengths, micro, layout) <= (limit or np.inf)
    # Balanced: no rank is ahead of another by more than one micro-batch.
    loads = [sum(positions(lengths, micro, layout) for micro in rank) for rank in ranks]
    assert max(loads) - min(loads) <= max(positions(lengths, micro, layout) for micro in micros)
    # The dearest first: running out of memory happens at once or not at all.
    for rank in ranks:
        costs = [positions(lengths, micro, layout) for micro in rank]
        assert costs == sorted(costs, reverse=True)


@given(LENGTHS, LIMITS, SIZES, LAYOUTS)
def test_cut_is_a_function(lengths: list[tuple[int, ...]], limit: int | None, size: int | None, layout: str) -> None:
    assert make_micro_batches(lengths, 2, limit, size, layout) == make_micro_batches(
        list(lengths), 2, limit, size, layout
    )


@given(LENGTHS.filter(bool))
def test_splitting_pays_for_its_passes(lengths: list[tuple[int, ...]]) -> None:
    (rank,) = make_micro_batches(lengths, 1, None, None, "padded")
    split = sum(positions(lengths, micro, "padded") + FORWARD["cpu"] for micro in rank)
    assert split <= positions(lengths, list(range(len(lengths))), "padded") + FORWARD["cpu"]


def test_cuts_by_hand() -> None:
    # Long with long, short with short: 2 x 1000 + 2 x 100 = 2200 positions, where one batch would take 4000; the
    # second pass is worth it while it costs less than the 1800 positions that it saves.
    four = [(1000,), (100,), (1000,), (100,)]
    assert make_micro_batches(four, 1, None, None, "padded", forward=1799) == [[[0, 2], [1, 3]]]
    assert make_micro_batches(four, 1, None, None, "padded", forward=1800) == [[[0, 1, 2, 3]]]
    # Where both cost the same, 300 + 80 and 220 + 2 x 80, the fewer passes.
    assert len(make_micro_batches([(100,), (60,), (20,)], 1, None, None, "padded", forward=79)[0]) == 2
    assert make_micro_batches([(100,), (60,), (20,)], 1, None, None, "padded", forward=80) == [[[0, 1, 2]]]
    # Not worth a pass: 40 positions of padding against 64.
    assert make_micro_batches([(50,), (10,)], 1, None, None, "padded") == [[[0, 1]]]
    # Packed rows hold 100: first fit decreasing gives 60 + 40, 50 + 50.
    assert make_micro_batches([(60,), (50,), (40,), (50,)], 1, 100, None, "packed") == [[[0, 2], [1, 3]]]
    # In whatever order they come: 70 + 30, 60 + 40.
    assert make_micro_batches([(30,), (60,), (70,), (40,)], 1, 100, None, "packed") == [[[0, 2], [1, 3]]]
    # Three do not fit; of the ways to put them in two rows the one whose longer row is shortest.
    assert make_micro_batches([(50,), (30,), (30,)], 1, 100, None, "packed") == [[[1, 2], [0]]]
    # Of each round the dearest goes to the rank with the least so far: 10 + 1, 9 + 8.
    assert make_micro_batches([(10,), (9,), (8,), (1,)], 2, None, 1, "packed") == [[[0], [3]], [[1], [2]]]
    # An example's sequences stay together, and one longer than the limit is alone.
    assert make_micro_batches([(80, 80), (20, 20)], 1, 100, None, "padded") == [[[0], [1]]]
    # Four ranks, three examples: the last has nothing to do and takes part all the same.
    assert make_micro_batches([(3,), (2,), (1,)], 4, None, None, "packed") == [[[0]], [[1]], [[2]], [[]]]
    assert make_micro_batches([], 2, 10, None, "padded") == [[[]], [[]]]


@at_least([9, 9, 1, 10, 2], 2)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 4))
def test_the_dearest_row_is_as_short_as_first_fit_allows(lengths: list[int], ranks: int) -> None:
    """Against every limit in turn, where a second pass is never worth it. 9 + 9 beside 10 + 2 + 1, say: 18."""

    def rows(limit: int) -> list[int]:
        filled: list[int] = []
        for length in sorted(lengths, reverse=True):
            row = next((i for i, used in enumerate(filled) if used + length <= limit), None)
            filled = [*filled, length] if row is None else [*filled[:row], filled[row] + length, *filled[row + 1 :]]
        return filled

    found = make_micro_batches([(length,) for length in lengths], ranks, None, None, "packed", forward=10**9)
    longest = max(sum(lengths[i] for i in micro) for rank in found for micro in rank)
    # First fit may fail at a limit above one at which it does: not the least limit counts, but that from which all do.
    too_short = [limit for limit in range(sum(lengths)) if len(rows(limit)) > ranks or limit < max(lengths)]
    assert longest <= max(too_short, default=0) + 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_padding_stays_under_a_tenth_on_lognormal_lengths(world_size: int) -> None:
    """In file order 16 such rows are more than half padding (research: 49 to 64 per cent)."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = [(int(n),) for n in rng.lognormal(5.5, 0.8, 64).clip(8, 4096)]
        ranks = make_micro_batches(lengths, world_size, 8192, None, "padded")
        computed = sum(positions(lengths, micro, "padded") for rank in ranks for micro in rank)
        assert sum(n for (n,) in lengths) / computed > 0.9


# --- shared prefixes


def of_tokens(*sequences: list[int]) -> Example:
    """An example of sequences of these tokens."""
    made = (TokenSequence("text", np.array(t, np.int32), np.zeros(len(t), bool)) for t in sequences)
    return Example("f", tuple(made))


def group(start: int, prompt: int, *answers: int) -> list[Example]:
    """Completions of one prompt; all tokens of an answer are its own."""
    return [of_tokens([start] * prompt + [start + 1 + i] * answer) for i, answer in enumerate(answers)]


def shared_positions(micro: MicroPlan, examples: list[Example], layout: str) -> int:
    """Oracle: a tree has one position for each prefix that some sequence of it has."""
    trees: dict[object, set[tuple[int, ...]]] = {}
    for place, i in enumerate(micro.examples):
        for number, sequence in enumerate(examples[i].sequences):
            tree: object = (i, number) if not micro.trees else micro.trees[place][number]
            tokens = tuple(sequence.tokens.tolist())
            trees.setdefault(tree, set()).update(tokens[:n] for n in range(1, len(tokens) + 1))
    sizes = [len(tree) for tree in trees.values()]
    return sum(sizes) if layout.startswith("packed") else len(sizes) * max(sizes, default=0)


FAMILY = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), min_size=1, max_size=2)


@given(
    st.lists(FAMILY, max_size=25), st.integers(1, 4), LIMITS, SIZES, st.sampled_from(["packed_shared", "padded_shared"])
)
def test_trees_keep_the_promises_of_a_cut(
    families: list[list[list[int]]], world_size: int, limit: int | None, size: int | None, layout: Any
) -> None:
    """Tokens are 0 or 1, so that prefixes are shared at every depth."""
    examples = [of_tokens(*sequences) for sequences in families]
    ranks = plan_micro_batches(examples, world_size, limit, size, layout)
    micros = [micro for rank in ranks for micro in rank]
    assert sorted(i for micro in micros for i in micro.examples) == list(range(len(examples)))
    assert len(ranks) == world_size and len({len(rank) for rank in ranks}) == 1
    for micro in micros:
        assert micro.examples == sorted(micro.examples)
        assert len(micro.examples) <= (size or len(examples))
        assert len(micro.examples) <= 1 or shared_positions(micro, examples, layout) <= (limit or np.inf)
        for place, i in enumerate(micro.examples):
            assert not micro.trees or len(micro.trees[place]) == len(examples[i].sequences)
    seen = [{tree for each in micro.trees for tree in each} for micro in micros if micro.trees]
    assert sum(map(len, seen)) == len(set().union(*seen)) if seen else True
    assert ranks == plan_micro_batches(examples, world_size, limit, size, layout)


def test_a_plain_layout_is_planned_by_lengths_alone() -> None:
    examples = [*group(10, 40, 10, 12), *group(20, 40, 5, 5)]
    for layout in ("padded", "packed"):
        plan = plan_micro_batches(examples, 2, 100, None, layout)
        assert [[micro.examples for micro in rank] for rank in plan] == make_micro_batches(
            [e.lengths for e in examples], 2, 100, None, layout
        )
        assert all(not micro.trees for rank in plan for micro in rank)


def test_sharing_where_it_pays() -> None:
    def trees(examples: list[Example], layout: Any = "padded_shared") -> int:
        return len({tree for each in share_prefixes(examples, layout) for tree in each})

    assert trees(group(10, 400, *[100] * 8)) == 1
    assert trees([of_tokens([1] * 60 + [2] * 100, [1] * 60 + [3] * 90)]) == 1
    # One token in forty: not worth a mask.
    assert trees(group(10, 1, *[40] * 4)) == trees(group(10, 1, *[40] * 4), "packed_shared") == 4
    # 20 of 1,000 tokens: in a padded row each answer would be attended to by the other in vain, in a packed one not.
    assert trees(group(10, 120, 900, 900)) == 2
    assert trees(group(10, 120, 900, 900), "packed_shared") == 1
    # The same row twice is computed once.
    assert trees([of_tokens([1] * 30), of_tokens([1] * 30)]) == 1


def test_a_group_is_planned_as_one_and_cut_where_it_must() -> None:
    examples = [e for pair in zip(group(10, 100, 20, 20), group(50, 90, 20, 20), strict=True) for e in pair]
    (rank,) = plan_micro_batches(examples, 1, 150, None, "padded_shared")
    assert [micro.examples for micro in rank] == [[0, 2], [1, 3]]  # 140 and 130 positions, each by itself
    (rank,) = plan_micro_batches(examples, 1, 139, None, "padded_shared")
    assert sorted(micro.examples for micro in rank) == [[0], [1, 3], [2]]  # the first does not fit
    (rank,) = plan_micro_batches(examples, 1, None, 1, "padded_shared")
    assert sorted(micro.examples for micro in rank) == [[0], [1], [2], [3]]
    assert all(not micro.trees for micro in rank)


def test_no_rank_waits_for_the_tree_of_another() -> None:
    """One group and two ranks: 4 answers each, with the prompt twice, end sooner than 8 on one of them."""
    examples = group(10, 100, *[50] * 8)
    for world_size in (2, 4):
        ranks = plan_micro_batches(examples, world_size, None, None, "packed_shared")
        loads = [sum(shared_positions(micro, examples, "packed_shared") for micro in rank) for rank in ranks]
        assert max(loads) <= 100 + 50 * -(-8 // world_size) + 50
    alone = plan_micro_batches(examples, 1, None, None, "packed_shared")
    assert [len(rank) for rank in alone] == [1]


# --- denominators


def example(*sequences: tuple[str, list[bool]]) -> Example:
    return Example(
        "here:1",
        tuple(
            TokenSequence(role, np.zeros(len(scored), np.int32), np.array(scored, bool)) for role, scored in sequences
        ),
    )


def test_denominators_by_hand() -> None:
    pair = example(("chosen", [False, True, True]), ("rejected", [False, True]))
    empty = example(("chosen", [False, False]), ("rejected", [False, False, True]))
    assert denominators([pair, empty]) == {
        "token": 4.0,
        "sequence": 4.0,
        "example": 2.0,
        "token:chosen": 2.0,
        "token:rejected": 2.0,
    }


def test_a_token_counts_as_much_as_its_message_weighs() -> None:
    """Two tokens of 1/2 and one of 1/4, beside three that have no weights: 1.25 + 3."""
    weighed = replace(
        example(("text", [False, True, True, True])).sequences[0],
        token_data={"message_weight": np.array([0.5, 0.5, 0.25], np.float32)},
    )
    plain = example(("text", [False, True, True, True]))
    found = denominators([Example("a", (weighed,)), plain])
    assert found == {"token": 4.25, "token:text": 4.25, "sequence": 2.0, "example": 2.0}


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=12),
    st.integers(1, 3),
    LIMITS,
    LAYOUTS,
)
def test_denominators_do_not_depend_on_the_cut(
    scored: list[list[bool]], world_size: int, limit: int | None, layout: str
) -> None:
    step = [example(("text", [False, *mask])) for mask in scored]
    parts = [
        denominators([step[i] for i in micro])
        for rank in make_micro_batches([e.lengths for e in step], world_size, limit, None, layout)
        for micro in rank
    ]
    for unit, count in denominators(step).items():
        assert count == sum(part.get(unit, 0.0) for part in parts)


def test_the_plan_needs_no_torch() -> None:
    code = "import sys, align.core.data.step_plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
