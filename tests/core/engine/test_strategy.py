"""Where a stage runs: what the run file's devices mean, and which strategy ``auto`` takes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.core.engine.processes import Strategy, first_host, footprint, join_slurm, launched
from align.core.models.load_and_export import build_policy
from align.core.models.reference import Snapshot
from align.core.plugin_system.registry import registry
from align.core.training.stage import resolve_strategy
from align.core.util.detect_hardware import detect, present
from align.schemas.errors import AlignError
from align.schemas.hardware import Footprint, Hardware
from align.schemas.run import Choice, Devices, Model, Stage

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
    with pytest.raises(AlignError, match="align launch RUN --nodes 2 --gpus 4"):
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


@pytest.mark.parametrize("strategy", ["fsdp", "auto"])
def test_float16_is_refused_where_the_weights_are_split(strategy: str) -> None:
    """Lightning's ModelParallelStrategy has no gradient scaler, and would end the run with a ValueError."""
    hardware, too_large = Hardware("cuda", 4, 1, GIB), Footprint(2 * GIB, 0)
    least = {"name": "sft", "model": {"path": "m"}, "data": {"train": "r"}, "devices": {"strategy": strategy}}
    half, bfloat16 = (
        Stage.model_validate({**least, "algorithm": "sft", "train": {"precision": precision}})
        for precision in ("16-mixed", "bf16-mixed")
    )
    with pytest.raises(AlignError, match=r"(?s)sft: train.precision\n.*16-mixed, and fsdp .*bf16-mixed"):
        resolve_strategy(half, hardware, too_large)
    assert resolve_strategy(bfloat16, hardware, too_large)[0].name == "fsdp"


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


