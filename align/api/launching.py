"""Starting a run elsewhere, or on several nodes: the check of its run file, the text for a launcher, the start by ssh.

No torch is imported here: a launcher may live for weeks on a login node. The check needs torch, and is a process of its
own (``checked``), which runs as the run's first process will.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import fields
from pathlib import Path
from typing import Any

from align.core.launching import job as jobs
from align.core.launching import kubernetes, skypilot, slurm
from align.core.launching.hosts import Order, failure, run_on_hosts
from align.core.launching.job import LaunchJob, shell, torchrun
from align.core.util import child_processes
from align.schemas import gpus as gpu_list
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.run import Run

LAUNCHERS: Mapping[str, tuple[type[Any], Callable[[LaunchJob, Any], str]]] = {
    "slurm": (slurm.SlurmOptions, slurm.sbatch_script),
    "k8s": (kubernetes.KubernetesOptions, kubernetes.manifest),
    "skypilot": (skypilot.SkyPilotOptions, skypilot.task),
}
"""The class of each launcher's options, and the function that writes its job."""
HOSTS = "ALIGN_HOSTS"
"""Environment variable with the hosts' names by number: one that never reports is named by it."""
CHECK_STOP_SECONDS = 60.0
"""Seconds that hosts have to end a check once one of them has failed: the first still has to print the result."""
CHECK_RUN_SECONDS = 600.0
"""Seconds that the check of a run file may take: it imports torch, which takes minutes from a cold network disk."""
CHECK = "launch-check"
"""The hidden command that checks a run file in a process of its own."""


def launch_job(
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    nodes: int | None = None,
    gpus: int | None = None,
    gpu: str | None = None,
    name: str | None = None,
    restarts: int = 3,
    python: str = "python",
    environment: Mapping[str, str] | None = None,
    setup: Sequence[str] = (),
    override: Sequence[str] = (),
    reason: Sequence[str] = (),
) -> LaunchJob:
    """Check a run file as its first process will, and return the job that starts it.

    nodes: default the run file's, or 1. gpus: processes on each node; default ``devices.count``. gpu: its kind
    (``H100``), for the check of memory and for launchers that choose machines by it. override, reason: as for
    ``align train``. Warnings go to stderr. Raises AlignError with the words of ``align train``.
    """
    if gpu is not None and gpu_list.find(gpu) is None:
        raise AlignError(f"no GPU is called {gpu!r}", did_you_mean(gpu, gpu_list.devices()), where="--gpu")
    arguments = jobs.train_arguments(str(run), overrides, override, reason)
    checked = checked_run(arguments[1:-1], nodes, gpus, gpu)
    devices = [stage.devices for stage in checked.stages]
    counts = [each.count for each in devices if each.count != "auto"]
    if gpus is None and not counts:
        raise AlignError("is not given, and the run file has no devices.count", "give --gpus", where="--gpus")
    return LaunchJob(
        run=checked,
        text=Path(run).read_text(encoding="utf-8"),
        arguments=arguments,
        name=jobs.plain_name(name or Path(checked.output).name),
        nodes=nodes or max(each.nodes for each in devices),
        processes=gpus or max(counts),
        gpu=any(each.accelerator != "cpu" for each in devices),
        kind=gpu or "",
        directory=os.getcwd(),
        python=python,
        restarts=restarts,
        environment=dict(environment or {}),
        setup=setup,
    )


def checked_run(arguments: Sequence[str], nodes: int | None, gpus: int | None, gpu: str | None) -> Run:
    """Check a run file in a process of its own, and return the run.

    Raises AlignError with that process's message, and where it takes longer than ``CHECK_RUN_SECONDS``.
    """
    flags = [f"--{name}={value}" for name, value in (("nodes", nodes), ("gpus", gpus), ("gpu", gpu)) if value]
    command = child_processes.command("-m", "align", CHECK, *arguments, *flags)
    try:
        done = subprocess.run(
            command, env=child_processes.environment(), capture_output=True, text=True, timeout=CHECK_RUN_SECONDS
        )
    except subprocess.TimeoutExpired:
        fix = "try `align train --check` here: its progress shows the part that waits"
        raise AlignError(f"was not checked within {CHECK_RUN_SECONDS:g} s", fix, where=arguments[0]) from None
    if done.returncode:
        raise AlignError("", problems=[Problem("", done.stderr.strip())])
    print(done.stderr, end="", file=sys.stderr)
    return Run.model_validate_json(done.stdout)


