"""The tensors of one micro-batch, and the batch that a loss sees. All layouts give the same scored tokens.

padded   a row for each sequence, padding on the right
packed   all sequences in one row; ``position_ids`` start again at 0 with each, and keep attention apart
_shared  of either: sequences with a common prefix are the branches of a tree, which is laid out as one sequence is.
         Each prefix of a tree is computed once, and a token attends to those before it on its own path

A tree of two sequences, ``a b c d`` and ``a b e``, as a row:

    token         a  b  c  d  e
    position      0  1  2  3  2
    subtree end   5  5  4  4  5     token q attends to token k where k <= q < end of k: e to a, b and e
    predicted by  .  a  b  c  b
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.core.data.examples import MESSAGE_WEIGHT, Example, TokenSequence
from align.core.data.step_plan import Layout, share_prefixes, walk
from align.schemas.errors import AlignError


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The input of one forward pass. R rows of L positions; T scored tokens, B sequences, E examples.

    input_ids_RL, position_ids_RL   the tokens, and each one's place in its own sequence
    attention_mask_RL               1 for tokens, 0 for padding; None where there is no padding
    predict_T    flat index in [0, R * L) of the position whose hidden state predicts each scored token
    target_T     the scored tokens
    last_B       flat index of each sequence's last token
    sequence_T, position_T, example_B, role_B, roles, examples, columns, ref_logp_T, token_data   as in ``Batch``
    sources      where each example came from, for messages
    sequence_of, tokens_by_role   as in ``Batch``
    subtree_end_RL   index in its row at which the subtree of each token ends; None where no prefix is shared. A token
                     of padding is a tree by itself, so that no position is left without anything to attend to
    """

    input_ids_RL: Tensor
    position_ids_RL: Tensor
    attention_mask_RL: Tensor | None
    predict_T: Tensor
    target_T: Tensor
    last_B: Tensor
    sequence_T: Tensor
    position_T: Tensor
    example_B: Tensor
    role_B: Tensor
    roles: tuple[str, ...]
    examples: int
    columns: Mapping[str, Tensor]
    ref_logp_T: Tensor | None
    token_data: Mapping[str, Tensor]
    sources: tuple[str, ...]
    sequence_of: Mapping[str, Tensor] = field(default_factory=dict)
    tokens_by_role: Mapping[str, Tensor] = field(default_factory=dict)
    subtree_end_RL: Tensor | None = None

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return the micro-batch on another device."""
        # A copy from pageable memory makes the host wait until the GPU has done all that it was given before.
        pinned = torch.device(device).type == "cuda"

        def move(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: move(x) for name, x in value.items()}
            if not isinstance(value, Tensor):
                return value
            return (
                value.pin_memory().to(device, non_blocking=True) if pinned and not value.is_cuda else value.to(device)
            )

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


def collate(
    examples: Sequence[Example],
    layout: Layout,
    pad_id: int,
    *,
    like: Sequence[Example] = (),
    trees: Sequence[tuple[int, ...]] | None = None,
) -> MicroBatch:
    """Return the examples as the tensors of one micro-batch, in a layout.

    like: all examples of the optimizer step. The micro-batch shows the roles and columns of those, so that every
    micro-batch of a step has the same ones, an empty one too. Default: ``examples``.
    trees: of a shared layout, for each example the tree of each of its sequences, as the step plan has found them;
    empty: no prefix is shared. Default: found among these examples.

    No examples give a micro-batch that can be run: one row of one padding token, T = B = 0.
    Raises AlignError where some rows of the step have a column and others lack it. Raises ValueError where a sequence
    is empty or its first token is scored (nothing predicts it), and where reference log-probabilities are incomplete.
    """
    step = like or examples
    roles = tuple(dict.fromkeys(s.role for e in step for s in e.sequences))
    sequences = [s for e in examples for s in e.sequences]
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    if any(not len(s) or s.scored[0] for s in sequences):
        raise ValueError("a sequence is empty, or its first token is scored and nothing predicts it")

    if trees is None:
        trees = share_prefixes(examples, layout) if layout.endswith("shared") else ()
    shape, index, end = _places(sequences, layout, trees)
    # Positions that no index names are padding.
    place = _runs(lengths)
    ids, positions, filled = np.full(shape, pad_id), np.tile(np.arange(shape[1]), (shape[0], 1)), np.zeros(shape, bool)
    subtree_end = None
    if end is not None:
        positions[:] = 0  # of padding: a row of a tree may be longer than the model has positions
        subtree_end = np.tile(np.arange(shape[1]) + 1, (shape[0], 1))
        subtree_end.flat[index] = end
    ids.flat[index] = _join([s.tokens for s in sequences])
    positions.flat[index] = place
    filled.flat[index] = True

    scored = _join([s.scored for s in sequences]).astype(bool)
    scored_B = np.array([int(s.scored.sum()) for s in sequences], dtype=np.int64)
    sequence_T = np.repeat(np.arange(len(sequences)), scored_B)
    example_B = np.repeat(np.arange(len(examples)), [len(e.sequences) for e in examples])
    role_B = np.array([roles.index(s.role) for s in sequences], np.int64)
    # Looked for here, on the CPU: on a GPU every search makes the host wait.
    sought = dict(enumerate(roles)) if len(roles) > 1 else {}
    found = {name: _sequences_of(number, role_B, example_B, len(examples)) for number, name in sought.items()}
    no_mask = filled.all() or not sequences or end is not None
    return MicroBatch(
        input_ids_RL=_tensor(ids),
        position_ids_RL=_tensor(positions),
        attention_mask_RL=None if no_mask else _tensor(filled),
        predict_T=_tensor(index[np.flatnonzero(scored) - 1]),
        target_T=_tensor(ids.flat[index[scored]]),
        last_B=_tensor(index[np.cumsum(lengths) - 1]),
        sequence_T=_tensor(sequence_T),
        position_T=_tensor(_runs(scored_B)),
        example_B=_tensor(example_B),
        role_B=_tensor(role_B),
        roles=roles,
        examples=len(examples),
        columns=_columns(examples, step),
        ref_logp_T=_reference(sequences, step),
        token_data=_token_data(sequences, step),
        sources=tuple(e.source for e in examples),
        sequence_of={name: _tensor(sequence_E) for name, sequence_E in found.items() if sequence_E is not None},
        tokens_by_role={name: _tensor(_tokens_of(number, role_B, sequence_T)) for number, name in sought.items()},
        subtree_end_RL=None if subtree_end is None else _tensor(subtree_end),
    )


Integers = NDArray[np.int64]


def _sequences_of(role: int, role_B: Integers, example_B: Integers, examples: int) -> Integers | None:
    """Return the index [E] of each example's sequence of a role, None unless each has exactly one."""
    mine = np.flatnonzero(role_B == role)
    mine = mine[np.argsort(example_B[mine], kind="stable")]
    return mine if np.array_equal(example_B[mine], np.arange(examples)) else None


