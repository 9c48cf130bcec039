"""The generators with a policy that FSDP2 shards, over two real ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RANKS = Path(__file__).with_name("sharded_ranks.py")


def test_two_ranks_sample_and_send_what_one_process_does() -> None:
    """See ``sharded_ranks.main``, which asserts it."""
    root = str(RANKS.parents[2])
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*torchrun, str(RANKS)],
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
