"""The policy that a loss measures its distance to, as an object.

Every kind is the policy's own network run once more, without gradient and without dropout: with its adapter off,
with the trainable parameters' starting (or averaged) values put in their place, or before training begins. So a
reference costs memory for what is trained and no more, lies on whatever devices the policy lies on, and is the
policy to the last bit where their values are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from align.core.data.batch import MicroBatch
from align.core.models.policy import Policy, tensors_hash
from align.core.models.precompute import detached_logp, precompute
from align.schemas import run
from align.schemas.errors import AlignError

__all__ = ["ReferenceModel", "assert_zero_kl", "make_reference", "precompute"]


class ReferenceModel:
    """What the engine asks of a reference."""

    kind: ClassVar[str]

    def logp(self, micro: MicroBatch) -> Tensor:
        """Log-probability of each scored token under the reference: [T], no gradient, no random number drawn."""
        raise NotImplementedError

    def after_step(self, policy: Policy, step: int) -> None:
        """Called after optimizer step ``step``, the first being 1."""

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs; on sharded parameters every rank must call it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises AlignError when this reference is not the one that the run began with."""


class Precomputed(ReferenceModel):
    """Computed before training by ``precompute``, and carried by the examples."""

    kind = "precomputed"

    def logp(self, micro: MicroBatch) -> Tensor:
        """What the micro-batch brought."""
        if micro.ref_logp_T is None:
            raise ValueError("these examples were not precomputed")
        return micro.ref_logp_T


class AdapterOff(ReferenceModel):
    """The policy without its adapter: the model that a new adapter starts from."""

    kind = "adapter-off"

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def logp(self, micro: MicroBatch) -> Tensor:
        """One pass with the adapter off."""
        layers: Any = self.policy.model.base_model  # peft's; its own context manager first surveys the whole model
        layers.disable_adapter_layers()
        try:
            return detached_logp(self.policy, micro)
        finally:
            layers.enable_adapter_layers()