def _tokens_of(role: int, role_B: Integers, sequence_T: Integers) -> Integers:
    """Return the indices [T'] of the scored tokens of a role's sequences."""
    return np.flatnonzero(role_B[sequence_T] == role)


class _Places(NamedTuple):
    """The layout of sequences.

    shape  the number of rows and of positions in each
    flat   for every token, sequence after sequence, its index in all rows, one after the other
    end    the index in its row at which its subtree ends; None where no prefix is shared
    """

    shape: tuple[int, int]
    flat: Integers
    end: Integers | None


def _places(sequences: Sequence[TokenSequence], layout: Layout, trees: Sequence[tuple[int, ...]]) -> _Places:
    """Lay out sequences. trees: as for ``collate``; empty if no prefix is shared."""
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    grown = _grow([s.tokens for s in sequences], [tree for each in trees for tree in each]) if trees else None
    # A part of a packed row, or a padded row, is a sequence or a tree: their sizes, that of each sequence, and the
    # places of its tokens in it.
    sizes, part_B, inside = lengths, np.arange(len(sequences)), _runs(lengths)
    if grown is not None:
        sizes, part_B, inside = grown.sizes, grown.tree_B, grown.index
    if layout.startswith("packed") or not sequences:
        shape = (1, max(1, int(sizes.sum())))
        starts = np.cumsum(sizes) - sizes
    else:
        shape = (len(sizes), int(sizes.max()))
        starts = np.arange(len(sizes)) * shape[1]
    start = np.repeat(starts[part_B], lengths)
    return _Places(shape, start + inside, None if grown is None else start % shape[1] + grown.end)


