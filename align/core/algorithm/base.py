"""The contract between an algorithm and the engine: a Batch of ragged scored tokens in, unreduced LossTerms out.

Shape letters: T scored tokens, B sequences, E examples of one micro-batch. Prompt tokens and padding never appear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.core.data.batch import Batch
from align.core.data.examples import Example
from align.schemas.base import Config
from align.schemas.records import Kind


class LossTerm(NamedTuple):
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
    """Values to log, reduced over the whole optimizer step: the mean of all values, or their sum, min or max."""

    values: Tensor
    reduce: Literal["mean", "sum", "min", "max"] = "mean"


class LossOutput(NamedTuple):
    """The result of ``Algorithm.loss``: the terms of the loss, and metrics to log by name."""

    terms: Sequence[LossTerm]
    metrics: Mapping[str, Metric | Tensor]

    def loss_contribution(self, counts: Mapping[str, float]) -> Tensor:
        """Return a micro-batch's part of the step's loss. counts: of the whole step (``step_plan.denominators``)."""
        shares = [term.weight * term.values.sum() / max(counts.get(term.per, 0.0), 1.0) for term in self.terms]
        return torch.stack(shares).sum()


@dataclass(frozen=True, slots=True)
class CriticSpec:
    """The value model that an algorithm wants next to the policy.

    path: what it starts from (a directory, a hub id, a stage's export); None: the policy's own starting weights. Its
    head is that of a reward model where the directory has one, else new. warmup: optimizer steps in which only the
    critic learns.
    """

    path: str | None
    learning_rate: float
    warmup: int = 0


class Algorithm:
    """Base class of algorithms that learn from given data: subclass, set the class attributes, write ``loss``.

    A plugin file starts with the equation as a pure function and ends with the class that feeds it.
    """

    name: ClassVar[str]
    """Its name in run files."""
    paper: ClassVar[str]
    """The address of the paper that has the equation."""
    learns_from: ClassVar[tuple[Kind, ...]]
    """Kinds of records it takes."""
    samples: ClassVar[bool] = False
    """True if it learns from completions that it samples itself (``align.core.algorithm.online.Online``)."""
    makes_rows: ClassVar[bool] = False
    """True if it learns nothing and makes rows for a later stage (``align.core.algorithm.online.RowGenerator``)."""
    head: ClassVar[Literal["language", "reward"]] = "language"
    """The model it trains: token log-probabilities, or one score per sequence."""
    learning_rate: ClassVar[float]
    """The vetted peak rate for full fine-tuning; the run file may set another."""
    weighs_messages: ClassVar[bool] = False
    """True if its loss applies weights of messages between 0 and 1 (``Batch.by_message``); others take only 0 and 1."""
    dropout: ClassVar[bool] = True
    """True if the model's dropout is on while training."""
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
        """True if the loss reads ``ref_logp_T``."""
        return False

    @property
    def scores_prompt(self) -> bool:
        """True if every token of a text carries loss (pretrain); False: the assistant's only."""
        return False

    @property
    def num_generations(self) -> int:
        """Completions sampled for each prompt; 1 for an algorithm that samples none."""
        return 1

    @property
    def num_iterations(self) -> int:
        """Times that each example is learned from before the next ones are sampled; 1 for one that samples none."""
        return 1

    @property
    def critic(self) -> CriticSpec | None:
        """The value model that it wants to be trained next to the policy."""
        return None

    @property
    def reference_known_ahead(self) -> bool:
        """True if all sequences are known before training, so that the reference can be measured once, by then."""
        return not self.samples and type(self).auxiliary is Algorithm.auxiliary

    def loss(self, batch: Batch) -> LossOutput:
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


# Shared by several algorithms: equations, and the metrics that dashboards know by TRL's names.
#
# Everything here is a pure function of a Batch or of plain tensors. [T] scored tokens, [B] sequences, [E] examples.


def logistic(x: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−(1−ε) log σ(x) − ε log σ(−x): the log loss of a preference whose label is wrong with probability ε."""
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


def token_metrics(batch: Batch, correct_of: str | None = None) -> dict[str, Metric]:
    """Return ``entropy`` and ``mean_token_accuracy`` over scored tokens, the latter over one role's tokens if named."""
    metrics = {}
    if batch.entropy_T is not None:
        metrics["entropy"] = Metric(batch.entropy_T)
    if batch.correct_T is not None:
        correct = batch.correct_T.to(batch.logp_T.dtype)
        metrics["mean_token_accuracy"] = Metric(batch.tokens_of(correct_of, correct) if correct_of else correct)
    return metrics


def preference_metrics(batch: Batch, chosen_E: Tensor, rejected_E: Tensor) -> dict[str, Metric]:
    """Return the metrics that TRL logs of pairs: rewards, log-probabilities, logits, entropy, token accuracy.

    chosen_E, rejected_E: the implicit rewards of each pair.
    """
    with torch.no_grad():
        logp_B = batch.sum_per_sequence(batch.logp_T)
        metrics = {
            "rewards/chosen": Metric(chosen_E),
            "rewards/rejected": Metric(rejected_E),
            "rewards/accuracies": Metric((chosen_E > rejected_E).to(chosen_E.dtype)),
            "rewards/margins": Metric(chosen_E - rejected_E),
            "logps/chosen": Metric(batch.select("chosen", logp_B)),
            "logps/rejected": Metric(batch.select("rejected", logp_B)),
        }
        if batch.logit_T is not None:
            metrics["logits/chosen"] = Metric(batch.tokens_of("chosen", batch.logit_T))
            metrics["logits/rejected"] = Metric(batch.tokens_of("rejected", batch.logit_T))
        return metrics | token_metrics(batch, correct_of="chosen")
