"""A stage that learns nothing and makes rows: every prompt asked and scored once, what is best of it written down.

Phases are kept as they are done, so a run that was stopped goes on where it stood. The rows are the stage's export.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from align.core import contract, disk
from align.core.checksum import Damaged, digest, read_json, sealed
from align.core.data.accept import Acceptance
from align.core.data.doctor import Settings
from align.core.data.encode import Encoder
from align.core.model.tokenizer import load_tokenizer
from align.core.progress import track
from align.core.registry import registry
from align.core.rollout.metrics import answer_metrics, score_metrics
from align.core.rollout.online import Harvest
from align.core.rollout.reward import Score
from align.core.rollout.score import Scored
from align.core.rollout.ties import leveled
from align.core.rollout.watch import CHECK
from align.core.train import spawn
from align.core.train.online import RolloutPhases, why_unscored
from align.core.train.rollout import opened
from align.core.train.rundir import ROWS, RunDirectory, StageDirectory, located, what_is_learned
from align.core.train.setup import Setup
from align.schemas.errors import AlignError, Problem
from align.schemas.hardware import Hardware
from align.schemas.run import Stage


def harvest(place: StageDirectory, stage: Stage, setup: Setup, directory: RunDirectory) -> None:
    """Ask every prompt, phase by phase; write ``export/rows.jsonl``; mark the stage as done. Every rank calls it.

    Answers that a stage of this run would refuse to learn from are left out. Raises AlignError where no prompt gave a
    row.
    """
    phases, algorithm = setup.phases, setup.algorithm
    assert isinstance(phases, RolloutPhases) and isinstance(algorithm, Harvest)
    key = digest([what_is_learned(stage), setup.prepared.taught])
    size, count = phases.groups_per_phase, math.ceil(len(phases.prompts) / phases.groups_per_phase)
    done: list[Mapping[str, Any]] = []
    readers = _readers(directory, setup)
    _join(phases, setup.hardware)
    with opened(phases.collector):
        phases.collector.sync(0, phases.prompts)
        for phase in track(range(count), f"{setup.stage.name}: asking prompts, phases"):
            path = place.phases / f"phase-{phase + 1:06d}.json"
            kept = _read(path, key)
            if kept is None:
                which = range(phase * size, min(len(phases.prompts), (phase + 1) * size))
                kept = {"key": key, **_ask(phases, algorithm, readers, which, phase)}
                if spawn.rank() == 0:
                    disk.write_whole(path, sealed({**kept, "inputs": place.inputs()}))
            else:
                phases.collector.scorer.load_state_dict(kept["scorer"])
            done.append(kept)
    with contract.calling(algorithm, "curves"):
        curves = algorithm.curves([rewards for kept in done for rewards in kept["rewards"]])
    metrics = {**curves, **_means(done)}
    rows = [row for kept in done for row in kept["rows"]]
    refused: Counter[str] = sum((Counter(kept.get("refused", {})) for kept in done), Counter())
    left_out = f"left out {refused.total()} answers that cannot be learned from: " + ", ".join(
        f"{count} {kind}" for kind, count in refused.most_common()
    )
    if refused and rows and spawn.rank() == 0:
        print(f"{place.path.name}: {left_out}", file=sys.stderr)
    if not rows:
        scored = any(reward is not None for kept in done for rewards in kept["rewards"] for reward in rewards)
        why = "no prompt had an answer that ended by itself and was good enough" if scored else "no answer was scored"
        mend = "see its samples; ask more often (group), allow longer answers, or lower the minimum"
        raise AlignError(
            f"made no row: {why}{f' ({left_out})' if refused else ''}",
            mend if scored else CHECK,
            where=str(place.path),
        )
    if spawn.rank() == 0:
        disk.write_whole(place.export / ROWS, "".join(json.dumps(row) + "\n" for row in rows).encode())
        for choice in setup.stage.loggers:
            logger = registry.build("logger", choice).open(place.path, place.path.name, 0)
            logger.log_metrics(metrics, count)
            logger.save()
        place.finish(stage, {"rows": float(len(rows)), "refused": float(refused.total()), **metrics})
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _join(phases: RolloutPhases, hardware: Hardware) -> None:
    """What Lightning does where there is something to fit: the model to its device, the ranks to one group."""
    if hardware.accelerator == "cuda":
        phases.collector.policy.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
    if phases.cutter.world_size > 1 and not dist.is_initialized():
        backend = "nccl" if hardware.accelerator == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=hardware.timeout))


def _readers(directory: RunDirectory, setup: Setup) -> list[Acceptance]:
    """How the stages that learn from these rows read them, each with its own tokenizer; at least as anybody does."""
    own, found = Encoder(setup.tokenizer), list[Acceptance]()
    for stage in directory.run.stages:
        if any(source.path == f"stage:{setup.stage.name}" for source in stage.data.train):
            algorithm = registry.build("algorithm", stage.algorithm)
            try:
                model = located(stage, directory.export_of).model
                encoder = own if model == setup.stage.model else Encoder(load_tokenizer(model, algorithm.head))
            except AlignError:  # what it starts from is not there yet
                encoder = own
            found.append(Acceptance(encoder, Settings.of(algorithm, stage.data)))
    return found or [Acceptance(own)]


def _ask(
    phases: RolloutPhases, algorithm: Harvest, readers: Sequence[Acceptance], which: Sequence[int], phase: int
) -> dict[str, Any]:
    """One phase: the rows, every prompt's rewards, and the metrics."""
    rollout, collector = phases.rollout, phases.collector
    asked = collector.ask(phases.prompts, which, which, algorithm.group, rollout.sampling)
    scored = collector.scorer.combine([heard.said for each in asked for heard in each.answers])
    size = algorithm.group
    rewards = [leveled(scored[i : i + size]) for i in range(0, len(scored), size)]
    rows, refused = list[dict[str, Any]](), Counter[str]()

    def accepted(row: dict[str, Any]) -> bool:
        fault = next(filter(None, (reader.fault(row) for reader in readers)), "")
        if fault:
            refused[fault.partition(":")[0]] += 1
        return not fault

    for each, own in zip(asked, rewards, strict=True):
        record = phases.prompts.rows[each.source]
        template = {"tools": record.tools, "chat_template_kwargs": dict(record.chat_template_kwargs)}
        rendered = {name: value for name, value in template.items() if value}  # else the prompt would be another later
        usable = []
        for heard, reward in zip(each.answers, own, strict=True):
            said = heard.text if isinstance(each.content, str) else [{"role": "assistant", "content": heard.text}]
            # An answer that was cut off would be taught as one that ends there.
            if heard.finish == "stop" and accepted({"prompt": each.content, "completion": said, **rendered}):
                usable.append((heard.text, reward))
        with contract.calling(algorithm, "rows"):
            made = algorithm.rows(each.content, usable)
        rows += [row for row in (row | rendered for row in made) if accepted(row)]
    for hear in phases.heard:
        hear(phase, asked, scored)
    if all(score.reward is None for score in scored) and spawn.rank() == 0:
        why = why_unscored(scored)
        what = f"no answer was scored{f': {why}' if why else ''}"
        print(Problem(f"{phases.stage}, phase {phase + 1}", what, CHECK), file=sys.stderr)
    return {
        "rows": rows,
        "refused": dict(refused),
        "rewards": rewards,
        "metrics": _metrics([heard for each in asked for heard in each.answers], scored, algorithm.group),
        "scorer": collector.scorer.state_dict(),
    }


def _metrics(heard: Sequence[Any], scored: Sequence[Scored], group: int) -> dict[str, float]:
    golds: list[Score | None] = [each.gold for each in heard]
    lengths = answer_metrics([len(each.tokens) for each in heard], [each.finish == "length" for each in heard])
    return score_metrics(scored, golds, group) | lengths


def _means(done: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each metric over all phases: the mean by their number of prompts, of extremes the extreme."""
    over = {}
    for name in dict.fromkeys(name for kept in done for name in kept["metrics"]):
        parts = [(kept["metrics"][name], len(kept["rewards"])) for kept in done if name in kept["metrics"]]
        if "/min_" in name or "/max_" in name:
            over[name] = (min if "/min_" in name else max)(value for value, _ in parts)
        else:
            over[name] = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
    return over


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """A phase that was done before, None where its file is damaged: its answers are sampled again, and alike.

    Raises AlignError where it was done with other settings.
    """
    try:
        kept = read_json(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        if spawn.rank() == 0:
            print(Problem(str(path), f"is damaged: {error.why}", "its prompts are asked again"), file=sys.stderr)
        return None
    if kept["key"] != key:
        raise AlignError(
            "was made with other settings or prompts", "choose another output, or put them back", where=str(path)
        )
    return kept
