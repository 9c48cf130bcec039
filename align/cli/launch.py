"""``align launch``: parse, call, print."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource

if TYPE_CHECKING:
    from align.core.launching.job import LaunchJob


READERS = {
    "hosts": ("torchrun",),
    "head": ("torchrun",),
    "port": ("torchrun", "k8s", "skypilot"),
    "python": ("torchrun", "slurm"),
    "max_restarts": ("torchrun", "k8s", "skypilot"),
    "time": ("slurm",),
    "partition": ("slurm",),
    "account": ("slurm",),
    "sbatch": ("slurm",),
    "server_nodes": ("slurm",),
    "cpus": ("slurm", "k8s"),
    "setup": ("slurm", "skypilot"),
    "image": ("k8s", "skypilot"),
    "namespace": ("k8s",),
    "mount": ("k8s", "skypilot"),
    "secret": ("k8s", "skypilot"),
    "spot": ("skypilot",),
    "out": ("slurm", "k8s", "skypilot"),
}
"""The launchers that read an option, of the options that not all of them do."""
OF_JOB = ("python", "max_restarts", "setup", "out")
"""Options of those that belong to the job, or to this command, and to no launcher's own."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path), help="A run file (docs/runfile.md).")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Single settings laid over the file.")
@click.option("--nodes", type=click.IntRange(min=1), help="Machines; devices.nodes of RUN unless given.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of each (on a CPU: processes); else devices.count.")
@click.option("--gpu", metavar="NAME", help="The kind of GPU (H100): for the check of memory, and to choose machines.")
@click.option("--hosts", metavar="A,B", help="Run on these hosts over ssh, one node on each; localhost is here.")
@click.option("--check", is_flag=True, help="Compare the hosts in place of starting RUN.")
@click.option("--print", "only_print", is_flag=True, help="Print the command in place of running it.")
# multiple: without it click keeps the last of several launchers, and drops the others in silence.
@click.option("--slurm", "to", flag_value="slurm", multiple=True, help="Write a script for sbatch.")
@click.option("--k8s", "to", flag_value="k8s", multiple=True, help="Write a manifest for Kubernetes: a JobSet.")
@click.option("--skypilot", "to", flag_value="skypilot", multiple=True, help="Write a task for SkyPilot.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write there; to stdout unless given.")
@click.option("--name", help="The job's name; that of RUN's output unless given.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable to set on the nodes; may be repeated.")
@click.option("--python", metavar="PATH", help="The interpreter on hosts and in Slurm; this one's path unless given.")
@click.option("--max-restarts", type=click.IntRange(min=0), default=3, help="Starts after a failure, by torchrun.")
@click.option("--head", metavar="HOST", help="What the other nodes call the first, for a printed command; else here.")
@click.option("--port", type=click.IntRange(1, 65535), default=29400, help="Where the nodes meet on the first one.")
@click.option("--setup", multiple=True, metavar="SHELL", help="Slurm, SkyPilot: a line to run first; may be repeated.")
@click.option("--cpus", type=click.IntRange(min=1), help="Slurm, Kubernetes: cores for each GPU.")
@click.option("--time", help="Slurm: the time limit (12:00:00). A run that is not done by then goes on in the queue.")
@click.option("--partition", help="Slurm: the partition.")
@click.option("--account", help="Slurm: the account.")
@click.option("--sbatch", multiple=True, metavar="OPTION", help="Slurm: a further option (--sbatch=--qos=high).")
@click.option("--server-nodes", type=click.IntRange(min=1), help="Slurm: nodes of their own for vLLM servers.")
@click.option("--image", help="Kubernetes: the container's image, which has align. SkyPilot: the same, if any.")
@click.option("--namespace", help="Kubernetes: the namespace.")
@click.option("--mount", multiple=True, metavar="WHAT:PATH", help="Kubernetes: a claim; SkyPilot: a bucket's URL.")
@click.option(
    "--secret", multiple=True, metavar="NAME", help="Kubernetes: a Secret; SkyPilot: a variable, given to sky."
)
@click.option("--spot", is_flag=True, help="SkyPilot: machines that may be taken away.")
@click.option("--override", multiple=True, metavar="RULE", help="Launch in spite of this finding of the advice.")
@click.option("--reason", multiple=True, metavar="TEXT", help="Why; one to each --override, kept in the manifest.")
@click.pass_context
def launch(
    context: click.Context,
    /,
    run: Path,
    overrides: tuple[str, ...],
    to: tuple[str, ...],
    hosts: str | None,
    head: str | None,
    port: int,
    check: bool,
    only_print: bool,
    out: Path | None,
    **options: Any,
) -> None:
    """Start RUN on several GPUs or nodes: here, over ssh, by a printed command, or by a job for a cluster.

    RUN is checked first, as its first process will. One node runs here; several are printed, unless `--hosts` says
    where they are. Every start goes on where the last one stopped.

    \b
    Example:
      align launch run.yaml --gpus 8
      align launch run.yaml --nodes 2 --gpus 8 --head node1
      align launch run.yaml --gpus 8 --hosts node1,node2 --check
      align launch run.yaml --gpus 8 --hosts node1,node2
      align launch run.yaml --nodes 4 --gpus 8 --slurm --time 24:00:00 > train.sbatch
      align launch run.yaml output=/runs/first --gpus 8 --k8s --image registry/align:1 --mount runs:/runs > job.yaml
      align launch run.yaml output=/runs/first --gpus 8 --gpu H100 --skypilot --mount s3://bucket:/runs > task.yaml
    """
    chosen = dict.fromkeys([*to, *["check"] * check, *["print"] * only_print])
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(f'--{each}' for each in chosen)} exclude each other: give one of them.")
    launcher = to[0] if to else "torchrun"
    for name, readers in READERS.items():
        if launcher not in readers and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            meant = " or ".join("torchrun's command" if each == "torchrun" else f"--{each}" for each in readers)
            raise click.UsageError(f"--{name.replace('_', '-')} is for {meant}.")
    from align.api import launching

    named = [name.strip() for name in hosts.split(",")] if hosts is not None else []
    if check:
        from align.cli.launch_check import check_hosts

        environment = launching.variables(options["env"])
        sys.exit(check_hosts(run, overrides, options["gpus"], named, port, options["python"], environment))
    shared_disk = launcher in ("torchrun", "slurm")
    job = launching.launch_job(
        run,
        overrides,
        nodes=options["nodes"] or len(named) or None,
        gpus=options["gpus"],
        gpu=options["gpu"],
        name=options["name"],
        restarts=options["max_restarts"],
        python=options["python"] or (sys.executable if shared_disk else "python"),
        environment=launching.variables(options["env"]),
        setup=options["setup"],
        override=options["override"],
        reason=options["reason"],
    )
    if to:
        given = {**options, "port": port}
        own = {name: given[name] for name, readers in READERS.items() if launcher in readers and name not in OF_JOB}
        _write(launching.launcher_file(job, launcher, own), out)
    elif only_print or (job.nodes > 1 and not named):
        head = head or (named[0] if named else socket.gethostname())
        click.echo(launching.torchrun_command(job, head, port))
    else:
        _run(launching, job, named or ["localhost"], port)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text, nl=False)
        return
    from align.core.util.atomic_files import write_atomic

    write_atomic(out, text.encode())
    click.echo(out)


