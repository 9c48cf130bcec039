"""A SkyPilot task: torchrun on each machine of a cluster that SkyPilot rents, and starts again where one is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from align.core.launching.job import PORT, TORCHRUN_ENVIRONMENT, LaunchJob, torchrun
from align.core.launching.kubernetes import check_output, dumped, meeting, mount_pairs
from align.schemas import gpus
from align.schemas.errors import AlignError

NAMES = {"A100-80": "A100-80GB", "A100-40": "A100", "V100-32": "V100-32GB", "V100-16": "V100"}
"""GPUs that SkyPilot calls otherwise than align does."""
HEAD = "align-head"
"""Stands for the first machine's address, which the shell reads there."""


@dataclass(frozen=True, slots=True)
class SkyPilotOptions:
    """The settings of a task besides the job's. image: a container's; empty for the cloud's own machine.

    mount: ``NAME:PATH`` for volumes, ``URL:PATH`` for buckets. secret: variables that ``sky --secret`` gives.
    """

    image: str = ""
    mount: Sequence[str] = ()
    secret: Sequence[str] = ()
    spot: bool = False
    port: int = PORT


def task(job: LaunchJob, options: SkyPilotOptions) -> str:
    """Return the task. Raises AlignError where the GPU is not named, and for a disk that the machines cannot share."""
    if job.gpu and not job.kind:
        raise AlignError("is not given", "name the kind of GPU to rent: --gpu H100", where="--gpu")
    run = PurePath(job.arguments[1])
    if run.is_absolute() or ".." in run.parts:
        raise AlignError(
            "is not below this directory, which is what SkyPilot copies", "start from its directory", where=str(run)
        )
    check_output(job, options.mount)
    resources: dict[str, Any] = {"job_recovery": {"max_restarts_on_errors": job.restarts}}
    if job.gpu:
        name = gpus.named(job.kind).name
        resources = {"accelerators": f"{NAMES.get(name, name.replace(' ', ''))}:{job.processes}", **resources}
    if options.spot:
        resources["use_spot"] = True
    if options.image:
        resources["image_id"] = f"docker:{options.image}"
    buckets, volumes = {}, {}
    for what, path in mount_pairs(options.mount):
        if "://" in what:
            # Renames and flushes need a cache: plain mounts of buckets have neither.
            buckets[path] = {"source": what, "mode": "MOUNT_CACHED"}
        else:
            volumes[path] = what
    if buckets and job.nodes > 1:
        raise AlignError(
            "is a bucket, which several machines do not see alike; they read each other's signs of life in the output",
            "name a volume that all of them mount (sky volumes)",
            where="--mount",
        )
    made = {
        "name": job.name,
        "workdir": ".",
        "num_nodes": job.nodes,
        "resources": resources,
        "envs": TORCHRUN_ENVIRONMENT | job.environment,
        "secrets": dict.fromkeys(options.secret),
        "file_mounts": buckets,
        "volumes": volumes,
        "setup": "\n".join(job.setup or ("pip install align-llm",)) + "\n",
        "run": _script(job, options.port),
    }
    return dumped([{name: value for name, value in made.items() if value != {}}])


def _script(job: LaunchJob, port: int) -> str:
    lines = meeting(torchrun(job, f"{HEAD}:{port}"), job.nodes, "SKYPILOT_NODE_RANK")
    if job.nodes == 1:
        return lines
    head = 'head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
    return head + lines.replace(f"--rdzv-endpoint={HEAD}:{port}", f'--rdzv-endpoint="$head:{port}"')
