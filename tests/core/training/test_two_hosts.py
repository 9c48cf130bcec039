"""Two hosts: network namespaces with addresses and host names of their own, joined by a virtual cable.

Only their disk is shared, as over NFS. Needs the right to make namespaces (root, or CAP_SYS_ADMIN and CAP_NET_ADMIN).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from align.core.config import run_file
from align.core.engine import checkpoint
from tests.core.ranks import environment, wait_for_step
from tests.core.runs import run_for, write_rows

TIMEOUT = 15
"""``devices.timeout``: most seconds in a collective. gloo's barrier waits three times as long."""


@dataclass(frozen=True)
class Host:
    """A network namespace. cable: its end of the cable."""

    name: str
    address: str
    cable: str

    def ip(self, *arguments: str) -> None:
        """Run ``ip`` inside."""
        subprocess.run(["ip", "-n", self.name, *arguments], check=True, capture_output=True, text=True)

    def start(self, node: int, head: str, file: Path, tmp: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start torchrun with one process. node: number of this host. head: address of the first."""
        torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        meeting = [f"--node-rank={node}", f"--master-addr={head}", "--master-port=29511"]
        program = ["-m", "align", "train", str(file), "--resume", "--quiet"]
        named = ["unshare", "--uts", "sh", "-c", f'hostname {self.name}; exec "$@"', "sh"]
        command = ["ip", "netns", "exec", self.name, *named, *torchrun, *meeting, *program]
        settings = {**environment(tmp), "GLOO_SOCKET_IFNAME": self.cable}
        with open(log, "wb") as out:
            return subprocess.Popen(command, env=settings, stdout=out, stderr=out)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs ip (iproute2) and unshare (util-linux)")
    number = os.getpid() % 100_000
    one, two = (Host(f"al-{number}-{end}", f"10.99.7.{i}", f"cable-{end}") for i, end in enumerate("ab", 1))
    try:
        try:
            for host in (one, two):
                subprocess.run(["ip", "netns", "add", host.name], check=True, capture_output=True, text=True)
            ends = [one.cable, "netns", one.name, "type", "veth", "peer", "name", two.cable, "netns", two.name]
            subprocess.run(["ip", "link", "add", *ends], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        for host in (one, two):
            host.ip("addr", "add", f"{host.address}/24", "dev", host.cable)
            host.ip("link", "set", "lo", "up")
            host.ip("link", "set", host.cable, "up")
        yield one, two
    finally:
        for host in (one, two):
            pids = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True).stdout.split()
            subprocess.run(["kill", "-9", *pids], capture_output=True) if pids else None
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def test_a_cut_cable_is_named_on_both_hosts_and_the_run_goes_on(
    hosts: tuple[Host, Host], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Both stop in time, each names the other with its step, and the same commands go on once the cable is back.

    The run ends with the bits of one over two processes of one host.
    """
    rows = write_rows("sft", tmp_path / "rows.jsonl")

    def written(name: str, **devices: Any) -> Path:
        sections = {"train": {"max_steps": 24}, "devices": {"strategy": {"type": "ddp"}, **devices}}
        file = tmp_path / f"{name}.yaml"
        file.write_text(run_file.dump(run_for("sft", tiny_model_dir, rows, tmp_path / name, **sections)))
        return file

    two_hosts = written("hosts", nodes=2, count=1, timeout=TIMEOUT)
    logs = [tmp_path / f"{host.name}.log" for host in hosts]

    def start() -> list[subprocess.Popen[bytes]]:
        head = hosts[0].address
        return [hosts[node].start(node, head, two_hosts, tmp_path, logs[node]) for node in (0, 1)]

    started = start()
    wait_for_step(started[0], tmp_path / "hosts", 4)
    hosts[0].ip("link", "set", hosts[0].cable, "down")
    for process in started:
        assert process.wait(3 * TIMEOUT + 120) != 0  # far more than it takes: a machine may be slow
    said = [log.read_text(errors="replace") for log in logs]
    saved = checkpoint.last_step(tmp_path / "hosts" / "only" / "checkpoints")
    for mine, other in ((0, 1), (1, 0)):
        lost = (
            rf"rank {mine} on {hosts[mine].name} \(step \d+\)\n    lost its connection to another process of the group"
        )
        assert re.search(rf"{lost}; on other machines: rank {other} on {hosts[other].name} \(step \d+\)\n", said[mine])
        assert f"step {saved} is saved\n    --resume goes on from there\n" in said[mine]

    hosts[0].ip("link", "set", hosts[0].cable, "up")
    for process, log in zip(start(), logs, strict=True):
        assert process.wait(240) == 0, log.read_text(errors="replace")
    one_host = written("host", count=2)
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.forked_ranks", str(one_host)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + one_host.with_suffix(".log").read_text()
    for file in ("metrics.csv", "export/model.safetensors"):
        here, there = ((tmp_path / name / "only" / file).read_bytes() for name in ("host", "hosts"))
        assert here == there, file
