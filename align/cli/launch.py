"""``align launch``: parse, call, print."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path

import rich_click as click


@click.command()
@click.argument("run", type=click.Path(path_type=Path), help="A run file (docs/runfile.md).")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Single settings laid over the file.")
@click.option("--nodes", type=click.IntRange(min=1), help="Machines; devices.nodes of RUN unless given.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of each (on a CPU: processes); else devices.count.")
@click.option("--gpu", metavar="NAME", help="The kind of GPU (H100): for the check of memory, and to choose machines.")
@click.option("--hosts", metavar="A,B", help="Run on these hosts over ssh, one node on each; localhost is here.")
@click.option("--head", metavar="HOST", help="What the other nodes call the first, for a printed command; else here.")
@click.option("--port", type=click.IntRange(1, 65535), default=29400, help="Where the nodes meet on the first one.")
@click.option(
    "--max-restarts", type=click.IntRange(min=0), default=3, help="Starts again after a failure, by torchrun."
)
@click.option("--name", help="The job's name; that of RUN's output unless given.")
@click.option("--python", metavar="PATH", help="The interpreter on the nodes; on hosts and in Slurm this one's path.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable to set on the nodes; may be repeated.")
@click.option("--print", "only_print", is_flag=True, help="Print the command in place of running it.")
@click.option("--override", multiple=True, metavar="RULE", help="Launch in spite of this finding of the advice.")
@click.option("--reason", multiple=True, metavar="TEXT", help="Why; one to each --override, kept in the manifest.")
def launch(
    run: Path,
    overrides: tuple[str, ...],
    nodes: int | None,
    gpus: int | None,
    gpu: str | None,
    hosts: str | None,
    head: str | None,
    port: int,
    max_restarts: int,
    name: str | None,
    python: str | None,
    env: tuple[str, ...],
    only_print: bool,
    override: tuple[str, ...],
    reason: tuple[str, ...],
) -> None:
    """Start RUN on several GPUs or nodes: run it here or over ssh, or print the command for each node.

    RUN is checked first, as its first process will. One node runs here; several are printed, unless `--hosts` says
    where they are. Every start goes on where the last one stopped.

    \b
    Example:
      align launch run.yaml --gpus 8
      align launch run.yaml --nodes 2 --gpus 8 --head node1
      align launch run.yaml --nodes 2 --gpus 8 --hosts node1,node2
    """
    from align.api import launching
    from align.core.util.liveness import Interrupted

    named = hosts.split(",") if hosts else []
    job = launching.launch_job(
        run,
        overrides,
        nodes=nodes or len(named) or None,
        gpus=gpus,
        gpu=gpu,
        name=name,
        restarts=max_restarts,
        python=python or sys.executable,
        environment=launching.variables(env),
        override=override,
        reason=reason,
    )
    if only_print or (job.nodes > 1 and not named):
        head = head or (named[0] if named else socket.gethostname())
        click.echo(launching.torchrun_command(job, head, port))
        return
    try:
        launching.launch_on_hosts(job, named or ["localhost"], port)
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
