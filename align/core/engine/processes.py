"""The processes of a run: a small supervisor that leaves no orphan, and strategies, by which they share the work.

Workers get the same environment torchrun gives, so ``torchrun -m align train RUN`` and ``devices.count: 2`` take one
path from there; so does ``srun align train RUN``, by ``join_slurm``. Signals are passed on, with a deadline; when one
worker ends badly the others have a grace time, then are killed, and the first to die is named; when the supervisor
dies, the kernel kills the workers (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import math
import os
import re
import select
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, ClassVar

from align.core.util import child_processes
from align.core.util.detect_hardware import detect
from align.core.util.liveness import Limits
from align.core.util.stopping import LOST, die_with_parent, passing_on
from align.schemas.base import Config
from align.schemas.errors import AlignError
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Devices

if TYPE_CHECKING:
    import torch

GRACE_SECONDS = 30.0
"""Seconds that the other workers have to end when one has failed."""
STOP_MARGIN = 5.0
"""Seconds that the supervisor waits longer than its workers after a signal: their messages name the step."""
TAIL_LINES = 5
POLL_MILLISECONDS = 200
"""Time between two looks at the deadlines; the death of a worker wakes the supervisor at once."""
LOOPBACK = "127.0.0.1"
SLURM_PORTS = range(15000, 25000)
"""Ports at which the ranks of a Slurm job meet: below those that Linux gives to outgoing connections (32768 on)."""


def under_launcher() -> bool:
    """Return True if this process is one of a group already (torchrun's, Slurm's, or ours)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_slurm() -> None:
    """Join the group of tasks that ``srun`` started this process in, if it did: set torchrun's variables from Slurm's.

    A process that is alone in its step, or in a batch script outside of any, is left as it is, and so is one that
    torchrun started. ``MASTER_ADDR`` and ``MASTER_PORT`` are kept where they are set.

    Raises AlignError where the nodes have unequal numbers of tasks: no rank could tell which GPU is its own.
    """
    given = os.environ
    # The variables of the step, not of the job: a batch script has SLURM_NTASKS and SLURM_PROCID too, and is no rank.
    tasks = int(given.get("SLURM_STEP_NUM_TASKS", "1"))
    if under_launcher() or tasks == 1 or "SLURM_PROCID" not in given:
        return
    nodes = int(given["SLURM_STEP_NUM_NODES"])
    if tasks % nodes or given["SLURM_STEP_TASKS_PER_NODE"] != f"{tasks // nodes}(x{nodes})".removesuffix("(x1)"):
        raise AlignError(
            f"started {tasks} tasks on {nodes} nodes as {given['SLURM_STEP_TASKS_PER_NODE']}",
            "start the same number on each: srun --ntasks-per-node",
            where="srun",
        )
    # Every task computes the same port, and two steps of a job on one node get ports of their own.
    number = 10 * int(given["SLURM_JOB_ID"]) + int(given["SLURM_STEP_ID"])
    given.setdefault("MASTER_ADDR", first_host(given["SLURM_STEP_NODELIST"]))
    given.setdefault("MASTER_PORT", str(SLURM_PORTS[number % len(SLURM_PORTS)]))
    given |= {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "GROUP_RANK": given["SLURM_NODEID"],
    }


def first_host(nodes: str) -> str:
    """Return the first host of a list as Slurm writes it: ``gpu[07-09,12],login1`` is ``gpu07``."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)
    assert first is not None  # it matches the empty text, too
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def rank() -> int:
    """Return the number of this process in its group, 0 if it is alone."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the number of this process among those of its group on this machine, 0 if it is alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes in this one's group, 1 if it is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched(devices: Devices) -> Hardware:
    """Return the hardware that a stage's processes run on: what ``detect`` finds, or the group that torchrun started.

    Raises AlignError where another number of processes was started than the run file asks for, where a process does
    not see the GPU that its local rank names, and where several nodes are asked for and nobody has started them.
    """
    found = detect(devices)
    if under_launcher():
        _check_visible(devices)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
        nodes = world_size() // local
        if devices.count not in ("auto", local) or devices.nodes not in (1, nodes):
            raise AlignError(
                f"asks for {devices.count} processes on {devices.nodes} nodes, but {local} on {nodes} were started",
                "start as many, or leave devices.count and devices.nodes out",
                where="devices",
            )
        return replace(found, devices=local, nodes=nodes)
    if found.nodes > 1:
        command = f"align launch RUN --nodes {found.nodes} --gpus {found.devices}"
        raise AlignError(
            f"asks for {found.nodes} nodes, and this command starts processes on this one only",
            f"{command} prints the command for each node, or runs it there (docs/launch.md)",
            where="devices.nodes",
        )
    return found


