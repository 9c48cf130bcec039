"""Bytes that one forward pass of align's engine keeps for its backward, by what transformers' decoders save.

Of one token in one layer with h hidden, f intermediate, q = a d and k = kv d (autograd saves what a product's other
factor needs, and nothing twice):

    norm        its input h, h normed (only where the norm's weight learns), and its output h
    attention   q, keys and values 2 k after rotation, its output q, and a float32 for each head
    mlp         gate, silu(gate), up and their product: 4 f
    adapter     r for each linear

in the type that each is computed in. Under autocast of float32 weights the residual stream and norms stay float32, and
each linear keeps its own 16-bit copy of its input. In 16 bits a norm works on a float32 copy of its input.
Checked operation by operation against a dry run (docs/estimate.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from align.advisor.estimate.shape import Shape
from align.schemas.estimate import Micro


@dataclass(frozen=True, slots=True)
class Types:
    """Bytes of a number: weight as held, compute in matrix products, residual between layers. mixed: autocast."""

    weight: int
    compute: int
    residual: int
    mixed: bool


def types(dtype: str, precision: str) -> Types:
    """What a run file's ``model.dtype`` and ``train.precision`` mean."""
    weight = 4 if dtype == "float32" and precision != "bf16-true" else 2
    mixed = precision.endswith("-mixed")
    return Types(weight, 2 if mixed else weight, weight, mixed)


def norm(hidden: int, kind: Types, learns: bool) -> int:
    """Bytes of one token at a norm, its output not counted."""
    if kind.residual == 4:
        return (8 if learns else 4) * hidden
    return (6 if learns else 4) * hidden


def attention(shape: Shape, kind: Types, repeated: bool) -> int:
    """Bytes of one token inside attention. repeated: keys and values are spread over all heads (a mask is given)."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    keys = 2 * q + kv if repeated and q != kv else 2 * kv
    return kind.compute * (2 * q + keys) + 4 * shape.heads


def layer(shape: Shape, kind: Types, rank: int, micro: Micro, eager: bool = False) -> float:
    """Bytes of one token in one layer. rank: of an adapter, 0 where everything learns.

    eager: attention keeps its weights, float32, for each head and each position of the row.
    """
    h, f = shape.hidden, shape.intermediate * shape.active
    copies = (3, 2 if shape.gated else 1) if kind.mixed and kind.residual == 4 else (1, 1)
    inputs = kind.compute * h * sum(copies)
    square = 4 * shape.heads * micro.width if eager else 0
    inner = shape.inner * f * kind.compute
    normed = norm((shape.heads + shape.kv_heads) * shape.head_dim, kind, not rank) if shape.qk_norm else 0
    linears = 4 + (3 if shape.gated else 2) * shape.active
    adapter = linears * rank * 4
    return (
        shape.norms * norm(h, kind, not rank)
        + inputs
        + attention(shape, kind, micro.padded)
        + square
        + normed
        + inner
        + adapter
    )


def kept(shape: Shape, kind: Types, rank: int, micro: Micro, checkpointing: bool, eager: bool = False) -> float:
    """Bytes of a whole pass: all layers (or their inputs), what they share, the last norm, and scored hidden states."""
    each = kind.residual * shape.hidden if checkpointing else layer(shape, kind, rank, micro, eager)
    shared = 2 * kind.residual * shape.head_dim + norm(shape.hidden, kind, not rank)
    scored = (kind.residual + kind.residual) * shape.hidden
    return micro.tokens * (shape.layers * each + shared) + micro.scored * scored
