"""One rank of a run whose memory is measured: ``torchrun rank_memory.py RUN OUT``, run by test_rank_memory.py.

Bytes come from the C library's own count of what is allocated (mallinfo2), at every operation, on top of the tensors
that live when the first step is over. torch's profiler would miss what gloo's threads free.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from align.core.config import run_file
from align.core.engine.module import AlignModule
from align.core.training import fit
from align.core.training.launch import train

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = MallInfo


def allocated() -> int:
    """Return the bytes that this process has allocated and not freed."""
    now = LIBC.mallinfo2()
    return int(now.hblkhd + now.uordblks)


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of this rank's shards of some tensors."""
    storages = {}
    for tensor in tensors:
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        storages[own.untyped_storage()._cdata] = own.untyped_storage().nbytes()
    return sum(storages.values())


class Sampler(TorchDispatchMode):
    """Keeps the most that was allocated after any operation."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.most = max(self.most, allocated())
        return result


class Measured(AlignModule):
    """The engine's module, which measures every step but the first: that one makes the optimizer's state."""

    before = peak = 0

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Take a step: forward, backward and update. Checkpoints come after it."""
        with Sampler() as sampler:
            super().optimizer_step(*arguments, **named)
        optimizer: Any = self.optimizers()
        state = optimizer.optimizer.state.values()
        parts = {
            "weights": local_bytes([*self.policy.parameters(), *self.policy.buffers()]),
            "gradients": local_bytes(p.grad for p in self.policy.parameters() if p.grad is not None),
            "optimizer": local_bytes(v for each in state for v in each.values() if isinstance(v, Tensor) and v.ndim),
        }
        if self.before:
            self.peak = max(self.peak, sampler.most - self.before + sum(parts.values()))
        else:
            self.before = allocated()
        found[self.stage.name] = {**parts, "peak": self.peak}


found: dict[str, dict[str, int]] = {}

if __name__ == "__main__":
    fit.AlignModule = Measured  # type: ignore[misc,attr-defined]
    train(run_file.load(Path(sys.argv[1])), progress=False)
    Path(sys.argv[2], f"{os.environ['RANK']}.json").write_text(json.dumps(found))
