"""What an estimate is made of: what an algorithm asks of the engine, and the batches that it will meet. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Needs:
    """What an algorithm asks of the engine beside a policy.

    sequences: of an example (2 for pairs). reference: whether it is measured against one; ahead: whether that can be
    done before training. online: whether it samples its answers; learns: False for one that only makes rows. group:
    answers to a prompt. passes: over each phase's answers. critic: whether it trains a value model too. passes_read:
    forward passes over each answer beside training (reference, critic, the policy's own log-probabilities).
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
    """The dearest optimizer step of one rank, and (online) the dearest batch of answers.

    micros: of the step. answers: rows that speak at a time; prompts: that they answer; prompt, answer: longest of each,
    in tokens. measured: whether lengths are of the data, or the longest allowed. source: in words.
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
    """Why ``steps`` is unknown."""
