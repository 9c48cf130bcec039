"""The shape of a decoder, from its config.json or, where only its size is known, a typical one.

    attention   2 h (a + kv) d      q and o are [h, a d], k and v are [h, kv d]
    mlp         3 h f               gate, up and down; f is the intermediate width
    embeddings  V h, twice unless they are tied
    P           L (attention + mlp + 2 h) + embeddings + h

of Llama, Qwen, Mistral, Gemma and their like. A mixture of experts has its mlp once per expert.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.schemas.errors import AlignError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's sizes.

    layers L, hidden h, intermediate f, vocab V, heads a, kv_heads kv, head_dim d. experts: mlps in a layer, of which
    ``active`` work on a token. gated: an mlp has a gate in addition to up and down. window: tokens that attention looks
    back at most, 0 without limit. exact: read from a config, not guessed from a size.
    """

    layers: int
    hidden: int
    intermediate: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    gated: bool = True
    experts: int = 1
    active: int = 1
    biases: int = 0
    """Parameters of a layer that are vectors, norms not counted."""
    norms: int = 2
    """Norms of a layer."""
    qk_norm: bool = False
    """True where queries and keys are normed too."""
    inner: int = 4
    """Tensors of width f that an mlp keeps for its backward: gate, its activation, up and their product."""
    position_rows: int = 0
    """Rows of a learned table of positions, counted as parameters. How long a row may be, the engine finds out."""
    exact: bool = True

    @property
    def attention(self) -> int:
        """Parameters of a layer's four projections: 2 h (a + kv) d."""
        return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim

    @property
    def mlp(self) -> int:
        """Parameters of one mlp: 3 h f with a gate, else 2 h f."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def router(self) -> int:
        """Parameters that choose among experts: h E."""
        return self.hidden * self.experts if self.experts > 1 else 0

    @property
    def layer(self) -> int:
        """Parameters of a layer."""
        return self.attention + self.experts * self.mlp + self.router + self.norms * self.hidden + self.biases

    @property
    def linears(self) -> int:
        """Parameters in the layers' matrices: what an adapter adapts and what is quantised."""
        return self.layers * (self.attention + self.experts * self.mlp)

    @property
    def embedding(self) -> int:
        """Parameters of the embeddings: V h. The head has as many, or none of its own where it is tied."""
        return self.vocab * self.hidden

    @property
    def params(self) -> int:
        """P."""
        tables = (1 if self.tied else 2) * self.embedding + self.position_rows * self.hidden
        return self.layers * self.layer + tables + self.hidden

    @property
    def working(self) -> int:
        """Parameters that one token meets: those of the experts that it is not sent to left out."""
        return self.params - self.layers * (self.experts - self.active) * self.mlp

    def lora(self, rank: int) -> int:
        """Parameters of an adapter on all linears: r (in + out) each (2106.09685, section 4.1)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * (self.hidden + q) + 2 * (self.hidden + kv)
        mlp = (3 if self.gated else 2) * (self.hidden + self.intermediate)
        return self.layers * rank * (attention + self.experts * mlp)

    def kv_cache(self, bytes_per_number: float = 2) -> float:
        """Bytes of keys and values of one token: 2 L kv d times the bytes of a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_number


QK_NORMED = ("qwen3", "qwen3_moe", "olmo2", "olmo3", "gemma3", "gemma3_text")
"""Kinds of model that norm queries and keys."""
LEARNED_POSITIONS = ("gpt2", "opt", "gpt_bigcode")
"""Kinds of model with a learned table of positions."""


