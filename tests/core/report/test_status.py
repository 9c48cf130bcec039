"""``align status``: what it says of runs in every state, from their directories alone; the processes are real ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from align.cli import main
from align.core.config import run_file
from align.core.report import status
from align.core.report.status import read_status
from align.core.util import atomic_files, event_log, signs_of_life
from align.core.util.event_log import EventLog
from tests.core.runs import run_for
from tests.core.work import environment_here

HOST = socket.gethostname()
WINDOW = {"last_step": 20, "steps": 10, "tokens_per_second": 50.0}
FAST, SLOW = ({"data": data, "compute": 1.0, "wait": 1.0 - data} for data in (0.0, 1.0))


class Directory:
    """A run's directory as training leaves it, with processes that only exist."""

    def __init__(self, path: Path) -> None:
        self.path, self.stage = path, path / "only"
        self.processes: list[subprocess.Popen[bytes]] = []
        path.mkdir()
        run = run_for("sft", path / "model", path / "rows.jsonl", path)
        (path / "run.yaml").write_text(run_file.dump(run))
        manifest = {"stages": {"only": {"steps": 50, "alarms": ["phase 3: rewards fall"]}}}
        atomic_files.write_json(path / "manifest.json", manifest)

    def process(self) -> int:
        self.processes.append(subprocess.Popen(["sleep", "1000"]))
        return self.processes[-1].pid

    def sign(self, rank: int, **facts: Any) -> None:
        place = self.stage / signs_of_life.RANKS / f"{rank}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        known = {"host": HOST, "step": 21, "total": 50, "beat": 3, "steady": True, "part": "backward"}
        place.write_text(json.dumps(known | facts))

    def log(self, rank: int, *events: str, **fields: Any) -> EventLog:
        log = EventLog(event_log.place(self.stage, rank), rank, HOST)
        log.write("start", pid=1, world=2)
        for event in events:
            log.write(event, **({"step": 21} | fields))
        return log

    def checkpoint(self, step: int) -> Path:
        place = self.stage / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True)
        atomic_files.write_json(place / "MANIFEST.json", {"step": step})
        return place

    def ask(self, *options: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["status", str(self.path), *options])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return done.exit_code, done.output


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Directory]:
    made = Directory(tmp_path / "run")
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def test_a_run_that_goes_on(run: Directory) -> None:
    """Alive, step, rate, time left, last checkpoint, alarms, each rank's throughput, and the one that is slow."""
    run.checkpoint(10)
    run.checkpoint(20)
    for rank, seconds in enumerate((FAST, SLOW)):
        run.sign(rank, pid=run.process(), window={**WINDOW, "seconds": seconds})
        run.log(rank, "step")
    code, said = run.ask()
    assert code == 0
    assert said.splitlines()[:2] == [
        f"{run.path}: running",
        "  only: running  step 21 of 50  2 s a step  0:01:00 left  step 20 is saved",
    ]
    assert f"    rank 1 on {HOST} is the slowest: 2.00 s a step without waiting, the others 1.00 s" in said
    assert "    phase 3: rewards fall\n" in said
    assert f"rank 0 on {HOST} (pid {run.processes[0].pid}): running  step 21  in backward  50 tok/s" in said
    assert "s a step: data 1.00, compute 1.00" in said
    shown = json.loads(run.ask("--json")[1])
    assert shown["state"] == "running" and shown["stages"][0]["seconds_left"] == 60.0
    assert [rank["state"] for rank in shown["stages"][0]["ranks"]] == ["running", "running"]


@pytest.mark.parametrize(("number", "state"), [(signal.SIGSTOP, "stopped"), (signal.SIGKILL, "gone")])
def test_a_run_of_which_one_process_is_stopped_or_gone_is_stalled(run: Directory, number: int, state: str) -> None:
    for rank in (0, 1):
        run.sign(rank, pid=run.process())
        run.log(rank, "step")
    os.kill(run.processes[1].pid, number)
    if number == signal.SIGKILL:
        run.processes[1].wait()
    else:
        os.waitpid(run.processes[1].pid, os.WUNTRACED)
    code, said = run.ask()
    assert code == 1 and said.startswith(f"{run.path}: stalled\n")
    assert f"    rank 1 on {HOST} (step 21) is {state}\n" in said


def test_a_step_that_does_not_end_is_a_stall(run: Directory) -> None:
    run.sign(0, pid=run.process())
    run.log(0, "step", "stall", what="no step has ended for 90 s: rank 0 is in data")
    assert run.ask()[0] == 1
    found = read_status(run.path)
    assert (found.state, found.stages[0].why) == ("stalled", "no step has ended for 90 s: rank 0 is in data")
    EventLog(event_log.place(run.stage, 0), 0, HOST).write("step", step=22)
    assert read_status(run.path).state == "running"


