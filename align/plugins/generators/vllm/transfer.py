"""Weights from GPU to GPU by vLLM's own transfer (``vllm.distributed.weight_transfer``, NCCL).

Written to vLLM 0.32's sources and never run: no GPU was to be had. The sync gate judges what arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from align.http import Client
from align.plugins.generators.vllm.weights import checkpoint_tensors
from align.processes import free_port, rank

if TYPE_CHECKING:
    from align.models import Policy


class Sender:
    """The trainer's end. Made at the first update on every rank; rank 0 sends, the others gather their shards."""

    def __init__(self, client: Client) -> None:
        self.control, self.source = Control(client), Weights()
        self.engine: Any = None

    def send(self, policy: Policy, label: str) -> None:
        """One update, the prefix cache dropped, and then its label."""
        self.source.policy, self.control.label = policy, label
        if self.engine is None:
            workers = self.control.world_size() if rank() == 0 else 0
            group = NCCLTrainerInitInfo(
                rank=rank(), master_address="127.0.0.1", master_port=free_port(), world_size=workers + 1
            )
            self.engine = WeightTransferTrainerFactory.trainer_init(group, client=self.control, source=self.source)
        self.engine.send_weights()

    def shutdown(self) -> None:
        """Leave the group."""
        if self.engine is not None:
            self.engine.shutdown()


class Weights(WeightSource):  # type: ignore[misc]  # mypy does not see vLLM
    """The policy's tensors, as vLLM's senders want them."""

    policy: Policy

    def metadata(self) -> list[ParamMeta]:
        """Names, types and shapes."""
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in checkpoint_tensors(self.policy)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return checkpoint_tensors(self.policy)


class Control:
    """The server's control routes, as vLLM's senders call them."""

    label = ""

    def __init__(self, client: Client) -> None:
        self.client = client

    def world_size(self) -> int:
        """Devices that the server's engine runs on."""
        return int(self.client.get("/get_world_size")["world_size"])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have the workers join."""
        self.client.post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """Begin; answers do not count until the end."""
        self.client.post("/update_weight_version", {"new_version": "none"})
        self.client.post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """Have the workers receive."""
        self.client.post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have them use it."""
        self.client.post("/finish_weight_update")
        self.client.post("/reset_prefix_cache")
        self.client.post("/update_weight_version", {"new_version": self.label})
