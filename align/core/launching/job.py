"""The job of a launcher: a run on so many nodes, and the command of each process. No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

import yaml

from align.schemas.run import Choice, Run, Stage

PORT = 29400
"""Default port of torchrun's meeting point (torch's own default)."""
SAVE_MARGIN = 30
"""Seconds that a launcher waits longer than a run may take to save: its processes still have to end."""


@dataclass(frozen=True, slots=True)
class LaunchJob:
    """A run to start, and on what.

    text: the run file's. arguments: those of ``align``, the run file's path second. nodes: machines. processes: on
    each, one for a GPU where ``gpu`` is true. kind: of GPU, empty where it was not named. restarts: times that torchrun
    starts the processes again after a failure. directory: absolute, where the run file's relative paths begin.
    python: interpreter on the nodes. environment: variables to set there. setup: shell lines to run there first.
    """

    run: Run
    text: str
    arguments: Sequence[str]
    name: str
    nodes: int
    processes: int
    gpu: bool
    kind: str
    directory: str
    python: str = "python"
    restarts: int = 3
    environment: dict[str, str] = field(default_factory=dict)
    setup: Sequence[str] = ()

    def key(self, stage: Stage, key: str) -> str:
        """Return a stage's setting as an override names it; a file without ``stages`` is one stage."""
        return f"stages.{stage.name}.{key}" if "stages" in yaml.safe_load(self.text) else key

    @property
    def stop_seconds(self) -> int:
        """Seconds from a signal to the end of all processes, the saving of a step included."""
        return round(max(stage.devices.stop_timeout for stage in self.run.stages)) + SAVE_MARGIN


def train_arguments(
    run: str, overrides: Sequence[str] = (), override: Sequence[str] = (), reason: Sequence[str] = ()
) -> list[str]:
    """Return the arguments after ``align``: the run goes on where it has begun, so that each start is the same."""
    given = [
        word for pair in zip(override, reason, strict=True) for word in ("--override", pair[0], "--reason", pair[1])
    ]
    return ["train", run, *overrides, *given, "--resume"]


def plain_name(name: str) -> str:
    """Return a name that Slurm, Kubernetes, SkyPilot and file systems take: small letters, digits, single hyphens.

    It begins with a letter, as the names of a JobSet and of a SkyPilot cluster must.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return re.sub(r"^(?=\d|$)", "align-", plain)[:40].rstrip("-")


def torchrun(job: LaunchJob, endpoint: str, program: Sequence[str] = ("torchrun",)) -> list[str]:
    """Return torchrun's command, the same on every node.

    endpoint: HOST:PORT of the first node, where all meet; of no meaning on one node. The c10d backend is used, since by
    it the nodes restart together; a static rendezvous lets each restart by itself.
    """
    meeting = ["--standalone"]
    if job.nodes > 1:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={job.name}"]
    return [
        *program,
        f"--nnodes={job.nodes}",
        f"--nproc-per-node={job.processes}",
        *meeting,
        f"--max-restarts={job.restarts}",
        # torchrun kills its processes 30 seconds after a signal, and knows SIGUSR1 only if it is named.
        f"--shutdown-timeout={job.stop_seconds}",
        "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        "-m",
        "align",
        *job.arguments,
    ]


TORCHRUN_ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Restarted processes otherwise meet in the store of those before them, find their addresses there and wait for the
dead (pytorch issues 135712 and 167288)."""


def shell(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Return a command as a line for a shell, every value quoted."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return " ".join([*variables, *map(shlex.quote, command)])


def servers(run: Run) -> list[Stage]:
    """Return the stages that sample from a vLLM server which nobody has started: the launcher may."""
    return [stage for stage in run.stages if stage.rollout is not None and _wants_server(stage.rollout.generator)]


def _wants_server(generator: Choice) -> bool:
    settings = generator.settings
    return generator.type == "vllm" and settings.get("mode") == "server" and settings.get("url") is None
