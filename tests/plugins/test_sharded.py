"""The generators with a policy that FSDP2 shards, over two real ranks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from align.core.generation import sharded
from align.core.models.policy import Policy
from align.plugins.strategies.single_ddp_fsdp import sharding
from align.schemas.errors import AlignError
from tests.core.ranks import torchrun
from tests.tiny import tiny_model

RANKS = Path(__file__).with_name("sharded_ranks.py")


def test_two_ranks_sample_and_send_what_one_process_does(tmp_path: Path) -> None:
    """See ``sharded_ranks.main``, which asserts it."""
    done = torchrun(str(RANKS), tmp=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_pytorch_whose_fsdp_has_other_parts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping weights whole reads private parts of FSDP2, which another version may not have."""
    dist.init_process_group("gloo", init_method=f"file:{tmp_path}/group", rank=0, world_size=1)
    try:
        policy = Policy(tiny_model())
        sharding.shard(policy, init_device_mesh("cpu", (1,)), "32-true", reshard=True, offload=False)
        monkeypatch.setattr(FSDPModule, "_get_fsdp_state", lambda _: object())
        words = rf"(?s)PyTorch {re.escape(torch.__version__)}.*_fsdp_param_groups.*gather: layers"
        with pytest.raises(AlignError, match=words), sharded._kept_whole(policy):
            pass
    finally:
        dist.destroy_process_group()
