"""Advice -> run file: stages with their data, models and settings, as ``align train`` reads them.

An unknown path is filled with a placeholder, and ``todo`` lists it. Prompting and retrieval have no run file.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os.path import isdir
from typing import Any

from align.advisor.predicates import ALGORITHM, DATA_OF, SAMPLING
from align.advisor.thresholds import Thresholds, shipped
from align.schemas.advice import Advice, AlgorithmSettings, PlanStep
from align.schemas.errors import AlignError
from align.schemas.gpus import has_bfloat16
from align.schemas.project import Project
from align.schemas.run import Stage
from align.schemas.text import visible

OUTPUT = "runs/advised"
WIDTH = 110
MODEL = "models/start"
STRATEGIES: Mapping[str, str | dict[str, Any]] = {
    "ddp": "ddp",
    "fsdp": "fsdp",
    "fsdp-zero2": {"type": "fsdp", "reshard_after_forward": False},
    "fsdp-offload": {"type": "fsdp", "offload": True},
}
"""``devices.strategy`` of a memory plan, by its name after the tuning (``full-fsdp-zero2``)."""
HELD_OUT = 0.05
"""Share of the rows held out for validation."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """A run file's values, and what must be put in place before it runs."""

    values: dict[str, Any]
    todo: tuple[str, ...]


def emit(advice: Advice, project: Project, output: str = OUTPUT, limit: Thresholds | None = None) -> Emitted:
    """Return the run file for the stages of the plan that are not optional; it contains ``project``.

    limit: sizes used where the brief gives none; None: the shipped ones. Raises AlignError where the plan has nothing
    to train.
    """
    draft = _RunFileBuilder(advice, project, limit or shipped())
    for step in advice.plan:
        if step.optional:
            draft.todo.append(f"stage {step.stage} is left out: it is optional and needs {step.needs or 'data'}")
        elif step.stage in DATA_OF:
            draft.add(step)
        else:
            draft.todo.append(f"{step.stage} is part of the plan but has no run file, since it trains nothing")
    if not draft.stages:
        what = f"is for training, and the advice is {advice.primary.replace('_', ' ')}"
        raise AlignError(
            what,
            "nothing was written; what to do instead stands under `Try first`",
            where="--emit (from Python AdviceCase.run_file)",
        )
    carried = project.model_copy(update={"requested": None})  # what is launched is what is asked for
    about = {"output": output, "project": carried.model_dump(mode="json", exclude_defaults=True)}
    if len(draft.stages) == 1:
        return Emitted({**about, **{k: v for k, v in draft.stages[0].items() if k != "name"}}, tuple(draft.todo))
    return Emitted({**about, "stages": draft.stages}, tuple(draft.todo))