SLURM = {
    "SLURM_JOB_ID": "7123456",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
}
"""The variables that Slurm sets for a task of ``srun`` (man srun, OUTPUT ENVIRONMENT VARIABLES)."""
GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def joined(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> dict[str, str]:
    """The group's variables after ``join_slurm`` in a task with these variables of Slurm's; None removes one."""
    monkeypatch.setattr(os, "environ", {})
    os.environ.update({name: value for name, value in (SLURM | changed).items() if value is not None})
    join_slurm()
    return {name: os.environ[name] for name in GROUP if name in os.environ}


def test_a_task_of_srun_is_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joined(monkeypatch) == {
        "RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "8",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "19560",
    }
    found = launched(Devices(accelerator="cpu"))
    assert (found.devices, found.nodes) == (8, 2)
    assert joined(monkeypatch, SLURM_STEP_ID="1")["MASTER_PORT"] == "19561"
    assert joined(monkeypatch, MASTER_ADDR="10.0.0.7", MASTER_PORT="4000")["MASTER_ADDR"] == "10.0.0.7"


def test_a_process_that_is_alone_in_its_step_or_in_none_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch script has SLURM_PROCID and SLURM_NTASKS too, and nobody would answer it."""
    assert joined(monkeypatch, SLURM_STEP_NUM_TASKS=None, SLURM_NTASKS="16", SLURM_PROCID="0") == {}
    assert joined(monkeypatch, SLURM_STEP_NUM_TASKS="1") == {}
    assert joined(monkeypatch, RANK="0", WORLD_SIZE="2") == {"RANK": "0", "WORLD_SIZE": "2"}  # torchrun in a task


def test_unequal_nodes_of_slurm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AlignError, match=r"(?s)16 tasks on 2 nodes as 9,7\n.*--ntasks-per-node"):
        joined(monkeypatch, SLURM_STEP_TASKS_PER_NODE="9,7")


@pytest.mark.parametrize(
    ("listed", "host"),
    [
        ("login1", "login1"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("a,b", "a"),
        ("rack[2-3]-node[010-011]", "rack2-node010"),
        ("gpu[3,5].cluster.local", "gpu3.cluster.local"),
    ],
)
def test_the_first_host_of_a_list_of_slurm(listed: str, host: str) -> None:
    assert first_host(listed) == host


def test_a_process_that_sees_one_gpu_of_several_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, local=8, world=8)
    monkeypatch.setenv("LOCAL_RANK", "3")
    properties = SimpleNamespace(name="H100", total_memory=80 * GIB)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(AlignError, match=r"(?s)process 3 of its node, and sees 1 GPU\n.*--gpus-per-node"):
        launched(Devices(accelerator="cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert launched(Devices(accelerator="cuda")).devices == 8


@pytest.mark.parametrize(
    ("state", "activations", "memory", "devices", "expected"),
    [
        (
            14.2,
            6.0,
            24,
            4,
            "ddp, because a whole replica (20.2 GB: 14.2 GB of states and about 6.0 GB of activations) fits the "
            "24.0 GB of a device, of which auto plans with 21.6 GB",
        ),
        (
            14.2,
            9.0,
            24,
            4,
            "fsdp, because a whole replica (23.2 GB: 14.2 GB of states and about 9.0 GB of activations) does not fit "
            "the 24.0 GB of a device, of which auto plans with 21.6 GB; "
            "split over 4 devices the states take 3.5 GB on each",
        ),
        (
            58.0,
            0.0,
            80,
            8,
            "fsdp, because 58.0 GB of states do not fit the 80.0 GB of a device, of which auto plans with 56.0 GB: ddp "
            "would need 58.0 GB of states, and activations; split over 8 devices the states take 7.2 GB on each",
        ),
    ],
)
def test_the_choice_is_explained_in_numbers(
    state: float, activations: float, memory: int, devices: int, expected: str
) -> None:
    hardware = Hardware("cuda", devices, 1, memory * 10**9)
    footprint = Footprint(round(state * 1e9), round(activations * 1e9))
    assert footprint.explain(footprint.choice(hardware), hardware) == expected


def test_a_choice_that_auto_did_not_make_is_said_to_be_anothers() -> None:
    hardware, footprint = Hardware("cuda", 4, 1, 80 * GIB), Footprint(8 * 10**9, 10**9)
    named = footprint.explain("fsdp", hardware, "run file")
    assert named.startswith("fsdp, because devices.strategy names it; the states take 2.0 GB on each of 4 devices")
    assert footprint.explain("mine", hardware, "plugin").startswith("mine, because a plugin chose it; a replica takes")


def test_auto_counts_what_the_reference_and_the_critic_hold(tiny_model_dir: Path) -> None:
    """PPO of a float32 model: three networks of states for the policy, as many for its critic, a copy as reference."""
    policy, _ = build_policy(Model(path=str(tiny_model_dir)), "language", seed=0, dropout=False)
    critic, _ = build_policy(Model(path=str(tiny_model_dir)), "reward", seed=0, dropout=False)
    reference = Snapshot(policy)
    numbers = [sum(p.numel() for p in network.parameters()) for network in (policy, critic)]
    found = footprint(policy, critic, others=reference.copied_bytes, activations=5)
    assert found == Footprint(4 * (4 * numbers[0] + 4 * numbers[1] + numbers[0]), 5)


def unasked() -> Strategy:
    raise AssertionError("a strategy that the run file names chooses no other")


def test_a_replica_is_split_over_a_number_of_devices_that_fills_the_run() -> None:
    hardware = Hardware("cuda", 4, 3, 80 * GIB)
    for given, size in ({}, 12), ({"shard_size": "node"}, 4), ({"shard_size": 6}, 6):
        fsdp: Any = registry.build("strategy", Choice(type="fsdp", settings=given))
        assert fsdp.resolve(hardware, Footprint(1, 0), unasked)._shard_size == size
    fsdp = registry.build("strategy", Choice(type="fsdp", settings={"shard_size": 8}))
    with pytest.raises(AlignError, match="is 8, and replicas of 8 devices do not fill the run's 12"):
        fsdp.resolve(hardware, Footprint(1, 0), unasked)
