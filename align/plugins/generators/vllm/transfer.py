"""Weights from GPU to GPU by vLLM's own transfer (``vllm.distributed.weight_transfer``): NCCL, or CUDA IPC.

``nccl``: one group of the trainer's rank 0 and all workers of all servers, so that the weights are broadcast once; a
group cannot lose or gain members, so a new one is made when a server was replaced. ``ipc``: workers on the GPUs of
trainer ranks map those ranks' memory. Written to vLLM 0.32's sources and never run: no GPU was to be had. The sync gate
judges what arrives.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from align import AlignError
from align.plugins.generators.vllm.arguments import is_here
from align.plugins.generators.vllm.one_server import BEGUN, Server
from align.plugins.generators.vllm.weights import checkpoint_tensors
from align.processes import free_port, rank

if TYPE_CHECKING:
    from align.models import Policy


class Sender:
    """The trainer's end. Made on every rank; rank 0 sends, the others gather their shards.

    backend: ``nccl`` or ``ipc``. workers: each server's number of devices, in the order of the servers.
    """

    def __init__(self, backend: str, workers: Mapping[Server, int]) -> None:
        self.backend, self.urls = backend, [server.url for server in workers]
        self.control, self.source = Control(workers), Weights()
        self.engine: Any = None

    def send(self, policy: Policy, label: str, timeout: float) -> AlignError | None:
        """One update, the prefix caches dropped, and then its label; return what went wrong.

        A collective operation whose peer has died never returns, so it runs in a thread that is left after ``timeout``.
        """
        self.source.policy, self.control.label = policy, label
        device, failures = torch.cuda.current_device(), list[Exception]()

        def work() -> None:
            try:
                torch.cuda.set_device(device)  # each thread has its own
                if self.engine is None:
                    self.engine = self._engine()
                self.engine.send_weights()
            except Exception as error:  # vLLM raises many kinds
                failures.append(error)

        thread = threading.Thread(target=work, name="align-vllm-send", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            return AlignError(f"{self.backend}: the weights were not there within {timeout:g} s", where="weights")
        if failures:
            return AlignError(f"{self.backend}: {failures[0]}", "use weights: files", where="weights")
        return None

    def shutdown(self) -> None:
        """Leave the group, and have the workers leave it."""
        if self.engine is not None:
            if rank() == 0:
                self.control.shutdown()
            self.engine.shutdown()

    def _engine(self) -> Any:
        group: Any = IPCTrainerInitInfo(rank=rank(), packed=True)
        if self.backend == "nccl":
            group = NCCLTrainerInitInfo(
                rank=rank(),
                master_address=address_towards(self.urls),
                master_port=free_port(),
                world_size=1 + sum(self.control.workers.values()),
            )
        return WeightTransferTrainerFactory.trainer_init(group, client=self.control, source=self.source)


class Weights(WeightSource):  # type: ignore[misc]  # mypy does not see vLLM
    """The policy's tensors, as vLLM's senders want them."""

    policy: Policy

    def metadata(self) -> list[ParamMeta]:
        """Names, types and shapes."""
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in checkpoint_tensors(self.policy)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return checkpoint_tensors(self.policy)


class Control:
    """The control routes of all servers, as vLLM's senders call them: each call goes to all at the same time."""

    label = ""

    def __init__(self, workers: Mapping[Server, int]) -> None:
        self.workers = workers
        self.first_rank = dict(zip(workers, accumulate(workers.values(), initial=0), strict=False))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have the workers join; each server's follow those of the server before."""

        def join(server: Server) -> None:
            offset = init_info.get("rank_offset")
            own = init_info if offset is None else init_info | {"rank_offset": offset + self.first_rank[server]}
            server.once.post("/init_weight_transfer_engine", {"init_info": own})

        self._each(join)

    def start_weight_update(self) -> None:
        """Begin; answers do not count until the end."""
        self._post("/update_weight_version", {"new_version": self.label + BEGUN})
        self._post("/start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have the workers receive."""
        self._post("/update_weights", {"update_info": sendable(update_info)})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have them use it."""
        self._post("/finish_weight_update")
        self._post("/reset_prefix_cache")
        self._post("/update_weight_version", {"new_version": self.label})

    def shutdown(self) -> None:
        """Have the workers leave the group; one that is gone has left it."""

        def leave(server: Server) -> None:
            with contextlib.suppress(AlignError):
                server.once.post("/shutdown_weight_transfer_engine")

        self._each(leave)

    def _post(self, path: str, content: Any = None) -> None:
        self._each(lambda server: server.once.post(path, content))

    def _each(self, do: Callable[[Server], Any]) -> None:
        with ThreadPoolExecutor(len(self.workers)) as pool:
            list(pool.map(do, self.workers))


def sendable(update_info: dict[str, Any]) -> dict[str, Any]:
    """Return an update as JSON can hold it: handles of GPU memory (``ipc_handles``) pickled, as vLLM takes them."""
    info = dict(update_info)
    if (handles := info.pop("ipc_handles", None)) is not None:
        info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
    return info


def address_towards(urls: list[str]) -> str:
    """Return the address of this machine by which the servers' workers reach it: loopback if all of them are here."""
    elsewhere = [urlsplit(url).hostname or "" for url in urls if not is_here(url)]
    if not elsewhere:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((elsewhere[0], 9))  # sends nothing: it asks for the route
        found: str = probe.getsockname()[0]
        return found
