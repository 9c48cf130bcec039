"""``align launch --check``: every difference between hosts is named with its host and a fix, in bounded time."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import align
from align.core.config import run_file
from align.core.engine.processes import free_port
from align.core.launching import placement
from align.core.launching.host_report import Gpu, HostReport, content, contents, parsed_gpus
from align.core.launching.placement import Checked, Expected, Tried, compare, exchange
from tests.core.runs import run_for, write_rows

H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory=81_559, free=81_000)
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "align": "1.0", "transformers": "5.23.0", "vllm": "0.12.0"}


def report(node: int = 0, **changes: Any) -> HostReport:
    values: dict[str, Any] = {
        "node": node,
        "host": f"gpu-{node}",
        "pid": 1,
        "processes": 2,
        "gpus": (H100, H100),
        "visible_gpus": 2,
        "driver": "580.1",
        "versions": VERSIONS,
        "code": "c",
        "run": "r",
        "content": {"/models/base": "m", "rows.jsonl": "d"},
        "memory_free": 10**11,
        "shm": 10**10,
        "limits": {"NOFILE": 65_536, "MEMLOCK": -1},
        "interfaces": {"lo": "127.0.0.1", "eth0": f"10.0.0.{node + 1}"},
        "address": f"10.0.0.{node + 1}",
        "answers_at": 4000,
    }
    return HostReport(**(values | changes))


def expected(tmp_path: Path, **changes: Any) -> Expected:
    return replace(Expected(2, 2, True, tmp_path / "run", names=("gpu-0", "gpu-1")), **changes)


FINE: Mapping[int, Tried] = {0: Tried(ahead={1: 0.01}), 1: Tried(ahead={0: -0.01})}


def test_like_hosts_are_ready(tmp_path: Path) -> None:
    assert compare({0: report(), 1: report(1)}, FINE, expected(tmp_path)) == []


ALONE: dict[str, tuple[dict[str, Any], str, str]] = {
    "fewer GPUs": ({"visible_gpus": 1}, "error", "has 1 GPUs that torch sees, and 2 are needed"),
    "MIG": ({"gpus": (H100, H100.model_copy(update={"mig": True}))}, "warning", "GPU 1 (NVIDIA H100 80GB HBM3) is div"),
    "ECC": ({"gpus": (H100, H100.model_copy(update={"ecc_errors": 3}))}, "error", "has 3 uncorrected ECC errors"),
    "taken": ({"gpus": (H100, H100.model_copy(update={"free": 40_000}))}, "warning", "has 40,000 of 81,559 MiB free"),
    "other GPUs": ({"gpus": (Gpu(name="L4", memory=23_034, free=23_000),) * 2}, "warning", "has 2 x L4 of 23,034 MiB"),
    "shm": ({"shm": 67_108_864}, "error", "has 67.1 MB in /dev/shm"),
    "open files": ({"limits": {"NOFILE": 1024, "MEMLOCK": -1}}, "warning", "lets a process open 1024 files"),
    "locked memory": (
        {"limits": {"NOFILE": 65_536, "MEMLOCK": 65_536}},
        "warning",
        "lets a process lock 65.5 kB of memory",
    ),
    "interface": ({"variables": {"NCCL_SOCKET_IFNAME": "ib0"}}, "error", "NCCL_SOCKET_IFNAME is ib0, and there is no"),
    "its own name": ({"resolves": False, "address": ""}, "error", "cannot resolve its own name"),
    "loopback": ({"address": "127.0.1.1"}, "error", "its own name resolves to 127.0.1.1"),
    "torch": ({"versions": VERSIONS | {"torch": "2.12.0"}}, "error", "has torch 2.12.0, and gpu-0 has 2.13.0"),
    "vllm": ({"versions": {**VERSIONS, "vllm": "not installed"}}, "error", "has vllm not installed"),
    "python": ({"versions": VERSIONS | {"python": "3.12.1"}}, "error", "has python 3.12.1, and gpu-0 has 3.11.7"),
    "driver": ({"driver": "535.2"}, "warning", "has NVIDIA driver 535.2, and gpu-0 has 580.1"),
    "code": ({"code": "d"}, "error", "has other files of align than gpu-0, of the same version"),
    "run file": ({"run": "s"}, "error", "reads another run file than gpu-0"),
    "model": ({"content": {"/models/base": "", "rows.jsonl": "d"}}, "error", "/models/base is not there"),
    "rows": ({"content": {"/models/base": "m", "rows.jsonl": "e"}}, "error", "rows.jsonl has another content"),
    "unreadable": (
        {"content": {"rows.jsonl": "d"}, "unreadable": {"/models/base": "Permission denied: /models/base/config.json"}},
        "error",
        "/models/base cannot be read: Permission denied: /models/base/config.json",
    ),
    "slow disk": ({"content": {"rows.jsonl": "d"}, "unread": ("/models/base",)}, "warning", "was not compared"),
    "processes": ({"processes": 1}, "error", "has 1 processes, and gpu-0 has 2"),
}


@pytest.mark.parametrize("case", ALONE)
def test_each_difference_names_host_and_fix(case: str, tmp_path: Path) -> None:
    changes, level, words = ALONE[case]
    (problem,) = compare({0: report(), 1: report(1, **changes)}, FINE, expected(tmp_path))
    assert problem.where == "gpu-1" and words in problem.what and problem.fix and problem.level == level


TRIED: dict[str, tuple[Tried, str, str]] = {
    "unreached": (Tried(unreached={0: "timed out"}), "error", "cannot reach gpu-0 (10.0.0.1:4000): timed out"),
    "clock": (Tried(ahead={0: 90.0}), "warning", "its clock is 90.0 s behind gpu-0's"),
    "disk": (Tried(sees=False), "error", "what gpu-0 writes there"),
    "unwritable": (Tried(disk="cannot write into /runs: Read-only file system"), "error", "cannot write into /runs"),
}


@pytest.mark.parametrize("case", TRIED)
def test_what_hosts_find_out_about_each_other(case: str, tmp_path: Path) -> None:
    result, level, words = TRIED[case]
    (problem,) = compare({0: report(), 1: report(1)}, {0: FINE[0], 1: result}, expected(tmp_path))
    assert problem.where == "gpu-1" and words in problem.what and problem.fix and problem.level == level


def test_a_host_that_falls_silent_and_a_disk_that_is_too_small(tmp_path: Path) -> None:
    (gone,) = compare({0: report(), 1: report(1)}, {0: FINE[0]}, expected(tmp_path))
    assert gone.where == "gpu-1" and "did not answer any more" in gone.what
    (small,) = compare({0: report(), 1: report(1)}, FINE, expected(tmp_path, room=1e18))
    assert small.where == "gpu-0" and "the run's checkpoints take 1,000,000,000 GB" in small.what


def test_a_file_that_no_host_has(tmp_path: Path) -> None:
    paths = {"/models/base": "", "org/model": "", "rows.jsonl": ""}
    both = {node: report(node, content=paths) for node in (0, 1)}
    found = compare(both, FINE, expected(tmp_path))
    assert [(problem.where, problem.what) for problem in found] == [
        ("/models/base", "is on no host"),
        ("rows.jsonl", "is on no host"),
    ]


def test_what_nvidia_smi_prints() -> None:
    gpus, driver = parsed_gpus(
        "NVIDIA H100 80GB HBM3, 81559, 81000, Disabled, 0, 580.1\nNVIDIA L4, 23034, 22000, [N/A], [N/A], 580.1\nNo x\n"
    )
    assert gpus == (H100, Gpu(name="NVIDIA L4", memory=23_034, free=22_000)) and driver == "580.1"
    assert parsed_gpus("A100, 40960, 40000, Enabled, 2, 1")[0] == (
        Gpu(name="A100", memory=40_960, free=40_000, mig=True, ecc_errors=2),
    )


def test_content_of_large_files_is_told_by_size_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.core.launching.host_report.WHOLE_BYTES", 100)
    monkeypatch.setattr("align.core.launching.host_report.END_BYTES", 10)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(1000))
    before = content(tmp_path)
    assert before == content(tmp_path) and content(tmp_path / "nothing") == ""
    for changed in (bytes(1001), b"x" + bytes(999), bytes(999) + b"x"):
        file.write_bytes(changed)
        assert content(tmp_path) != before


def test_a_path_that_cannot_be_read_leaves_the_rest_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model that another user downloaded, or a directory with more files than the time allows."""
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("{}")
    opened: Any = Path.open

    def refused(path: Path, mode: str) -> Any:
        if path.parent.name == "theirs":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", refused)
    mine, theirs, gone = (str(tmp_path / name) for name in ("mine", "theirs", "gone"))
    read = contents([mine, theirs, gone], time.monotonic() + 60)
    assert read.content == {mine: content(tmp_path / "mine"), gone: ""} and read.unread == []
    assert read.unreadable == {theirs: f"Permission denied: {theirs}/rows.jsonl"}
    late = contents([mine, gone], time.monotonic() - 1)
    assert (late.content, late.unread, late.unreadable) == ({gone: ""}, [mine], {})


