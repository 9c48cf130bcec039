"""What every algorithm promises that can be checked without knowing what it is for.

It trains a tiny random model on random rows of every kind the algorithm learns from, and fails with a sentence. An
online algorithm gets random answers with random rewards, and makes its own rows of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from align.core.algorithm import Algorithm, Batch, Outcome
from align.core.data.collate import MicroBatch, collate
from align.core.data.examples import Example
from align.core.data.examples import Sequence as TokenSequence
from align.core.data.plan import Layout, denominators
from align.core.model.policy import Policy
from align.core.rollout.generator import Floats, Tokens
from align.core.rollout.online import Experience, Group, Online, example_of
from align.schemas.records import Kind
from align.schemas.rollout import Rollout

Cut = Sequence[Sequence[int]]
"""How a step is cut: the positions of its examples in each micro-batch."""

VOCABULARY = 64
LENGTHS = ((3, 2, 5), (1, 7, 1), (6, 1, 4), (2, 9, 9), (4, 3, 2), (9, 1, 1), (1, 1, 8), (5, 6, 3))
"""Of eight examples: tokens of the prompt, of an answer, and of a second answer where the kind has two."""
CUTS: Mapping[str, Cut] = {
    "1x8": [range(8)],
    "2x4": [range(4), range(4, 8)],
    "4x2": [range(i, i + 2) for i in range(0, 8, 2)],
    "8x1": [[i] for i in range(8)],
    "uneven, out of order, one empty": [[7, 0], [], [2, 4, 6, 1, 3], [5]],
}


class Scorer(Protocol):
    """Anything that gives log-probabilities of scored tokens; ``align.core.model.reference.Reference`` does."""

    def logp(self, micro: MicroBatch) -> Tensor:
        """[T]."""
        ...


def step_gradients(
    algorithm: Algorithm,
    policy: Policy,
    reference: Scorer | None,
    examples: Sequence[Example],
    cut: Cut,
    *,
    layout: Layout = "padded",
    critic: Policy | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """The loss of one optimizer step and its gradient by parameter, computed as the engine does, but in one process.

    loss = sum over terms of  weight * (sum of values over the step) / (count over the step)

    critic: a policy with a value head; the names of its parameters begin with ``critic.``.
    Raises AssertionError where a term has not as many values as what it is counted per.
    """
    counts = denominators(examples)
    learning = dict(policy.named_parameters())
    learning |= dict(critic.named_parameters(prefix="critic")) if critic is not None else {}
    for parameter in learning.values():
        parameter.grad = None
    statistics = step_statistics(algorithm, policy, reference, examples, layout=layout)
    total, names = 0.0, set[tuple[str, ...]]()
    for positions in cut:
        chosen = [examples[i] for i in positions]
        micro = collate(chosen, layout, 0, like=examples)
        batch, anchor = _batch(policy, reference, micro, statistics)
        if critic is not None:
            batch = replace(batch, value_T=critic(micro).value_T)
        outcome = algorithm.loss(batch)
        _check_counts(algorithm, outcome, denominators(chosen))
        names.add((*(term.per for term in outcome.terms), *outcome.metrics))
        loss = outcome.share(counts) + anchor
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    assert len(names) == 1, f"{algorithm.name}: terms or metrics differ between micro-batches of one step: {names}"
    return total, {name: p.grad.clone() for name, p in learning.items() if p.grad is not None}


def step_statistics(
    algorithm: Algorithm,
    policy: Policy,
    reference: Scorer | None,
    examples: Sequence[Example],
    *,
    layout: Layout = "padded",
) -> dict[str, Tensor]:
    """What ``Algorithm.statistics`` finds over the step's auxiliary examples, meaned as the engine does."""
    auxiliary = algorithm.auxiliary(examples)
    if not auxiliary:
        return {}
    with torch.no_grad():
        found = algorithm.statistics(_batch(policy, reference, collate(auxiliary, layout, 0), {})[0])
    return {name: values.mean() for name, values in found.items()}


