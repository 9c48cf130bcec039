"""An sbatch script: one task for each GPU, a signal before the time limit, and the same job again until it is done."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from align.core.launching.job import SAVE_MARGIN, LaunchJob, servers, shell
from align.schemas.errors import AlignError
from align.schemas.run import Stage

REQUEUES = 100
"""Times that a job goes back into the queue: one that never takes a step would otherwise do so for ever."""
SERVER_PORT = 8000
START_SECONDS = 1200.0
"""Seconds that a server may take to start, unless the generator says so: the generator's own default."""
OWN_GPU_SHARE = 0.9
"""Share of a GPU's memory for a server that shares it with no trainer: vLLM's own default."""
TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
"""A time limit as sbatch reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
EXTENSION = "align.plugins.generators.vllm.extension"


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """The settings of a script besides the job's. time: as Slurm writes it (``1-12:00:00``); empty: the partition's.

    cpus: cores of each task, 0 leaves it to the partition. sbatch: further options of its, each as a word.
    server_nodes: nodes of their own for vLLM servers.
    """

    time: str = ""
    partition: str = ""
    account: str = ""
    cpus: int = 0
    sbatch: Sequence[str] = ()
    server_nodes: int = 0


def sbatch_script(job: LaunchJob, options: SlurmOptions) -> str:
    """Return the script. Raises AlignError for options that contradict the run, or that are no options."""
    for word in options.sbatch:
        if not word.startswith("-"):
            raise AlignError(f"{word!r} is no option of sbatch", "write --sbatch=--qos=high", where="--sbatch")
    if options.time and not TIME.fullmatch(options.time):
        fix = "write hours as 12:00:00, days as 1-12:00:00"
        raise AlignError(f"{options.time!r} is no time limit of Slurm's", fix, where="--time")
    stages = servers(job.run)
    if options.server_nodes and not stages:
        what = "is for stages with rollout.generator: {type: vllm, mode: server} and no url, and there is none"
        raise AlignError(what, "leave it out", where="--server-nodes")
    if options.server_nodes > 1:
        what = f"is {options.server_nodes}, and the script starts one server, on one node"
        fix = "give 1, or start the servers yourself and list their addresses as the generator's url"
        raise AlignError(what, fix, where="--server-nodes")
    for stage in stages if options.server_nodes else ():
        count = stage.rollout.generator.settings.get("servers", 1) if stage.rollout else 1
        if count != 1:
            what = f"is {count}, and the script starts one server"
            raise AlignError(what, "leave it out", where=f"{stage.name}: rollout.generator.servers")
    lines = ["#!/bin/bash", *_directives(job, options), "", *_prelude(job), *_signals()]
    lines += _server(job, stages) if options.server_nodes else []
    lines += _train(job, stages if options.server_nodes else [])
    return "\n".join(lines) + "\n"


def _directives(job: LaunchJob, options: SlurmOptions) -> Iterator[str]:
    # The signal goes to the tasks, since it is not B:. Slurm may send it up to a minute early, never late.
    warning = job.stop_seconds + SAVE_MARGIN
    given = {
        "job-name": job.name,
        "chdir": job.directory,
        "output": f"{job.name}-%j.log",
        "open-mode": "append",
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "signal": f"USR1@{warning}",
    }
    yield from (f"#SBATCH --{name}={_quoted(value)}" for name, value in given.items() if value)
    yield "#SBATCH --requeue"
    yield from (f"#SBATCH {_quoted(word)}" for word in options.sbatch)
    yield from _size(job.nodes, job.processes, job.processes if job.gpu else 0, options.cpus)
    if options.server_nodes:
        yield "#SBATCH hetjob"
        for name in ("partition", "account", "time"):
            if value := given[name]:
                yield f"#SBATCH --{name}={_quoted(value)}"
        tensor_parallel = max(_tensor_parallel(stage) for stage in servers(job.run))
        yield from _size(1, 1, tensor_parallel if job.gpu else 0, options.cpus * tensor_parallel)


def _quoted(value: str) -> str:
    r"""Return a value in quotes as sbatch reads them: a shell's, but for ``\``, which it takes away in any of them."""
    if "\\" in value or not value.isprintable():
        raise AlignError(f"{value!r} has a character that sbatch does not take", "name it otherwise", where="--slurm")
    return shlex.quote(value)


