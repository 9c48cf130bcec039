"""A Kubernetes manifest: a JobSet of one pod on each node, with torchrun in it, and the run file as a ConfigMap.

A JobSet and not a PyTorchJob or TrainJob: it gives pods names by which they meet, and starts all of them again when one
is lost, which is what torchrun needs; and both of those need an operator of Kubeflow's, TrainJob on top of JobSet.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import yaml

from align.core.launching.job import PORT, SAVE_MARGIN, TORCHRUN_ENVIRONMENT, LaunchJob, torchrun
from align.schemas.errors import AlignError

RUN_FILES = "/etc/align"
"""The directory of the run file in a pod."""
INDEX = "JOB_COMPLETION_INDEX"
"""The variable that has a pod's number: Kubernetes sets it in an indexed job."""


@dataclass(frozen=True, slots=True)
class KubernetesOptions:
    """The settings of a manifest besides the job's. image: of the container, which has align. cpus: cores for each GPU.

    mount: ``CLAIM:PATH``, persistent volume claims; the run's output must lie in one that all pods may write to.
    secret: Secrets whose entries become variables.
    """

    image: str = ""
    namespace: str = ""
    mount: Sequence[str] = ()
    secret: Sequence[str] = ()
    cpus: int = 0
    port: int = PORT


def manifest(job: LaunchJob, options: KubernetesOptions) -> str:
    """Return the manifest. Raises AlignError for a missing image, and for an output that would go with its pod."""
    if not options.image:
        raise AlignError("is not given", "name an image that has align: --image REGISTRY/IMAGE:TAG", where="--image")
    check_output(job, options.mount)
    metadata = {"name": job.name} | ({"namespace": options.namespace} if options.namespace else {})
    run_file = f"{job.name}.yaml"
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**metadata, "name": f"{job.name}-run"},
        "data": {run_file: job.text},
    }
    in_pod = replace(job, arguments=[job.arguments[0], f"{RUN_FILES}/{run_file}", *job.arguments[2:]])
    pods: dict[str, Any] = {
        "parallelism": job.nodes,
        "completions": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # the JobSet starts all again, since none can go on without the others
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"spec": _pod(in_pod, options)},
    }
    job_set = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": job.restarts,
                # A node that is drained or taken by a more urgent job is no failure of the run's.
                "rules": [
                    {
                        "name": "disrupted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": pods}}],
        },
    }
    return dumped([config, job_set])


def _pod(job: LaunchJob, options: KubernetesOptions) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [
        {"name": "run", "configMap": {"name": f"{job.name}-run"}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # NCCL shares memory there; a container's own has 64 MB
    ]
    mounts = [{"name": "run", "mountPath": RUN_FILES}, {"name": "shm", "mountPath": "/dev/shm"}]
    for number, (claim, path) in enumerate(mount_pairs(options.mount)):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"claim-{number}", "mountPath": path})
    container: dict[str, Any] = {
        "name": "train",
        "image": options.image,
        "command": ["sh", "-c", _script(job, options.port)],
        "env": [{"name": name, "value": value} for name, value in (TORCHRUN_ENVIRONMENT | job.environment).items()],
        "ports": [{"containerPort": options.port, "protocol": "TCP"}],
        "volumeMounts": mounts,
    }
    if options.secret:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in options.secret]
    resources: dict[str, Any] = {}
    if job.gpu:
        resources["limits"] = {"nvidia.com/gpu": job.processes}
    if options.cpus:
        resources["requests"] = {"cpu": str(options.cpus * job.processes)}
    if resources:
        container["resources"] = resources
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.stop_seconds + SAVE_MARGIN,
        "containers": [container],
        "volumes": volumes,
    }


def _script(job: LaunchJob, port: int) -> str:
    """Return the shell lines of a pod: its number says whether it is the one where all meet."""
    first = f"{job.name}-node-0-0.{job.name}:{port}"
    return meeting(torchrun(job, first), job.nodes, INDEX)


def meeting(command: Sequence[str], nodes: int, index: str) -> str:
    """Return shell lines that run torchrun's command where a variable, ``index``, has the node's number.

    Nodes that are made on request come up minutes apart, and the first may not be able to resolve its own name yet:
    ``is_host`` makes it the first all the same, and the others wait for it.
    """
    if nodes == 1:
        return f"exec {shlex.join(command)}\n"
    place = next(n for n, word in enumerate(command) if word.startswith("--rdzv-id="))
    before, after = shlex.join(command[:place]), shlex.join(command[place:])
    return (
        f'if [ "${index}" = 0 ]; then first=true; else first=false; fi\n'
        f'exec {before} --rdzv-conf="is_host=$first,read_timeout=900,join_timeout=900" {after}\n'
    )


def mount_pairs(given: Sequence[str]) -> list[tuple[str, str]]:
    """Return ``WHAT:PATH`` words as pairs. Raises AlignError for one without an absolute path."""
    pairs = []
    for word in given:
        what, _, path = word.rpartition(":")
        if not what or not path.startswith("/"):
            raise AlignError(f"{word!r} is not WHAT:PATH", "write --mount runs:/runs", where="--mount")
        pairs.append((what, path))
    return pairs


def check_output(job: LaunchJob, mount: Sequence[str]) -> None:
    """Raise AlignError where no mount has the run's output: it would be gone with the machine, and its checkpoints."""
    output = PurePosixPath(job.run.output)
    if not any(output.is_relative_to(path) for _, path in mount_pairs(mount)):
        raise AlignError(
            f"is {job.run.output}, which is on no --mount: it would be gone with the machine",
            "give both: --mount runs:/runs, and output=/runs/first after the run file",
            where="output",
        )


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are read, in place of one quoted line."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def dumped(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return documents as YAML, in the order of their keys."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