@dataclass
class _RunFileBuilder:
    """The run file's stages and the open points, while they are collected."""

    advice: Advice
    project: Project
    limit: Thresholds
    stages: list[dict[str, Any]] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)
    policy: str | None = None
    """The last stage that trained a model which generates answers."""

    def add(self, step: PlanStep) -> None:
        """Add one stage."""
        name, kind = step.stage, step.stage
        while any(stage["name"] == name for stage in self.stages):
            name += "_again"
        chosen = next((each for each in self.advice.algorithms if each.stage == kind), None)
        stage: dict[str, Any] = {
            "name": name,
            "model": self._model(chosen),
            "data": self._data(kind),
            "algorithm": {"type": ALGORITHM.get(kind, kind)},
        }
        if kind in SAMPLING:
            # Half of the sequence is for the answer, the prompt has the other half.
            half = (self.project.training.max_length or 2 * self.limit.tokens_per_answer) // 2
            stage["rollout"] = {"rewards": [self._reward()], "sampling": {"max_completion_length": max(1, half)}}
            stage["data"]["max_length"] = max(1, half)
        if kind == "ppo" and self._has("reward_model"):
            stage["algorithm"]["critic"] = "stage:reward_model"
        if precision := self._precision():
            stage["train"] = {"precision": precision}
        if devices := self._devices():
            stage["devices"] = devices
        for key, value in chosen.start.items() if chosen else ():
            _lay(stage, key.split("."), value)
        if (longest := self.project.training.max_length) and kind not in SAMPLING:
            stage["data"]["max_length"] = longest
        self.stages.append({key: stage[key] for key in Stage.model_fields if key in stage})
        if kind not in ("reward_model", "best_of_n"):
            self.policy = name

    def _has(self, name: str) -> bool:
        return any(stage["name"] == name for stage in self.stages)

    def _model(self, chosen: AlgorithmSettings | None) -> dict[str, Any]:
        model: dict[str, Any] = {"path": f"stage:{self.policy}" if self.policy else self._start()}
        tuning = chosen.tuning if chosen else "full"
        on_gpu = self.project.hardware.gpus != 0
        if tuning != "full":
            model["adapter"] = {"quantize": "nf4"} if tuning == "qlora" else {}
            if on_gpu and has_bfloat16(self.project.hardware.gpu or ""):
                model["dtype"] = "bfloat16"
        if on_gpu:
            model["gradient_checkpointing"] = True
        return model

    def _start(self) -> str:
        name = self.project.model.name or ""
        if isdir(name) or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            return name
        named = f" (the brief says {name})" if name else ""
        self._note(f"model.path is a placeholder{named}: write a directory or hub id for {MODEL}")
        return MODEL

    def _data(self, kind: str) -> dict[str, Any]:
        data: dict[str, Any] = {"train": self._rows(kind)}
        if kind != "best_of_n":
            data["validation_fraction"] = HELD_OUT
        data["max_length"] = self.limit.tokens_per_sequence
        data["truncation_mode"] = "split" if kind == "continual_pretraining" else "drop"
        return data

    def _rows(self, stage: str) -> Any:
        if stage == "sft" and self.stages and self.stages[-1]["algorithm"]["type"] == "best_of_n":
            return "stage:best_of_n"
        paths = self._paths(DATA_OF[stage])
        if not paths and stage == "sft" and (pairs := self._paths("preference_pairs")):
            better = {"format": "prompt-completion", "columns": {"completion": "chosen"}}
            return [{"path": path, **better} for path in pairs]  # the better answers serve as examples
        if not paths:
            paths = [f"data/{DATA_OF[stage]}.jsonl"]
            self._note(f"data.train of {stage} is a placeholder: write the path of your rows in place of {paths[0]}")
        return paths[0] if len(paths) == 1 else [{"path": path} for path in paths]

    def _paths(self, kind: str) -> list[str]:
        return [held.path for held in self.project.data or () if held.kind == kind and held.path]

    def _reward(self) -> dict[str, Any]:
        """Return the reward: the user's own, a stage's reward model, or the nearest built-in one, noted as a guess."""
        given = self.project.reward
        if given.path and (file := re.fullmatch(r"(.+\.py):(\w+)", given.path)):
            return {"type": "python", "file": file[1], "function": file[2]}
        if given.kind == "reward_model" and given.path:
            return {"type": "reward_model", "path": given.path}
        if given.path:
            return {"type": given.path}
        if self._has("reward_model"):
            return {"type": "reward_model", "path": "stage:reward_model"}
        if given.kind == "reward_model":
            self._note("rollout.rewards is a placeholder: write your reward model's directory for models/reward")
            return {"type": "reward_model", "path": "models/reward"}
        if given.kind == "llm_judge":
            self._note("rollout.rewards is a placeholder: name the judge, and say what makes an answer good")
            rule = "The answer is right, and says no more than was asked."
            return {"type": "ai_feedback", "model": "models/judge", "constitution": [rule]}
        skill = self.project.behaviour.target_capability or self.project.task.type
        name = {"math": "math", "reasoning": "math", "code": "code"}.get(skill or "", "exact")
        self._note(f"rollout.rewards is a guess ({name}): name your own (docs/rewards.md), or a function in a file")
        return {"type": name}

    def _precision(self) -> str | None:
        given = self.project.hardware
        if given.gpus == 0:
            return None
        return "bf16-mixed" if has_bfloat16(given.gpu or "") else "16-mixed"

    def _devices(self) -> dict[str, Any]:
        chosen = self.advice.hardware.chosen if self.advice.hardware else None
        count = self.project.hardware.gpus or 0
        if count < 2 or chosen is None:
            return {}
        return {"strategy": STRATEGIES[chosen.strategy.partition("-")[2]], "count": count}

    def _note(self, point: str) -> None:
        if point not in self.todo:
            self.todo.append(point)


def _lay(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    values[keys[-1]] = value


def comments(advice: Advice, emitted: Emitted, file: str) -> Iterator[str]:
    """Yield the comment at the head of the file: the command, the answer, and the open points."""
    yield f"align train {' '.join(visible(file).split())} --check"
    yield ""
    yield from textwrap.wrap(visible(advice.summary), WIDTH)
    if emitted.todo:
        yield "Before it runs:"
    for point in emitted.todo:
        yield from textwrap.wrap(visible(point), WIDTH, initial_indent="- ", subsequent_indent="  ")
