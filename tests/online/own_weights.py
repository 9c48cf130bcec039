"""``local`` with a network of its own, which every sync copies the policy into: a real generator for running ahead.

``python -m tests.online.own_weights RUN.yaml [--resume]`` trains with it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from align import ModelHandle
from align.core.config import run_file
from align.core.training.launch import train
from align.models import Policy
from align.plugins.generators.local import Local

_open = Local.open


def open_own(self: Local, handle: ModelHandle) -> None:
    """Load a second network from the directory that the policy began with."""
    _open(self, replace(handle, policy=None))


def sync_own(self: Local, policy: Policy, version: int) -> None:
    """Copy the policy's weights."""
    assert self.policy is not None
    self.policy.load_state_dict(policy.state_dict())


OWN: dict[str, Any] = {
    "shares_weights": False,
    "generates_in_background": True,
    "open": open_own,
    "sync": sync_own,
}
"""The attributes of ``Local`` that change."""

if __name__ == "__main__":
    for name, value in OWN.items():
        setattr(Local, name, value)
    train(run_file.load(sys.argv[1]), resume="--resume" in sys.argv, progress=False)
