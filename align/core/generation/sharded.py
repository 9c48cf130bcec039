"""Forward passes of a policy whose weights are sharded (FSDP2), each rank as many as it needs.

Under FSDP2 each pass gathers layer after layer from all ranks, so all must take the same number of passes, at the same
time. Training does. Ranks that sample do not: they have other prompts, and completions of other lengths. Two ways out:

    whole   All weights are gathered once and kept for the block. Ranks then compute by themselves.
    layers  Ranks meet before each pass; who has nothing left to compute takes empty passes until all have finished.

Both compute the same bits: the same operations on the same gathered numbers. ``whole`` takes the memory of one replica
in the type of computing, ``layers`` one gather of all weights for each token.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from align.core.generation.generator_base import Interrupt
from align.core.generation.kv_cache import cache_bytes, can_group
from align.core.models.policy import Policy, reshard, without_gradient_or_dropout
from align.core.util.detect_hardware import free_main_memory
from align.schemas.engine import PLANNED_SHARE, SAMPLED_TOKENS
from align.schemas.errors import AlignError

Gather = Literal["auto", "whole", "layers"]

_IN_BLOCK: WeakSet[Policy] = WeakSet()
"""Policies that are in a block: one inside another changes nothing."""


@contextmanager
def independent_passes(policy: Policy, gather: Gather = "auto", tokens: int = SAMPLED_TOKENS) -> Iterator[None]:
    """Let each rank run the policy, or its network, as often as it needs to in the block, sharded or not.

    All ranks must enter and leave, and change no weight in between. gather: ``whole`` or ``layers`` as above; ``auto``
    takes ``whole`` where every rank's free memory has room for it and for a cache of ``tokens``.
    An exception in the block ends it on all ranks: the others raise Interrupt at their next pass, or at the end.
    Raises AlignError for weights that are sharded by other means than FSDP2.
    """
    if not isinstance(policy, FSDPModule):
        if any(isinstance(parameter, DTensor) for parameter in policy.parameters()):
            what = "the generator local cannot sample from weights that are split within a layer (tensor parallel)"
            raise AlignError(what, "use the generator vllm, or the strategy fsdp or ddp")
        yield
        return
    if policy in _IN_BLOCK:
        yield
        return
    whole = gather == "whole" or (gather == "auto" and _fits_everywhere(policy, tokens))
    _IN_BLOCK.add(policy)
    reshard(policy)  # what was gathered before may be of older weights
    try:
        passes = _Passes(policy)
        with passes.through_hooks():
            passes.measure_once()
            with _kept_whole(policy) if whole else passes.together():
                yield
    finally:
        _IN_BLOCK.discard(policy)
        reshard(policy)


def is_sharded(module: torch.nn.Module) -> bool:
    """Return True if FSDP2 shards a part of the module."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


class _Passes:
    """The forward passes of a policy in a block."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.network = policy, policy.unwrapped
        self.inner = self.network.forward
        self.device = policy.device
        self.meets = False
        """True where ranks meet before each pass."""
        self.running = False
        """True during a pass: an exception then leaves the ranks at different places, and they cannot meet again."""
        self.over = False
        """True once a rank asked all to stop."""
        if "run" not in policy.__dict__:
            register_fsdp_forward_method(policy, "run")
        # FSDP2 takes the module that runs first for its root, and sets the root up then.
        policy.run(lambda: None)

    @contextmanager
    def through_hooks(self) -> Iterator[None]:
        """Let calls of the inner network run the policy's hooks, which gather what belongs to no layer."""
        own = self.network.__dict__.get("forward")

        @wraps(self.inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.running:  # as a part of the policy's own pass
                return self.inner(*args, **kwargs)
            self._begin()
            result = self.policy.run(self.inner, *args, **kwargs)
            self._end()
            return result

        # FSDP2's own hook was put first when it sharded the policy; this one goes before it.
        begin = self.policy.register_forward_pre_hook(self._begin, prepend=True)
        end = self.policy.register_forward_hook(self._end)
        self.network.forward = forward
        try:
            yield
        finally:
            if own is None:
                del self.network.forward
            else:
                self.network.forward = own
            begin.remove()
            end.remove()

    def measure_once(self) -> None:
        """Take the passes by which the policy's tail is measured and a ``GroupedReader`` tried, if they were not taken.

        Now, since all ranks do: later one of them would. The trial may end in the middle of a pass.
        """
        with without_gradient_or_dropout(self.policy):
            if self.policy.head == "language":
                _ = self.policy.tail
            can_group(self.network)
        if self.running:
            assert isinstance(self.policy, FSDPModule)
            self.policy.reset_iter_state()
            self.running = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Take the passes of the block together with the other ranks, and empty ones until all have finished."""
        self.meets = True
        try:
            yield
        except Exception:
            if not (self.over or self.running):
                self._meet(active=False, stop=True)
            raise
        with without_gradient_or_dropout(self.policy):
            while self._meet(active=False):
                ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
                self.policy.run(self.inner, input_ids=ids, use_cache=False)
        if self.over:
            raise Interrupt

    def _begin(self, *_: Any) -> None:
        """Begin a pass, with the other ranks where they meet. Raises Interrupt where one asked to stop."""
        if self.meets:
            self._meet(active=True)
            if self.over:
                raise Interrupt
        self.running = True

    def _end(self, *_: Any) -> None:
        self.running = False

    def _meet(self, active: bool, stop: bool = False) -> bool:
        """Return True if some rank takes a pass now, which all others must take too. Collective."""
        flags = torch.tensor([active, stop], dtype=torch.int32, device=self.device)
        dist.all_reduce(flags)
        takes_pass, stops = flags.tolist()
        self.over = stops > 0
        return takes_pass > 0 and not self.over


@contextmanager
def _kept_whole(policy: Policy) -> Iterator[None]:
    """Gather all weights, and keep them over forward passes. Raises AlignError for a PyTorch in which it cannot."""
    shards = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    try:
        # FSDP2 can set this (``set_reshard_after_forward``) but not return how it is set, and it is to be put back.
        groups = [group for module in shards for group in module._get_fsdp_state()._fsdp_param_groups]
        before = [group.post_forward_mesh_info for group in groups]
    except AttributeError as error:
        raise AlignError(
            f"the weights cannot be kept whole: FSDP2 of PyTorch {torch.__version__} has other parts ({error})",
            "install the PyTorch that constraints.txt names; or set gather: layers for the generator local",
        ) from error
    for group in groups:
        group.post_forward_mesh_info = None
    for module in shards:
        module.unshard()
    try:
        yield
    finally:
        for group, mesh in zip(groups, before, strict=True):
            group.post_forward_mesh_info = mesh


def _fits_everywhere(policy: Policy, tokens: int) -> bool:
    """Return True if every rank's free memory has room for all weights and a cache of ``tokens``. Collective."""
    device = policy.device
    autocast = torch.is_autocast_enabled(device.type)
    computing = torch.get_autocast_dtype(device.type).itemsize if autocast else 8
    copy = sum(p.numel() * min(p.element_size(), computing) for p in policy.parameters())
    needed = copy + cache_bytes(policy.unwrapped, tokens)
    fits = torch.tensor(needed <= PLANNED_SHARE * _free(device), dtype=torch.int32, device=device)
    dist.all_reduce(fits, dist.ReduceOp.MIN)
    return bool(fits)


def _free(device: torch.device) -> float:
    """Return the bytes that this process can still take; processes of one machine share its main memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_main_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
