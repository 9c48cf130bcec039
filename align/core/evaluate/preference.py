"""Which of two answers a model finds likelier."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from align.core.data.examples import Examples
from align.core.models.policy import Policy
from align.core.models.precompute import precompute


def prefers_chosen(policy: Policy, examples: Examples, pad_id: int) -> NDArray[np.bool_]:
    """Whether each pair's chosen answer has the higher summed log-probability: sum log p(y_w|x) > sum log p(y_l|x).

    [N], over examples with a ``chosen`` and a ``rejected`` sequence. Ties count as not preferred.
    """
    scored = precompute(policy, examples, layout="padded", pad_id=pad_id, micro_tokens=8192)
    sums = [
        {s.role: float(s.ref_logp.sum()) for s in scored[i].sequences if s.ref_logp is not None}
        for i in range(len(scored))
    ]
    return np.array([pair["chosen"] > pair["rejected"] for pair in sums])
