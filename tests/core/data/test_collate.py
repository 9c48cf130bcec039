"""Both layouts hold the same ragged scored tokens, and every index points where it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.core.data.batch import MicroBatch, collate
from align.core.data.examples import Example, TokenSequence
from align.schemas.errors import AlignError

PAD = 9


def sequence(role: str, tokens: list[int], scored: list[int], ref: list[float] | None = None) -> TokenSequence:
    reference = None if ref is None else np.array(ref, np.float32)
    return TokenSequence(role, np.array(tokens, np.int32), np.array(scored, bool), reference)


PAIR = Example(
    "f:1",
    (sequence("chosen", [1, 2, 3], [0, 1, 1], [-0.1, -0.2]), sequence("rejected", [1, 4], [0, 1], [-0.3])),
    {"margin": 0.5},
)
SECOND = Example(
    "f:2",
    (sequence("chosen", [5, 6], [0, 0], []), sequence("rejected", [7, 8, 3, 2], [0, 0, 1, 0], [-0.4])),
    {"margin": 2.0},
)


def test_padded_by_hand() -> None:
    micro = collate([PAIR, SECOND], "padded", PAD)
    assert micro.input_ids_RL.tolist() == [[1, 2, 3, 9], [1, 4, 9, 9], [5, 6, 9, 9], [7, 8, 3, 2]]
    assert micro.position_ids_RL.tolist() == [[0, 1, 2, 3]] * 4
    assert micro.attention_mask_RL is not None
    assert micro.attention_mask_RL.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert micro.predict_T.tolist() == [0, 1, 4, 13]
    assert micro.last_B.tolist() == [2, 5, 9, 15]


def test_packed_by_hand() -> None:
    micro = collate([PAIR, SECOND], "packed", PAD)
    assert micro.input_ids_RL.tolist() == [[1, 2, 3, 1, 4, 5, 6, 7, 8, 3, 2]]
    assert micro.position_ids_RL.tolist() == [[0, 1, 2, 0, 1, 0, 1, 0, 1, 2, 3]]
    assert micro.attention_mask_RL is None
    assert micro.predict_T.tolist() == [0, 1, 3, 8]
    assert micro.last_B.tolist() == [2, 4, 6, 10]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_what_does_not_depend_on_the_layout(layout: str) -> None:
    micro = collate([PAIR, SECOND], layout, PAD)
    assert micro.target_T.tolist() == [2, 3, 4, 3]
    assert micro.sequence_T.tolist() == [0, 0, 1, 3]
    assert micro.position_T.tolist() == [0, 1, 0, 0]
    assert micro.example_B.tolist() == [0, 0, 1, 1]
    assert [micro.roles[i] for i in micro.role_B] == ["chosen", "rejected"] * 2
    assert micro.columns["margin"].tolist() == [0.5, 2.0]
    assert micro.ref_logp_T is not None
    assert micro.ref_logp_T.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4])
    assert (micro.examples, micro.sources) == (2, ("f:1", "f:2"))


def test_rows_of_one_length_need_no_mask() -> None:
    one = Example("f:1", (sequence("text", [1, 2], [0, 1]),))
    assert collate([one, one], "padded", PAD).attention_mask_RL is None


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_an_empty_micro_batch_can_be_run_and_looks_like_its_step(layout: str) -> None:
    micro = collate([], layout, PAD, like=[PAIR, SECOND])
    assert micro.input_ids_RL.tolist() == [[PAD]]
    for empty in (micro.predict_T, micro.target_T, micro.last_B, micro.sequence_T, micro.example_B, micro.role_B):
        assert empty.shape == (0,) and empty.dtype == torch.int64
    assert micro.examples == 0
    assert micro.roles == ("chosen", "rejected")
    assert micro.columns["margin"].shape == (0,)
    assert micro.ref_logp_T is not None and micro.ref_logp_T.shape == (0,)
    assert collate([], layout, PAD).ref_logp_T is None


def test_roles_and_columns_are_the_steps_whatever_the_micro_batch_holds() -> None:
    text = Example("f:3", (sequence("text", [1, 2], [0, 1], [-1.0]),), {"margin": 1.0})
    for examples in ([PAIR], [text], [PAIR, text]):
        assert collate(examples, "padded", PAD, like=[PAIR, text]).roles == ("chosen", "rejected", "text")


def test_numbers_are_float32_whatever_they_were() -> None:
    one = replace(PAIR.sequences[1], ref_logp=np.array([-0.3], np.float64))
    micro = collate([Example("f:1", (one,), {"label": 1})], "padded", PAD)
    assert micro.ref_logp_T is not None
    assert micro.columns["label"].dtype == micro.ref_logp_T.dtype == torch.float32


def token_data(scored: list[int], **numbers: list[float]) -> TokenSequence:
    made = sequence("completion", list(range(len(scored))), scored)
    return replace(made, token_data={name: np.array(values, np.float64) for name, values in numbers.items()})


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_numbers_for_each_token_stay_with_their_tokens(layout: str) -> None:
    """In the order of the sequences; a message without a weight weighs 1; float32 whatever they were."""
    first = Example("f:1", (token_data([0, 1, 1], advantage=[0.5, 0.25], message_weight=[0.1, 0.2]),))
    second = Example("f:2", (token_data([0, 0, 1], advantage=[-2.0]), token_data([0, 1], advantage=[7.0])))
    found = collate([second, first], layout, PAD).token_data
    assert {name: values.tolist() for name, values in found.items()} == {
        "advantage": [-2.0, 7.0, 0.5, 0.25],
        "message_weight": pytest.approx([1, 1, 0.1, 0.2]),
    }
    assert {values.dtype for values in found.values()} == {torch.float32}
    # A micro-batch has what its step has.
    weighs_one = collate([second], layout, PAD, like=[first, second]).token_data
    assert weighs_one["message_weight"].tolist() == [1, 1]
    nothing = collate([], layout, PAD, like=[first, second]).token_data
    assert {name: values.tolist() for name, values in nothing.items()} == {"advantage": [], "message_weight": []}
    with pytest.raises(ValueError, match="lack some of advantage"):
        collate([second], layout, PAD, like=[second, Example("f:3", (token_data([0, 1]),))])


def test_moving_moves_every_tensor() -> None:
    moved = collate([PAIR, SECOND], "padded", PAD).to("meta")
    tensors = [value for name in MicroBatch.__slots__ if isinstance(value := getattr(moved, name), torch.Tensor)]
    assert len(tensors) == 11
    assert all(t.device.type == "meta" for t in [*tensors, *moved.columns.values()])
    assert moved.sources == ("f:1", "f:2")


def test_faults_are_named() -> None:
    bare = Example("f:4", (sequence("chosen", [1, 2], [0, 1], [0.0]),))
    with pytest.raises(AlignError, match=r"f:4\n    has no 'margin', but f:1 has"):
        collate([PAIR, bare], "padded", PAD)
    with pytest.raises(ValueError, match="first token is scored"):
        collate([Example("f:5", (sequence("text", [1, 2], [1, 1]),))], "packed", PAD)
    with pytest.raises(ValueError, match="empty"):
        collate([Example("f:6", (sequence("text", [], []),))], "packed", PAD)
    with pytest.raises(ValueError, match="others lack them"):
        collate([Example("f:7", (sequence("a", [1, 2], [0, 1], [0.0]), sequence("b", [1], [0])))], "padded", PAD)


SEQUENCES = st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=12)


@given(st.lists(st.lists(SEQUENCES, min_size=1, max_size=3), max_size=6), st.sampled_from(["padded", "packed"]))
def test_every_index_points_at_its_token(rows: list[list[list[tuple[int, bool]]]], layout: str) -> None:
    examples = [
        Example(
            f"f:{i}",
            tuple(
                sequence("text", [t for t, _ in each], [bool(s) and j > 0 for j, (_, s) in enumerate(each)])
                for each in row
            ),
        )
        for i, row in enumerate(rows)
    ]
    flat = [s for e in examples for s in e.sequences]
    micro = collate(examples, layout, PAD)
    ids, places = micro.input_ids_RL.flatten(), micro.position_ids_RL.flatten()
    assert ids[micro.predict_T + 1].tolist() == micro.target_T.tolist()
    assert ids[micro.last_B].tolist() == [int(s.tokens[-1]) for s in flat]
    assert places[micro.last_B].tolist() == [len(s) - 1 for s in flat]
    scored = [(b, int(token)) for b, s in enumerate(flat) for token in s.tokens[s.scored]]
    assert list(zip(micro.sequence_T.tolist(), micro.target_T.tolist(), strict=True)) == scored
    # Row by row, what the mask keeps is the sequences, in order and whole.
    kept = ids if micro.attention_mask_RL is None else ids[micro.attention_mask_RL.flatten().bool()]
    assert not flat or kept.tolist() == [int(token) for s in flat for token in s.tokens]
