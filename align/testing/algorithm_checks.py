"""The promises of every algorithm, checked without knowing what it is for.

It trains a tiny random model on random rows of every kind the algorithm learns from, and fails with a sentence. An
online algorithm gets random answers with random rewards, and makes its own rows of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from align.core.algorithm.contract import Algorithm, Online
from align.core.data.batch import MicroBatch
from align.core.data.examples import Example
from align.core.data.step_plan import Layout
from align.core.models.policy import Policy
from align.schemas.records import Kind
from align.testing.online_algorithms import check_online, toy_experience
from align.testing.optimizer_step import CUTS, Cut, StepResult, step
from align.testing.toys import LENGTHS, toy_examples, toy_policy

SHARP = 100.0
"""Sharpness of toy models whose log-probabilities are hundreds of nats apart."""

SHARED: tuple[Layout, ...] = ("padded_shared", "packed_shared")
"""Layouts in which sequences share the computation of their prefix."""

ROUNDING = 64 * torch.finfo(torch.float32).eps
"""Relative difference by rounding between layouts. Toy models normalise in float32, as Llama does, in float64 too."""


def check_algorithm(
    algorithm: type[Algorithm],
    settings: Mapping[str, Any] | None = None,
    *,
    lengths: Sequence[tuple[int, int, int]] = LENGTHS,
    cuts: Mapping[str, Cut] = CUTS,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-9,
) -> None:
    """Check everything that an algorithm promises, whatever it is for.

    - It says its name, paper, kinds of data and learning rate; its defaults are valid, every setting is described.
    - The loss of a step is the same when it is computed again.
    - The gradient and the metrics of a step are the same however the step is cut into micro-batches, an empty one among
      them, and in whatever order its examples come (relative to the gradient's norm; in float64, where rounding hides
      nothing). So are they, to the rounding of float32, where sequences share the computation of their prefix.
    - Loss and gradient are finite, also where policy and reference are hundreds of nats apart; some parameter learns.
    - Nothing of the batch is changed in place, and the reference does not change.
    - Of an online algorithm: what ``align.testing.check_online`` says of its credit; and its loss reads no number of a
      token that nothing measures.

    settings: for its Config; default none. lengths: see ``LENGTHS``; the cuts must be of as many examples.
    Raises AssertionError with what is wrong.
    """
    check_description(algorithm)
    made = algorithm(algorithm.Config(**(settings or {})))
    if isinstance(made, Online):
        check_online(lambda: _made(algorithm, settings), toy_policy(), lengths)
    for kind in algorithm.learns_from:
        where = f"{algorithm.name} on {kind} rows"
        toy = _Toy(made, kind, lengths, dtype)
        everything = [range(len(toy.examples))]
        whole = toy.step(toy.examples, everything)
        _check_learns(where, whole, toy)
        _check_again(where, whole, toy.step(toy.examples, everything), toy, tolerance)
        for name, cut in cuts.items():
            _same_step(f"{where}, cut as {name}", whole, toy.step(toy.examples, cut), toy, tolerance)
        for layout in SHARED:
            shared = toy.step(toy.examples, everything, layout)
            _same_step(f"{where}, with shared prefixes", whole, shared, toy, max(tolerance, ROUNDING))
        if not made.auxiliary(toy.examples):  # statistics may pair an example with its neighbour
            _same_step(f"{where}, in reverse order", whole, toy.step(toy.examples[::-1], everything), toy, tolerance)
        toy.check_reference(where)
        _check_extremes(where, _Toy(made, kind, lengths, torch.float32, sharpness=SHARP))
        if isinstance(made, Online):
            # Only what a phase of one step measures: a number that is not there is a KeyError.
            bare = toy_experience(made, toy.policy, lengths, everything=False)
            toy.step(bare, [range(len(bare))])


def check_description(algorithm: type[Algorithm]) -> None:
    """Check that an algorithm says what it is. Raises AssertionError with what is missing."""
    for attribute in ("name", "paper", "learns_from", "learning_rate"):
        assert getattr(algorithm, attribute, None), f"{algorithm.__qualname__} does not say its {attribute!r}"
    assert algorithm.learning_rate > 0, f"{algorithm.name}: the learning rate must be positive"
    algorithm.Config()
    for name, field in algorithm.Config.model_fields.items():
        assert field.description, f"{algorithm.name}: setting {name!r} has no docstring"


class _Toy:
    """A policy, and what the algorithm wants with it, on one kind of rows."""

    def __init__(
        self,
        algorithm: Algorithm,
        kind: Kind,
        lengths: Sequence[tuple[int, int, int]],
        dtype: torch.dtype,
        sharpness: float = 1.0,
    ) -> None:
        self.algorithm = algorithm
        self.policy, self.reference = (
            toy_policy(algorithm.head, seed=seed, sharpness=sharpness).to(dtype) for seed in (0, 1)
        )
        wants_critic = isinstance(algorithm, Online) and algorithm.critic
        self.critic = toy_policy("value", seed=2).to(dtype) if wants_critic else None
        self.before = copy.deepcopy(self.reference.state_dict())
        if isinstance(algorithm, Online):
            self.examples = toy_experience(algorithm, self.policy, lengths, far=sharpness - 1)
        else:
            self.examples = toy_examples(kind, lengths, scores_prompt=algorithm.scores_prompt)

    def step(self, examples: Sequence[Example], cut: Cut, layout: Layout = "padded") -> StepResult:
        """Return one step on these examples."""
        scorer = _Frozen(self.reference) if self.algorithm.uses_reference else None
        return step(self.algorithm, self.policy, scorer, examples, cut, layout=layout, critic=self.critic)

    def flat(self, made: StepResult) -> Tensor:
        """Return a step's gradient as one vector, zero where a parameter has none."""
        critic = self.critic.named_parameters(prefix="critic") if self.critic is not None else ()
        parameters = [*self.policy.named_parameters(), *critic]
        return torch.cat([made.gradients.get(n, torch.zeros_like(p)).flatten() for n, p in parameters])

    def check_reference(self, where: str) -> None:
        """Raise AssertionError where the reference learned."""
        for name, tensor in self.reference.state_dict().items():
            assert bool((tensor == self.before[name]).all()), f"{where}: the reference changed"
        assert all(p.grad is None for p in self.reference.parameters()), f"{where}: the reference got a gradient"


