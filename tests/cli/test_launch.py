"""``align launch`` as a user meets it: what it prints, what it refuses, and how runs that it starts end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from click.testing import CliRunner, Result

import align
from align.api import launching
from align.cli import main
from align.core.config import run_file
from align.core.engine import checkpoint
from align.core.engine.processes import free_port
from align.core.launching import hosts
from align.core.launching.hosts import HostFailed, Order, run_on_hosts
from align.core.training.launch import validate_elsewhere
from align.core.util import child_processes
from align.core.util.stopping import Interrupted
from align.schemas.errors import AlignError
from align.schemas.hardware import Hardware
from tests.core.runs import run_for, write_rows

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
def test_setup_and_restarts_reach_the_jobs_that_have_them(tmp_path: Path) -> None:
    two = ("--nodes", "2", "--gpus", "2", "output=/runs/1", "--setup", "module load cuda")
    assert "\nmodule load cuda\n" in launch(tmp_path, *two, "--slurm").stdout
    sky = ("--gpu", "H100", "--mount", "runs:/runs", "--max-restarts", "7", "--port", "4000")
    task = yaml.safe_load(launch(tmp_path, *two, "--skypilot", *sky).stdout)
    assert task["setup"] == "module load cuda\n" and task["resources"]["job_recovery"]["max_restarts_on_errors"] == 7
    assert '--rdzv-endpoint="$head:4000"' in task["run"] and task["name"] == "align-1"


def test_a_host_whose_connection_breaks_is_named() -> None:
    """By ssh's own exit status, which is no signal's."""
    assert "node2\n    lost its connection" in str(hosts.failure(HostFailed("node2", 255, ""), "/runs"))
    assert "was ended by SIGKILL" in str(hosts.failure(HostFailed("node2", 137, ""), "/runs"))
    assert "failed first, with status 200" in str(hosts.failure(HostFailed("node2", 200, ""), "/runs"))
    assert "ended with status 1, for the" in str(hosts.failure(HostFailed("localhost", 1, "", alone=True), "/runs"))


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
        (["--hosts", "a, ,b"], "is no host"),
        (["--slurm", "--port", "29500"], "--port is for torchrun's command or --k8s or --skypilot."),
        (["--slurm", "--k8s"], "--slurm and --k8s exclude each other"),
        (["--skypilot", "--check"], "--skypilot and --check exclude each other"),
        (["--check", "--print"], "--check and --print exclude each other"),
        (["--env", "PATH"], "is not NAME=VALUE"),
        (["--gpu", "H1000"], "--gpu\n    no GPU is called 'H1000'\n    did you mean"),
        (["--hosts", ""], "'' is no host"),
        (["--hosts", "a b"], "'a b' is no host"),
        (["--slurm", "--time", "tomorrow"], "'tomorrow' is no time limit"),
    ],
)
def test_mistakes_are_told_without_a_traceback(words: list[str], told: str, tmp_path: Path) -> None:
    done = launch(tmp_path, "--gpus", "2", *words)
    assert done.exit_code == 2 and told in done.stderr and "Traceback" not in done.output


def test_it_refuses_what_training_would_refuse_with_the_same_words(tmp_path: Path) -> None:
    """The check is a process of its own; the one that launches imports no torch."""
    mistakes = ["run.yaml", "train.batchsize=3", "optimizer.learning_rate=-1"]
    (tmp_path / "run.yaml").write_text(RUN.format(name="first", devices="{count: 4}"))
    code = "from align.cli import main\ntry: main({!r})\nfinally:\n import sys; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code.format(["launch", *mistakes, "--gpus", "4", "--print"])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "False\n", done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        train = CliRunner().invoke(main, ["train", *mistakes])
    assert done.stderr == "".join(line for line in train.stderr.splitlines(True) if not line.startswith("loading"))


def test_a_check_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "CHECK_RUN_SECONDS", 0.2)
    waits = [sys.executable, "-S", "-c", "import time; time.sleep(30)"]
    monkeypatch.setattr(child_processes, "command", lambda *_: waits)
    with pytest.raises(AlignError, match=r"run\.yaml\n    was not checked within 0\.2 s\n    try `align train"):
        launching.checked_run(["run.yaml"], 1, 1, None)


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.mark.usefixtures("own_environment")
def test_the_check_is_made_in_the_place_of_the_first_process() -> None:
    run = run_file.parse(RUN.format(name="first", devices="{count: 4}"), "run.yaml")
    with pytest.raises(AlignError, match="asks for 4 processes on 1 nodes, but 8 on 2 were started"):
        validate_elsewhere(run, 2, 8, None)
    validate_elsewhere(run, None, None, None)


@pytest.mark.usefixtures("own_environment")
def test_settings_that_each_process_would_refuse_are_refused_before(tmp_path: Path) -> None:
    """All at once, and before anything is written: on the nodes they would end every start."""
    two = """
