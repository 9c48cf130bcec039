"""A stage that makes rows and learns nothing: each prompt is answered and scored once, the best is written down.

Rows are checked before they are written, by reading and tokenising them as the next stage will: writing and reading
share one definition of a good row.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from align.core.algorithm import contract
from align.core.algorithm.contract import RowGenerator
from align.core.data.datasets import make_examples
from align.core.data.encode import Encoder
from align.core.data.formats import Format
from align.core.data.rows import RowError
from align.core.data.sources import fitting
from align.core.data.template_checks import CATALOGUE, Note, TokenizationSettings
from align.core.engine import processes
from align.core.models.load_and_export import load_tokenizer
from align.core.online.monitor import CHECK, score_metrics
from align.core.online.phases import RolloutSteps, Round, completions_of, length_metrics, why_unscored
from align.core.plugin_system.registry import registry
from align.core.rewards.scorer import leveled
from align.core.training.reward_stage import RewardStage
from align.core.training.run_directory import ROWS, RunDirectory, StageDirectory, located, training_settings
from align.core.training.stage import PreparedStage
from align.core.util import atomic_files
from align.core.util.atomic_files import Damaged, digest, read_json, sealed
from align.core.util.progress import track
from align.schemas.errors import AlignError, Problem
from align.schemas.run import Stage

UNKNOWN_READER = TokenizationSettings(
    (), scores_prompt=False, reward=False, max_length=2**31, truncation="error", allow=frozenset()
)
"""Settings for rows whose reader is not known: every fault but length counts."""


@dataclass(frozen=True)
class Acceptance:
    """The check of a row before it is written. encoder: of the tokenizer that will read it."""

    encoder: Encoder
    settings: TokenizationSettings = UNKNOWN_READER
    formats: list[Format] = field(
        default_factory=lambda: [known() for known in registry.working("format").values()], repr=False
    )

    def fault(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with a row, starting with the kind of fault; "" for a good row."""
        try:
            record = fitting(self.formats, row)[0].convert(row, "row")
            examples, notes = make_examples(record, self.encoder, replace(self.settings, learns_from=(record.kind,)))
        except RowError as error:
            return f"{error.kind}: {error.field} {error.what}"
        except AlignError as error:
            return "; ".join(problem.what for problem in error.problems)
        for note in notes:
            if self._stops(note):
                detail = f" ({note.detail})" if note.detail else ""
                return f"{note.finding}: {CATALOGUE[note.finding].what}{detail}"
        return "" if examples else "empty: nothing in it is learned from"

    def _stops(self, note: Note) -> bool:
        if note.finding == "truncation" and self.settings.truncation != "error":
            return False
        return CATALOGUE[note.finding].level == "error" and note.finding not in self.settings.allow