class Snapshot(ReferenceModel):
    """The policy as it was when this object was made: a full copy, or with an adapter a copy of the adapter."""

    kind = "copy"

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.values = {name: parameter.detach().clone() for name, parameter in _trainable(policy).items()}
        self._start = tensors_hash(self.values)

    def logp(self, micro: MicroBatch) -> Tensor:
        """One pass with the kept values in place of the policy's."""
        with _holding(self.policy, self.values):
            return detached_logp(self.policy, micro)

    def state_dict(self) -> dict[str, Any]:
        """The hash of the values: they can be read again from where training started."""
        return {"start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checks that training started from the same values."""
        if state["start"] != self._start:
            raise AlignError(
                f"the model that training started from has changed: its weights had the hash {state['start'][:12]}, "
                f"now {self._start[:12]}",
                "put the old weights back to resume, or start a new run",
            )


class AdapterSnapshot(Snapshot):
    """For an adapter that is trained on: that adapter as it was. Without it the base would be the reference."""

    kind = "adapter-snapshot"


class MovingAverage(Snapshot):
    """TR-DPO (2404.09656) equation 5: every tau steps, ref <- alpha * policy + (1 - alpha) * ref.

    Only trainable parameters are averaged: the others never differ. With an adapter that is a mean of A and of B,
    not of their product.
    """

    kind = "moving-average"

    def __init__(self, policy: Policy, mixing: float, every: int) -> None:
        super().__init__(policy)
        self.mixing, self.every = mixing, every

    def after_step(self, policy: Policy, step: int) -> None:
        """Follow the policy, if it is time."""
        if step % self.every:
            return
        _reshard(policy)
        for name, parameter in _trainable(policy).items():
            value = self.values[name] = _like(self.values[name], parameter)
            value.mul_(1 - self.mixing).add_(parameter.detach(), alpha=self.mixing)

    def state_dict(self) -> dict[str, Any]:
        """The averaged values, whole and on the CPU."""
        values = {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in self.values.items()}
        return {"values": {name: value.cpu().clone() for name, value in values.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the averaged values."""
        self.values = {name: state["values"][name].clone() for name in self.values}


def make_reference(
    spec: run.Reference, policy: Policy, stage: run.Stage, *, known_ahead: bool = True
) -> ReferenceModel:
    """The reference that a stage asks for. Call it on the policy that training starts from, before any step.

    known_ahead: whether all examples are known before training; else nothing can be precomputed (KTO's mismatched
    pairs, sampled answers) and ``auto`` keeps a copy instead.
    Raises AlignError where the kind asked for would not be the policy that training starts from.
    """
    adapted = isinstance(policy.model, PeftModel)
    continued = adapted and stage.model.adapter is None
    kind: str = spec.type
    if kind == "auto":
        plain = "precomputed" if known_ahead else "copy"
        kind = "adapter-snapshot" if continued else "adapter-off" if adapted else plain
    where = f"reference.type: {kind}"
    if kind.startswith("adapter") and not adapted:
        raise AlignError("no adapter is trained", "use copy or precomputed", where=where)
    if kind == "adapter-off" and continued:
        raise AlignError(
            "the adapter is trained on; without it there is its base, not the model that training starts from",
            "use adapter-snapshot",
            where=where,
        )
    if kind == "precomputed" and not known_ahead:
        raise AlignError("the algorithm makes new examples while training", "use copy or auto", where=where)
    match kind:
        case "precomputed":
            return Precomputed()
        case "adapter-off":
            return AdapterOff(policy)
        case "moving-average":
            return MovingAverage(policy, spec.ref_model_mixup_alpha, spec.ref_model_sync_steps)
        case _:
            return AdapterSnapshot(policy) if adapted else Snapshot(policy)


def assert_zero_kl(reference: ReferenceModel, policy: Policy, micro: MicroBatch) -> None:
    """Raise AlignError unless reference and policy agree before the first step: max |logp - ref_logp| <= tolerance.

    The tolerance is for rounding in differently cut passes: 1e-3 in float32, 0.25 in 16 bits (weights or autocast).
    """
    logp_T, ref_logp_T = detached_logp(policy, micro).float(), reference.logp(micro).float()
    if not logp_T.numel():
        return
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in policy.parameters())
    tolerance = 0.25 if half or torch.is_autocast_enabled(logp_T.device.type) else 1e-3
    gap_T = (logp_T - ref_logp_T).abs()
    worst = int(gap_T.argmax())
    if not bool(gap_T[worst] <= tolerance):
        raise AlignError(
            f"the reference ({reference.kind}) is not the policy that training starts from: one token has "
            f"log-probability {float(logp_T[worst]):.4f} under the policy, {float(ref_logp_T[worst]):.4f} under the "
            f"reference (tolerance {tolerance})",
            "use reference.type: auto; if it is, empty the cache of precomputed log-probabilities",
        )


def _trainable(policy: Policy) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


@contextmanager
def _holding(policy: Policy, values: dict[str, Tensor]) -> Iterator[None]:
    """The policy with other values in its trainable parameters; its own come back unchanged to the bit."""
    _exchange(policy, values)
    try:
        yield
    finally:
        _exchange(policy, values)


def _exchange(policy: Policy, values: dict[str, Tensor]) -> None:
    _reshard(policy)
    torch.clear_autocast_cache()  # it holds 16-bit copies of the values that were there
    for name, parameter in _trainable(policy).items():
        value = values[name] = _like(values[name], parameter)
        kept = parameter.detach().clone()
        # through .data: a graph that waits for its backward finds the same values again, so autograd need not object
        parameter.data.copy_(value)
        value.copy_(kept)


def _reshard(policy: Policy) -> None:
    """Drop gathered copies of sharded parameters; they would outlive a change of the shards."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """The value where the parameter lies: on its device, sharded as it is."""
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        on_device = value.to(parameter.device)
        return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device)