def check_algorithm(
    algorithm: type[Algorithm],
    settings: Mapping[str, Any] | None = None,
    *,
    lengths: Sequence[tuple[int, int, int]] = LENGTHS,
    cuts: Mapping[str, Cut] = CUTS,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-9,
) -> None:
    """Everything an algorithm promises that can be checked without knowing what it is for.

    - It says its name, paper, kinds of data and learning rate; its defaults are valid, every setting is described.
    - The gradient of a step is the same however the step is cut into micro-batches, an empty one among them, and in
      whatever order its examples come (relative to the gradient's norm; in float64, where rounding hides nothing).
    - Loss and gradient are finite, and some parameter learns; the reference does not change.

    settings: for its Config; default none. lengths: see ``LENGTHS``; the cuts must be of as many examples.
    Raises AssertionError with what is wrong.
    """
    check_description(algorithm)
    made = algorithm(algorithm.Config(**(settings or {})))
    for kind in algorithm.learns_from:
        policy, reference = (toy_policy(algorithm.head, seed=seed).to(dtype) for seed in (0, 1))
        if isinstance(made, Online):
            examples = toy_experience(made, policy, lengths)
        else:
            examples = toy_examples(kind, lengths, scores_prompt=made.scores_prompt)
        critic = toy_policy("value", seed=2).to(dtype) if isinstance(made, Online) and made.critic else None
        before = copy.deepcopy(reference.state_dict())
        scorer = _Frozen(reference) if made.uses_reference else None

        def gradients(
            of: Sequence[Example],
            cut: Cut,
            policy: Policy = policy,
            scorer: Scorer | None = scorer,
            critic: Policy | None = critic,
        ) -> tuple[float, Tensor]:
            loss, found = step_gradients(made, policy, scorer, of, cut, critic=critic)
            parameters = [*policy.named_parameters(), *(critic.named_parameters(prefix="critic") if critic else ())]
            return loss, torch.cat([found.get(n, torch.zeros_like(p)).flatten() for n, p in parameters])

        where = f"{algorithm.name} on {kind} rows"
        loss, whole = gradients(examples, [range(len(examples))])
        assert np.isfinite(loss) and bool(whole.isfinite().all()), f"{where}: loss or gradient is not finite"
        assert float(whole.norm()) > 0, f"{where}: no parameter gets a gradient"
        runs = {f"cut as {name}": gradients(examples, cut) for name, cut in cuts.items()}
        for name, (value, found) in runs.items():
            _same(f"{where}, {name}", (loss, whole), (value, found), tolerance)
        if not made.auxiliary(examples):  # statistics may pair an example with its neighbour
            backwards = gradients(examples[::-1], [range(len(examples))])
            _same(f"{where}, in reverse order", (loss, whole), backwards, tolerance)
        for name, tensor in reference.state_dict().items():
            assert bool((tensor == before[name]).all()), f"{where}: the reference changed"
        assert all(p.grad is None for p in reference.parameters()), f"{where}: the reference got a gradient"


def check_description(algorithm: type[Algorithm]) -> None:
    """Whether an algorithm says what it is. Raises AssertionError with what is missing."""
    for attribute in ("name", "paper", "learns_from", "learning_rate"):
        assert getattr(algorithm, attribute, None), f"{algorithm.__qualname__} does not say its {attribute!r}"
    assert algorithm.learning_rate > 0, f"{algorithm.name}: the learning rate must be positive"
    algorithm.Config()
    for name, field in algorithm.Config.model_fields.items():
        assert field.description, f"{algorithm.name}: setting {name!r} has no docstring"


def toy_examples(
    kind: Kind, lengths: Sequence[tuple[int, int, int]] = LENGTHS, *, scores_prompt: bool = False, seed: int = 0
) -> list[Example]:
    """Random rows of one kind: see ``LENGTHS``. ``scores_prompt`` as the algorithm says."""
    draw = np.random.default_rng(seed)
    examples = []
    for index, (prompt, *answers) in enumerate(lengths):
        head = draw.integers(1, VOCABULARY, prompt)
        roles = {"preference": ("chosen", "rejected"), "text": ("text",)}.get(kind, ("completion",))
        sequences = []
        for role, answer in zip(roles, answers, strict=False):
            scored = np.arange(prompt + answer) >= (1 if scores_prompt else prompt)
            tokens = np.concatenate([head, draw.integers(1, VOCABULARY, answer)])
            sequences.append(TokenSequence(role, tokens.astype(np.int32), scored))
        columns = {"preference": {"margin": float(draw.random())}, "unpaired": {"label": float(index % 3 > 0)}}
        examples.append(Example(f"toy:{index}", tuple(sequences), columns.get(kind, {})))
    return examples


