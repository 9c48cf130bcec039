"""Under autocast, which keeps 16-bit copies of weights, a reference must not be seen through the policy's copies."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from align.core.data.batch import collate
from align.core.models.load_and_export import build_policy
from align.core.models.precompute import detached_logp
from align.core.models.reference import Snapshot
from align.schemas.run import Model
from align.testing import toy_examples


@pytest.mark.parametrize("first", ["policy", "reference"])
def test_policy_and_reference_share_one_autocast(first: str, tiny_model_dir: Path) -> None:
    policy, _ = build_policy(Model(path=str(tiny_model_dir)), "language", seed=0, dropout=False)
    micro = collate(toy_examples("completion"), "padded", 0)
    reference, before = Snapshot(policy), copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = detached_logp(before, micro)
    with torch.autocast("cpu", torch.bfloat16):
        alone = policy(micro).logp_T.detach()
    assert (wanted - alone).abs().max() > 0.5, "or nothing is shown"

    with torch.autocast("cpu", torch.bfloat16):
        if first == "policy":
            assert torch.equal(detached_logp(policy, micro), alone)
        assert torch.equal(reference.logp(micro), wanted)
        logp_T = policy(micro).logp_T
        assert torch.equal(logp_T.detach(), alone)
        logp_T.sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in policy.named_parameters() if "proj" in n)
