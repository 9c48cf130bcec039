"""Where a stage runs: what the run file's devices mean, and which strategy ``auto`` takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from align.core.engine.processes import Strategy, launched
from align.core.plugin_system.registry import registry
from align.core.util.detect_hardware import detect, present
from align.schemas.errors import AlignError
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Choice, Devices

GIB = 2**30


def started(monkeypatch: pytest.MonkeyPatch, local: int, world: int) -> None:
    for name, value in (("RANK", 0), ("LOCAL_WORLD_SIZE", local), ("WORLD_SIZE", world)):
        monkeypatch.setenv(name, str(value))


def test_a_cpu_run_is_one_process_unless_it_says_more() -> None:
    assert launched(Devices(accelerator="cpu")).world_size == 1
    assert launched(Devices(accelerator="cpu", count=3)).world_size == 3


def test_torchrun_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, local=2, world=4)
    found = launched(Devices(accelerator="cpu"))
    assert (found.devices, found.nodes) == (2, 2)
    with pytest.raises(AlignError, match="asks for 3 processes on 1 nodes, but 2 on 2 were started"):
        launched(Devices(accelerator="cpu", count=3))


def test_several_nodes_need_a_launcher() -> None:
    with pytest.raises(AlignError, match="torchrun --nnodes=2 --nproc-per-node=4"):
        launched(Devices(accelerator="cpu", nodes=2, count=4))


@pytest.mark.parametrize(
    ("devices", "state", "expected"), [(1, 500, "single"), (4, 50, "ddp"), (4, 55, "ddp"), (4, 57, "fsdp")]
)
def test_auto_shards_what_does_not_fit(devices: int, state: int, expected: str) -> None:
    """A replica may take 70% of an 80 GiB device: 56."""
    hardware, footprint = Hardware("cuda", devices, 1, 80 * GIB), Footprint(state * GIB, 0)
    auto: Strategy = registry.build("strategy", Choice(type="auto"))

    def choose() -> Strategy:
        name = registry.first("choose_strategy", hardware=hardware, footprint=footprint)
        chosen: Strategy = registry.build("strategy", Choice(type=name))
        return chosen

    assert auto.resolve(hardware, footprint, choose).name == expected


def test_single_refuses_more_than_one() -> None:
    single: Strategy = registry.build("strategy", Choice(type="single"))
    with pytest.raises(AlignError, match="but the run has 2 devices"):
        single.resolve(Hardware("cpu", 2, 1, GIB), Footprint(0, 0), lambda: single)


def test_one_type_describes_the_hardware_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, the launch check and estimates get the same value; only torchrun's group changes it."""
    monkeypatch.delenv("RANK", raising=False)
    devices = Devices(accelerator="cpu", count=2)
    assert detect(devices) == present(devices) == launched(devices)
    started(monkeypatch, local=2, world=6)
    assert launched(devices) == replace(detect(devices), nodes=3)


def test_a_gpu_that_is_not_here_can_be_checked_for_but_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    found = launched(Devices(accelerator="cuda"))
    assert (found.accelerator, found.devices, found.memory, found.name) == ("cuda", 1, 0, "")
    with pytest.raises(AlignError, match="is cuda, and there is no GPU here"):
        present(Devices(accelerator="cuda"))
