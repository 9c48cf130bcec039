"""Small policies, their references and rows to score, for tests and for the ranks that they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.core.data.batch import MicroBatch, collate
from align.core.data.examples import Example, TokenSequence
from align.core.models.load_and_export import build_policy
from align.core.models.policy import Policy
from align.core.models.reference import make_reference
from align.schemas import run
from align.schemas.run import Adapter, Data, Model, Source, Stage

LORA, DORA = Adapter(r=4), Adapter(type="dora", r=4)


def example(name: str, *lengths: int, seed: int = 0) -> Example:
    """Sequences of these lengths; the first token and every fifth after it carry no loss."""
    rng = np.random.default_rng([seed, *lengths])
    sequences = [
        TokenSequence(role, rng.integers(4, 320, n).astype(np.int32), np.arange(n) % 5 != 0)
        for role, n in zip(("chosen", "rejected"), lengths, strict=False)
    ]
    return Example(name, tuple(sequences))


def rows() -> MicroBatch:
    return collate([example("rows:1", 7, 11), example("rows:2", 4, 9)], "padded", 0)


class Held:
    """Examples in memory."""

    def __init__(self, examples: list[Example], fingerprint: str = "f") -> None:
        self.examples, self.fingerprint, self.weights = examples, fingerprint, (1.0,)
        self.lengths = np.array([sum(e.lengths) for e in examples], np.int64)
        self.sources = np.zeros(len(examples), np.int32)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def stage(directory: Path, adapter: Adapter | None = None) -> Stage:
    return Stage(
        name="dpo",
        model=Model(path=str(directory), adapter=adapter),
        data=Data(train=[Source(path="rows.jsonl")]),
        algorithm={"type": "dpo"},  # type: ignore[arg-type]
    )


def start(directory: Path, adapter: Adapter | None = None, dropout: bool = True) -> Policy:
    return build_policy(Model(path=str(directory), adapter=adapter), "language", seed=1, dropout=dropout)[0]


def reference_to(policy: Policy, directory: Path, kind: str, adapter: Adapter | None = None, **settings: Any) -> Any:
    spec = run.Reference(type=kind, **settings)  # type: ignore[arg-type]
    return make_reference(spec, policy, stage(directory, adapter))


def learn(policy: Policy, steps: int = 3, rate: float = 0.5) -> None:
    """A few real steps of gradient ascent on the log-probabilities."""
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (-policy(rows()).logp_T.mean()).backward()
        optimizer.step()


def evaluated(policy: Policy) -> Tensor:
    training = policy.training
    with torch.no_grad():
        logp_T = policy.eval()(rows()).logp_T
    policy.train(training)
    return logp_T
