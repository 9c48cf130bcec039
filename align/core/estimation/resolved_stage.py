"""A stage with the inputs of its estimate: its algorithm's needs, its model's config, its most expensive step.

``placement_of`` takes the decisions of training, by training's own code: the strategy, and what would be refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import LocalEntryNotFoundError

from align.core.algorithm.contract import Algorithm
from align.core.data.step_plan import Layout
from align.core.estimation.batches import Planned, needs_of, planned
from align.core.models.architecture import base_of, is_adapter
from align.core.models.packing import VARLEN
from align.core.plugin_system.registry import registry
from align.core.training.launch import stage_runner
from align.core.training.reward_stage import configure
from align.core.training.run_directory import RunDirectory, located
from align.core.training.stage import resolve_strategy
from align.schemas.engine import Needs
from align.schemas.errors import AlignError
from align.schemas.hardware import Footprint, Hardware, Placement
from align.schemas.run import Adapter, Run, Stage


@dataclass(frozen=True, slots=True)
class ResolvedStage:
    """A stage with the inputs of its estimate. directory: of its model's config, None if there is none."""

    stage: Stage
    algorithm: Algorithm
    needs: Needs
    directory: Path | None
    planned: Planned
    layout: Layout


def resolve_stage(
    stages: Sequence[Stage], stage: Stage, accelerator: str, devices: int, *, sized: bool = False
) -> ResolvedStage:
    """Return a stage with the inputs of its estimate. Raises AlignError for a model without a config.

    sized: True if the model's size is known, so that its config may be missing. A stage that starts from the export of
    an earlier one is estimated with the model that the earlier one starts from, since there is no export yet.
    """
    by_name = {other.name: other for other in stages}

    def root(name: str, rows: bool) -> str:
        path = by_name[name].model.path
        if rows:
            return f"rows of {name}"  # which are not here yet
        return root(path.removeprefix("stage:"), False) if path.startswith("stage:") else path

    stage = located(stage, root)
    directory: Path | None
    try:
        directory = config_of(stage)
    except AlignError:
        if not sized:
            raise
        directory = None
    if directory is not None and is_adapter(directory):
        stage, directory = _continued(stage, directory)
    algorithm: Algorithm = registry.build("algorithm", stage.algorithm)
    configure(algorithm, stage)
    serves = accelerator == "cuda" and stage.model.attn_implementation in VARLEN
    packed = stage.train.layout == "packed" or (stage.train.layout == "auto" and serves)
    layout: Layout = "packed" if packed else "padded"
    if _shares(stage, algorithm):
        layout = "packed_shared" if packed else "padded_shared"
    return ResolvedStage(
        stage,
        algorithm,
        needs_of(algorithm),
        directory,
        planned(stage, algorithm, accelerator, devices, layout),
        layout,
    )


def placement_of(stage: Stage, hardware: Hardware, size: Footprint) -> Placement:
    """Return what training would decide about a located stage: its strategy and why, or why it would refuse it.

    size: of one replica. Nothing is read or loaded: these are the checks of ``StageRunner.prepare`` on settings alone.
    """
    declared, refused = stage.devices.strategy.type, ""
    try:
        # The output is not made: a directory of a run is written to only when the run begins.
        directory = RunDirectory(Run(output="planned", stages=[stage]))
        stage_runner(directory, stage, progress=False, hardware=hardware).check_settings()
    except AlignError as error:
        refused = _in_one_line(error)
    try:
        strategy, why = resolve_strategy(stage, hardware, size)
    except AlignError as error:
        name = size.choice(hardware) if declared == "auto" else declared
        return Placement(name, "", refused or _in_one_line(error))
    return Placement(strategy.name, why, refused)


def _in_one_line(error: AlignError) -> str:
    """Return the first problem of an error: ``sft: devices.strategy: is single, but the run has 4 devices``."""
    first = error.problems[0]
    return f"{first.where}: {first.what}" if first.where else first.what


def _shares(stage: Stage, algorithm: Algorithm) -> bool:
    """Return True if sequences share their prefix, unless the model proves unable when training begins."""
    dropout = algorithm.dropout if stage.train.dropout is None else stage.train.dropout
    adapter = stage.model.adapter
    drops = dropout or (adapter is not None and adapter.lora_dropout > 0)
    return stage.train.shared_prefix and not drops and not stage.model.attn_implementation.startswith("flash")


def config_of(stage: Stage) -> Path:
    """Return the directory of a model's config: its own, or the cache's for a hub id. Weights are not fetched.

    Raises AlignError if there is no config.
    """
    path = stage.model.path
    try:
        return config_directory(path, stage.model.revision)
    except Exception as error:  # of whichever HTTP library the hub's client uses
        raise AlignError(
            "is neither a directory here nor a hub id whose config.json can be had",
            "give a directory that holds at least a config.json, or say the size: project.model.params_b",
            where=f"{stage.name}: model.path: {path}",
        ) from error


def config_directory(path: str, revision: str | None) -> Path:
    """Return the directory of a config: a path's own, or for a hub id the cache's. Raises as the hub's client does."""
    local = Path(path).expanduser()
    return local.absolute() if local.is_dir() else Path(_of_hub(path, revision)).parent


def _of_hub(name: str, revision: str | None) -> str:
    """Return the path of a hub id's config.json, fetched if the cache lacks it.

    Its metadata is asked for first, once: the download itself would try six times before it gives up offline.
    """
    try:
        return hf_hub_download(name, "config.json", revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision))
        return hf_hub_download(name, "config.json", revision=revision)


def _continued(stage: Stage, directory: Path) -> tuple[Stage, Path]:
    """Return a stage that continues an adapter as one that makes a new adapter of the same rank on its base."""
    rank = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8")).get("r", Adapter().r)
    base = base_of(directory)
    model = stage.model.model_copy(
        update={"path": base.path, "revision": base.revision, "adapter": stage.model.adapter or Adapter(r=rank)}
    )
    stage = stage.model_copy(update={"model": model})
    return stage, config_of(stage)
