"""``align launch --check``: the hosts of a run compared before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from align.advisor.estimate import engine_memory
from align.advisor.estimate.model_shape import shape_of_directory
from align.api.launching import HOSTS
from align.core.algorithm.contract import Algorithm
from align.core.engine import processes
from align.core.estimation.batches import needs_of
from align.core.estimation.resolved_stage import config_directory
from align.core.launching.host_report import HostReport, collect
from align.core.launching.placement import SECONDS, Checked, Expected, exchange
from align.core.plugin_system.registry import registry
from align.core.util.atomic_files import digest
from align.schemas.run import Run


def check_placement(run: Run, *, gpus: int | None = None, seconds: float = SECONDS) -> Checked | None:
    """Report this host, and on host 0 return what differs between all hosts and what they lack; None on the others.

    One process of each host takes part: of those that torchrun, srun or a PyTorchJob started (RANK, WORLD_SIZE,
    MASTER_ADDR, MASTER_PORT) that of local rank 0, or this one alone. gpus: processes that each host will have; default
    ``devices.count``, else those started here. seconds: most that it takes. Imports torch. Raises AlignError where the
    hosts cannot meet.
    """
    if processes.local_rank() != 0:
        return None
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = processes.world_size() // local
    counts = [stage.devices.count for stage in run.stages if stage.devices.count != "auto"]
    each = gpus or max(counts, default=local)
    expected = Expected(
        nodes=nodes,
        processes=each,
        gpu=needs_gpu(run),
        output=Path(run.output).absolute(),
        room=sum(_checkpoints(run)),
        names=[name for name in os.environ.get(HOSTS, "").split(",") if name],
    )
    node = int(os.environ.get("GROUP_RANK", processes.rank() // local))
    vllm = any(stage.rollout is not None and stage.rollout.generator.type == "vllm" for stage in run.stages)

    def report(port: int) -> HostReport:
        content = digest(run.model_dump(mode="json"))
        return collect(node, each, content, sorted(set(_paths(run))), uses_vllm=vllm, answers_at=port)

    return exchange(node, expected, report, seconds)


def needs_gpu(run: Run) -> bool:
    """Return True if a stage will take GPUs: it says so, or leaves it open and there is one here."""
    import torch

    kinds = {stage.devices.accelerator for stage in run.stages}
    return "cuda" in kinds or ("auto" in kinds and torch.cuda.is_available())


def _paths(run: Run) -> Iterator[str]:
    """Yield the paths of models and data that a run reads: what an earlier stage makes is not there yet."""
    for stage in run.stages:
        given = [stage.model.path, *(source.path for source in (*stage.data.train, *(stage.data.validation or ())))]
        choices = [] if stage.rollout is None else stage.rollout.rewards
        given += [str(choice.settings["path"]) for choice in choices if "path" in choice.settings]
        yield from (path for path in given if not path.startswith("stage:"))


def _checkpoints(run: Run) -> Iterator[float]:
    """Yield the bytes of each stage's checkpoints: those that are kept, and the one that is being written."""
    for stage in run.stages:
        algorithm: Algorithm = registry.build("algorithm", stage.algorithm)
        try:
            shape = shape_of_directory(config_directory(_root(run, stage.model.path), stage.model.revision))
        except Exception:  # of whichever HTTP library the hub's client uses: then the room is not known
            continue
        if not algorithm.makes_rows:
            how = engine_memory.layout_of(stage, "cpu", 1)
            yield engine_memory.gathered_state(needs_of(algorithm), shape, how) * (
                stage.checkpoint.save_total_limit + 1
            )


def _root(run: Run, path: str) -> str:
    """Return the path of the model that a chain of stages starts from."""
    by_name = {stage.name: stage for stage in run.stages}
    while path.startswith("stage:"):
        path = by_name[path.removeprefix("stage:")].model.path
    return path