def from_config(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape of a config.json. Raises AlignError where it lacks what a decoder's config has."""
    text = {**config, **(config.get("text_config") or {})}

    def first(*names: str, default: Any = None) -> Any:
        found = next((text[name] for name in names if text.get(name) is not None), default)
        if found is None:
            raise AlignError(f"lacks {names[0]}", "give the config.json of a decoder", where="config.json")
        return found

    hidden, heads = int(first("hidden_size", "n_embd", "d_model")), int(first("num_attention_heads", "n_head"))
    experts = int(first("num_local_experts", "num_experts", "n_routed_experts", default=1) or 1)
    inner = int(first("intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * hidden))
    kv_heads = int(first("num_key_value_heads", default=1 if text.get("multi_query") else heads))
    head_dim = int(first("head_dim", default=hidden // heads))
    kind = str(text.get("model_type", ""))
    gated = kind not in ("gpt2", "gpt_neox", "opt", "falcon", "phi", "gpt_bigcode", "bloom", "starcoder2", "gptj")
    queries = head_dim * (heads + 2 * kv_heads) if text.get("attention_bias") or kind.startswith("qwen2") else 0
    norms = {"gemma2": 4, "gemma3_text": 4, "gemma3": 4}.get(kind, 2)
    # gelu_new is computed in single operations, each of which keeps its result.
    single_operations = text.get("activation_function", text.get("hidden_act")) == "gelu_new"
    positions = int(first("n_positions", "max_position_embeddings")) if kind in LEARNED_POSITIONS else 0
    return ModelShape(
        layers=int(first("num_hidden_layers", "n_layer", "num_layers")),
        hidden=hidden,
        intermediate=int(text.get("moe_intermediate_size") or inner) if experts > 1 else inner,
        vocab=int(first("vocab_size")),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        tied=bool(text.get("tie_word_embeddings", kind in ("gpt2", "gemma", "gemma2", "gemma3_text", "opt", "bloom"))),
        gated=gated,
        experts=experts,
        active=int(first("num_experts_per_tok", "num_experts_per_token", default=1)) if experts > 1 else 1,
        biases=queries + (2 * head_dim if kind in QK_NORMED else 0),
        norms=norms,
        qk_norm=kind in QK_NORMED,
        inner=(4 if gated else 2) + (3 if single_operations else 0),
        position_rows=positions,
    )


def shape_of_directory(directory: Path) -> ModelShape:
    """Return the shape of a model's directory. Raises AlignError for a config.json that cannot be read."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AlignError(f"cannot be read: {error}", "give a model's directory", where=str(path)) from error
    if not isinstance(config, dict):
        raise AlignError("is not a mapping", "give a model's directory", where=str(path))
    return from_config(config)


def named_size(name: str) -> float | None:
    """Return the billions of parameters in a model's name (``Qwen2.5-0.5B``); None without, or for experts (8x7B)."""
    last = name.rstrip("/").rpartition("/")[2]
    sizes = re.findall(r"(?i)(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])", last)
    return float(sizes[0]) or None if sizes and not re.search(r"(?i)\d+x\d|-a\d+(\.\d+)?b", last) else None


KNOWN_SHAPES = {
    0.5: (24, 896, 4864, 151_936, 14, 2, 64, True),  # Qwen2.5-0.5B
    1.5: (28, 1536, 8960, 151_936, 12, 2, 128, True),  # Qwen2.5-1.5B
    3: (36, 2048, 11_008, 151_936, 16, 2, 128, True),  # Qwen2.5-3B
    7: (32, 4096, 11_008, 32_000, 32, 32, 128, False),  # Llama-2-7B
    8: (32, 4096, 14_336, 128_256, 32, 8, 128, False),  # Llama-3.1-8B
    13: (40, 5120, 13_824, 32_000, 40, 40, 128, False),  # Llama-2-13B
    32: (64, 5120, 27_648, 152_064, 40, 8, 128, False),  # Qwen2.5-32B
    70: (80, 8192, 28_672, 128_256, 64, 8, 128, False),  # Llama-3.1-70B
    405: (126, 16_384, 53_248, 128_256, 128, 8, 128, False),  # Llama-3.1-405B
}
"""Billions of parameters to (L, h, f, V, a, kv, d, tied), from the config.json of the models named."""


def typical_shape(params_b: float) -> ModelShape:
    """Return the shape of a dense decoder of so many billion parameters: the nearest known one, its width adjusted.

    The width h is the positive root of the model's own sum of parameters, so that P comes out as asked, within the
    rounding of h to whole heads.
    """
    near = min(KNOWN_SHAPES, key=lambda size: abs(math.log(size / params_b)))
    layers, hidden, inner, vocab, heads, kv, dim, tied = KNOWN_SHAPES[near]
    if abs(near / params_b - 1) <= 0.04:
        return ModelShape(layers, hidden, inner, vocab, heads, kv, dim, tied, exact=False)
    # P = L h^2 (2 (a + kv) d / h + 3 f / h) + n V h with the ratios of the model that is near
    square = layers * (2 * (heads + kv) * dim / hidden + 3 * inner / hidden)
    linear = (1 if tied else 2) * vocab
    root = (-linear + math.sqrt(linear**2 + 4 * square * params_b * 1e9)) / (2 * square)
    dim = 64 if root < 2048 else 128
    wide = max(1, round(root / dim))
    kv_heads = max(1, round(wide * kv / heads))
    return ModelShape(
        layers, wide * dim, round(wide * dim * inner / hidden), vocab, wide, kv_heads, dim, tied, exact=False
    )