@dataclass(frozen=True, slots=True)
class _Trees:
    """Sequences laid out as trees.

    sizes   the positions of each tree
    tree_B  the tree of each sequence
    index   for every token, sequence after sequence, its index in its tree
    end     the index in its tree at which its subtree ends
    """

    sizes: NDArray[np.int64]
    tree_B: NDArray[np.int64]
    index: NDArray[np.int64]
    end: NDArray[np.int64]


def _grow(sequences: Sequence[NDArray[np.int32]], numbers: Sequence[int]) -> _Trees | None:
    """Lay out sequences as trees; None where none of them shares anything. numbers: the tree of each sequence."""
    members = dict[int, list[int]]()
    for sequence, number in enumerate(numbers):
        members.setdefault(number, []).append(sequence)
    index = [np.empty(0, np.int64)] * len(sequences)
    end = [np.empty(0, np.int64)] * len(sequences)
    tree_B, sizes = np.zeros(len(sequences), np.int64), list[int]()
    for tree, mine in enumerate(members.values()):
        size, path = 0, np.empty(0, np.int64)
        end_of = np.zeros(sum(len(sequences[s]) for s in mine), np.int64)
        for branch, shared in walk([sequences[s] for s in mine]):
            sequence = mine[branch]
            grown = size + len(sequences[sequence]) - shared
            path = np.concatenate([path[:shared], np.arange(size, grown)])
            end_of[path] = size = grown  # a subtree ends where the last sequence that passes through it does
            index[sequence] = path
        for sequence in mine:
            end[sequence] = end_of[index[sequence]]
        tree_B[mine] = tree
        sizes.append(size)
    if sum(sizes) == sum(map(len, sequences)):
        return None
    return _Trees(np.array(sizes, np.int64), tree_B, _join(index), _join(end))


