"""torchrun restarts a group of which a worker was killed: it goes on by itself, and ends with the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from align.core.config import run_file
from align.core.util import event_log
from align.core.util.event_log import read_events
from tests.core.ranks import alive, environment, finish, wait_for_step, workers_of
from tests.core.runs import run_for, write_rows

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3")


def test_a_killed_worker_is_restarted_by_torchrun_and_nothing_is_lost(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Nobody's hand is needed: the command has --resume from the beginning. The log of a rank has both starts."""
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    devices, train = {"count": 2}, {"num_train_epochs": 12}
    for name in ("quiet", "killed"):
        run = run_for("sft", tiny_model_dir, rows, tmp_path / name, devices=devices, train=train)
        (tmp_path / f"{name}.yaml").write_text(run_file.dump(run))
    align = [sys.executable, "-W", "ignore", "-m", "align", "train"]
    finish([*align, str(tmp_path / "quiet.yaml"), "--quiet"], tmp_path)
    command = [sys.executable, *TORCHRUN, "-m", "align", "train", str(tmp_path / "killed.yaml"), "--quiet", "--resume"]
    settings = {**environment(tmp_path), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    started = subprocess.Popen(command, env=settings, stderr=subprocess.PIPE)
    wait_for_step(started, tmp_path / "killed", 4)
    workers = workers_of(started.pid)
    os.kill(random.Random(4).choice(workers), signal.SIGKILL)
    _, said = started.communicate(timeout=300)
    assert started.returncode == 0, said.decode()
    assert not any(map(alive, workers))
    for file in ("metrics.csv", "export/model.safetensors"):
        quiet, killed = ((tmp_path / name / "only" / file).read_bytes() for name in ("quiet", "killed"))
        assert quiet == killed, file
    events = read_events(event_log.place(tmp_path / "killed" / "only", 0))
    starts = [event["group"] for event in events if event["event"] == "start"]
    assert len(starts) == len(set(starts)) == 2
    assert events[-1]["event"] == "end" and events[-1]["status"] == "done"
