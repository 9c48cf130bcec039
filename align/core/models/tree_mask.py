"""The attention mask of rows that are trees of sequences (``align.core.data.batch``).

Every model of transformers makes its masks by one function for each attention implementation, which is given the
model's own rule as a function of two indices: causal, within a sliding window, within a chunk. In a tree, a token's
index in its row is not its position in its sequence, so the rule is applied to positions here, and a token attends to
those on its own path alone. A model that makes its masks in another way does not see the tree; the probe of
``align.core.models.packing`` finds it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")
"""Attention that takes any mask. Flash attention knows causal rows only."""


class _Rows(NamedTuple):
    position_RL: Tensor
    subtree_end_RL: Tensor


# A context variable, since another thread may run a model at the same time, on rows of its own.
_rows: ContextVar[_Rows | None] = ContextVar("rows", default=None)


@contextmanager
def tree_mask(position_RL: Tensor, subtree_end_RL: Tensor) -> Iterator[None]:
    """Make the models that run in this context mask their attention by trees, with the attention they have.

    position_RL: each token's position in its sequence. subtree_end_RL: as in ``MicroBatch``.
    """
    _install()
    token = _rows.set(_Rows(position_RL, subtree_end_RL))
    try:
        yield
    finally:
        _rows.reset(token)


@cache
def _install() -> None:
    """Put the functions of this module before those of transformers, which they call where no tree is set."""
    for name in IMPLEMENTATIONS:
        ALL_MASK_ATTENTION_FUNCTIONS[name] = _by_trees(name, ALL_MASK_ATTENTION_FUNCTIONS[name])


def _by_trees(name: str, make_mask: Callable[..., Any]) -> Callable[..., Any]:
    def masked(*args: Any, **given: Any) -> Any:
        rows = _rows.get()
        if rows is None:
            return make_mask(*args, **given)
        given |= {"mask_function": _along_paths(rows, given["mask_function"]), "attention_mask": None}
        mask = make_mask(*args, **given | {"allow_is_causal_skip": False})
        if name != "sdpa":
            return mask
        # sdpa makes numbers of a mask of booleans in every layer, and backward keeps each: L x L numbers a layer.
        numbers = torch.zeros(mask.shape, dtype=given.get("dtype", torch.float32), device=mask.device)
        return numbers.masked_fill_(~mask, float("-inf"))

    return masked


def _along_paths(rows: _Rows, rule: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model's rule for sequences as a rule for trees: transformers' mask function of indices."""

    def attends(batch: Any, head: Any, query: Any, key: Any) -> Any:
        on_path = (key <= query) & (query < rows.subtree_end_RL[batch, key])
        return on_path & rule(batch, head, rows.position_RL[batch, query], rows.position_RL[batch, key])

    return attends