def test_a_run_that_was_killed_left_no_reason(run: Directory) -> None:
    """With its signs, as after a power cut; without them, where a supervisor was left to remove them."""
    run.checkpoint(20)
    run.log(0, "step")
    pid = run.process()
    run.processes[0].kill()
    run.processes[0].wait()
    run.sign(0, pid=pid)
    code, said = run.ask()
    assert code == 1 and f"rank 0 on {HOST} (step 21) is gone: it ended and left no reason, as after SIGKILL" in said
    run.sign(0, pid=os.getpid())
    os.utime(run.stage / signs_of_life.RANKS / "0.json", (1e9, 1e9))
    assert read_status(run.path).stages[0].ranks[0].state == "gone", "another process has its number now"
    (run.stage / signs_of_life.RANKS / "0.json").unlink()
    found = read_status(run.path)
    assert (found.state, found.stages[0].why) == ("failed", "rank 0: it ended and left no reason, as after SIGKILL")
    assert found.stages[0].checkpoint == 20


@pytest.mark.parametrize(
    ("events", "state", "why"),
    [
        ([("end", {"status": "stopped by SIGTERM after step 20, which is saved"})], "stopped", "stopped by SIGTERM"),
        ([("end", {"status": 143})], "stopped", "it ended with status 143"),
        ([("error", {"kind": "ValueError", "what": "bad row"}), ("end", {"status": "failed"})], "failed", "bad row"),
        ([("alarm", {"what": "rank 1 on gpu-7 is lost"}), ("end", {"status": 2})], "failed", "rank 1 on gpu-7"),
        ([("error", {"kind": "ProcessLost", "what": "x"}), ("end", {"status": "failed"})], "failed", ""),
    ],
)
def test_a_run_that_ended_says_why(
    run: Directory, events: list[tuple[str, dict[str, Any]]], state: str, why: str
) -> None:
    log = run.log(0)
    for event, fields in events:
        log.write(event, **fields)
    found = read_status(run.path)
    assert found.state == state and found.stages[0].why.startswith(why)
    assert run.ask()[0] == 1


def test_a_finished_run_and_one_that_never_started(run: Directory) -> None:
    assert run.ask() == (1, f"{run.path}: not started\n  only: not started\n    phase 3: rewards fall\n")
    run.stage.mkdir()
    atomic_files.write_json(run.stage / "done.json", {"metrics": {}})
    assert run.ask()[0] == 0 and read_status(run.path).stages[0].step == 50


def test_a_process_of_another_machine_is_alive_if_its_signs_count_up(
    run: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WATCHED_SECONDS", 60.0)
    run.sign(0, pid=5, host="gpu-7")
    counted = iter(range(4, 1000))

    def signs(directory: Path) -> dict[int, signs_of_life.Sign]:
        return {0: signs_of_life.Sign("gpu-7", 5, beat=next(counted))}

    monkeypatch.setattr(status, "read_signs", signs)
    assert read_status(run.path).state == "running"
    monkeypatch.setattr(status, "WATCHED_SECONDS", 0.0)
    found = read_status(run.path)
    assert (found.state, found.stages[0].ranks[0].state) == ("failed", "silent")


def test_damaged_files_are_named_and_cost_no_more_than_themselves(run: Directory) -> None:
    run.checkpoint(10)
    (run.checkpoint(20) / "MANIFEST.json").write_text("{}")
    run.log(0, "step")
    log = event_log.place(run.stage, 0)
    log.write_bytes(log.read_bytes().replace(b'"world": 2', b'"world": 9'))
    (run.stage / signs_of_life.RANKS).mkdir()
    (run.stage / signs_of_life.RANKS / "0.json").write_text("{")
    code, said = run.ask()
    assert code == 1 and "step 10 is saved" in said
    assert f"damaged: {log}: line 1: its content differs from its sha256" in said
    assert "step-00000020/MANIFEST.json: it has no sha256" in said


def test_no_run_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert done.exit_code == 2 and "has no run.yaml" in done.stderr


def test_hostile_words_in_a_directory_do_not_steer_the_terminal(run: Directory) -> None:
    run.sign(0, pid=run.process(), host="\x1b[31mgpu", doing="\x1b]0;x\x07")
    assert "\x1b" not in run.ask()[1]


def test_stacks_are_asked_of_those_that_run(run: Directory) -> None:
    code, told = run.ask("--stacks")
    assert code == 1 and told.startswith("no process of the run is there to write its stacks")
    run.sign(0, pid=run.process())
    assert run.ask("--stacks") == (0, f"{run.stage}/logs/rank-0.stack\n")
    assert (run.stage / signs_of_life.RANKS / "stacks").exists()


def test_it_imports_nothing_heavy(run: Directory) -> None:
    heavy = ("torch", "numpy", "transformers", "lightning", "pyarrow")
    program = f"import sys\nfrom align.api.status import status\nstatus({str(run.path)!r})\n"
    program += f"print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", program], env=environment_here(), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
