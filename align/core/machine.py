"""What this machine has to compute on, asked without torch."""

from __future__ import annotations

import os
import shutil
import subprocess

from align.schemas.project import HardwareFacts

SECONDS = 10


def here() -> HardwareFacts:
    """GPUs by ``nvidia-smi`` (none where it is not there or does not answer), and main memory."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = _gpus()
    if not found:
        return HardwareFacts(gpus=0, cpu_ram_gb=round(ram, 1))
    # Of several kinds the smallest counts: every rank holds its share.
    memory, name = min(found)
    return HardwareFacts(gpus=len(found), gpu=name, memory_gb=memory, cpu_ram_gb=round(ram, 1))


def _gpus() -> list[tuple[float, str]]:
    """(memory in GB, name) of each."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    asked = [tool, "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parsed(done.stdout)


def parsed(listed: str) -> list[tuple[float, str]]:
    """``81559, NVIDIA H100 80GB HBM3`` (MiB) as ``(85.5, "NVIDIA H100 80GB HBM3")``; other lines are left out."""
    rows = [line.partition(",") for line in listed.splitlines()]
    return [
        (round(int(memory) * 2**20 / 1e9, 1), name.strip()) for memory, _, name in rows if memory.strip().isdecimal()
    ]
