"""The sync gate: after weights were sent, the generator must say of a probe's tokens what the trainer says.

A generator with stale weights, a cache of old ones, another temperature or template, or half of an adapter samples
answers that look right. Log-probabilities tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from align.core.algorithm import contract
from align.core.data.batch import collate
from align.core.data.examples import Example, TokenSequence
from align.core.engine.checkpoint import all_gather_or_raise
from align.core.generation.generator_base import Floats, Generator, Request, Tokens
from align.core.models.policy import Policy
from align.core.models.precompute import detached_logp
from align.schemas.errors import AlignError, Problem
from align.schemas.run import Sampling

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference that is rounding, by the type that the policy's weights are held in, where no autocast is on."""
HOT = 2.0
"""The temperature at which a generator goes on by itself: its log-probabilities must be of what it drew from."""
TOLERANCE_16 = 0.25
"""In 16 bits, where a logit of 30 is known to 0.1."""


def check_sync(
    generator: Generator,
    policy: Policy,
    probe: Sequence[tuple[Tokens, Tokens]],
    pad_id: int,
    tolerance: float | None = None,
) -> float:
    """Compare generator and trainer on a probe; returns the largest difference of log-probabilities, in nats.

    probe: (prompt, answer) pairs, neither empty. Each of the generator's ``engines`` scores the answers (``logp``), and
    goes on from each pair by one token of its own at temperature ``HOT``, which shows what it has cached of the prompts
    since the last time, and that it says what it drew from. tolerance: default 1e-3, in 16 bits 0.25. Raises AlignError
    with both numbers, the token and its place, and on all ranks for an error of one rank's generator. Collective.
    """
    if not probe:
        return 0.0
    texts = [np.concatenate(pair).astype(np.int32) for pair in probe]
    one_more = Sampling(max_completion_length=1, temperature=HOT)
    requests = [Request(text, (i,)) for i, text in enumerate(texts)]
    pairs, given = list[tuple[Tokens, Tokens]](), list[Floats]()
    engines: Sequence[Generator] = ()
    problems: tuple[Problem, ...] = ()
    try:
        engines = generator.engines
        for engine in engines:
            pairs += probe
            given += contract.logp(engine, probe)
        for engine in engines:
            for text, (sample,) in zip(texts, contract.generate(engine, requests, one_more), strict=True):
                pairs.append((text, sample.tokens))
                given.append(sample.logp)
    except AlignError as error:
        problems = error.problems
    # Before the trainer computes: where its weights are sharded all ranks must.
    all_gather_or_raise(None, problems)
    # Two passes, whatever the number of engines that this rank has reached.
    hot = _measured(policy, pairs[len(probe) * len(engines) :], pad_id, HOT)
    own = np.concatenate([_measured(policy, probe, pad_id, 1.0)] * len(engines) + [hot])
    logp = np.concatenate(given)
    gaps = np.abs(logp.astype(np.float64) - own)
    worst = int(np.argmax(np.where(np.isfinite(gaps), gaps, np.inf)))
    gap = float(gaps[worst])
    if tolerance is None:
        weight = next(policy.parameters())
        rough = torch.is_autocast_enabled(weight.device.type)
        tolerance = TOLERANCE_16 if rough else TOLERANCE.get(weight.dtype, TOLERANCE_16)
    if not gap <= tolerance:
        lengths = [len(answer) for _, answer in pairs]
        number = int(np.searchsorted(np.cumsum(lengths), worst, side="right"))
        place = worst - sum(lengths[:number])
        prompt, answer = pairs[number]
        engine = engines[number // len(probe) % len(engines)]
        raise AlignError(
            f"after the weights were sent, generator {engine.title} gives token {answer[place]} at position "
            f"{len(prompt) + place} of probe {number % len(probe)} a log-probability of "
            f"{float(logp[worst]):.6f} and the trainer {own[worst]:.6f}; they differ by {gap:.3g}, "
            f"more than {tolerance:g}",
            "its weights are stale, or it is set up otherwise than the trainer (dtype, quantisation, adapter). Where "
            "only rounding differs, set rollout.sync_tolerance, and rollout.importance_sampling_correction to "
            "correct for it",
            where="rollout.generator",
        )
    return gap


def _measured(policy: Policy, pairs: Sequence[tuple[Tokens, Tokens]], pad_id: int, temperature: float) -> Floats:
    """Log-probabilities of all answers' tokens one after the other, under the policy at a temperature."""
    examples = []
    for prompt, answer in pairs:
        tokens = np.concatenate([prompt, answer]).astype(np.int32)
        scored = np.arange(len(tokens)) >= len(prompt)
        examples.append(Example("probe", (TokenSequence("completion", tokens, scored),)))
    micro = collate(examples, "padded", pad_id).to(policy.device)
    with policy.at_temperature(temperature):
        found: Floats = detached_logp(policy, micro).float().cpu().numpy()
    return found
