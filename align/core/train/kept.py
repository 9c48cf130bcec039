"""Examples as plain values and tensors: what a checkpoint may hold, so that loading one runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from align.core.data.examples import Example, TokenSequence


def plain(example: Example) -> dict[str, Any]:
    """An example as plain values and tensors, which a checkpoint may hold."""
    sequences = [
        {
            "role": s.role,
            "tokens": torch.from_numpy(np.array(s.tokens)),
            "scored": torch.from_numpy(np.array(s.scored)),
            "ref_logp": None if s.ref_logp is None else torch.from_numpy(np.array(s.ref_logp)),
            "along": {name: torch.from_numpy(np.array(values)) for name, values in s.along.items()},
        }
        for s in example.sequences
    ]
    return {"source": example.source, "columns": dict(example.columns), "sequences": sequences}


def from_plain(kept: Mapping[str, Any]) -> Example:
    """The example again."""
    sequences = tuple(
        TokenSequence(
            s["role"],
            s["tokens"].numpy(),
            s["scored"].numpy(),
            None if s["ref_logp"] is None else s["ref_logp"].numpy(),
            {name: values.numpy() for name, values in s["along"].items()},
        )
        for s in kept["sequences"]
    )
    return Example(kept["source"], sequences, kept["columns"])