output: runs/first
model: {path: Qwen/Qwen3-0.6B}
stages:
  - {name: one, algorithm: sft, data: {train: rows.jsonl}, devices: {strategy: single}}
  - {name: two, algorithm: dpo, data: {train: rows.jsonl}, devices: {strategy: fsdp}, train: {precision: 16-mixed},
     model: {path: stage:one}}
"""
    with pytest.raises(AlignError) as caught:
        validate_elsewhere(run_file.parse(two, "run.yaml"), 2, 8, "H100")
    single, half = caught.value.problems
    assert "is single, but the run has 16 devices" in single.what
    assert half.where == "two: train.precision" and "is 16-mixed, and fsdp cannot scale the loss" in half.what


@pytest.mark.usefixtures("own_environment")
def test_advice_judges_by_the_gpus_that_the_run_will_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by those of a login node, which has none."""
    seen: list[Hardware] = []
    monkeypatch.setattr("align.core.training.launch.validate_run", lambda run, hardware: seen.append(hardware))
    run = run_file.parse(RUN.format(name="first", devices="{}"), "run.yaml")
    validate_elsewhere(run, 2, 8, "H100")
    validate_elsewhere(run, 2, 8, None)
    validate_elsewhere(run_file.parse(RUN.format(name="x", devices="{accelerator: cpu}"), "run.yaml"), 1, 2, "H100")
    shown = [(each.accelerator, each.name, round(each.memory / 1e9), each.world_size) for each in seen[:2]]
    assert shown == [("cuda", "H100", 80, 16), ("cuda", "", 0, 16)]
    assert (seen[2].accelerator, seen[2].world_size) == ("cpu", 2)


@pytest.mark.usefixtures("unchecked")
def test_from_python_it_is_the_text_that_the_command_prints(tmp_path: Path) -> None:
    given = {"nodes": 2, "gpus": 8}
    slurm = launch(tmp_path, "--nodes", "2", "--gpus", "8", "--slurm", "--time", "1:00:00", "--cpus", "4").stdout
    assert align.launch_script("run.yaml", "slurm", **given, python=sys.executable, time="1:00:00", cpus=4) == slurm
    printed = launch(tmp_path, "--nodes", "2", "--gpus", "8", "--head", "node1").stdout
    assert align.launch_script("run.yaml", **given, head="node1") == printed.strip()
    of_others = [("slurm", {"image": "x"}, "no option 'image'"), ("torchrun", {"time": "1:00"}, "no option 'time'")]
    for launcher, option, told in (("slurms", {}, "did you mean"), *of_others):
        with pytest.raises(AlignError, match=told):
            align.launch_script("run.yaml", launcher, **given, **option)


# Whole runs: the printed command, and the script of Slurm


class Start(NamedTuple):
    """A run's file and directory."""

    file: Path
    run: Path

    def weights(self) -> bytes:
        return (self.run / "only" / "export" / "model.safetensors").read_bytes()

    def saved(self) -> list[int]:
        return checkpoint.steps(self.run / "only" / "checkpoints")


def start(model: Path, place: Path) -> Start:
    place.mkdir()
    rows = write_rows("sft", place / "rows.jsonl")
    sections = {"devices": {"accelerator": "cpu"}, "validation": {"eval_steps": 100}, "checkpoint": {"save_steps": 1}}
    (place / "run.yaml").write_text(run_file.dump(run_for("sft", model, rows, place / "run", **sections)))
    return Start(place / "run.yaml", place / "run")