def toy_experience(
    algorithm: Online, policy: Policy, lengths: Sequence[tuple[int, int, int]] = LENGTHS, *, seed: int = 0
) -> list[Example]:
    """As many examples as ``lengths`` has rows, by ``credit`` and ``examples`` from random answers and rewards.

    The answers' log-probabilities are the policy's but for a little noise, so that ratios are near 1 and not 1. One
    more prompt has answers that nobody scored.
    """
    algorithm.settle(Rollout.model_validate({"rewards": ["toy"]}))
    draw = np.random.default_rng(seed)
    widths = [width for _, *answers in lengths for width in answers]
    groups: list[Group] = []
    for prompt, *_ in (*lengths, lengths[0]):
        head = draw.integers(1, VOCABULARY, prompt).astype(np.int32)
        answers = (draw.integers(1, VOCABULARY, widths[i % len(widths)]) for i in range(algorithm.group))
        groups.append([_experience(algorithm, policy, head, each.astype(np.int32), draw) for each in answers])
        widths = widths[1:] + widths[:1]
    for experience in groups[-1]:
        experience.reward = None
    credit = algorithm.credit(groups)
    logp = [(e.logp, e.sampled_logp) for group in groups for e in group if e.logp is not None]
    measured = {"old_logp": [old for old, _ in logp], "weight": [np.exp(old - sampled) for old, sampled in logp]}
    made = algorithm.examples(groups, replace(credit, along={**credit.along, **measured}))
    examples = [example for group in made for example in group]
    return examples[:: max(1, len(examples) // len(lengths))][: len(lengths)]


def toy_policy(head: Literal["language", "reward", "value"] = "language", *, seed: int = 0) -> Policy:
    """A tiny random Llama in float32 with either head; the caller's random state is left alone."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    settings: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_labels": 1}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    config = LlamaConfig(**settings, initializer_range=0.2)
    build = LlamaForCausalLM if head == "language" else LlamaForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(build(config), head).eval()


def _experience(
    algorithm: Online, policy: Policy, prompt: Tokens, tokens: Tokens, draw: np.random.Generator
) -> Experience:
    made = Experience("toy", prompt, tokens, "stop", np.zeros(0, np.float32), reward=float(draw.normal()))
    with torch.no_grad():
        logp: Floats = policy(collate([example_of(made, {})], "padded", 0)).logp_T.float().numpy()

    def near(spread: float) -> Floats:
        return logp + spread * draw.normal(size=len(tokens)).astype(np.float32)

    made.sampled_logp, made.logp = near(0.05), near(0.05)
    made.ref_logp = near(0.5) if algorithm.uses_reference else None
    made.value = draw.normal(size=len(tokens)).astype(np.float32) if algorithm.critic else None
    return made


class _Frozen:
    """A policy as a reference."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def logp(self, micro: MicroBatch) -> Tensor:
        with torch.no_grad():
            logp: Tensor = self.policy(micro).logp_T
        return logp


def _batch(
    policy: Policy, reference: Scorer | None, micro: MicroBatch, statistics: Mapping[str, Tensor]
) -> tuple[Batch, Tensor]:
    scores = policy(micro)
    ref_logp = reference.logp(micro) if micro.ref_logp_T is None and reference is not None else micro.ref_logp_T
    return policy.batch(micro, scores, step=statistics, ref_logp_T=ref_logp), scores.anchor


def _check_counts(algorithm: Algorithm, outcome: Outcome, counts: Mapping[str, float]) -> None:
    for term in outcome.terms:
        got, want = term.values.numel(), counts.get(term.per, 0.0)
        assert got == want, f"{algorithm.name}: {got} values per {term.per}, of which the micro-batch has {want:.0f}"


def _same(where: str, want: tuple[float, Tensor], got: tuple[float, Tensor], tolerance: float) -> None:
    apart = float((want[1] - got[1]).norm() / want[1].norm())
    assert apart <= tolerance, (
        f"{where}: the step's gradient differs by {apart:.1e} of its norm. The loss must return every value "
        "unreduced and may not look at other examples of the micro-batch"
    )
    assert abs(want[0] - got[0]) <= tolerance * max(1.0, abs(want[0])), (
        f"{where}: the step's loss is {got[0]}, in one micro-batch {want[0]}"
    )
