"""Batches written down by hand: log-probabilities in, a Batch out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from align.core.algorithm.contract import LossOutput, Metric
from align.core.data.batch import Batch

Rows = Sequence[Mapping[str, Sequence[float]]]


def batch(
    rows: Rows,
    reference: Rows | None = None,
    columns: Mapping[str, Sequence[float]] | None = None,
    scores: Sequence[float] | None = None,
    step: Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """One mapping per example, ``{role: log-probabilities of its scored tokens}``; ``reference`` in the same shape."""
    roles = tuple(sorted({role for row in rows for role in row}))
    sequences = [(e, role, logps) for e, row in enumerate(rows) for role, logps in row.items()]
    lengths = torch.tensor([len(logps) for _, _, logps in sequences], dtype=torch.long)

    def flat(of: Rows) -> torch.Tensor:
        return torch.tensor([x for row in of for logps in row.values() for x in logps], dtype=dtype)

    return Batch(
        logp_T=flat(rows).requires_grad_(),
        sequence_T=torch.repeat_interleave(torch.arange(len(sequences)), lengths),
        position_T=torch.cat([torch.arange(0), *(torch.arange(n) for n in lengths.tolist())]),
        example_B=torch.tensor([e for e, _, _ in sequences], dtype=torch.long),
        role_B=torch.tensor([roles.index(role) for _, role, _ in sequences], dtype=torch.long),
        roles=roles,
        examples=len(rows),
        columns={name: torch.tensor(values, dtype=dtype) for name, values in (columns or {}).items()},
        ref_logp_T=None if reference is None else flat(reference),
        score_B=None if scores is None else torch.tensor(scores, dtype=dtype, requires_grad=True),
        entropy_T=torch.full((int(lengths.sum()),), 0.5, dtype=dtype),
        correct_T=torch.ones(int(lengths.sum()), dtype=dtype),
        logit_T=torch.zeros(int(lengths.sum()), dtype=dtype),
        step={name: torch.tensor(value, dtype=dtype) for name, value in (step or {}).items()},
    )


def pairs(*ratios: tuple[float, float], dtype: torch.dtype = torch.float32) -> Batch:
    """Pairs of one-token answers with the given log-ratios (r_w, r_l); the reference says −1 of every token."""
    rows = [{"chosen": [w - 1.0], "rejected": [r - 1.0]} for w, r in ratios]
    return batch(rows, [{"chosen": [-1.0], "rejected": [-1.0]} for _ in ratios], dtype=dtype)


def values(outcome: LossOutput, term: int = 0) -> list[float]:
    """The unreduced values of one term."""
    return [float(x) for x in outcome.terms[term].values.detach()]


def metric(outcome: LossOutput, name: str) -> list[float]:
    """The unreduced values of one metric that count."""
    entry = outcome.metrics[name]
    given = entry if isinstance(entry, Metric) else Metric(entry)
    counted = given.values if given.where is None else given.values[given.where]
    return [float(x) for x in counted.detach()]