def environment(place: Path, **more: str) -> dict[str, str]:
    tools = f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return (
        kept | {"PATH": tools, "PYTHONPATH": path, "ALIGN_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"} | more
    )


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A run by the command that is printed for two nodes, pasted into a shell on each; both are this machine."""
    place = tmp_path_factory.mktemp("launch") / "whole"
    whole = start(tiny_model_dir, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "checked_run", lambda words, *_: run_file.load(words[0], list(words[1:])))
        words = ["--nodes", "2", "--gpus", "1", "--head", "localhost", "--port", str(free_port())]
        printed = CliRunner().invoke(main, ["launch", str(whole.file), *words, "--env", "GLOO_SOCKET_IFNAME=lo"])
    assert printed.exit_code == 0, printed.output
    nodes = [
        subprocess.Popen(["sh", "-c", printed.stdout], env=environment(place), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    shown = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], shown
    return whole


def test_the_printed_command_trains_on_two_nodes(uninterrupted: Start) -> None:
    assert json.loads((uninterrupted.run / "manifest.json").read_text())["stages"]["only"]["world_size"] == 2
    assert uninterrupted.weights()


SRUN = """#!{python}
import os, signal, subprocess, sys
from pathlib import Path

words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
count = 2
step = dict(JOB_ID="77", STEP_ID="0", STEP_NUM_TASKS="2", STEP_NUM_NODES="1", STEP_TASKS_PER_NODE="2", NODEID="0",
            STEP_NODELIST="localhost")
tasks = []
for rank in range(count):
    own = {{f"SLURM_{{name}}": value for name, value in (step | dict(PROCID=str(rank), LOCALID=str(rank))).items()}}
    tasks.append(subprocess.Popen(words, env=os.environ | own, process_group=0))
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: [task.send_signal(number) for task in tasks])
Path("tasks").write_text(" ".join(str(task.pid) for task in tasks))
statuses = [task.wait() for task in tasks]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""
"""The work of srun for a script: start the tasks with Slurm's variables, pass signals on, end with the worst status."""


def tools(place: Path, srun: str, state: str = "RUNNING") -> None:
    """Stand-ins for Slurm's programs in a directory; ``requeued`` is there once the job was."""
    texts = {
        "srun": srun.format(python=sys.executable),
        "squeue": f"#!/bin/sh\necho {state}\n",
        "scontrol": '#!/bin/sh\n[ "$1 $2" = "requeue 77" ] && touch requeued\n',
    }
    for name, text in texts.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)