def _made(algorithm: type[Algorithm], settings: Mapping[str, Any] | None) -> Online:
    made = algorithm(algorithm.Config(**(settings or {})))
    assert isinstance(made, Online)
    return made


def _check_learns(where: str, whole: StepResult, toy: _Toy) -> None:
    gradient = toy.flat(whole)
    assert math.isfinite(whole.loss) and bool(gradient.isfinite().all()), f"{where}: loss or gradient is not finite"
    assert float(gradient.norm()) > 0, f"{where}: no parameter gets a gradient"


def _check_again(where: str, whole: StepResult, again: StepResult, toy: _Toy, tolerance: float) -> None:
    apart = float((toy.flat(whole) - toy.flat(again)).norm() / toy.flat(whole).norm())
    assert apart <= tolerance and abs(whole.loss - again.loss) <= tolerance * max(1.0, abs(whole.loss)), (
        f"{where}: the loss differs from run to run on the same step ({whole.loss}, then {again.loss}): "
        "it draws random numbers, or keeps something from call to call"
    )


def _check_extremes(where: str, toy: _Toy) -> None:
    made = toy.step(toy.examples, [range(len(toy.examples))])
    assert math.isfinite(made.loss) and bool(toy.flat(made).isfinite().all()), (
        f"{where}: loss or gradient is not finite where log-probabilities are hundreds of nats apart: it overflows in "
        "float32 (use logsigmoid, softplus or expm1 for log and exp of them, or clamp)"
    )


def _same_step(where: str, want: StepResult, got: StepResult, toy: _Toy, tolerance: float) -> None:
    _same(where, (want.loss, toy.flat(want)), (got.loss, toy.flat(got)), tolerance)
    for name, value in want.metrics.items():
        assert abs(value - got.metrics[name]) <= tolerance * max(1.0, abs(value)), (
            f"{where}: the metric {name!r} is {got.metrics[name]}, in one micro-batch {value}. Return every value, and "
            "let the engine average over the step"
        )


def _same(where: str, want: tuple[float, Tensor], got: tuple[float, Tensor], tolerance: float) -> None:
    apart = float((want[1] - got[1]).norm() / want[1].norm())
    assert apart <= tolerance, (
        f"{where}: the step's gradient differs by {apart:.1e} of its norm. The loss must return every value "
        "unreduced and may not look at other examples of the micro-batch"
    )
    assert abs(want[0] - got[0]) <= tolerance * max(1.0, abs(want[0])), (
        f"{where}: the step's loss is {got[0]}, in one micro-batch {want[0]}"
    )


class _Frozen:
    """A policy as a reference."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def logp(self, micro: MicroBatch) -> Tensor:
        with torch.no_grad():
            logp: Tensor = self.policy(micro).logp_T
        return logp