def _runs(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return positions that start at 0 in each run: counts [2, 3] -> [0, 1, 0, 1, 2]."""
    total = int(counts.sum())
    return np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _columns(examples: Sequence[Example], step: Sequence[Example]) -> dict[str, Tensor]:
    """Return each column [E] in float32. Raises AlignError where some rows of the step lack one that others have."""
    names = dict.fromkeys(name for e in step for name in e.columns)
    for name in names:
        if lacking := [e.source for e in step if name not in e.columns]:
            having = next(e.source for e in step if name in e.columns)
            raise AlignError(f"has no {name!r}, but {having} has", "give every row a value, or none", where=lacking[0])
    return {name: torch.tensor([e.columns[name] for e in examples], dtype=torch.float32) for name in names}


def _reference(sequences: Sequence[TokenSequence], step: Sequence[Example]) -> Tensor | None:
    """Return the reference log-probabilities [T] in float32, None if they were not computed."""
    known = {s.ref_logp is not None for e in step for s in e.sequences}
    if len(known) > 1:
        raise ValueError("some rows of the step have reference log-probabilities and others lack them")
    parts = [s.ref_logp for s in sequences if s.ref_logp is not None]
    return torch.from_numpy(_join(parts).astype(np.float32)) if True in known else None


def _token_data(sequences: Sequence[TokenSequence], step: Sequence[Example]) -> dict[str, Tensor]:
    """Return the numbers that belong to the scored tokens (``TokenSequence.token_data``), each [T] in float32."""
    names = dict.fromkeys(name for e in step for s in e.sequences for name in s.token_data)
    needed = names.keys() - {MESSAGE_WEIGHT}  # which has a default, 1: ``Sequence.weights``
    if any(needed - s.token_data.keys() for e in step for s in e.sequences):
        raise ValueError(f"some sequences of the step lack some of {', '.join(names)}")
    parts = {name: [s.token_data.get(name, s.weights) for s in sequences] for name in names}
    return {name: torch.from_numpy(_join(arrays).astype(np.float32)) for name, arrays in parts.items()}


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch that a loss sees: one micro-batch after its forward pass.

    logp_T       log-probability of each scored token under the policy; carries gradient
    sequence_T   which sequence each scored token belongs to, in [0, B)
    position_T   its place among its sequence's scored tokens, from 0
    example_B    which example each sequence belongs to, in [0, E)
    role_B       index into ``roles`` (``chosen``, ``rejected``, ...)
    columns      per-example numbers [E] (``margin``, ``label``, ...)
    ref_logp_T   the same tokens under the reference, or None; no gradient
    token_data   per-token numbers [T] that the examples carry (``advantage``, ``old_logp``, ...); no gradient
    value_T      the critic's value of the state before each scored token, or None; carries gradient
    score_B      the reward head's score of each sequence, or None; carries gradient
    entropy_T, correct_T, logit_T   entropy, whether the token was the likeliest, mean logit over the vocabulary;
                 no gradient, for metrics
    step         means of ``Algorithm.statistics`` over the whole optimizer step, empty without it
    sequence_of, tokens_by_role   by role: the index of each example's sequence [E], and those of the role's scored
                 tokens [T'], for ``select`` and ``tokens_of``; a role that is missing here they look for
    """

    logp_T: Tensor
    sequence_T: Tensor
    position_T: Tensor
    example_B: Tensor
    role_B: Tensor
    roles: tuple[str, ...]
    examples: int
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    ref_logp_T: Tensor | None = None
    token_data: Mapping[str, Tensor] = field(default_factory=dict)
    value_T: Tensor | None = None
    score_B: Tensor | None = None
    entropy_T: Tensor | None = None
    correct_T: Tensor | None = None
    logit_T: Tensor | None = None
    step: Mapping[str, Tensor] = field(default_factory=dict)
    sequence_of: Mapping[str, Tensor] = field(default_factory=dict)
    tokens_by_role: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        """The number of sequences, B."""
        return self.example_B.numel()

    def sum_per_sequence(self, x_T: Tensor) -> Tensor:
        """Sum over each sequence's scored tokens: [T] -> [B]."""
        return x_T.new_zeros(self.sequences).index_add(0, self.sequence_T, x_T)

    @property
    def length_B(self) -> Tensor:
        """Scored tokens of each sequence, at least 1 so that it can divide: [B]."""
        return self.sum_per_sequence(torch.ones_like(self.logp_T)).clamp(min=1)

    def mean_per_sequence(self, x_T: Tensor) -> Tensor:
        """Mean over each sequence's scored tokens: [T] -> [B]."""
        return self.sum_per_sequence(x_T) / self.length_B

    def expand_to_tokens(self, x_B: Tensor) -> Tensor:
        """Give every scored token its sequence's value: [B] -> [T]."""
        return x_B[self.sequence_T]

    def select(self, role: str, x_B: Tensor) -> Tensor:
        """The values of one role in the order of the examples: [B] -> [E].

        Raises ValueError unless every example has exactly one sequence of that role.
        """
        sequence_E = self.sequence_of.get(role)
        if sequence_E is None:
            number = self.roles.index(role) if role in self.roles else -1
            found = _sequences_of(number, self.role_B.cpu().numpy(), self.example_B.cpu().numpy(), self.examples)
            if found is None:
                raise ValueError(f"not every example has one {role!r} sequence")
            sequence_E = _tensor(found).to(x_B.device)
        return x_B.index_select(0, sequence_E)

    def by_message(self, x_T: Tensor) -> Tensor:
        """Multiply each token's value [T] by the weight of its message: [T]. The engine counts it by the same weight.

        Without weights the values are returned as they are.
        """
        if MESSAGE_WEIGHT not in self.token_data:
            return x_T
        return x_T * self.token_data[MESSAGE_WEIGHT]

    def tokens_of(self, role: str, x_T: Tensor) -> Tensor:
        """The tokens of one role's sequences: [T] -> [T']."""
        if self.roles == (role,):
            return x_T
        index = self.tokens_by_role.get(role)
        if index is None:
            found = _tokens_of(self.roles.index(role), self.role_B.cpu().numpy(), self.sequence_T.cpu().numpy())
            index = _tensor(found).to(x_T.device)
        return x_T.index_select(0, index)