def script(place: Path, file: Path | str = "run.yaml") -> Path:
    """The script as `align launch` writes it for CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "checked_run", lambda words, *_: run_file.load(words[0], list(words[1:])))
        words = [str(file), "--nodes", "1", "--gpus", "2", "--slurm", "--time", "10:00", "--out", str(place / "job")]
        done = CliRunner().invoke(main, ["launch", *words])
    assert done.exit_code == 0, done.output
    return place / "job"


def test_a_job_that_is_signalled_is_requeued_and_ends_with_the_weights_of_one_that_is_not(
    uninterrupted: Start, tiny_model_dir: Path, tmp_path: Path
) -> None:
    place = tmp_path / "job-of-slurm"
    begun = start(tiny_model_dir, place)
    tools(place, SRUN)
    job = ["bash", str(script(place, begun.file))]
    slurm = environment(place, SLURM_JOB_ID="77")
    first = subprocess.Popen(job, cwd=place, env=slurm, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not begun.saved() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for task in (place / "tasks").read_text().split():  # as Slurm does, to the tasks and not to the script
        os.kill(int(task), signal.SIGUSR1)
    shown = first.communicate(timeout=100)[1]
    assert first.returncode == 138 and "stopped by SIGUSR1 after step" in shown, shown
    assert (place / "requeued").exists() and not (begun.run / "only" / "export").exists()
    again = slurm | {"SLURM_RESTART_COUNT": "1"}
    second = subprocess.run(job, cwd=place, env=again, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0 and "of them done before" in second.stderr, second.stderr
    assert begun.weights() == uninterrupted.weights()


@pytest.mark.parametrize(
    ("status", "state", "restarts", "requeued"),
    [
        (138, "RUNNING", "0", True),
        (143, "RUNNING", "0", True),  # warned of preemption
        (143, "CANCELLED", "0", False),
        (130, "RUNNING", "0", False),
        (2, "RUNNING", "0", False),
        (0, "RUNNING", "0", False),
        (138, "RUNNING", "100", False),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_only_a_job_with_more_to_do_is_requeued(
    status: int, state: str, restarts: str, requeued: bool, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(RUN.format(name="x", devices="{accelerator: cpu}"))
    tools(tmp_path, f"#!/bin/sh\nexit {status}\n", state)
    slurm = environment(tmp_path, SLURM_JOB_ID="77", SLURM_RESTART_COUNT=restarts)
    done = subprocess.run(["bash", script(tmp_path)], cwd=tmp_path, env=slurm, check=False)
    assert done.returncode == status and (tmp_path / "requeued").exists() == requeued


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
@pytest.mark.usefixtures("unchecked")
def test_a_signal_to_the_script_alone_reaches_the_tasks(number: int, status: int, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN.format(name="x", devices="{accelerator: cpu}"))
    waits = "#!/bin/bash\ntrap 'sleep 0.2; exit 143' TERM\ntrap 'sleep 0.2; exit 138' USR1\ntouch up\n"
    tools(tmp_path, waits + "while true; do sleep 0.05; done\n")
    begun = subprocess.Popen(["bash", script(tmp_path)], cwd=tmp_path, env=environment(tmp_path, SLURM_JOB_ID="77"))
    wait_for(tmp_path / "up")
    begun.send_signal(number)
    assert begun.wait(timeout=60) == status and (tmp_path / "requeued").exists()


# Several hosts

PYTHON = [sys.executable, "-P", "-c"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def order(place: Path, code: str, stop_seconds: float = 20.0, **variables: str) -> Order:
    return Order([*PYTHON, textwrap.dedent(code)], str(place), variables, stop_seconds, sys.executable)


def gone(process: Path) -> bool:
    """Return True if the process whose number a file has is no more."""
    return not Path(f"/proc/{process.read_text()}").exists()


def test_hosts_get_directory_and_variables_and_their_lines_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['WORDS']); print('\\x1b[31mbad', file=sys.stderr)"
    assert run_on_hosts(["localhost", "localhost"], order(tmp_path, code, WORDS="a 'b'")) is None
    shown = capsys.readouterr()
    assert sorted(shown.out.splitlines()) == [f"[localhost#{n}] {tmp_path} a 'b'" for n in (0, 1)]
    assert sorted(shown.err.splitlines()) == [f"[localhost#{n}] bad" for n in (0, 1)]


FIRST_FAILS = """
    import os, subprocess, sys, time
    from pathlib import Path
    try:
        os.mkdir("first")
    except FileExistsError:
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        Path("child.part").write_text(str(child.pid)); os.rename("child.part", "child")
        Path("other.part").write_text(str(os.getpid())); os.rename("other.part", "other")
        time.sleep(600)
    while not Path("other").exists():
        time.sleep(0.01)
    sys.exit("no more of this")
