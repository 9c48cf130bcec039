"""Bytes that one forward pass of align's engine keeps for its backward, by what transformers' decoders save.

Of one token in one layer with h hidden, f intermediate, q = a d and k = kv d (autograd saves what a product's other
factor needs, and nothing twice):

    norm        its input h, h normed (only where the norm's weight learns), and its output h
    attention   q, keys and values 2 k after rotation, its output q, and a float32 for each head; under a mask (rows of
                unequal length) keys and values spread over all heads, 2 q, and the mask as numbers, L
    mlp         gate, silu(gate), up and their product: 4 f
    adapter     r for each linear, and its own copy of the input where the adapter is of another type

in the type that each is computed in. Under autocast of float32 weights the residual stream and norms stay float32, and
each linear keeps its own 16-bit copy of its input. In 16 bits a norm works on a float32 copy of its input. Without a
kernel (``eager``; sdpa on a GPU in float32 where heads share keys) attention keeps its square, a L.
Checked operation by operation against a dry run (docs/estimate.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from align.advisor.estimate.model_shape import ModelShape
from align.schemas.engine import Micro


@dataclass(frozen=True, slots=True)
class Types:
    """Bytes of a number: weight as held, compute in matrix products, residual between layers, an adapter's own.

    mixed: autocast.
    """

    weight: int
    compute: int
    residual: int
    mixed: bool
    adapter: int = 4

    @property
    def copied(self) -> int:
        """Bytes of a number of an adapter's own copy of its input; 0 where it needs none."""
        return 0 if self.adapter == self.compute else 2 if self.mixed else self.adapter


def types(dtype: str, precision: str) -> Types:
    """Return the types that a run file's ``model.dtype`` and ``train.precision`` mean."""
    weight = 2 if precision == "bf16-true" else {"float64": 8, "float32": 4}.get(dtype, 2)
    mixed = precision.endswith("-mixed")
    return Types(weight, 2 if mixed else weight, weight, mixed, 2 if precision == "bf16-true" else 4)


def norm(hidden: int, kind: Types, learns: bool) -> int:
    """Return bytes of one token at a norm, its output not counted."""
    if kind.residual == 4:
        return (8 if learns else 4) * hidden
    return (6 if learns else 4) * hidden


def attention(shape: ModelShape, kind: Types, micro: Micro, square: bool) -> int:
    """Bytes of one token inside attention. square: it keeps a float32 for each head and each position of the row."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    keys = 2 * (q if micro.padded or square else kv)
    mask = micro.width if micro.padded else 0
    return kind.compute * (2 * q + keys + mask) + 4 * shape.heads * (micro.width if square else 1)


def layer(shape: ModelShape, kind: Types, rank: int, micro: Micro, square: bool = False) -> float:
    """Bytes of one token in one layer. rank: of an adapter, 0 where everything learns."""
    h, f, q = shape.hidden, shape.intermediate * shape.active, shape.heads * shape.head_dim
    own = kind.copied if rank else 0  # of an adapter that computes in another type
    apart = own or (kind.mixed and kind.residual == 4)
    inputs = h * ((4 + shape.gated) if apart else 2) * (own or kind.compute)
    inner = shape.inner * f * kind.compute
    normed = norm(q + shape.kv_heads * shape.head_dim, kind, not rank) if shape.qk_norm else 0
    linears = 4 + (2 + shape.gated) * shape.active
    adapter = linears * rank * kind.adapter + (q * own + f * (own - kind.compute) if own else 0)
    inside = attention(shape, kind, micro, square) + normed
    return shape.norms * norm(h, kind, not rank) + inputs + inside + inner + adapter


def passing(shape: ModelShape, rank: int) -> int:
    """Bytes of one token that backward through one layer's adapters allocates in addition to what the layer keeps.

    The gradient of down's input three times over (the adapter's, in float32; the base's; their sum), when some of the
    layer is gone already: 8 f - 12 h, fitted to dry runs of a 10M and an 8B model.
    """
    return max(0, 8 * shape.intermediate * shape.active - 12 * shape.hidden) if rank else 0


def kept(shape: ModelShape, kind: Types, rank: int, micro: Micro, checkpointing: bool, square: bool = False) -> float:
    """Bytes of a whole pass: all layers (or their inputs), what they share, the last norm, and scored hidden states."""
    each = kind.residual * shape.hidden if checkpointing else layer(shape, kind, rank, micro, square)
    shared = 2 * kind.residual * shape.head_dim + norm(shape.hidden, kind, not rank)
    scored = (kind.residual + kind.residual) * shape.hidden
    return micro.tokens * (shape.layers * each + shared) + micro.scored * scored