def test_an_output_below_a_directory_that_may_not_be_entered_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if Path(str(path)).is_relative_to(tmp_path / "closed" / "run"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "stat", stat)
    assert placement._existing(tmp_path / "closed" / "run" / "first") == tmp_path / "closed"


def test_a_report_is_data_or_nothing() -> None:
    for bad in ('{"node": 0}', "[]", '{"__reduce__": "os.system"}', report().model_dump_json()[:-1] + ', "more": 1}'):
        assert placement._read(HostReport, bad) is None
    with pytest.raises(ValidationError):
        HostReport(**(report().model_dump() | {"pid": "1"}))


def meet(reports: Mapping[int, Any], wanted: Expected, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Checked:
    """Run each host in a thread of this process, which then is host 0."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    made = {node: lambda port, changes=changes, node=node: report(node, answers_at=port, **changes)
            for node, changes in reports.items()}  # fmt: skip
    others = [
        threading.Thread(target=exchange, args=(node, wanted, made[node], seconds), daemon=True)
        for node in reports
        if node
    ]
    for other in others:
        other.start()
    checked = exchange(0, wanted, made[0], seconds)
    for other in others:
        other.join(seconds)
    assert checked is not None
    return checked


def test_hosts_meet_and_reach_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"address": "127.0.0.1"}
    wanted = expected(tmp_path, processes=2)
    checked = meet({0: here, 1: here}, wanted, monkeypatch, 30)
    assert sorted(checked.reports) == [0, 1]
    assert {problem.what[:29] for problem in checked.problems} == {"its own name resolves to 127."}
    assert list(tmp_path.iterdir()) == []  # the probe of the disk is removed


def test_one_machine_alone_must_be_able_to_write_its_output(tmp_path: Path) -> None:
    checked = exchange(0, expected(tmp_path, nodes=1, output=Path("/proc/run")), lambda _: report())
    assert checked is not None and not checked.ready
    assert [problem.what[:23] for problem in checked.problems] == ["cannot write into /proc"]


def test_a_host_that_never_reports_is_named_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = meet({0: {"address": "127.0.0.1"}}, expected(tmp_path), monkeypatch, 4)
    assert not checked.ready
    assert [problem.where for problem in checked.problems if "has not reported" in problem.what] == ["gpu-1"]


def test_a_port_that_is_closed_is_named_with_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        closed = {"address": "127.0.0.1", "answers_at": taken.getsockname()[1]}
        tried = placement._try(report(), {0: report(), 1: report(1, **closed)}, "", expected(tmp_path), 0.0)
    assert tried.unreached == {1: "Connection refused"}


CLOCK = """
import sys, time
from align.core.launching import placement
placement.clock = lambda: time.time() + 90
from align.cli import main
main(sys.argv[1:])
"""


def test_two_processes_as_hosts_with_real_differences(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Another checkout, run file, output, interface and clock on the second host, which all are named by the first."""
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    files = []
    for node in (0, 1):
        (tmp_path / f"disk{node}").mkdir()
        run = run_for("sft", tiny_model_dir, rows, tmp_path / f"disk{node}" / "run", devices={"accelerator": "cpu"})
        files.append(tmp_path / f"run{node}.yaml")
        files[node].write_text(run_file.dump(run))
    checkout = tmp_path / "checkout"
    shutil.copytree(Path(align.__file__).parent, checkout / "align", ignore=shutil.ignore_patterns("__pycache__"))
    changed = checkout / "align" / "rl.py"
    changed.write_text("# a change that nobody committed\n" + changed.read_text())
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = [
        {"RANK": "0", "PYTHONPATH": str(Path(align.__file__).parents[1]), "GLOO_SOCKET_IFNAME": "lo"},
        {"RANK": "1", "PYTHONPATH": str(checkout), "GLOO_SOCKET_IFNAME": "nope0"},
    ]
    hosts = [
        subprocess.Popen(
            [sys.executable, *program, "launch", str(file), "--check", "--gpus", "1"],
            env=os.environ | common | environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for program, file, environment in zip((["-m", "align"], ["-c", CLOCK]), files, own, strict=True)
    ]
    (printed, errors), (_, other_errors) = (host.communicate(timeout=200) for host in hosts)
    assert [host.returncode for host in hosts] == [1, 0], errors + other_errors
    for words in (
        "has other files of align than",
        "reads another run file than",
        "does not see in",
        "GLOO_SOCKET_IFNAME is nope0, and there is no such interface",
        "s ahead of",
        "2 hosts reported; ",
    ):
        assert words in printed, printed
