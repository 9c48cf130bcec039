"""The hardware of this machine: what a run file's ``devices`` mean here, and what a brief's ``hardware`` would say.

Two ways lead to it, since torch takes seconds to import and ``align advise`` must not wait for it: torch, which sees
what training will get (``CUDA_VISIBLE_DEVICES`` included), and ``nvidia-smi``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from align.schemas.errors import AlignError, Problem
from align.schemas.hardware import Hardware
from align.schemas.project import HardwareFacts
from align.schemas.run import Devices

COLLECTIVE_MARGIN = 30.0
"""Extra seconds for a collective's timeout, so that ``liveness`` ends the run first, naming the process."""
NVIDIA_SMI_SECONDS = 10
"""Seconds for nvidia-smi to answer: it hangs on a broken driver."""


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


def free_main_memory() -> int:
    """Return the bytes of main memory that can be had without swapping: the page cache counts, as it gives way."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(value.split()[0])
    return 0


def slow_precision(hardware: Hardware, precision: str, dtype: str) -> list[Problem]:
    """Return a warning if a run computes in bfloat16 on an x86 processor that has no instructions for it.

    precision: ``train.precision``; dtype: ``model.dtype``. Products of matrices then run at an eighth of float32's
    speed (AMD Zen 3: 9 against 80 GFLOP/s); with AVX512_BF16 at 2.4 times it (AMD Zen 4: 195 against 80).
    """
    setting = f"train.precision: {precision}" if precision.startswith("bf16") else ""
    if dtype == "bfloat16" and not setting:
        setting = "model.dtype: bfloat16"
    if hardware.accelerator != "cpu" or not setting:
        return []
    import torch

    has = torch.cpu.get_capabilities()
    if has["architecture"] != "x86_64" or has["avx512_bf16"] or has["amx_bf16"]:
        return []
    what = "is about 8 times slower than float32 on this processor, which has neither AVX512_BF16 nor AMX"
    return [Problem(setting, what, "train.precision: 32-true and model.dtype: float32", "warning")]


def facts() -> HardwareFacts:
    """Return the GPUs that ``nvidia-smi`` lists (none where it is absent or does not answer), and main memory."""
    ram = round(_main_memory() / 1e9, 1)
    found = parsed(nvidia_smi("memory.total,name"))
    if not found:
        return HardwareFacts(gpus=0, cpu_ram_gb=ram)
    # Of several kinds the smallest counts: every rank holds its share.
    memory, name = min(found)
    return HardwareFacts(gpus=len(found), gpu=name, memory_gb=memory, cpu_ram_gb=ram)


def _main_memory() -> int:
    """Return the bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def nvidia_smi(fields: str) -> str:
    """Return what ``nvidia-smi --query-gpu=FIELDS`` prints: for each GPU a line of values, sizes in MiB.

    Empty where it is absent, fails, or takes longer than ``NVIDIA_SMI_SECONDS``.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def parsed(listed: str) -> list[tuple[float, str]]:
    """``81559, NVIDIA H100 80GB HBM3`` (MiB) as ``(85.5, "NVIDIA H100 80GB HBM3")``; other lines are left out."""
    rows = [line.partition(",") for line in listed.splitlines()]
    return [
        (round(int(memory) * 2**20 / 1e9, 1), name.strip()) for memory, _, name in rows if memory.strip().isdecimal()
    ]