def launch_script(
    run: str | Path,
    launcher: str = "torchrun",
    *,
    overrides: Sequence[str] = (),
    nodes: int | None = None,
    gpus: int | None = None,
    gpu: str | None = None,
    head: str = "",
    **options: Any,
) -> str:
    """Return what ``align launch`` prints: torchrun's command, or a job for ``slurm``, ``k8s`` or ``skypilot``.

    run: a run file's path; overrides: ``train.batch_size=32``. nodes: machines, gpus: GPUs of each, as far as the run
    file does not say. gpu: their kind (``H100``). head: what other nodes call the first; default: this machine's name.
    options: the command's further ones by name (``time="24:00:00"``, ``image=...``, ``mount=["runs:/runs"]``).

    Checks the run file in a process of its own; imports no torch. Raises AlignError as ``align.train`` would, and for
    an option that the launcher does not have.
    """
    if launcher not in (known := ["torchrun", *LAUNCHERS]):
        raise AlignError(f"{launcher!r} is no launcher", did_you_mean(launcher, known), where="launch_script")
    of_job = {name: options.pop(name) for name in JOB_OPTIONS & options.keys()}
    job = launch_job(run, overrides, nodes=nodes, gpus=gpus, gpu=gpu, **of_job)
    if launcher == "torchrun":
        _check_options(launcher, options, {"port"})
        return torchrun_command(job, head or socket.gethostname(), **options)
    return launcher_file(job, launcher, options)


JOB_OPTIONS = frozenset({"name", "restarts", "python", "environment", "setup", "override", "reason"})
"""The options of ``launch_job`` that every launcher has."""


def variables(given: Sequence[str]) -> dict[str, str]:
    """Return ``NAME=VALUE`` words as a mapping. Raises AlignError for one that is no such thing."""
    found = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise AlignError(f"{word!r} is not NAME=VALUE", "write --env HF_HOME=/shared/hf", where="--env")
        found[name] = value
    return found


def torchrun_command(job: LaunchJob, head: str, port: int = jobs.PORT) -> str:
    """Return the command line to run on each node. head: the name of the first, by which the others reach it."""
    return shell(torchrun(job, f"{head}:{port}"), jobs.TORCHRUN_ENVIRONMENT | job.environment)


def launcher_file(job: LaunchJob, launcher: str, options: Mapping[str, Any]) -> str:
    """Return the text of a job for ``slurm``, ``k8s`` or ``skypilot``.

    options: of the launcher's own options class by name; what is not given is left out. Raises AlignError for others.
    """
    kind, write = LAUNCHERS[launcher]
    given = {name: value for name, value in options.items() if value}
    _check_options(launcher, given, {field.name for field in fields(kind)})
    return write(job, kind(**given))


def _check_options(launcher: str, given: Iterable[str], known: Set[str]) -> None:
    """Raise AlignError for an option that a launcher does not have."""
    for name in given:
        if name not in known:
            raise AlignError(f"{launcher} has no option {name!r}", did_you_mean(name, known), where="launch")


def launch_on_hosts(job: LaunchJob, hosts: Sequence[str], port: int = jobs.PORT) -> None:
    """Run the job on hosts over ssh, one node on each; the first is where all meet. ``localhost`` is this machine.

    Raises AlignError with the host that failed first, and ``Interrupted`` after a signal, once all have ended.
    """
    if len(hosts) != job.nodes:
        raise AlignError(f"names {len(hosts)} hosts for {job.nodes} nodes", "name one for each", where="--hosts")
    order = Order(
        argv=torchrun(job, f"{hosts[0]}:{port}", (job.python, "-m", "torch.distributed.run")),
        directory=job.directory,
        environment=jobs.TORCHRUN_ENVIRONMENT | job.environment,
        stop_seconds=job.stop_seconds + jobs.SAVE_MARGIN,
        python=job.python,
    )
    failed = run_on_hosts(hosts, order)
    if failed is not None:
        raise failure(failed, job.directory)


def check_on_hosts(
    run: str | Path,
    overrides: Sequence[str],
    gpus: int | None,
    hosts: Sequence[str],
    port: int,
    python: str,
    environment: Mapping[str, str],
) -> int:
    """Run ``align launch --check`` on each host over ssh, and return its exit status; the first host prints the result.

    Raises AlignError with the host that could not take part.
    """
    count = [f"--gpus={gpus}"] if gpus else []
    order = Order(
        argv=[python, "-m", "align", "launch", str(run), *overrides, "--check", *count],
        directory=os.getcwd(),
        environment={
            "WORLD_SIZE": str(len(hosts)),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": hosts[0],
            "MASTER_PORT": str(port),
            HOSTS: ",".join(hosts),
            **environment,
        },
        stop_seconds=CHECK_STOP_SECONDS,
        python=python,
        numbered=True,
    )
    failed = run_on_hosts(hosts, order)
    if failed is None:
        return 0
    if failed.host == hosts[0] and failed.status == 1:  # its result is printed
        return 1
    raise failure(failed, order.directory)
