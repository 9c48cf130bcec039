"""The hardware of this machine: what a run file's ``devices`` mean here, and what a brief's ``hardware`` would say.

Two ways lead to it, since torch takes seconds to import and ``align advise`` must not wait for it: torch, which sees
what training will get (``CUDA_VISIBLE_DEVICES`` included), and ``nvidia-smi``.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from align.schemas.errors import AlignError
from align.schemas.hardware import Hardware
from align.schemas.project import HardwareFacts
from align.schemas.run import Devices

COLLECTIVE_MARGIN = 30.0
"""Extra seconds for a collective's timeout, so that ``liveness`` ends the run first, naming the process."""
NVIDIA_SMI_SECONDS = 10


def detect(devices: Devices) -> Hardware:
    """Return what a run file's ``devices`` mean here: all GPUs, or one CPU process, unless it says how many.

    Nothing is started. A GPU that is asked for and not here has no name and a memory of 0 bytes: what is about to be
    checked or trained elsewhere may ask for it.
    """
    import torch

    cuda = devices.accelerator == "cuda" or (devices.accelerator == "auto" and torch.cuda.is_available())
    name, memory, found = "CPU", _main_memory(), 1
    if cuda:
        name, memory, found = "", 0, torch.cuda.device_count()
        if found:
            seen = torch.cuda.get_device_properties(0)
            name, memory = seen.name, seen.total_memory
    return Hardware(
        accelerator="cuda" if cuda else "cpu",
        devices=max(1, found) if devices.count == "auto" else devices.count,
        nodes=devices.nodes,
        memory=memory,
        timeout=devices.timeout + COLLECTIVE_MARGIN,
        name=name,
    )


def present(devices: Devices) -> Hardware:
    """Return what ``detect`` does. Raises AlignError where that is a GPU which is not here."""
    found = detect(devices)
    if found.memory == 0:
        raise AlignError(
            "is cuda, and there is no GPU here", "say which is meant: --device H100", where="devices.accelerator"
        )
    return found


def facts() -> HardwareFacts:
    """Return the GPUs that ``nvidia-smi`` lists (none where it is absent or does not answer), and main memory."""
    ram = round(_main_memory() / 1e9, 1)
    found = _gpus()
    if not found:
        return HardwareFacts(gpus=0, cpu_ram_gb=ram)
    # Of several kinds the smallest counts: every rank holds its share.
    memory, name = min(found)
    return HardwareFacts(gpus=len(found), gpu=name, memory_gb=memory, cpu_ram_gb=ram)


def _main_memory() -> int:
    """Return the bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> list[tuple[float, str]]:
    """Return each GPU's memory in GB and its name."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parsed(done.stdout)


def parsed(listed: str) -> list[tuple[float, str]]:
    """``81559, NVIDIA H100 80GB HBM3`` (MiB) as ``(85.5, "NVIDIA H100 80GB HBM3")``; other lines are left out."""
    rows = [line.partition(",") for line in listed.splitlines()]
    return [
        (round(int(memory) * 2**20 / 1e9, 1), name.strip()) for memory, _, name in rows if memory.strip().isdecimal()
    ]