"""


def test_the_first_host_to_fail_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    """With all that they started: the other one's child has a session of its own, as torchrun's processes have."""
    failed = run_on_hosts(["localhost", "localhost"], order(tmp_path, FIRST_FAILS))
    assert failed == HostFailed("localhost", 1, "no more of this")
    assert gone(tmp_path / "other") and gone(tmp_path / "child")
    told = str(hosts.failure(failed, str(tmp_path)))
    assert told.startswith("localhost\n    failed first, with status 1; the others were ended\n")


def test_a_host_that_does_not_obey_is_killed(tmp_path: Path) -> None:
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    assert run_on_hosts(["localhost"] * 2, order(tmp_path, deaf + textwrap.dedent(FIRST_FAILS), 0.5)) is not None
    assert gone(tmp_path / "other") and gone(tmp_path / "child")


def test_a_command_can_be_ended_though_its_agent_outlives_signals(tmp_path: Path) -> None:
    """SIG_IGN would be inherited: a torchrun that waits for other nodes, and has no handlers yet, would not end."""
    code = """
        import signal
        from pathlib import Path
        given = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")}
        Path("ignored").write_text(" ".join(name for name, handler in given.items() if handler is signal.SIG_IGN))
    """
    assert run_on_hosts(["localhost"], order(tmp_path, code)) is None
    assert (tmp_path / "ignored").read_text() == ""


def test_a_signal_reaches_every_host(tmp_path: Path) -> None:
    code = """
        import os, signal, time
        from pathlib import Path
        def end(number, frame):
            Path(f"got-{os.getpid()}").write_text(signal.Signals(number).name); raise SystemExit
        signal.signal(signal.SIGUSR1, end)
        Path(f"up-{os.getpid()}").touch()
        time.sleep(600)
    """

    def send() -> None:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("up-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=send).start()
    with pytest.raises(Interrupted) as stopped:
        run_on_hosts(["localhost", "localhost"], order(tmp_path, code))
    assert stopped.value.signal_number == signal.SIGUSR1
    assert [path.read_text() for path in tmp_path.glob("got-*")] == ["SIGUSR1"] * 2


def test_a_command_does_not_outlive_its_launcher(tmp_path: Path) -> None:
    """The launcher is killed: it can tell nobody, and only its end of a pipe closes."""
    code = """
        import os, time
        from pathlib import Path
        Path("pid.part").write_text(str(os.getpid())); os.rename("pid.part", "pid")
        time.sleep(600)
    """
    launcher = f"""
        from align.core.launching.hosts import Order, run_on_hosts
        run_on_hosts(["localhost", "localhost"], {order(tmp_path, code)!r})
    """
    begun = subprocess.Popen([*PYTHON, textwrap.dedent(launcher)], env=environment(tmp_path))
    wait_for(tmp_path / "pid")
    begun.kill()
    begun.wait()
    deadline = time.monotonic() + 30
    while not gone(tmp_path / "pid") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(tmp_path / "pid")


SSH = """#!/bin/sh
for word; do
    case $word in
    --|-*) ;;
    silent) exec sleep 600 ;;
    unknown) echo "ssh: Could not resolve hostname unknown" >&2; exit 255 ;;
    *) last=$word ;;
    esac
done
exec sh -c "$last"
"""
"""An ssh that goes nowhere: runs the command here, or fails as ssh does."""


@pytest.mark.parametrize(
    ("host", "told"),
    [("silent", "did not answer, or align is not installed there"), ("unknown", "Could not resolve hostname unknown")],
)
def test_a_host_that_does_not_answer_is_named(
    host: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(hosts, "CONNECT_SECONDS", 5.0 if host == "silent" else 60.0)
    failed = run_on_hosts(["node1", host], order(tmp_path, "import time; time.sleep(600)"))
    assert failed is not None and failed.host == host and failed.status is None
    assert told in str(hosts.failure(failed, str(tmp_path)))


def test_what_is_run_on_hosts_is_the_printed_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launching, "checked_run", lambda words, *_: run_file.load(words[0], list(words[1:])))
    orders: list[tuple[list[str], Order]] = []
    monkeypatch.setattr(launching, "run_on_hosts", lambda hosts, order: orders.append((hosts, order)))
    printed = launch(tmp_path, "--gpus", "8", "--hosts", "a,b", "--print")
    launch(tmp_path, "--gpus", "8", "--hosts", "a,b")
    ((named, given),) = orders
    assert named == ["a", "b"] and given.directory == str(tmp_path) and given.stop_seconds > 120
    variable, torchrun, *words = shlex.split(printed.stdout)
    assert torchrun == "torchrun" and list(given.argv) == [sys.executable, "-m", "torch.distributed.run", *words]
    assert variable == "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" and given.environment == {variable[:-2]: "1"}
    assert "--rdzv-endpoint=a:29400" in words
