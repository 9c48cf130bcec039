"""The facts of the engine that estimates compute with: its defaults, the requirements of algorithms, its batches.

The engine runs by the same numbers. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MICRO_TOKENS = {"cpu": 4096, "cuda": 16_384}
"""Tokens of a forward pass where the run file does not say, by accelerator. A CPU gets no faster past that. An H200
trains 336M parameters at 36,000, 77,000 and 93,000 tokens a second with 4,096, 8,192 and 16,384 (benchmarks/gpu), and
memory grows with them."""

LOGITS = {"cpu": 2**24, "cuda": 2**26}
"""Logits made at a time, by accelerator: 64 MiB in float32, on a GPU 256 MiB. Each chunk reads and writes the head's
whole gradient, so a device with more arithmetic per byte wants more tokens in one. On an H200 2^26 takes 0.54 of the
time of 2^24 and 2^28 0.44, with a head of 263M numbers that learns (benchmarks/gpu)."""

TILE = {"cpu": 2**18, "cuda": 2**26}
"""Logits that the operations after the head take at a time, by accelerator. On a CPU 1 MiB in float32, which stays in
the cache through a dozen passes and takes few fresh pages; a GPU wants few large operations, so all that exist."""

KEPT = {"cpu": 2**29, "cuda": 2**31}
"""Bytes of the loss's slope by the logits that a forward pass keeps for its backward, by accelerator: what fits saves a
product with the head. 512 MiB are 4,096 tokens, a CPU's default, of a vocabulary of 32,768 in float32; 2 GiB are 16,384
tokens, a GPU's, of 65,536 in 16 bits: a fraction of what trainers with full logits take. Nothing is kept under
gradient checkpointing."""

SHARE_FROM, SHARED_NUMBERS = 128, 2**19
"""Tokens of the longest prompt, and keys and values of a layer if prompts were copied to all rows, from which the
embedded generator keeps prompts once. Below, one attention is faster than two and a merge (measured on a CPU)."""

PLANNED_SHARE = 0.9
"""Share of a device's memory that may be planned with; the rest is for the driver, buffers and fragmentation."""

REPLICA_SHARE = 0.7
"""Share of a device's memory that weights, gradients and moments may take for ``auto`` to choose ddp over fsdp, where
the size of activations is not known."""


def activation_bytes(tokens: float, hidden: int, layers: int, checkpointing: bool, number: float = 2) -> float:
    """Return the bytes that a forward pass keeps for its backward, without the head (2205.05198, equation 2).

    34 s b h L in 16 bits; with every layer's activations computed again 2 s b h L and one layer's. There is no
    5 a s / h term, since flash attention never has the square. tokens: s b, of one pass. number: bytes of one.
    """
    layer = 17 * number * tokens * hidden
    return number * tokens * hidden * layers + layer if checkpointing else layer * layers


SAMPLED_TOKENS = 32_768
"""Tokens of prompts and longest completions that the embedded generator samples at a time, by default."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The requirements of an algorithm on the engine, in addition to a policy.

    sequences: of an example (2 for pairs). reference: whether it is measured against one; ahead: whether that can be
    done before training. online: whether it samples its answers; learns: False for one that only makes rows. group:
    answers to a prompt. passes: over each phase's answers. critic: whether it trains a value model too. passes_read:
    forward passes over each answer in addition to training (reference, critic, the policy's own log-probabilities).
    """

    head: Literal["language", "reward"] = "language"
    sequences: int = 1
    reference: bool = False
    ahead: bool = True
    online: bool = False
    learns: bool = True
    group: int = 1
    passes: int = 1
    critic: bool = False
    passes_read: int = 0


@dataclass(frozen=True, slots=True)
class Micro:
    """One forward pass: rows of so many positions, and how many tokens are scored.

    padded: attention is given a mask, as rows differ in length or hold several sequences.
    """

    rows: int
    width: int
    scored: int
    padded: bool = True

    @property
    def tokens(self) -> int:
        """Positions computed."""
        return self.rows * self.width


@dataclass(frozen=True, slots=True)
class Batches:
    """The most expensive optimizer step, and (online) the most expensive batch of answers.

    micros: of the rank with the largest one. ranks: of every rank; empty where all have ``micros``. answers: sampled at
    a time; prompts: that they answer; prompt, answer: longest of each, in tokens. measured: whether lengths are of the
    data, or the longest allowed. source: of the lengths, in words.
    """

    micros: tuple[Micro, ...]
    answers: int = 0
    prompts: int = 0
    prompt: int = 0
    answer: int = 0
    measured: bool = False
    source: str = ""
    rows: int | None = None
    """Examples, or prompts, of an epoch."""
    tokens: int | None = None
    """Tokens of an epoch of what is learned from, padding not counted; None where unknown."""
    steps: int | None = None
    """Optimizer steps in all; None where unknown."""
    unknown: str = ""
    """The reason why ``steps`` is unknown."""
    ranks: tuple[tuple[Micro, ...], ...] = ()