def _size(nodes: int, tasks: int, gpus: int, cpus: int) -> Iterator[str]:
    yield f"#SBATCH --nodes={nodes}"
    yield f"#SBATCH --ntasks-per-node={tasks}"
    if gpus:
        yield f"#SBATCH --gpus-per-node={gpus}"
    if cpus:
        yield f"#SBATCH --cpus-per-task={cpus}"


def _prelude(job: LaunchJob) -> Iterator[str]:
    yield from job.setup
    yield from (f"export {name}={shlex.quote(value)}" for name, value in job.environment.items())
    yield from (
        "# srun does not take the batch job's --cpus-per-task by itself (Slurm 22.05 and later).",
        'if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi',
        "",
    )


def _signals() -> Iterator[str]:
    yield from (
        "# A signal ended the tasks (138, 143) with the step saved, and there is more to do. A job that is warned of",
        "# preemption and ends before it is killed is not requeued by Slurm itself; a cancelled one is not RUNNING.",
        "finish() {",
        '    if [ "$1" -eq 138 ] || [ "$1" -eq 143 ]; then',
        '        state=$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")',
        f'        if [ "$state" = RUNNING ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {REQUEUES} ]; then',
        '            scontrol requeue "$SLURM_JOB_ID"',
        "        fi",
        "    fi",
        '    exit "$1"',
        "}",
        "# A signal to this shell alone goes on to the tasks: bash would end without them.",
        "tasks=",
        "# shellcheck disable=SC2329  # called by the traps",
        'pass_on() { if [ -n "$tasks" ]; then kill -s "$1" "$tasks" 2>/dev/null; else finish "$2"; fi; }',
        "trap 'pass_on TERM 143' TERM",
        "trap 'pass_on USR1 138' USR1",
        "",
    )


def _train(job: LaunchJob, served: Sequence[Stage]) -> Iterator[str]:
    group = " --het-group=0" if served else ""
    gpus = " --gpu-bind=none" if job.gpu else ""
    command = shell([job.python, "-m", "align", *job.arguments])
    for stage in served:
        generator = job.key(stage, "rollout.generator")
        command += f' {generator}.url="https://$server:{SERVER_PORT}" {generator}.key_env=ALIGN_VLLM_KEY'
        command += f' {generator}.exchange="$exchange"'
        if stage.rollout is not None and "python" in stage.rollout.generator.settings:
            command += f" {generator}.python=null"  # the server has been started by it
    yield from (
        "# One task for each GPU; each sees all GPUs of its node and takes the one of its local rank. A task that has",
        "# saved and ended must not have the others killed while they end.",
        f"srun --kill-on-bad-exit=0{group}{gpus} {command} &",
        "tasks=$!",
        'wait "$tasks"; status=$?',
        '# A trapped signal ends "wait" early.',
        'while kill -0 "$tasks" 2>/dev/null; do wait "$tasks"; status=$?; done',
    )
    if served:
        yield 'kill "$servers" 2>/dev/null'
    yield 'finish "$status"'


