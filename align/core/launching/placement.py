"""``align launch --check``: the hosts of a run report to host 0, try to reach each other, and are compared.

One process on each host, started as training would be, or over ssh. They meet in a torch TCPStore at MASTER_ADDR and
MASTER_PORT, as training's processes do; no process group is made. Every wait has a limit, and a host that does not
report is named. A report from another host is data: it is verified (``HostReport``), and never unpickled.

    1  each host serves its clock at a port of its own, and puts its report into the store
    2  host 0 writes a file where the run's output will be; the others look for it
    3  each host connects to every other: is it reached, and how far apart are the clocks?
    4  host 0 compares all that it was sent
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from align.core.launching.host_report import READ_SECONDS, HostReport
from align.schemas.errors import AlignError, Problem
from align.schemas.text import format_bytes

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch forgot it in __all__

Data = TypeVar("Data", bound=BaseModel)

SECONDS = 45.0
"""Seconds that the whole check may take, by default."""
CONNECT_SECONDS = 5.0
"""Seconds to reach another host's port."""
SEEN_SECONDS = 15.0
"""Seconds in which a file of host 0 must be seen by the others; NFS may keep the old listing for some."""
LEAVE_SECONDS = 2.0
MOST_BYTES = 2**20
"""Largest report that is accepted."""
CLOCK_SECONDS = 2.0
"""Most that two clocks may differ: signs of life and file times are compared across hosts."""
SHM_BYTES = 2**29
"""Least room in /dev/shm for several processes of a host: NCCL exchanges through it, and docker's default is 64 MB."""
OPEN_FILES = 4096
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".arrow")
"""Names that end like this are files, and none of the hub's."""
FREE_SHARE = 0.9
"""Share of a GPU's memory that should be free before a run."""
clock: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class Expected:
    """The requirements of a run on its hosts.

    nodes: hosts. processes: on each, with a GPU each where ``gpu``. output: the run's directory, which all must see.
    room: bytes that its checkpoints will take. names: of the hosts by number, where they are known.
    """

    nodes: int
    processes: int
    gpu: bool
    output: Path
    room: float = 0.0
    names: Sequence[str] = ()

    def name(self, node: int) -> str:
        """Return what to call a host that has not reported."""
        return self.names[node] if node < len(self.names) else f"host {node}"