def _run(launching: ModuleType, job: LaunchJob, hosts: list[str], port: int) -> None:
    from align.core.util.stopping import Interrupted

    try:
        launching.launch_on_hosts(job, hosts, port)
    except Interrupted as stop:
        click.echo(f"{stop}; go on with: {shlex.join(['align', *sys.argv[1:]])}", err=True)
        sys.exit(128 + stop.signal_number)


@click.command(hidden=True)
@click.argument("run", type=click.Path(path_type=Path), help="A run file.")
@click.argument("overrides", nargs=-1, help="Single settings laid over the file.")
@click.option("--nodes", type=int, help="Machines.")
@click.option("--gpus", type=int, help="Processes on each.")
@click.option("--gpu", help="The kind of GPU.")
@click.option("--override", multiple=True, help="Findings of the advice that stop nothing.")
@click.option("--reason", multiple=True, help="Why.")
def launch_check(
    run: Path,
    overrides: tuple[str, ...],
    nodes: int | None,
    gpus: int | None,
    gpu: str | None,
    override: tuple[str, ...],
    reason: tuple[str, ...],
) -> None:
    """Check a run for `align launch`, which imports no torch, and print it as JSON.

    \b
    Example:
      align launch-check run.yaml --nodes 2 --gpus 8
    """
    from align.core.config import run_file

    checked = run_file.overriding(run_file.load(run, list(overrides)), override, reason)
    from align.core.training.launch import validate_elsewhere

    validate_elsewhere(checked, nodes, gpus, gpu)
    click.echo(checked.model_dump_json())
