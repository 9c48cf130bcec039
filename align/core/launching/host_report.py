"""One host's report about itself, for ``align launch --check``: what a run needs that may differ between hosts.

It is plain data, sent as JSON and verified when it arrives. Nothing in it is taken from another host.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
import resource
import shutil
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from align.core.util.detect_hardware import free_main_memory, nvidia_smi

GPU_FIELDS = "name,memory.total,memory.free,mig.mode.current,ecc.errors.uncorrected.volatile.total,driver_version"
"""The fields of ``nvidia-smi --query-gpu`` that ``parsed_gpus`` reads, in its order."""
WHOLE_BYTES = 2**24
"""Largest file that is hashed whole; of a larger one the size and both ends are, since weights take minutes to read."""
END_BYTES = 2**20
MOST_FILES = 1000
READ_SECONDS = 10.0
"""Seconds that reading files may take: with nvidia-smi's the report is still in time for the other hosts."""
PACKAGES = ("transformers", "lightning", "peft", "tokenizers", "safetensors")
"""Packages that change numbers or file formats; torch and vLLM are reported too."""
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_SIOCGIFADDR = 0x8915


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Gpu(_Report):
    """A GPU as nvidia-smi reports it. memory, free: MiB. mig: divided into instances. ecc_errors: uncorrected ones."""

    name: str = Field(max_length=200)
    memory: int
    free: int
    mig: bool = False
    ecc_errors: int = 0


class HostReport(_Report):
    """The report of a host about itself. Sizes are bytes, but for GPUs.

    node: its number, 0 is where all meet. address: by which other hosts find it, as gloo does. answers_at: the port
    that answers them. content: of each path that the run reads here, empty where it is not here. unreadable: paths that
    cannot be read, and why; unread: those that take too long; ``content`` has neither. limits: of open files and of
    locked memory, -1 for none. interfaces: name to IPv4 address.
    """

    node: int = Field(ge=0)
    host: str = Field(max_length=255)
    pid: int
    processes: int
    gpus: tuple[Gpu, ...] = ()
    visible_gpus: int = 0
    driver: str = ""
    versions: dict[str, str] = {}
    code: str = ""
    run: str = ""
    content: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    unread: tuple[str, ...] = ()
    memory_free: int = 0
    shm: int = 0
    limits: dict[str, int] = {}
    interfaces: dict[str, str] = {}
    variables: dict[str, str] = {}
    address: str = ""
    resolves: bool = True
    answers_at: int = 0

    def skipped(self, path: str) -> bool:
        """Return True for a path that is here and could not be read, so that it compares with nothing."""
        return path in self.unreadable or path in self.unread


def collect(
    node: int, processes: int, run: str, paths: Iterable[str], *, uses_vllm: bool = False, answers_at: int = 0
) -> HostReport:
    """Return this host's report. run: hash of the run file. paths: those that the run reads."""
    import torch

    import align

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: _version(name) for name in (*PACKAGES, *["vllm"] * uses_vllm)}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
        with suppress(Exception):  # torch may be built without it
            versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    gpus, driver = parsed_gpus(nvidia_smi(GPU_FIELDS))
    found = contents(paths, time.monotonic() + READ_SECONDS)
    interfaces = _interfaces()
    address = _gloo_address(interfaces)
    return HostReport(
        node=node,
        host=socket.gethostname(),
        pid=os.getpid(),
        processes=processes,
        gpus=gpus,
        visible_gpus=torch.cuda.device_count(),
        driver=driver,
        versions=versions | {"align": align.__version__},
        code=content(Path(align.__file__).parent, "*.py"),
        run=run,
        content=found.content,
        unreadable=found.unreadable,
        unread=tuple(found.unread),
        memory_free=free_main_memory(),
        shm=_free("/dev/shm"),
        limits={name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in ("NOFILE", "MEMLOCK")},
        interfaces=interfaces,
        variables={name: os.environ[name] for name in INTERFACE_VARIABLES if os.environ.get(name)},
        address=address or "",
        resolves=address is not None,
        answers_at=answers_at,
    )


@dataclass(frozen=True, slots=True)
class Contents:
    """The files that a run reads, as ``HostReport`` has them."""

    content: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def contents(paths: Iterable[str], until: float) -> Contents:
    """Return the hash of each path, or why there is none. until: when to stop reading, by the monotonic clock."""
    found = Contents()
    for path in paths:
        try:
            found.content[path] = content(Path(path).expanduser(), until=until)
        except TimeoutError:
            found.unread.append(path)
        except OSError as error:
            found.unreadable[path] = f"{error.strerror}: {error.filename}"
    return found


def content(path: Path, pattern: str = "*", until: float = math.inf) -> str:
    """Return a hash of a file, or of the files in a directory by name; empty where there is none.

    Of a file above 16 MiB its size and both ends count, so that two copies of a model are compared in seconds.
    Raises OSError for a file that cannot be read, and TimeoutError once ``until`` of the monotonic clock is over.
    """
    if not path.exists():
        return ""
    files = [path]
    if not path.is_file():
        files = sorted(file for file in _in_time(path.rglob(pattern), until) if file.is_file())[:MOST_FILES]
    found = hashlib.sha256()
    for file in _in_time(files, until):
        size = file.stat().st_size
        found.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_BYTES:
                found.update(stream.read())
            else:
                found.update(stream.read(END_BYTES))
                stream.seek(-END_BYTES, os.SEEK_END)
                found.update(stream.read())
    return found.hexdigest()[:16]


def _in_time(files: Iterable[Path], until: float) -> Iterator[Path]:
    """Yield the files. Raises TimeoutError once the time is over: part of a directory compares with nothing."""
    for file in files:
        if time.monotonic() > until:
            raise TimeoutError
        yield file


def parsed_gpus(listed: str) -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs and the driver of nvidia-smi's lines; ``[N/A]`` counts as none, other lines are left out."""
    found, driver = [], ""
    for line in listed.splitlines():
        columns = [column.strip() for column in line.split(",")]
        if len(columns) != 6 or not (columns[1].isdecimal() and columns[2].isdecimal()):
            continue
        name, memory, free, mig, errors, driver = columns
        count = int(errors) if errors.isdecimal() else 0
        found.append(Gpu(name=name, memory=int(memory), free=int(free), mig=mig == "Enabled", ecc_errors=count))
    return tuple(found), driver


def _version(package: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "not installed"


def _free(path: str) -> int:
    with suppress(OSError):
        return shutil.disk_usage(path).free
    return 0


def _interfaces() -> dict[str, str]:
    """Return the IPv4 address of every network interface that has one."""
    import fcntl

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def _gloo_address(interfaces: Mapping[str, str]) -> str | None:
    """Return the address that gloo gives the other processes; None where the host's name has none.

    It is that of GLOO_SOCKET_IFNAME, or else what the host's own name resolves to.
    """
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if named:
        return interfaces.get(named, "")
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None