class Tried(BaseModel):
    """The findings of a host about the others. By their number: why it could not reach them; seconds they are ahead.

    sees: True if it saw host 0's file. disk: why that could not be written.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    unreached: dict[int, str] = {}
    ahead: dict[int, float] = {}
    sees: bool = True
    disk: str = ""


@dataclass(frozen=True)
class Checked:
    """The result on host 0. reports: by host's number; problems: errors stop a launch, warnings do not."""

    reports: Mapping[int, HostReport]
    problems: Sequence[Problem] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Return True if a launch would not fail for what was compared."""
        return all(problem.level != "error" for problem in self.problems)


# --- comparison ------------------------------------------------------------------------------------------------------


def compare(reports: Mapping[int, HostReport], tried: Mapping[int, Tried], expected: Expected) -> list[Problem]:
    """Return what differs between hosts and what a run will miss on one, each with its host and a fix."""
    found: list[Problem] = []
    for node in range(expected.nodes):
        if node not in reports:
            fix = "start the check there too; MASTER_ADDR and MASTER_PORT must be reachable from it"
            found.append(Problem(expected.name(node), "has not reported", fix))
    for report in reports.values():
        found += _alone(report, expected)
    found += _nowhere(reports)
    if 0 in reports:
        for node, report in reports.items():
            if node:
                found += _unlike(reports[0], report)
    found += _between(reports, tried, expected)
    return found


def _alone(report: HostReport, expected: Expected) -> Iterator[Problem]:
    """Yield what one host lacks, whatever the others have."""
    host, wanted = report.host, report.processes
    if expected.gpu and report.visible_gpus < wanted:
        listed = len(report.gpus)
        fix = (
            f"give --gpus {report.visible_gpus}, or free the others" if report.visible_gpus else "see nvidia-smi there"
        )
        if listed > report.visible_gpus:
            fix = f"nvidia-smi lists {listed}: see CUDA_VISIBLE_DEVICES, and whether torch is built for this driver"
        yield Problem(host, f"has {report.visible_gpus} GPUs that torch sees, and {wanted} are needed", fix)
    for number, gpu in enumerate(report.gpus):
        if gpu.mig:
            what = f"GPU {number} ({gpu.name}) is divided by MIG: a process gets one instance, and no NCCL between two"
            yield Problem(host, what, f"nvidia-smi -i {number} -mig 0", "warning")
        if gpu.ecc_errors:
            what = f"GPU {number} ({gpu.name}) has {gpu.ecc_errors} uncorrected ECC errors"
            yield Problem(host, what, "reset or replace it: what it computes cannot be trusted")
        if gpu.free < FREE_SHARE * gpu.memory:
            what = f"GPU {number} ({gpu.name}) has {gpu.free:,} of {gpu.memory:,} MiB free: something else runs there"
            yield Problem(host, what, "end it (nvidia-smi names the process), or choose other GPUs", "warning")
    if report.processes > 1 and report.shm < SHM_BYTES:
        what = f"has {format_bytes(report.shm)} in /dev/shm, through which {report.processes} processes exchange"
        yield Problem(host, what, "docker: --shm-size=8g; Kubernetes: an emptyDir of medium Memory at /dev/shm")
    for path, why in report.unreadable.items():
        yield Problem(host, f"{path} cannot be read: {why}", "let the user that starts the run read it there")
    for path in report.unread:
        what = f"{path} was not compared: it takes longer than {READ_SECONDS:g} s to read"
        yield Problem(host, what, "compare it by its size, or with sha256sum", "warning")
    files = report.limits.get("NOFILE", -1)
    if 0 <= files < OPEN_FILES:
        yield Problem(host, f"lets a process open {files} files", "ulimit -n 65536", "warning")
    locked = report.limits.get("MEMLOCK", -1)
    if expected.nodes > 1 and expected.gpu and locked >= 0:
        what = f"lets a process lock {format_bytes(locked)} of memory, and NCCL over InfiniBand locks its buffers"
        yield Problem(host, what, "ulimit -l unlimited", "warning")
    for name, value in report.variables.items():
        missing = [each for each in value.lstrip("^=").split(",") if each and not _has(report.interfaces, each)]
        if missing and not value.startswith("^"):
            there = ", ".join(sorted(report.interfaces)) or "none"
            yield Problem(host, f"{name} is {value}, and there is no such interface", f"there are: {there}")
    if not report.resolves:
        yield Problem(host, "cannot resolve its own name, which gloo does", f"add {host} to /etc/hosts there")
    elif expected.nodes > 1 and report.address.startswith("127."):
        what = f"its own name resolves to {report.address}: other hosts would look for it on themselves"
        others = [name for name, address in report.interfaces.items() if not address.startswith("127.")]
        yield Problem(host, what, f"set GLOO_SOCKET_IFNAME={others[0] if others else 'eth0'} there, or fix /etc/hosts")


def _nowhere(reports: Mapping[int, HostReport]) -> Iterator[Problem]:
    """Yield the files that no host has; what may be a name on the hub is fetched when training starts."""
    for path in sorted({path for report in reports.values() for path in report.content}):
        local = path.startswith(("/", "~", ".")) or Path(path).suffix in SUFFIXES
        if local and not any(report.content.get(path) or report.skipped(path) for report in reports.values()):
            yield Problem(path, "is on no host", "correct the path, or copy it to all of them")


def _has(interfaces: Iterable[str], named: str) -> bool:
    """Return True if an interface is named: NCCL takes prefixes."""
    return any(interface.startswith(named) for interface in interfaces)


def _unlike(first: HostReport, other: HostReport) -> Iterator[Problem]:
    """Yield what a host has otherwise than host 0."""
    host, where = other.host, f"{first.host} has"
    for name in sorted(first.versions.keys() | other.versions.keys()):
        ours, theirs = first.versions.get(name, "none"), other.versions.get(name, "none")
        if ours != theirs:
            fix = (
                f"install {name} {ours} there" if name not in ("python", "cuda") else "use one environment on all hosts"
            )
            yield Problem(host, f"has {name} {theirs}, and {where} {ours}", fix)
    if first.code != other.code and first.versions.get("align") == other.versions.get("align"):
        what = f"has other files of align than {first.host}, of the same version"
        yield Problem(host, what, "install or check out the same commit on all hosts")
    if first.driver != other.driver:
        what = f"has NVIDIA driver {other.driver or 'none'}, and {where} {first.driver or 'none'}"
        yield Problem(host, what, "install the same driver, or use hosts that have it", "warning")
    if first.run != other.run:
        what = f"reads another run file than {first.host}"
        yield Problem(host, what, "copy it there, or put it on the shared disk; give the same overrides")
    for path in first.content:
        if other.skipped(path):
            continue
        ours, theirs = first.content[path], other.content.get(path, "")
        if ours and not theirs:
            yield Problem(host, f"{path} is not there, and {where} it", "copy it there, or put it on the shared disk")
        elif theirs and not ours:
            yield Problem(first.host, f"{path} is not there, and {other.host} has it", "copy it there")
        elif ours != theirs:
            yield Problem(host, f"{path} has another content than on {first.host}", "copy it from there")
    ours_, theirs_ = (Counter((gpu.name, gpu.memory) for gpu in report.gpus) for report in (first, other))
    if ours_ != theirs_:
        what = f"has {_gpus(other)}, and {where} {_gpus(first)}"
        fix = "the slowest GPU sets the pace and the smallest the memory: use like hosts, or estimate with the smallest"
        yield Problem(host, what, fix, "warning")
    if first.processes != other.processes:
        what = f"has {other.processes} processes, and {where} {first.processes}"
        yield Problem(host, what, "start as many on each host")


def _between(reports: Mapping[int, HostReport], tried: Mapping[int, Tried], expected: Expected) -> Iterator[Problem]:
    """Yield what hosts found out about each other, and about the disk."""
    for node, report in reports.items():
        if node not in tried:
            yield Problem(report.host, "reported, and then did not answer any more", "see its output")
            continue
        for other, why in tried[node].unreached.items():
            to = reports.get(other)
            name = to.host if to is not None else expected.name(other)
            address = f" ({to.address}:{to.answers_at})" if to is not None else ""
            fix = "open the ports between the hosts, or name an interface that both share: GLOO_SOCKET_IFNAME, "
            yield Problem(report.host, f"cannot reach {name}{address}: {why}", f"{fix}NCCL_SOCKET_IFNAME")
        ahead = tried[node].ahead.get(0, 0.0)
        if node and abs(ahead) > CLOCK_SECONDS:
            what = f"its clock is {abs(ahead):.1f} s {'behind' if ahead > 0 else 'ahead of'} {reports[0].host}'s"
            yield Problem(report.host, what, "synchronise the clocks (chrony, ntpd)", "warning")
        if tried[node].disk:
            yield Problem(report.host, tried[node].disk, "choose another output, or make it writable")
        elif not tried[node].sees:
            what = f"does not see in {_existing(expected.output)} what {reports[0].host} writes there"
            yield Problem(report.host, what, "put output on a disk that all hosts mount under the same path")
    if 0 in reports and expected.room:
        free = _room(_existing(expected.output))
        if free < expected.room:
            left, needed = format_bytes(free), format_bytes(expected.room)
            what = f"{expected.output} has {left} left, and the run's checkpoints take {needed}"
            yield Problem(reports[0].host, what, "free some room, keep fewer (checkpoint.save_total_limit), or move it")


def _gpus(report: HostReport) -> str:
    kinds = Counter((gpu.name, gpu.memory) for gpu in report.gpus)
    named = [f"{count} x {name} of {memory:,} MiB" for (name, memory), count in kinds.items()]
    return " and ".join(named) or "no GPU"


def _existing(path: Path) -> Path:
    """Return the path, or the nearest directory above it that is there."""
    return next(each for each in (path, *path.parents) if os.path.exists(each))  # False where it may not look


def _room(path: Path) -> int:
    return shutil.disk_usage(path).free


# --- exchange --------------------------------------------------------------------------------------------------------


def exchange(
    node: int, expected: Expected, report: Callable[[int], HostReport], seconds: float = SECONDS
) -> Checked | None:
    """Meet the other hosts, and return the result on host 0, None on the others.

    report: makes this host's report, given the port at which it answers. Raises AlignError where the meeting point
    cannot be reached within ``seconds``.
    """
    until = time.monotonic() + seconds
    with _answering() as port:
        own = report(port)
        if expected.nodes == 1:
            with _probe(expected.output, secrets.token_hex(8)) as written:
                return Checked({0: own}, compare({0: own}, {0: Tried(disk=written)}, expected))
        store = _store(node, until)
        token = secrets.token_hex(8) if node == 0 else ""
        with _probe(expected.output, token) as written:
            if node == 0:
                _put(store, "token", "" if written else token)
            _put(store, f"report/{node}", own.model_dump_json())
            reports = _reports(store, expected, until - seconds / 2)
            named = _take(store, "token", until) or ""
            tried = _try(own, reports, named if named.isalnum() else "", expected, until)
            if node == 0 and written:
                tried = tried.model_copy(update={"disk": written})
            _put(store, f"tried/{node}", tried.model_dump_json())
            if node:
                if _take(store, "over", until) is None:
                    fix = "see its output; it may have ended, or the network between"
                    raise AlignError("did not end the check in time", fix, where=expected.name(0))
                _put(store, f"left/{node}", "1")
                return None
            found = {each: _read(Tried, _take(store, f"tried/{each}", until)) for each in reports}
            result = {each: found_ for each, found_ in found.items() if found_ is not None}
        checked = Checked(reports, compare(reports, result, expected))
        _put(store, "over", "1")
        for each in reports:
            if each:
                _take(store, f"left/{each}", time.monotonic() + LEAVE_SECONDS)  # the store ends with this process
        return checked


def _store(node: int, until: float) -> TCPStore:
    """Return the store at MASTER_ADDR and MASTER_PORT, served by host 0 unless its launcher does so."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = node == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    limit = timedelta(seconds=max(1.0, until - time.monotonic()))
    try:
        return TCPStore(address, port, None, serves, limit, wait_for_workers=False)
    except (RuntimeError, ValueError, OSError) as error:
        what = (
            f"cannot be {'served' if serves else 'reached'} from {socket.gethostname()}: {str(error).splitlines()[0]}"
        )
        fix = "another program has it: choose another --port" if serves else "see that host 0 runs, and open the port"
        raise AlignError(what, fix, where=f"{address}:{port}") from error