class RowStage(RewardStage):
    """A stage that samples and scores completions as a reward stage does, and writes rows instead of learning.

    Each phase is kept as it is done, so a run that was stopped goes on where it stood. The rows are its export.
    """

    def adapt_settings(self, stage: Stage) -> Stage:
        """Hold no prompts out: nothing is measured on them, so that completions of all prompts become rows."""
        data = stage.data.model_copy(update={"validation": None, "validation_fraction": 0.0})
        return super().adapt_settings(stage.model_copy(update={"data": data}))

    def describe_first_step(self, ready: PreparedStage[RolloutSteps]) -> str:
        """Return the size of a phase."""
        return f"{self._phase_size(ready)}, for rows"

    def execute(self, ready: PreparedStage[RolloutSteps]) -> None:
        """Answer every prompt, phase by phase; write ``export/rows.jsonl``; record the stage as done. Collective.

        Completions that a stage of this run would refuse to learn from are left out. Raises AlignError if there is no
        row at all.
        """
        steps, algorithm, place = ready.steps, ready.algorithm, self.place
        assert isinstance(algorithm, RowGenerator)
        key = digest([training_settings(self.declared), ready.data.content_hash])
        size, count = steps.groups_per_phase, math.ceil(len(steps.prompts) / steps.groups_per_phase)
        phases: list[Mapping[str, Any]] = []
        readers = _readers(self.directory, ready)
        _join_ranks(ready)
        with self.running(ready):
            steps.collector.sync(0, steps.prompts)
            for phase in track(range(count), f"{self.stage.name}: sampling answers, phases"):
                path = place.phases / f"phase-{phase + 1:06d}.json"
                kept = _read(path, key)
                if kept is None:
                    indices = range(phase * size, min(len(steps.prompts), (phase + 1) * size))
                    kept = {"key": key, **_collect_rows(steps, algorithm, readers, indices, phase)}
                    if processes.rank() == 0:
                        atomic_files.write_atomic(path, sealed({**kept, "inputs": place.inputs()}))
                else:
                    steps.collector.scorer.load_state_dict(kept["scorer"])
                phases.append(kept)
        with contract.calling(algorithm, "curves"):
            curves = algorithm.curves([rewards for kept in phases for rewards in kept["rewards"]])
        metrics = {**curves, **_means(phases)}
        rows = [row for kept in phases for row in kept["rows"]]
        refused: Counter[str] = sum((Counter(kept["refused"]) for kept in phases), Counter())
        if not rows:
            raise _no_rows(place, phases, refused)
        if processes.rank() == 0:
            if refused:
                print(f"{place.path.name}: {_left_out(refused)}", file=sys.stderr)
            content = "".join(json.dumps(row) + "\n" for row in rows)
            atomic_files.write_atomic(place.export / ROWS, content.encode())
            for choice in self.stage.loggers:
                logger = registry.build("logger", choice).open(place.path, place.path.name, 0)
                logger.log_metrics(metrics, count)
                logger.save()
            place.finish(self.declared, {"rows": float(len(rows)), "refused": float(refused.total()), **metrics})
        if dist.is_available() and dist.is_initialized():
            dist.barrier()


def _left_out(refused: Counter[str]) -> str:
    kinds = ", ".join(f"{number} {kind}" for kind, number in refused.most_common())
    return f"left out {refused.total()} answers that cannot be learned from: {kinds}"


def _no_rows(place: StageDirectory, phases: Sequence[Mapping[str, Any]], refused: Counter[str]) -> AlignError:
    """Return the error of a stage without any row; the next stage would refuse an empty file."""
    if any(reward is not None for kept in phases for rewards in kept["rewards"] for reward in rewards):
        why = "no prompt had an answer that ended by itself and was good enough"
        fix = "see its samples; sample more answers (num_generations), allow longer ones, or lower the minimum"
    else:
        why, fix = "no answer was scored", CHECK
    if refused:
        why += f" ({_left_out(refused)})"
    return AlignError(f"made no row: {why}", fix, where=str(place.path))


def _join_ranks(ready: PreparedStage[RolloutSteps]) -> None:
    """Join the ranks to one group and put the model on the devices, as Lightning does where there is something to fit.

    Ranks that wait for another give up after ``hardware.timeout`` seconds.
    """
    hardware, policy, ranks = ready.hardware, ready.model.policy, ready.batcher.world_size
    if ranks > 1 and not dist.is_initialized():
        backend = "nccl" if hardware.accelerator == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=hardware.timeout))
    if ranks > 1 and ready.strategy.shards:
        mesh = init_device_mesh(
            hardware.accelerator, (ranks, 1), mesh_dim_names=("data_parallel", "tensor_parallel")
        )  # as Lightning's
        with contract.calling(ready.strategy, "shard"):
            ready.strategy.shard(policy, mesh, ready.stage.train.precision)
    elif hardware.accelerator == "cuda":
        policy.to(torch.device("cuda", processes.local_rank()))


def _readers(directory: RunDirectory, ready: PreparedStage[RolloutSteps]) -> list[Acceptance]:
    """Return how the stages that learn from these rows will read them, each with its own tokenizer and settings.

    Where no stage of this run does, the rows need only be readable at all.
    """
    own, found = Encoder(ready.model.tokenizer), list[Acceptance]()
    for stage in directory.run.stages:
        if all(source.path != f"stage:{ready.stage.name}" for source in stage.data.train):
            continue
        algorithm = registry.build("algorithm", stage.algorithm)
        try:
            model = located(stage, directory.export_of).model
            encoder = own if model == ready.stage.model else Encoder(load_tokenizer(model, algorithm.head))
        except AlignError:  # it starts from a stage that has not run yet: its tokenizer is most likely this one
            encoder = own
        found.append(Acceptance(encoder, TokenizationSettings.of(algorithm, stage.data)))
    return found or [Acceptance(own)]