def _server(job: LaunchJob, stages: Sequence[Stage]) -> Iterator[str]:
    """Yield the lines that start a vLLM server on the second group of nodes and wait until it listens.

    Requests go to it over TLS, with a key and a certificate made for this job: the key crosses the network, and plain
    http is taken to one's own machine only.
    """
    settings = stages[0].rollout.generator.settings if stages[0].rollout else {}
    python = settings.get("python", job.python)
    seconds = round(settings.get("start_timeout", START_SECONDS))
    yield from (
        "# A vLLM server on nodes of its own, with a key and a certificate for this job.",
        'exchange="$PWD/.align-vllm-$SLURM_JOB_ID"',
        'rm -rf "$exchange" && mkdir -m 700 "$exchange" || exit 1',
        "trap 'rm -rf \"$exchange\"' EXIT",
        'server=$(scontrol show hostnames "$SLURM_JOB_NODELIST_HET_GROUP_1" | head -n 1)',
        'openssl req -x509 -newkey rsa:3072 -nodes -days 365 -subj "/CN=$server" \\',
        '    -addext "subjectAltName=DNS:$server" \\',
        '    -keyout "$exchange/key.pem" -out "$exchange/cert.pem" 2>/dev/null || exit 1',
        "ALIGN_VLLM_KEY=$(openssl rand -hex 32)",
        'export ALIGN_VLLM_KEY VLLM_API_KEY="$ALIGN_VLLM_KEY" VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=1',
        f"srun --het-group=1 {shell([python, *_serve(job, stages)])} \\",
        '    --ssl-keyfile="$exchange/key.pem" --ssl-certfile="$exchange/cert.pem" &',
        "servers=$!",
        f"deadline=$((SECONDS + {seconds}))",
        f'until (exec 3<>"/dev/tcp/$server/{SERVER_PORT}") 2>/dev/null; do',
        '    if ! kill -0 "$servers" 2>/dev/null || [ "$SECONDS" -gt "$deadline" ]; then',
        '        echo "the vLLM server on $server did not start" >&2',
        '        kill "$servers" 2>/dev/null',
        "        exit 1",
        "    fi",
        "    sleep 2",
        "done",
        "# Clients trust what they did before, and this certificate.",
        f'cat "$({shell([job.python, "-c", "import certifi; print(certifi.where())"])})" \\',
        '    "$exchange/cert.pem" > "$exchange/trusted.pem" || exit 1',
        'export SSL_CERT_FILE="$exchange/trusted.pem"',
        "",
    )


def _serve(job: LaunchJob, stages: Sequence[Stage]) -> list[str]:
    """Return the arguments after ``python`` of the server. Raises AlignError where the stages need different ones."""
    wanted = {stage.name: _serve_for(job, stage) for stage in stages}
    first, *others = wanted
    for other in others:
        if wanted[other] != wanted[first]:
            raise AlignError(
                f"stages {first} and {other} need vLLM servers with different models or settings",
                "give their generators the same, or start the servers yourself and name their url",
                where="--server-nodes",
            )
    return wanted[first]


def _serve_for(job: LaunchJob, stage: Stage) -> list[str]:
    """Return the arguments of a stage's server: those of docs/vllm.md, and the generator's own."""
    assert stage.rollout is not None
    settings = stage.rollout.generator.settings
    model = stage.model
    by_name = {each.name: each.model for each in job.run.stages}
    while model.path.startswith("stage:"):  # its export is not there yet; its weights will be sent
        model = by_name[model.path.removeprefix("stage:")]
    cache = settings.get("kv_cache")
    engine = {
        "model": model.path,
        "revision": model.revision,
        "dtype": settings.get("dtype") or stage.model.dtype,
        "max_model_len": settings.get("context"),
        "tensor_parallel_size": _tensor_parallel(stage),
        "gpu_memory_utilization": settings.get("gpu_memory_utilization", OWN_GPU_SHARE),
        "kv_cache_memory_bytes": None if cache is None else int(cache * 2**30),
        "enforce_eager": settings.get("enforce_eager", True),
        "weight_transfer_config": {"backend": "nccl"} if settings.get("weights") == "nccl" else None,
        "host": "0.0.0.0",
        "port": SERVER_PORT,
        **settings.get("engine", {}),
    }
    # Core may not import the plugin, which has the same flags for servers of its own: a test compares the two.
    fixed = [
        *("-P", "-m", "vllm.entrypoints.openai.api_server"),
        "--enable-scale-out",
        "--logprobs-mode=processed_logprobs",
        "--generation-config=vllm",
        f"--worker-extension-cls={EXTENSION}.Extension",
        f"--middleware={EXTENSION}.ApiKeyMiddleware",
    ]
    return [*fixed, *(_flag(name.replace("_", "-"), value) for name, value in engine.items() if value is not None)]


def _tensor_parallel(stage: Stage) -> int:
    """Return the GPUs of a stage's server."""
    assert stage.rollout is not None
    return int(stage.rollout.generator.settings.get("tensor_parallel", 1))


def _flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