def _check_visible(devices: Devices) -> None:
    """Raise AlignError where Slurm shows each process its own GPU only: a process takes the one of its local rank."""
    here = detect(devices.model_copy(update={"count": "auto"}))
    if here.accelerator == "cuda" and here.memory and local_rank() >= here.devices:
        raise AlignError(
            f"is process {local_rank()} of its node, and sees {here.devices} GPU{'s' * (here.devices > 1)}",
            "let each process see all of its node's: srun --gpus-per-node, and neither --gpus-per-task nor --gpu-bind",
            where=f"rank {rank()} on {socket.gethostname()}",
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """The worker that made its group fail: the first that failed for a reason of its own.

    status: as ``subprocess`` gives it, the negative number of the signal that killed it. stderr: its last lines.
    """

    rank: int
    status: int
    stderr: str


def run_workers(arguments: Sequence[str], count: int, limits: Limits) -> Ended | None:
    """Run ``python -m align ARGUMENTS`` ``count`` times as one group; return how it failed, or None.

    A group that was sent a signal and is still there ``limits.stop`` seconds later (one of it is stopped itself, or
    hangs) is killed, and has failed by that signal.
    """
    store, port = _store(count)
    environment = child_processes.environment() | {
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "align",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    if "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    # All workers are on this machine: its network must not see, or break, their connections.
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        environment.setdefault(name, "lo")
    workers: list[subprocess.Popen[bytes]] = []

    def send(number: int) -> None:
        for worker in workers:
            worker.send_signal(number)

    with passing_on(send) as received:
        for number in range(count):
            worker = subprocess.Popen(
                child_processes.command("-m", "align", *arguments),
                env=environment | {"RANK": str(number), "LOCAL_RANK": str(number)},
                # Rank 0 keeps the terminal: through a pipe its progress bar would become lines.
                stderr=None if number == 0 and os.isatty(2) else subprocess.PIPE,
                preexec_fn=die_with_parent,
                process_group=0,  # a terminal's Ctrl-C goes to a whole group, and would come twice
            )
            workers.append(worker)
            for early in list(received):  # it came before this worker existed
                worker.send_signal(early)
        tails = [_Tail(worker) for worker in workers]
        ended = _wait(workers, received, limits.stop + STOP_MARGIN)
    del store  # the workers' meeting place, until the last of them is gone
    if ended is None:
        return None
    rank, status = ended
    return Ended(rank, status, tails[rank].text())


def _store(count: int) -> tuple[Any, int]:
    """Return the store that workers meet at, served by this process on loopback only, and its port.

    Where rank 0 serves it torch listens on every interface, and a rank 0 that is stopped takes it along.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch forgot it in __all__

    listening = socket.create_server((LOOPBACK, 0))
    port: int = listening.getsockname()[1]
    descriptor = listening.detach()
    store = TCPStore(LOOPBACK, port, count, is_master=True, wait_for_workers=False, master_listen_fd=descriptor)
    return store, port


def _wait(
    workers: Sequence[subprocess.Popen[bytes]], received: Mapping[int, float], stop: float
) -> tuple[int, int] | None:
    """Wait for all; return rank and status of the one that caused the failure, or None if all succeeded.

    received: signals that this process was sent, and when; ``stop`` seconds after the first the rest are killed.
    """
    poll = select.poll()
    waiting: dict[int, int] = {}
    for rank, worker in enumerate(workers):
        descriptor = os.pidfd_open(worker.pid)  # readable when it dies: the order of deaths names the first
        waiting[descriptor] = rank
        poll.register(descriptor, select.POLLIN)
    bad: list[tuple[int, int]] = []  # rank and status, in the order in which they died
    killed: set[int] = set()
    deadline = math.inf
    while waiting:
        found = []
        for descriptor, _ in poll.poll(POLL_MILLISECONDS):
            rank = waiting.pop(descriptor)
            poll.unregister(descriptor)
            os.close(descriptor)
            status = workers[rank].wait()
            if status and rank not in killed:
                found.append((rank, status))
        if found:
            # Of two that are found dead at once the one that a signal killed was first: the other noticed.
            bad += sorted(found, key=lambda each: each[1] > 0)
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if received:
            deadline = min(deadline, min(received.values()) + stop)
        if time.monotonic() > deadline:
            killed |= set(waiting.values())
            for rank in waiting.values():
                workers[rank].kill()
    if received and killed and not bad:
        return min(killed), -min(received, key=received.__getitem__)
    by_their_own_fault = [each for each in bad if each[1] != LOST]
    return next(iter(by_their_own_fault or bad), None)


class _Tail:
    """A worker's stderr: passed on line by line, with the last lines kept for the error message."""

    def __init__(self, worker: subprocess.Popen[bytes]) -> None:
        self._lines: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._thread = None
        if worker.stderr is not None:
            self._thread = threading.Thread(target=self._pass_on, args=(worker.stderr,), daemon=True)
            self._thread.start()

    def _pass_on(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._lines.append(line)
            with suppress(OSError):
                os.write(2, line)

    def text(self) -> str:
        """Return the last lines that are not empty."""
        if self._thread is not None:
            self._thread.join(1.0)  # a grandchild may hold the pipe open
        lines = [line.decode(errors="replace").rstrip() for line in self._lines]
        return "\n".join(line for line in lines if line)


def free_port() -> int:
    """Return a port of this machine that no process uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


# --- strategies ------------------------------------------------------------------------------------------------------


class Strategy:
    """Base class of strategies, by which processes share the work: subclass it and return a Lightning strategy."""

    name: ClassVar[str]

    class Config(Config):
        """Settings in the run file."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def resolve(self, hardware: Hardware, footprint: Footprint, choose: Callable[[], Strategy]) -> Strategy:
        """The strategy to use here: itself, or (``auto``) the one that plugins ``choose``.

        Raises AlignError when it cannot run on this hardware.
        """
        return self

    def trainer_strategy(self, hardware: Hardware) -> Any:
        """A Lightning strategy, or its name."""
        raise NotImplementedError

    shards: ClassVar[bool] = False
    """True if the policy is split over the devices, by ``shard``."""

    def shard(self, policy: torch.nn.Module, mesh: Any, precision: str) -> None:
        """Split the policy in place over Lightning's device mesh, before the optimizer is made."""
        raise NotImplementedError


def footprint(*networks: torch.nn.Module, others: int = 0, activations: float = 0) -> Footprint:
    """Bytes of one unsharded replica: weights as held, and for what is trained a gradient and AdamW's two moments.

    others: bytes of further state, such as a reference's copy. activations: of one micro-batch's forward pass.
    """
    parameters = [p for network in networks for p in network.parameters()]
    held = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    return Footprint(held + 3 * trained + others, round(activations))