def _collect_rows(
    steps: RolloutSteps, algorithm: RowGenerator, readers: Sequence[Acceptance], indices: Sequence[int], phase: int
) -> dict[str, Any]:
    """Sample and score one phase; return its rows, every prompt's rewards, the metrics and what was left out."""
    rollout, collector, size = steps.rollout, steps.collector, algorithm.num_generations
    sampled = collector.sample(Round(steps.prompts, indices, indices, size, rollout.sampling))
    completions = completions_of(sampled)
    scored = collector.scorer.combine([completion.scores for completion in completions])
    rewards = [leveled(scored[i : i + size]) for i in range(0, len(scored), size)]
    rows, refused = list[dict[str, Any]](), Counter[str]()

    def accepted(row: dict[str, Any]) -> bool:
        for reader in readers:
            if fault := reader.fault(row):
                kind, _, _ = fault.partition(":")
                refused[kind] += 1
                return False
        return True

    for group, group_rewards in zip(sampled, rewards, strict=True):
        record = steps.prompts.rows[group.source]
        template = {"tools": record.tools, "chat_template_kwargs": dict(record.chat_template_kwargs)}
        rendered = {name: value for name, value in template.items() if value}  # else the prompt would be another later
        usable = []
        for sample, reward in zip(group.completions, group_rewards, strict=True):
            # A completion that was cut off would be taught as one that ends there.
            if sample.finish != "stop":
                continue
            # Before the choice, not after: where the best one cannot be learned from, the second best still can.
            text = sample.text
            completion = text if isinstance(group.content, str) else [{"role": "assistant", "content": text}]
            if accepted({"prompt": group.content, "completion": completion, **rendered}):
                usable.append((text, reward))
        with contract.calling(algorithm, "rows"):
            made = [row | rendered for row in algorithm.rows(group.content, usable)]
        rows += [row for row in made if accepted(row)]  # a plugin's rows need not be made of the completions alone
    for observe in steps.observers:
        observe(phase, sampled, scored)
    if all(score.reward is None for score in scored) and processes.rank() == 0:
        # Now, and not only at the end: what is missing is known, and every further phase costs as much.
        why = why_unscored(scored)
        what = f"no answer was scored: {why}" if why else "no answer was scored"
        print(Problem(f"{steps.stage}, phase {phase + 1}", what, CHECK), file=sys.stderr)
    gold = [completion.gold for completion in completions]
    return {
        "rows": rows,
        "refused": dict(refused),
        "rewards": rewards,
        "metrics": score_metrics(scored, gold, size) | length_metrics(completions),
        "scorer": collector.scorer.state_dict(),
    }


def _means(phases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return each metric over all phases: the mean by their number of prompts, of extremes the extreme."""
    over = {}
    for name in dict.fromkeys(name for kept in phases for name in kept["metrics"]):
        parts = [(kept["metrics"][name], len(kept["rewards"])) for kept in phases if name in kept["metrics"]]
        if "/min_" in name:
            over[name] = min(value for value, _ in parts)
        elif "/max_" in name:
            over[name] = max(value for value, _ in parts)
        else:
            over[name] = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
    return over


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """Return a phase that was done before, or None where its file is absent or damaged.

    Nothing is lost then: its answers are sampled again with the same random numbers.

    Raises AlignError where it was done with other settings.
    """
    try:
        kept = read_json(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        if processes.rank() == 0:
            print(Problem(str(path), f"is damaged: {error.why}", "its answers are sampled again"), file=sys.stderr)
        return None
    if kept["key"] != key:
        raise AlignError(
            "was made with other settings or prompts", "choose another output, or put them back", where=str(path)
        )
    return kept