PREFIX = "align-placement/"


def _put(store: TCPStore, key: str, value: str) -> None:
    store.set(PREFIX + key, value)


def _take(store: TCPStore, key: str, until: float) -> str | None:
    """Return a value once it is there; None where it is not in time, or too large."""
    with suppress(RuntimeError):  # the time is over, or the store is gone
        store.wait([PREFIX + key], timedelta(seconds=max(0.1, until - time.monotonic())))
        value = store.get(PREFIX + key)
        if len(value) <= MOST_BYTES:
            return value.decode(errors="replace")
    return None


def _read(kind: type[Data], value: str | None) -> Data | None:
    """Return what another host sent, verified; None for what is no such data."""
    with suppress(ValidationError):
        return None if value is None else kind.model_validate_json(value)
    return None


def _reports(store: TCPStore, expected: Expected, until: float) -> dict[int, HostReport]:
    """Return the reports that come in time, by the number of their host."""
    found: dict[int, HostReport] = {}
    for node in range(expected.nodes):
        report = _read(HostReport, _take(store, f"report/{node}", until))
        if report is not None and report.node == node:
            found[node] = report
    return found


@contextmanager
def _answering() -> Iterator[int]:
    """Answer each connection with this host's clock; yields the port. All interfaces: training listens there too."""
    with socket.create_server(("", 0), backlog=128) as server:

        def answer() -> None:
            with suppress(OSError):  # closed at the end
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        connection.sendall(json.dumps(clock()).encode())

        threading.Thread(target=answer, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close alone does not


@contextmanager
def _probe(output: Path, token: str) -> Iterator[str]:
    """Write a file where the output will be, on host 0; yields why that failed, and removes the file at the end."""
    path = _file(output, token)
    try:
        if token:
            path.write_text(token)
    except OSError as error:
        yield f"cannot write into {path.parent}: {error.strerror}"
        return
    try:
        yield ""
    finally:
        if token:
            path.unlink(missing_ok=True)


def _file(output: Path, token: str) -> Path:
    return _existing(output) / f".align-placement-{token}"


def _sees(output: Path, token: str, until: float) -> bool:
    while True:
        with suppress(OSError):
            if _file(output, token).read_text() == token:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def _try(own: HostReport, reports: Mapping[int, HostReport], token: str, expected: Expected, until: float) -> Tried:
    """Reach every other host, and look for host 0's file."""
    others = {node: report for node, report in reports.items() if node != own.node}
    unreached, ahead = {}, {}
    with ThreadPoolExecutor(max(1, min(32, len(others)))) as pool:
        for node, answer in zip(others, pool.map(_ask_clock, others.values()), strict=True):
            if isinstance(answer, str):
                unreached[node] = answer
            else:
                ahead[node] = answer
    seen = not token or _sees(expected.output, token, min(until - 2.0, time.monotonic() + SEEN_SECONDS))
    return Tried(unreached=unreached, ahead=ahead, sees=seen)


def _ask_clock(report: HostReport) -> float | str:
    """Return the seconds that a host's clock is ahead of this one's, or why it cannot be reached."""
    try:
        before = clock()
        with socket.create_connection(
            (report.address or report.host, report.answers_at), CONNECT_SECONDS
        ) as connection:
            value = json.loads(connection.recv(64))
            return float(value) - (before + clock()) / 2
    except (OSError, ValueError, TypeError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
