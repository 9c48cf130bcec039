"""Tokenised data: what the step plan cuts and the collator packs. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MESSAGE_WEIGHT = "message_weight"
"""Key in ``Sequence.along``: the weight of each scored token by its message. Absent where all are 1."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One token sequence. ``scored[i]`` says whether token i carries loss; token 0 never can.

    role: ``text``, ``completion``, ``chosen``, ``rejected``; the algorithm's Batch tells them apart by it.
    ref_logp: the reference's log-probability of each scored token, once computed; else None.
    along: other numbers for each scored token (``advantage``, ``old_logp``, ...), for the loss; ``message_weight``
    where not every message counts alike.
    """

    role: str
    tokens: NDArray[np.int32]
    scored: NDArray[np.bool_]
    ref_logp: NDArray[np.float32] | None = None
    along: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def counts(self) -> float:
        """The sum of the scored tokens' weights, which an average over tokens divides by; their number if all are 1."""
        if MESSAGE_WEIGHT not in self.along:
            return float(self.scored.sum())
        return float(self.weights.sum(dtype=np.float64))

    @property
    def weights(self) -> NDArray[np.float32]:
        """The weight of each scored token [scored tokens], float32."""
        return self.along.get(MESSAGE_WEIGHT, np.ones(int(self.scored.sum()), np.float32))


@dataclass(frozen=True, slots=True)
class Example:
    """The unit of sampling: one or more sequences that must share a micro-batch, and numbers for the loss."""

    source: str
    """Where it came from (``train.jsonl:17``), for messages."""
    sequences: tuple[TokenSequence, ...]
    columns: Mapping[str, float] = field(default_factory=dict)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return tuple(len(s) for s in self.sequences)


class Examples(Protocol):
    """A store of tokenised examples, in memory or memory-mapped."""

    fingerprint: str
    """sha256 over content, tokenizer, template and settings: the same data, the same string."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] tokens of each example, all its sequences together."""
        ...

    @property
    def sources(self) -> NDArray[np.int32]:
        """[N] which of the mixture's sources each example came from."""
        ...

    @property
    def weights(self) -> tuple[float, ...]:
        """Mixture weight of each source."""
        ...


class InMemory:
    """Examples made on the fly, all of one source."""

    fingerprint = ""
    weights = (1.0,)

    def __init__(self, examples: Listed[Example]) -> None:
        self._examples = examples
        self.lengths: NDArray[np.int64] = np.array([sum(e.lengths) for e in examples], np.int64)
        self.sources: NDArray[np.int32] = np.zeros(len(examples), np.int32)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]
