"""Processes that die, stop or hang: who is named, what is saved, and that no wait is without an end.

The groups are real: two gloo processes on this machine. Their work is small, and what is waited for is an event (a
checkpoint, a line on stderr), never a time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.core.config import run_file
from align.core.engine import checkpoint, processes
from align.core.engine.callbacks import Interrupted
from align.core.report.status import read_status
from align.core.training.failures import explained_failures, worker_failed
from align.core.training.run_directory import StageDirectory
from align.core.util import event_log, liveness, signs_of_life, stopping
from align.core.util.event_log import read_events
from align.core.util.liveness import Limits
from align.core.util.signs_of_life import Sign
from align.core.util.stopping import ProcessLost
from align.schemas.errors import AlignError
from align.schemas.run import Devices
from tests.core.ranks import alive, environment, wait_for_step, workers_of
from tests.core.runs import run_for, write_rows
from tests.core.work import environment_here

HOST = socket.gethostname()

HANGS = """
import os, time

def hangs(completions, **_):
    if os.environ.get("RANK", "0") == os.environ["HANGING_RANK"]:
        time.sleep(1e6)
    return [float(len(completion)) for completion in completions]
"""


def start(tmp: Path, algorithm: str, model: Path, **sections: Any) -> subprocess.Popen[bytes]:
    """``align train`` in a process of its own, its stderr kept."""
    rows = write_rows(algorithm, tmp / f"{algorithm}.jsonl")
    file = tmp / "run.yaml"
    file.write_text(run_file.dump(run_for(algorithm, model, rows, tmp / "run", **sections)))
    command = [sys.executable, "-W", "ignore", "-m", "align", "train", str(file), "--quiet"]
    return subprocess.Popen(command, env=environment(tmp), stderr=subprocess.PIPE)


def ended(started: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit status and stderr."""
    _, said = started.communicate(timeout=240)
    assert b"Traceback" not in said, said.decode()
    return started.returncode, said.decode()


def test_a_stopped_rank_is_waited_for_only_so_long(tiny_model_dir: Path, tmp_path: Path) -> None:
    """It is named with its machine and step by the rank that waits; the step before is saved, and nobody is left over.

    The other's stacks and log are there, and ``align status`` says why the run ended.

    (A rank that is killed: test_distributed's test_signals_and_deaths_on_any_rank_lose_nothing.)
    """
    stage = tmp_path / "run" / "only"
    started = start(
        tmp_path, "sft", tiny_model_dir, devices={"count": 2, "heartbeat": 20}, train={"num_train_epochs": 40}
    )
    wait_for_step(started, tmp_path / "run", 2)
    workers = workers_of(started.pid)
    os.kill(workers[1], signal.SIGSTOP)
    status, said = ended(started)
    step = checkpoint.last_step(stage / "checkpoints")
    assert status == 2
    assert f"rank 1 on {HOST} (" in said and f"; rank 0 on {HOST} gives up waiting for it\n" in said
    assert "has given no sign of life for" in said and "devices.heartbeat" in said
    assert said.endswith(
        f"{stage}\n    a worker stopped for the reason above\n{stage}\n    step {step} is saved\n"
        "    --resume goes on from there\n"
    )
    assert not [pid for pid in workers if alive(pid)]
    assert checkpoint.verify(checkpoint.at(stage / "checkpoints", step)) is None
    assert not (stage / signs_of_life.RANKS).exists()
    (alarm,) = [event for event in read_events(event_log.place(stage, 0)) if event["event"] == "alarm"]
    assert f"rank 1 on {HOST} (" in alarm["what"] and f"stacks of all ranks: {stage}/logs/rank-*.stack" in said
    assert "trainer.py" in signs_of_life.stacks_of(stage, 0).read_text()
    found = read_status(tmp_path / "run")
    assert (found.state, found.stages[0].checkpoint) == ("failed", step)
    assert f"rank 1 on {HOST} (" in found.stages[0].why


