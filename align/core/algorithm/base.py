"""The contract between an algorithm and the engine: a Batch of ragged scored tokens in, unreduced Terms out.

Shape letters: T scored tokens, B sequences, E examples of one micro-batch. Prompt tokens and padding never appear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from align.core.data.batch import Batch
from align.core.data.examples import Example
from align.schemas.base import Config
from align.schemas.records import Kind


class Term(NamedTuple):
    """One summand of a loss, unreduced: the engine makes it ``weight * sum(values) / count over the whole step``.

    per names what one value stands for: ``token``, ``sequence``, ``example``, or ``token:ROLE`` for the scored
    tokens of one role. The count is over all micro-batches and all ranks, so gradients do not depend on the cut. Where
    messages have weights, a token adds the weight of its message to the count, and a loss that is averaged over tokens
    must pass its values through ``Batch.by_message``.
    """

    values: Tensor
    per: str
    weight: float = 1.0


class Metric(NamedTuple):
    """Something to log, reduced over the step by the same books: mean over all values, or sum, min, max."""

    values: Tensor
    reduce: Literal["mean", "sum", "min", "max"] = "mean"


class Outcome(NamedTuple):
    """What ``loss`` returns."""

    terms: Sequence[Term]
    metrics: Mapping[str, Metric | Tensor]

    def share(self, counts: Mapping[str, float]) -> Tensor:
        """What a micro-batch adds to the step's loss; ``counts`` are of the whole step (``plan.denominators``)."""
        shares = [term.weight * term.values.sum() / max(counts.get(term.per, 0.0), 1.0) for term in self.terms]
        return torch.stack(shares).sum()


class Algorithm:
    """How to learn: subclass, set the class attributes, write ``loss``.

    A plugin file starts with the equation as a pure function and ends with the class that feeds it.
    """

    name: ClassVar[str]
    """What a run file calls it."""
    paper: ClassVar[str]
    """Where the equation comes from."""
    learns_from: ClassVar[tuple[Kind, ...]]
    """Kinds of records it takes."""
    samples: ClassVar[bool] = False
    """Whether it learns from answers that it samples itself (``align.core.algorithm.online.Online``)."""
    makes_rows: ClassVar[bool] = False
    """Whether it learns nothing and makes rows for a later stage (``align.core.algorithm.online.Harvest``)."""
    head: ClassVar[Literal["language", "reward"]] = "language"
    """The model it trains: token log-probabilities, or one score per sequence."""
    learning_rate: ClassVar[float]
    """The vetted peak rate for full fine-tuning; the run file may set another."""
    weighs_messages: ClassVar[bool] = False
    """True if its loss applies weights of messages between 0 and 1 (``Batch.by_message``); others take only 0 and 1."""
    dropout: ClassVar[bool] = True
    """Whether the model's dropout is on while training."""
    goal: ClassVar[tuple[str, Literal["min", "max"]]] = ("loss", "min")
    """The held-out metric that says which checkpoint is best, and whether lower or higher is better."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings that name a file or a model: a resumed run compares the content there, not the spelling of the path."""

    class Config(Config):
        """Settings in the run file; every field has a docstring that names its source."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def uses_reference(self) -> bool:
        """Whether ``ref_logp_T`` is needed."""
        return False

    @property
    def scores_prompt(self) -> bool:
        """Whether every token of a text carries loss (pretrain), or the assistant's only."""
        return False

    def loss(self, batch: Batch) -> Outcome:
        """The loss of one micro-batch, unreduced."""
        raise NotImplementedError

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Further numbers to log, made of the reduced ones of a step or a held-out set (a perplexity)."""
        return {}

    def auxiliary(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Further examples that ``statistics`` is computed on, made from all examples of one optimizer step.

        Must depend on ``examples`` only (KTO's mismatched pairs). Default: none.
        """
        return ()

    def statistics(self, batch: Batch) -> Mapping[str, Tensor]:
        """Values [N] over the auxiliary examples, whose means over the step ``loss`` finds in ``batch.step``.

        Runs without gradient, before the step's first micro-batch.
        """
        return {}
