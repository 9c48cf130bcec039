"""The reference policy, from which a loss measures the distance of the trained one (KL penalty, DPO's ratio).

Each kind runs the policy's own network once more, without gradient and dropout: before training begins, with the
adapter off, or with the starting (or averaged) values of the trainable parameters put in their place. So a reference
needs memory only for the parameters that are trained, is on the same devices as the policy, and is bit-identical to
the policy where their values are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from align.core.data.batch import MicroBatch
from align.core.models.architecture import is_adapted
from align.core.models.policy import Policy, reshard, tensors_hash
from align.core.models.precompute import detached_logp, precompute
from align.schemas import run
from align.schemas.errors import AlignError

__all__ = ["ReferenceModel", "assert_zero_kl", "make_reference", "precompute"]


class ReferenceModel:
    """The interface of references."""

    kind: ClassVar[str]

    def logp(self, micro: MicroBatch) -> Tensor:
        """Return the log-probability of each scored token [T], without gradient; no random number is drawn."""
        raise NotImplementedError

    def after_step(self, policy: Policy, step: int) -> None:
        """Follow the policy; called after each optimizer step. step: its number, the first is 1."""

    @property
    def copied_bytes(self) -> int:
        """Bytes of this process's copy of trained parameters; 0 for a reference without one."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state that resuming needs; with sharded parameters every rank must call this."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state. Raises AlignError if this reference is not the one that the run began with."""


class Precomputed(ReferenceModel):
    """Log-probabilities that ``precompute`` computed before training and that the examples carry."""

    kind = "precomputed"

    def logp(self, micro: MicroBatch) -> Tensor:
        """Return the log-probabilities that the micro-batch carries."""
        if micro.ref_logp_T is None:
            raise ValueError("these examples were not precomputed")
        return micro.ref_logp_T


class AdapterOff(ReferenceModel):
    """The policy without its adapter: the model that a new adapter starts from."""

    kind = "adapter-off"

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def logp(self, micro: MicroBatch) -> Tensor:
        """Run the policy with its adapter off."""
        # peft's context manager disable_adapter() first walks the whole model, at every micro-batch; this does not.
        layers: Any = self.policy.model.base_model
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

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copied values; under fsdp, once the policy has run, those of this process's shards."""
        whole = [v.to_local() if isinstance(v, DTensor) else v for v in self.values.values()]
        return sum(value.numel() * value.element_size() for value in whole)

    def logp(self, micro: MicroBatch) -> Tensor:
        """Run the policy with the copied values in place of its own."""
        with _holding(self.policy, self.values):
            return detached_logp(self.policy, micro)

    def state_dict(self) -> dict[str, Any]:
        """Return the hash of the values only: a resumed run reads them from the model that training started from."""
        return {"start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that training started from the same values. Raises AlignError if it did not."""
        if state["start"] != self._start:
            raise AlignError(
                f"the model that training started from has changed: its weights had the hash {state['start'][:12]}, "
                f"now {self._start[:12]}",
                "put the old weights back to resume, or start a new run",
            )


class AdapterSnapshot(Snapshot):
    """The adapter as it was when its training was continued. With the adapter off, the base would be the reference."""

    kind = "adapter-snapshot"


class MovingAverage(Snapshot):
    """TR-DPO (2404.09656) equation 5: every tau steps, ref <- alpha * policy + (1 - alpha) * ref.

    Only trainable parameters are averaged, since the others never differ. With an adapter A and B are averaged, not
    their product.
    """

    kind = "moving-average"

    def __init__(self, policy: Policy, mixing: float, every: int) -> None:
        super().__init__(policy)
        self.mixing, self.every = mixing, every

    def after_step(self, policy: Policy, step: int) -> None:
        """Average the policy in, every ``every`` steps."""
        if step % self.every:
            return
        reshard(policy)
        for name, parameter in _trainable(policy).items():
            value = self.values[name] = _like(self.values[name], parameter)
            value.mul_(1 - self.mixing).add_(parameter.detach(), alpha=self.mixing)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged values, gathered and on the CPU."""
        values = {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in self.values.items()}
        return {"values": {name: value.cpu().clone() for name, value in values.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the averaged values."""
        self.values = {name: state["values"][name].clone() for name in self.values}


def make_reference(
    spec: run.Reference, policy: Policy, stage: run.Stage, *, known_ahead: bool = True
) -> ReferenceModel:
    """Return the reference of a stage. Call it on the policy that training starts from, before any step.

    known_ahead: True if all examples are known before training. If not, nothing can be precomputed (KTO's mismatched
    pairs, sampled completions) and ``auto`` keeps a copy instead.
    Raises AlignError if the chosen kind would not be the policy that training starts from.
    """
    adapted = is_adapted(policy.model)
    continued = adapted and stage.model.adapter is None
    kind: str = spec.type
    if kind == "auto":
        if continued:
            kind = "adapter-snapshot"
        elif adapted:
            kind = "adapter-off"
        else:
            kind = "precomputed" if known_ahead else "copy"
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

    The tolerance allows for rounding between micro-batches of different shapes: 1e-3 in float32, 0.25 in 16 bits
    (weights or autocast).
    """
    logp_T, ref_logp_T = detached_logp(policy, micro).float(), reference.logp(micro).float()
    if not logp_T.numel():
        return
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in policy.parameters())
    tolerance = 0.25 if half or torch.is_autocast_enabled(logp_T.device.type) else 1e-3
    gap_T = (logp_T - ref_logp_T).abs()
    worst = int(gap_T.argmax())
    if not bool(gap_T[worst] <= tolerance):  # "not <=" also catches NaN
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
    """Put other values into the policy's trainable parameters; afterwards its own are restored to the bit."""
    _exchange(policy, values)
    try:
        yield
    finally:
        _exchange(policy, values)


def _exchange(policy: Policy, values: dict[str, Tensor]) -> None:
    """Let parameters and values change places.

    By pointer: no number is copied, and a graph that still waits for its backward pass keeps the tensors it saved. The
    parameters remain the objects that the optimizer, tied layers and DDP know. Not so sharded ones: FSDP2 gathers from
    a view of the shard that it made itself, so their numbers are copied. ``.data`` does not count as a change for
    autograd: what waits for its backward pass finds the policy's own values again, since they are restored before that.
    """
    reshard(policy)
    torch.clear_autocast_cache()  # it holds 16-bit copies of the values that were there
    parameters = _trainable(policy)
    for name, parameter in parameters.items():
        values[name] = _like(values[name], parameter)  # may fail, so before any value has changed places
    for name, parameter in parameters.items():
        if isinstance(parameter, DTensor):
            kept = parameter.detach().clone()
            parameter.data.copy_(values[name])
            values[name].copy_(kept)
        else:
            parameter.data, values[name] = values[name], parameter.data


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return the value on the parameter's device and in its type, sharded like it."""
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        on_device = value.to(parameter.device, parameter.dtype)
        return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device, parameter.dtype)
