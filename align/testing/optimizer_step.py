"""One optimizer step computed as the engine does, in one process: its loss, gradient and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from align.core.algorithm import contract
from align.core.algorithm.contract import Algorithm
from align.core.data.batch import Batch, MicroBatch, collate
from align.core.data.examples import Example
from align.core.data.step_plan import Layout, denominators
from align.core.engine.module import StepMetrics
from align.core.models.policy import Policy
from align.schemas.errors import AlignError

Cut = Sequence[Sequence[int]]
"""A way to cut a step: the positions of its examples in each micro-batch."""

CUTS: Mapping[str, Cut] = {
    "1x8": [range(8)],
    "2x4": [range(4), range(4, 8)],
    "4x2": [range(i, i + 2) for i in range(0, 8, 2)],
    "8x1": [[i] for i in range(8)],
    "uneven, out of order, one empty": [[7, 0], [], [2, 4, 6, 1, 3], [5]],
}
"""Ways to cut a step of eight examples, by name."""


class ReferenceLike(Protocol):
    """Anything that gives log-probabilities of scored tokens; ``align.core.models.reference.ReferenceModel`` does."""

    def logp(self, micro: MicroBatch) -> Tensor:
        """Return the log-probability of each scored token, [T]."""
        ...


class StepResult(NamedTuple):
    """An optimizer step's loss, its gradient by parameter, and its metrics reduced over the micro-batches."""

    loss: float
    gradients: dict[str, Tensor]
    metrics: dict[str, float]


def step(
    algorithm: Algorithm,
    policy: Policy,
    reference: ReferenceLike | None,
    examples: Sequence[Example],
    cut: Cut,
    *,
    layout: Layout = "padded",
    critic: Policy | None = None,
) -> StepResult:
    """Return one optimizer step of the policy, cut into micro-batches as ``cut`` says.

    loss = sum over terms of  weight * (sum of values over the step) / (count over the step)

    critic: a policy with a value head; the names of its parameters begin with ``critic.``.
    Raises AssertionError where the loss breaks its contract (``align.core.algorithm.contract``).
    """
    counts = denominators(examples)
    learning = dict(policy.named_parameters())
    learning |= dict(critic.named_parameters(prefix="critic")) if critic is not None else {}
    for parameter in learning.values():
        parameter.grad = None
    statistics = step_statistics(algorithm, policy, reference, examples, layout=layout)
    total, metrics, names = 0.0, StepMetrics(), set[tuple[str, ...]]()
    for positions in cut:
        micro = collate([examples[i] for i in positions], layout, 0, like=examples)
        batch, anchor = _batch(policy, reference, micro, statistics)
        if critic is not None:
            batch = replace(batch, value_T=critic(micro).value_T)
        with fails(), _unchanged(algorithm, batch):
            outcome = contract.loss(algorithm, batch)
        names.add((*(term.per for term in outcome.terms), *outcome.metrics))
        loss = outcome.loss_contribution(counts) + anchor
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
        for name, metric in outcome.metrics.items():
            metrics.add(name, metric)
    assert len(names) == 1, f"{algorithm.name}: terms or metrics differ between micro-batches of one step: {names}"
    gradients = {name: p.grad.clone() for name, p in learning.items() if p.grad is not None}
    return StepResult(total, gradients, metrics.compute())


def step_gradients(
    algorithm: Algorithm,
    policy: Policy,
    reference: ReferenceLike | None,
    examples: Sequence[Example],
    cut: Cut,
    *,
    layout: Layout = "padded",
    critic: Policy | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of one optimizer step and its gradient by parameter: ``step`` without its metrics."""
    made = step(algorithm, policy, reference, examples, cut, layout=layout, critic=critic)
    return made.loss, made.gradients


def step_statistics(
    algorithm: Algorithm,
    policy: Policy,
    reference: ReferenceLike | None,
    examples: Sequence[Example],
    *,
    layout: Layout = "padded",
) -> dict[str, Tensor]:
    """Return what ``Algorithm.statistics`` finds over the step's auxiliary examples, averaged as the engine does."""
    with fails(), contract.calling(algorithm, "auxiliary"):
        auxiliary = algorithm.auxiliary(examples)
    if not auxiliary:
        return {}
    with torch.no_grad(), fails(), contract.calling(algorithm, "statistics"):
        found = algorithm.statistics(_batch(policy, reference, collate(auxiliary, layout, 0), {})[0])
    return {name: values.mean() for name, values in found.items()}


@contextmanager
def fails() -> Iterator[None]:
    """Let a breach of contract, which stops a run, fail a test."""
    try:
        yield
    except AlignError as error:
        raise AssertionError(str(error)) from error


@contextmanager
def _unchanged(algorithm: Algorithm, batch: Batch) -> Iterator[None]:
    """Raise AssertionError where the block changes a tensor of the batch, by ``.data`` too, which autograd misses."""
    tensors = contract.tensors(batch)
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    yield
    for name, tensor in tensors.items():
        same = torch.equal(tensor.detach().nan_to_num(), before[name].nan_to_num())
        assert same, f"{algorithm.name}: loss changed batch.{name} in place, which others read after it"


def _batch(
    policy: Policy, reference: ReferenceLike | None, micro: MicroBatch, statistics: Mapping[str, Tensor]
) -> tuple[Batch, Tensor]:
    scores = policy(micro)
    ref_logp = reference.logp(micro) if micro.ref_logp_T is None and reference is not None else micro.ref_logp_T
    return policy.batch(micro, scores, step=statistics, ref_logp_T=ref_logp), scores.anchor