def test_a_reward_that_hangs_on_one_rank_is_named_with_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    reward = {"type": "python", "file": str(tmp_path / "hangs.py"), "function": "hangs"}
    rollout = {"rewards": [reward], "sampling": {"max_completion_length": 4}}
    os.environ["HANGING_RANK"] = "1"
    try:
        started = start(tmp_path, "grpo", tiny_model_dir, devices={"count": 2, "timeout": 20}, rollout=rollout)
    finally:
        del os.environ["HANGING_RANK"]
    status, said = ended(started)
    assert status == 2
    assert (
        f"rank 1 on {HOST} (before the first step)\n    reward python ({tmp_path / 'hangs.py'}:hangs) scores " in said
    )
    assert ": no end after" in said and "set the reward's timeout" in said
    assert "a worker stopped for the reason above" in said


@pytest.mark.parametrize("ends_by", ["timeout", "SIGTERM"])
def test_a_reward_that_hangs_ends_a_run_of_one_process(tiny_model_dir: Path, tmp_path: Path, ends_by: str) -> None:
    """By its own limit, or, where that is far, by a signal that the step does not obey in time."""
    (tmp_path / "hangs.py").write_text(HANGS)
    reward = {"type": "python", "file": str(tmp_path / "hangs.py"), "function": "hangs"}
    rollout = {"rewards": [reward], "sampling": {"max_completion_length": 4}}
    devices = {"timeout": 2} if ends_by == "timeout" else {"stop_timeout": 1}
    program = """
        import os, signal, sys, threading
        from pathlib import Path
        from align.core.config import run_file
        from align.core.util import liveness
        from align.core.training.launch import train

        if sys.argv[2] == "SIGTERM":  # comes when the reward has been entered, and the handler stands
            def interrupt():
                while not liveness._watch.waits or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                    threading.Event().wait(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
            threading.Thread(target=interrupt, daemon=True).start()
        train(run_file.load(Path(sys.argv[1])), progress=False)
    """
    rows = write_rows("grpo", tmp_path / "rows.jsonl")
    file = tmp_path / "run.yaml"
    sections: dict[str, Any] = {"devices": devices, "rollout": rollout, "data": {"validation_fraction": 0.0}}
    file.write_text(run_file.dump(run_for("grpo", tiny_model_dir, rows, tmp_path / "run", **sections)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-P", "-c", textwrap.dedent(program), str(file), ends_by],
        env=environment_here() | {"ALIGN_CACHE": str(tmp_path / "cache"), "HANGING_RANK": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (2 if ends_by == "timeout" else 128 + signal.SIGTERM), done.stderr
    assert f"rank 0 on {HOST} (step 1" in done.stderr and " scores 16 answers" in done.stderr
    assert f"reward python ({tmp_path / 'hangs.py'}:hangs)" in done.stderr
    assert "--resume" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("setting", ["timeout", "stop_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), 1e9])
def test_a_wait_has_an_end_whatever_is_asked_for(setting: str, value: float) -> None:
    with pytest.raises(ValidationError, match=setting):
        Devices.model_validate({setting: value})


def test_a_signal_to_a_forked_child_is_none_to_its_parent() -> None:
    """As pools end their children; and a child does not give the parent's signs of life."""
    program = """
        import os, signal, time
        # Runs in the child before the reset: the signal comes while it still shares its parent's pipe.
        os.register_at_fork(after_in_child=lambda: time.sleep(0.5))
        from align.core.util import liveness

        signal.signal(signal.SIGTERM, lambda *_: None)
        with liveness.watched(None, 0, 1, liveness.Limits(1000.0, 0.2)):
            liveness.at_step(5, 9)
            child = os.fork()
            if not child:
                assert liveness._watch.step is None
                time.sleep(1000)
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            time.sleep(1)
            os.kill(child, signal.SIGKILL)
            print("alive", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1000)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-P", "-c", textwrap.dedent(program)],
        env=environment_here(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("alive\n", 128 + signal.SIGTERM), done.stderr
    assert done.stderr.startswith(f"rank 0 on {HOST} (step 5): SIGTERM came 0.2 s ago")


# --- the supervisor alone, with workers that are no trainers -------------------------------------------------------


def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *programs: str) -> processes.Ended | None:
    """A group whose rank N runs ``programs[N]``."""
    file = tmp_path / "programs.json"
    file.write_text(json.dumps(programs))
    chosen = f"import json, os; exec(json.load(open({str(file)!r}))[int(os.environ['RANK'])])"
    monkeypatch.setattr("align.core.util.child_processes.command", lambda *_: [sys.executable, "-c", chosen])
    return processes.run_workers([], len(programs), Limits(stop=1.0))


SLEEPS = "import time; time.sleep(1e6)"


def test_the_first_to_die_is_named_whatever_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others end because of it: by a lost connection (their own status), or killed when their time is over."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.1)
    dies = "import os; os.write(2, b'first\\n\\nlast words\\n'); os.kill(os.getpid(), {})"
    lost = f"import time; time.sleep(0.5); raise SystemExit({stopping.LOST})"
    for number in (signal.SIGKILL, signal.SIGSEGV):
        found = supervised(tmp_path, monkeypatch, lost, SLEEPS, dies.format(int(number)))
        assert found == processes.Ended(2, -number, "first\nlast words")
    assert supervised(tmp_path, monkeypatch, SLEEPS, "raise SystemExit(7)") == processes.Ended(1, 7, "")
    assert supervised(tmp_path, monkeypatch, "", "") is None
    only_lost = supervised(tmp_path, monkeypatch, f"raise SystemExit({stopping.LOST})", SLEEPS)
    assert only_lost == processes.Ended(0, stopping.LOST, "")


def test_a_group_that_does_not_obey_a_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is deaf, the other is stopped: after the time to stop both are gone, and the signal is the reason."""
    monkeypatch.setattr(processes, "STOP_MARGIN", 0.0)
    deaf = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def state():
    try:
        pid = open({str(tmp_path / "pid")!r}).read()
        return open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
while state() != "T":
    time.sleep(0.01)
os.kill({os.getpid()}, signal.SIGTERM)
time.sleep(1e6)
"""
    stopped = f"""
import os, signal
open({str(tmp_path / "new")!r}, "w").write(str(os.getpid()))
os.rename({str(tmp_path / "new")!r}, {str(tmp_path / "pid")!r})
os.kill(os.getpid(), signal.SIGSTOP)
"""
    assert supervised(tmp_path, monkeypatch, deaf, stopped) == processes.Ended(0, -signal.SIGTERM, "")


def test_no_worker_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    worker = "import os, time; open(os.environ['RANK'], 'w').write(f'{os.getpid()} '); time.sleep(1e6)"
    program = f"""
        import sys
        from align.core.engine import processes
        from align.core.util import child_processes
        from align.core.util.liveness import Limits

        child_processes.command = lambda *_: [sys.executable, "-c", {worker!r}]
        processes.run_workers([], 2, Limits())
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(program)]
    launcher = subprocess.Popen(command, env=environment_here(), cwd=tmp_path)
    until = time.monotonic() + 240
    while [len(file.read_text()) > 1 for file in tmp_path.iterdir()] != [True, True]:
        assert launcher.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    workers = [int(file.read_text()) for file in tmp_path.iterdir()]
    assert all(map(alive, workers))
    launcher.kill()
    launcher.wait()
    while any(map(alive, workers)):
        assert time.monotonic() < until, "a worker was left over"
        time.sleep(0.05)


def test_the_store_listens_on_loopback_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every socket that listens at the store's port, whoever holds it."""
    store, port = processes._store(2)
    listening = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()
    ]
    found = [row[1].split(":")[0] for row in listening if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    assert found == ["0100007F"]  # 127.0.0.1
    del store
    settings = "import os; assert [os.environ[n + '_SOCKET_IFNAME'] for n in ('GLOO', 'NCCL')] == ['{}'] * 2"
    assert supervised(tmp_path, monkeypatch, settings.format("lo")) is None
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    assert supervised(tmp_path, monkeypatch, settings.format("eth7")) is None


# --- what is said --------------------------------------------------------------------------------------------------


def sign(stage: StageDirectory, rank: int, **facts: Any) -> None:
    place = stage.path / signs_of_life.RANKS / f"{rank}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"host": "gpu-7", "pid": 5, "step": 12} | facts))


@pytest.mark.parametrize(
    ("found", "facts", "said"),
    [
        (
            processes.Ended(3, -signal.SIGKILL, ""),
            {},
            "rank 3 on gpu-7 (step 12)\n    was killed by SIGKILL: memory may have run out\n"
            "    dmesg shows whether it did, and which process used it",
        ),
        (
            processes.Ended(3, -signal.SIGBUS, "a\nb"),
            {"doing": "reward python scores 5 answers"},
            "rank 3 on gpu-7 (step 12, reward python scores 5 answers)\n    was killed by SIGBUS\n"
            "its last lines\n    a\n    b",
        ),
        (processes.Ended(3, 1, ""), {"step": None}, "rank 3 on gpu-7 (before the first step)\n    ended with status 1"),
        (
            processes.Ended(3, 2, ""),
            {"error": "TMPDIR\n    full"},
            "rank 3 on gpu-7 (step 12)\n    stopped:\nTMPDIR\n    full",
        ),
        (processes.Ended(0, 2, ""), {}, "{place}\n    a worker stopped for the reason above"),
        (
            processes.Ended(3, 2, "said it\nall"),
            {"error": "said it\nall"},
            "{place}\n    a worker stopped for the reason above",
        ),
    ],
)
def test_how_a_worker_failed(found: processes.Ended, facts: dict[str, Any], said: str, tmp_path: Path) -> None:
    stage = StageDirectory(tmp_path)
    sign(stage, found.rank, **facts)
    assert str(worker_failed(found, stage)) == said.replace("{place}", str(tmp_path))
    (stage.checkpoints / "step-00000004").mkdir(parents=True)
    assert str(worker_failed(found, stage)).endswith(
        f"{tmp_path}\n    step 4 is saved\n    --resume goes on from there"
    )


@pytest.mark.parametrize("status", [-signal.SIGTERM, 128 + signal.SIGTERM])
def test_a_signal_is_told_as_one(status: int, tmp_path: Path) -> None:
    failure = worker_failed(processes.Ended(1, status, ""), StageDirectory(tmp_path))
    assert isinstance(failure, Interrupted) and failure.signal_number == signal.SIGTERM


def test_a_lost_connection_tells_what_the_other_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, broken = StageDirectory(tmp_path), RuntimeError("[gloo/transport/tcp/pair.cc:5] Connection closed by peer")
    with pytest.raises(RuntimeError, match="gloo"), explained_failures(stage):  # alone there is no other
        raise broken
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("align.core.training.failures.REPORT_SECONDS", 0.0)
    sign(stage, 0)
    with pytest.raises(ProcessLost, match="rank 1 never started"), explained_failures(stage):
        raise broken
    sign(stage, 1)
    with pytest.raises(ProcessLost, match="lost its connection to another process"), explained_failures(stage):
        raise broken
    sign(stage, 1, error="TMPDIR\n    full")
    with (
        pytest.raises(ProcessLost, match=r"rank 1 on gpu-7 \(step 12\)\n    stopped:\nTMPDIR"),
        explained_failures(stage),
    ):
        raise broken
    with pytest.raises(ValueError, match="ours"), explained_failures(stage):
        raise ValueError("ours")
    with pytest.raises(AlignError, match="memory ran out"), explained_failures(stage):
        raise MemoryError


def test_signs_that_are_damaged_are_none(tmp_path: Path) -> None:
    (tmp_path / signs_of_life.RANKS).mkdir()
    for rank, text in enumerate(("", "[]", "{}", '{"host": "a", "pid": 1, "wings": 2}', '{"host": "a", "pid": 1}')):
        (tmp_path / signs_of_life.RANKS / f"{rank}.json").write_text(text)
    assert signs_of_life.read_signs(tmp_path) == {4: Sign("a", 1)}
    assert signs_of_life.read_signs(None) == {} == signs_of_life.read_signs(tmp_path / "nowhere")


def test_a_long_wait_is_reported_and_ends_by_itself(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Outside a run there is no limit: it is reported, with what it waits for, and goes on."""
    monkeypatch.setattr(liveness, "PATIENCE", 0.0)
    monkeypatch.setattr(liveness._watch, "step", None)  # a test before may have trained in this process
    with liveness.waiting("reward \x1b[31m\u202eslow scores 3 answers"):
        wait = liveness._watch.waits[-1]
        wait.reported = 0.0
        liveness._watch._wake.set()
        while not wait.reported:
            pass
    said = capfd.readouterr().err
    assert (
        f"rank 0 on {HOST} (before the first step): reward slow scores 3 answers, " in said and "given up" not in said
    )
    assert not liveness._watch.waits
