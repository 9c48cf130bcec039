"""``align launch`` as a user meets it: what it prints, what it refuses, and how runs that it starts end."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from align.api import launching
from align.cli import main
from align.core.config import run_file

RUN = """
output: runs/{name}
algorithm: sft
model: {{path: Qwen/Qwen3-0.6B}}
data: {{train: rows.jsonl}}
devices: {devices}
"""


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The check of the run file happens in this process, which has torch already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launching, "checked_run", lambda words, *_: run_file.load(words[0], list(words[1:])))
    monkeypatch.setattr("socket.gethostname", lambda: "login")


def launch(tmp_path: Path, *words: str, devices: str = "{}", name: str = "first") -> Result:
    (tmp_path / "run.yaml").write_text(RUN.format(name=name, devices=devices))
    return CliRunner().invoke(main, ["launch", "run.yaml", *words])


@pytest.mark.usefixtures("unchecked")
def test_the_command_is_the_same_on_every_node(tmp_path: Path) -> None:
    done = launch(tmp_path, "train.batch_size=32", "--nodes", "2", "--gpus", "8", "--head", "node1")
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d "
        "--rdzv-endpoint=node1:29400 --rdzv-id=first --max-restarts=3 --shutdown-timeout=120 "
        "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 -m align "
        "train run.yaml train.batch_size=32 --resume\n"
    )


@pytest.mark.usefixtures("unchecked")
def test_what_a_user_names_is_quoted_for_the_shell(tmp_path: Path) -> None:
    name, value = "a'b; rm -rf $HOME", "$(reboot) `reboot` \"'"
    done = launch(tmp_path, "--gpus", "2", "--print", "--env", f"WORDS={value}", "--name", name)
    assert done.exit_code == 0, done.output
    words = shlex.split(done.stdout)
    assert words[:3] == ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", f"WORDS={value}", "torchrun"]
    two = shlex.split(launch(tmp_path, "--nodes", "2", "--gpus", "2", "--name", name).stdout)
    assert "--rdzv-id=a-b-rm-rf-home" in two


@pytest.mark.usefixtures("unchecked")
def test_the_run_file_says_how_many_where_the_command_does_not(tmp_path: Path) -> None:
    done = launch(tmp_path, "--print", devices="{nodes: 3, count: 4}")
    assert "--nnodes=3 --nproc-per-node=4 " in done.stdout and "--rdzv-endpoint=login:29400" in done.stdout
    missing = launch(tmp_path, "--nodes", "2")
    assert missing.exit_code == 2 and "give --gpus" in missing.stderr


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nodes", "3", "--hosts", "a,b"], "names 2 hosts for 3 nodes"),
        (["--hosts", "-oProxyCommand=reboot,b"], "is no host"),
        (["--env", "PATH"], "is not NAME=VALUE"),
        (["--gpu", "H1000"], "did you mean"),
    ],
)
def test_mistakes_are_told_without_a_traceback(words: list[str], told: str, tmp_path: Path) -> None:
    done = launch(tmp_path, "--gpus", "2", *words)
    assert done.exit_code == 2 and told in done.stderr and "Traceback" not in done.output


def test_it_refuses_what_training_would_refuse_with_the_same_words(tmp_path: Path) -> None:
    """In a process of its own; this one imports no torch."""
    (tmp_path / "run.yaml").write_text(RUN.format(name="first", devices="{count: 4}"))
    code = "from align.cli import main\ntry: main({!r})\nfinally:\n import sys; print('torch' in sys.modules)"

    def refused(*words: str, **environment: str) -> list[str]:
        command = [sys.executable, "-c", code.format(["launch", "run.yaml", "--print", *words])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == "False\n", done.stdout + done.stderr
        return done.stderr.splitlines()

    wrong = refused("--gpus", "4", "train.batchsize=3", "optimizer.learning_rate=-1")
    train = CliRunner().invoke(
        main, ["train", str(tmp_path / "run.yaml"), "train.batchsize=3", "optimizer.learning_rate=-1"]
    )
    assert wrong == [line for line in train.stderr.splitlines() if not line.startswith("loading")]
    assert refused("--nodes", "2", "--gpus", "8")[:2] == [
        "devices",
        "    asks for 4 processes on 1 nodes, but 8 on 2 were started",
    ]
