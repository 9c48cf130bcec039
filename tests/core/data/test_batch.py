"""A Batch's own arithmetic by hand: sums, means and choices over ragged scored tokens."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from align.core.algorithm.contract import LossOutput, LossTerm, Metric
from align.core.data.batch import Batch, collate
from align.core.data.examples import Example, TokenSequence


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


X = floats(1, 2, 4, 8, 16, 32)


def pairs(**more: Tensor) -> Batch:
    """Two pairs: the first's chosen answer has 2 tokens, its rejected 1; the second's are the other way round: 0, 3."""
    return Batch(
        logp_T=-X,
        sequence_T=torch.tensor([0, 0, 1, 2, 2, 2]),
        position_T=torch.tensor([0, 1, 0, 0, 1, 2]),
        example_B=torch.tensor([0, 0, 1, 1]),
        role_B=torch.tensor([0, 1, 1, 0]),
        roles=("chosen", "rejected"),
        examples=2,
        token_data=more,
    )


def test_sums_means_and_lengths_of_sequences() -> None:
    """A sequence without scored tokens sums to 0, and its length is 1 to be divided by."""
    batch = pairs()
    assert batch.sequences == 4
    assert batch.sum_per_sequence(X).tolist() == [3, 4, 56, 0]
    assert batch.length_B.tolist() == [2, 1, 3, 1]
    assert batch.mean_per_sequence(X).tolist() == pytest.approx([1.5, 4, 56 / 3, 0])
    assert batch.expand_to_tokens(floats(5, 6, 7, 8)).tolist() == [5, 5, 6, 7, 7, 7]


def test_a_role_s_values_are_in_the_order_of_the_examples() -> None:
    batch = pairs()
    assert batch.select("chosen", floats(5, 6, 7, 8)).tolist() == [5, 8]
    assert batch.select("rejected", floats(5, 6, 7, 8)).tolist() == [6, 7]
    assert batch.tokens_of("chosen", X).tolist() == [1, 2]
    assert batch.tokens_of("rejected", X).tolist() == [4, 8, 16, 32]
    for role, roles in (("completion", [0, 1, 1, 0]), ("chosen", [0, 1, 1, 1]), ("chosen", [0, 0, 1, 0])):
        wrong = Batch(
            batch.logp_T, batch.sequence_T, batch.position_T, batch.example_B, torch.tensor(roles), batch.roles, 2
        )
        with pytest.raises(ValueError, match=f"one '{role}' sequence"):
            wrong.select(role, floats(5, 6, 7, 8))


def test_what_collate_has_looked_for_is_what_a_batch_finds_by_itself() -> None:
    """Sequences of an example in either order; an example with two of a role, which has no single one."""

    def pair(*roles: str) -> Example:
        named = enumerate(roles, 3)
        return Example("", tuple(TokenSequence(r, np.arange(n, dtype=np.int32), np.arange(n) > 1) for n, r in named))

    for examples in ([pair("a", "b"), pair("b", "a")], [pair("a", "b"), pair("a", "b", "b")], [pair("a"), pair("b")]):
        micro = collate(examples, "padded", 0)
        sequences, scored = len(micro.role_B), len(micro.target_T)
        x_B, x_T = torch.arange(float(sequences)), torch.arange(float(scored))
        shared = {f.name: getattr(micro, f.name) for f in fields(Batch) if hasattr(micro, f.name)}
        looked = Batch(logp_T=x_T, **shared)
        bare = replace(looked, sequence_of={}, tokens_by_role={})
        for role in ("a", "b"):
            assert role in looked.tokens_by_role
            assert torch.equal(looked.tokens_of(role, x_T), bare.tokens_of(role, x_T))
            assert (
                looked.tokens_of(role, x_T).tolist()
                == x_T[micro.role_B[micro.sequence_T] == micro.roles.index(role)].tolist()
            )
            single = all([s.role for s in e.sequences].count(role) == 1 for e in examples)
            assert (role in looked.sequence_of) is single
            for batch in (looked, bare):
                if single:
                    assert micro.role_B[batch.select(role, x_B).long()].unique().tolist() == [micro.roles.index(role)]
                    assert micro.example_B[batch.select(role, x_B).long()].tolist() == list(range(len(examples)))
                else:
                    with pytest.raises(ValueError, match="not every example has one"):
                        batch.select(role, x_B)


def test_a_role_that_an_empty_micro_batch_does_not_have() -> None:
    none = torch.zeros(0, dtype=torch.long)
    empty = Batch(floats(), none, none, none, none, (), 0)
    assert empty.select("chosen", floats()).tolist() == [] and empty.sum_per_sequence(floats()).tolist() == []


def test_messages_weigh_their_tokens() -> None:
    weight = floats(1, 0, 0.5, 1, 1, 0.25)
    assert pairs(message_weight=weight).by_message(X).tolist() == [1, 0, 2, 8, 16, 8]
    assert pairs().by_message(X) is X


def test_a_share_is_weight_times_sum_over_the_step_s_count() -> None:
    """Counts of the whole step, not of the micro-batch; a unit that the step has none of counts one."""
    terms = [LossTerm(X, "token", 2.0), LossTerm(floats(3, 5), "example"), LossTerm(floats(7), "token:nobody", 0.5)]
    share = LossOutput(terms, {"x": Metric(X)}).loss_contribution({"token": 12.0, "example": 4.0})
    assert share.item() == pytest.approx(2 * 63 / 12 + 8 / 4 + 3.5)
    assert LossOutput([LossTerm(X, "token")], {}).loss_contribution({"token": 0.25}).item() == 63
