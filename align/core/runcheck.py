"""Checks of a run as a whole: keys, plugins and their settings, and keys that nothing would read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from os.path import exists, isdir, isfile
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from align.core.plugin_system import registry
from align.core.plugin_system.settings import Path, check, homes, takes_null
from align.schemas.choice import spelt_out
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.renamed import old_homes
from align.schemas.rollout import BESIDE_REWARD, Mismatch, Rollout, Watch
from align.schemas.run import (
    Checkpoint,
    Choice,
    Data,
    Model,
    Optimizer,
    Reference,
    Run,
    Schedule,
    Stage,
    Train,
    Validation,
)

if TYPE_CHECKING:
    from align.core.algorithm.base import Algorithm

Section = TypeVar("Section", bound=BaseModel)
Where = Callable[[Path], str]


def choices(stage: dict[str, Any]) -> Iterator[tuple[Path, str, Any, str | int]]:
    """Yield the plugins that a stage names: path, kind, and the dict or list and its key that hold the choice."""
    if stage.get("algorithm") is not None:
        yield ("algorithm",), "algorithm", stage, "algorithm"
    devices, loggers, rollout = stage.get("devices"), stage.get("loggers"), stage.get("rollout")
    if isinstance(devices, dict) and devices.get("strategy") is not None:
        yield ("devices", "strategy"), "strategy", devices, "strategy"
    for i in range(len(loggers) if isinstance(loggers, list) else 0):
        yield ("loggers", i), "logger", loggers, i
    if isinstance(rollout, dict):
        if rollout.get("generator") is not None:
            yield ("rollout", "generator"), "generator", rollout, "generator"
        if rollout.get("gold") is not None:
            yield ("rollout", "gold"), "reward", rollout, "gold"
        rewards = rollout.get("rewards")
        for i in range(len(rewards) if isinstance(rewards, list) else 0):
            yield ("rollout", "rewards", i), "reward", rewards, i


def beside(kind: str) -> frozenset[str]:
    """The keys of a choice that are not settings of the plugin chosen."""
    return BESIDE_REWARD if kind == "reward" else frozenset({"type"})


def sources(stage: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A stage's data sources in their long form, with their paths."""
    data = stage.get("data")
    for key in ("train", "validation"):
        rows = data.get(key) if isinstance(data, dict) else None
        for i, source in enumerate(rows if isinstance(rows, list) else ()):
            if isinstance(source, dict):
                yield ("data", key, i), source


def every_problem(values: dict[str, Any], where: Where) -> tuple[Run | None, list[Problem]]:
    """The run, or None, and all that is wrong with it. Choices are mappings with their settings beside ``type``.

    where: the place of a path into ``values``, in the user's terms.
    """
    problems: list[Problem] = []
    for i, stage in enumerate(values["stages"]):
        problems += _stage_problems(stage, ("stages", i), where)
    problems += _name_problems(values["stages"], where)
    for stage in values["stages"]:
        for _, kind, holder, key in choices(stage):
            if isinstance(holder[key], dict):
                holder[key] = spelt_out(holder[key], beside(kind))
    try:
        return check(Run, values, where, elsewhere=HOMES), problems
    except AlignError as error:
        return None, [*error.problems, *problems]


def _stage_problems(stage: dict[str, Any], above: Path, where: Where) -> Iterator[Problem]:
    for path, kind, holder, key in choices(stage):
        choice = holder[key]
        if isinstance(choice, dict) and isinstance(choice.get("type"), str):
            yield from _choice_problems(kind, choice, (*above, *path), where)
    for path, source in sources(stage):
        name = source.get("format")
        if isinstance(name, str) and name != "auto":  # then the rows' keys tell
            try:
                registry.find("format", name)
            except AlignError as error:
                yield from (Problem(where((*above, *path, "format")), p.what, p.mend) for p in error.problems)
    data = _section(Data, stage.get("data"))
    if data.stream and _section(Train, stage.get("train")).max_steps is None:
        yield Problem(where((*above, "data", "stream")), "needs train.max_steps: a stream has no end", "set it")
    algorithm = _algorithm(stage)
    if algorithm is not None and algorithm.samples and data.stream:
        yield Problem(where((*above, "data", "stream")), f"{algorithm.name} asks whole files of prompts", "remove it")
    if algorithm is not None and algorithm.samples and stage.get("rollout") is None:
        mend = "give at least rollout.rewards (`align reward list` names them)"
        yield Problem(where((*above, "rollout")), f"is missing: {algorithm.name} samples its own answers", mend)
    watch, held_out = _section(Watch, _section(Rollout, stage.get("rollout")).watch), data.validation
    if watch.action == "rollback" and held_out is None and not data.validation_fraction:
        what = "is rollback, which exports the best checkpoint, and nothing is held out to judge by"
        mend = "give data.validation or data.validation_fraction"
        yield Problem(where((*above, "rollout", "watch", "action")), what, mend)
    for path, why in unread(stage).items():
        yield Problem(where((*above, *path)), why, "remove it")


def _choice_problems(kind: str, choice: dict[str, Any], path: Path, where: Where) -> Iterator[Problem]:
    settings = {key: value for key, value in choice.items() if key not in beside(kind)}
    try:
        registry.build(kind, Choice(type=choice["type"], settings=settings), lambda below: where((*path, *below)))
    except AlignError as error:
        for problem in error.problems:
            yield problem if problem.where else Problem(where((*path, "type")), problem.what, problem.mend)


def accepts_null(stage: dict[str, Any], path: Path) -> bool:
    """Return whether ``null`` is a value of the setting at ``path``; else it stands for "not set"."""
    for above, kind, holder, key in choices(stage):
        below = path[len(above) :]
        if path[: len(above)] != above or not below or below[0] in beside(kind):
            continue
        choice = holder[key]
        name = choice.get("type") if isinstance(choice, dict) else None
        if not isinstance(name, str):
            return True
        try:
            return takes_null(registry.config_of(registry.get(kind, name)), below)
        except AlignError:  # an unknown plugin is reported with the choice itself
            return True
    return takes_null(Stage, path)


def unread(stage: dict[str, Any]) -> dict[Path, str]:
    """The keys present in a stage that nothing in it would read, each with why."""
    data, model = _section(Data, stage.get("data")), _section(Model, stage.get("model"))
    silent: dict[Path, str] = {}
    if _section(Reference, stage.get("reference")).type != "moving-average":
        for key in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
            silent["reference", key] = "is read by reference type moving-average only"
    if _uses_reference(stage) is False:
        for key in Reference.model_fields:
            silent["reference", key] = "is not read: this algorithm uses no reference"
    algorithm = _algorithm(stage)
    if algorithm is not None and not algorithm.samples:
        silent[("rollout",)] = "is not read: this algorithm learns from rows, not from answers of its own"
    if algorithm is not None and algorithm.makes_rows:
        silent |= dict.fromkeys(_LEARNING, "is not read: this stage learns nothing, it asks every prompt once")
    silent |= _unread_rollout(stage.get("rollout"))
    held_out = data.validation is not None or data.validation_fraction != 0
    if not held_out:
        for key in Validation.model_fields:
            silent["validation", key] = "is not read without data.validation or data.validation_fraction"
    if not held_out and _section(Checkpoint, stage.get("checkpoint")).export == "best":
        silent["checkpoint", "export"] = "is best, and nothing is held out: set data.validation or validation_fraction"
    if data.validation is not None:
        silent["data", "validation_fraction"] = "is not read beside data.validation"
    elif data.stream:
        silent["data", "validation_fraction"] = "is not read: a stream is never seen whole; give data.validation"
    if not data.stream:
        silent["data", "stream_window"] = "is read with data.stream: true only"
    if _section(Train, stage.get("train")).on_nonfinite != "skip":
        silent["train", "max_skipped"] = "is read with train.on_nonfinite: skip only"
    if _section(Schedule, stage.get("schedule")).type == "constant":
        silent["schedule", "min_lr_rate"] = "is not read: a constant rate does not decay"
    if isinstance(model.path, str) and (model.path.startswith("stage:") or isdir(model.path)):
        silent["model", "revision"] = _HUB
    for place, source in sources(stage):
        path = source.get("path")
        if place[1] == "train":
            silent[(*place, "name")] = "is read for held-out sources only"
        if isinstance(path, str) and exists(path):
            silent[(*place, "subset")] = _HUB
        if isinstance(path, str) and isfile(path):
            silent[(*place, "split")] = _HUB
    return {path: why for path, why in silent.items() if _said(stage, path)}


_HUB = "is read for the hub only, and this is a local path"
_HARMLESS: dict[str | int, str | None] = {"revision": None, "subset": None, "split": "train", "name": None}
"""Values that say nothing. They pass, so that a resolved run loads again wherever its paths lead by then."""


_LEARNING: list[Path] = [
    *(("optimizer", key) for key in Optimizer.model_fields),
    *(("schedule", key) for key in Schedule.model_fields),
    *(("validation", key) for key in Validation.model_fields),
    *(("checkpoint", key) for key in Checkpoint.model_fields),
    *(("train", key) for key in ("num_train_epochs", "max_steps", "max_grad_norm", "on_nonfinite", "max_skipped")),
    *(("rollout", key) for key in ("dead_groups", "refill_tokens")),
    *(
        ("rollout", section, key)
        for section, of in (("mismatch", Mismatch), ("watch", Watch))
        for key in of.model_fields
    ),
]
"""Settings that only a stage that learns reads."""


def _unread_rollout(rollout: Any) -> dict[Path, str]:
    """The keys of an online stage's ``rollout`` that nothing in it would read."""
    given = _section(Rollout, rollout)
    silent: dict[Path, str] = {}
    if given.dead_groups != "refill":
        silent["rollout", "refill_tokens"] = "is read with dead_groups: refill only"
    mismatch = _section(Mismatch, given.mismatch)
    if mismatch.type == "none":
        for key in Mismatch.model_fields:
            silent["rollout", "mismatch", key] = "is read with a mismatch.type other than none only"
        del silent["rollout", "mismatch", "type"]
    elif mismatch.level == "token":
        silent["rollout", "mismatch", "length_normalized"] = "is read with mismatch.level: sequence only"
    watch = _section(Watch, given.watch)
    if given.gold is None and watch.gold is not None:
        silent["rollout", "watch", "gold"] = "is not read without rollout.gold"
    for key in ("weight", "normalize"):
        silent["rollout", "gold", key] = "is not read: the gold reward is measured as it is"
    return silent


def _uses_reference(stage: dict[str, Any]) -> bool | None:
    """Return whether the stage's algorithm, as set, uses a reference; None while there is no telling."""
    algorithm = _algorithm(stage)
    return None if algorithm is None else algorithm.uses_reference


def _algorithm(stage: dict[str, Any]) -> Algorithm | None:
    """The stage's algorithm, as set; None while there is no telling."""
    algorithm = stage.get("algorithm")
    if not isinstance(algorithm, dict) or not isinstance(algorithm.get("type"), str):
        return None
    settings = {key: value for key, value in algorithm.items() if key != "type"}
    try:
        made: Algorithm = registry.build("algorithm", Choice(type=algorithm["type"], settings=settings))
    except AlignError:
        return None
    return made


def _section(model: type[Section], values: Any) -> Section:
    """A section as far as it goes: defaults (None where there is none) under what is given, unchecked."""
    missing = {key: None for key, field in model.model_fields.items() if field.is_required()}
    given = values if isinstance(values, dict) else {}
    return model.model_construct(**missing | {key: given[key] for key in given if key in model.model_fields})


def _said(values: Any, path: Path) -> bool:
    """Return whether a key is there, and says something."""
    for key in path:
        if not (key in values if isinstance(values, dict) else isinstance(values, list)):
            return False
        values = values[key]
    return path[-1] not in _HARMLESS or values != _HARMLESS[path[-1]]


def _name_problems(stages: list[dict[str, Any]], where: Where) -> Iterator[Problem]:
    """Names that are directories and unique, and ``stage:NAME`` for earlier stages only."""
    earlier: list[str] = []
    for i, stage in enumerate(stages):
        for path, named in _stages_meant(stage):
            if named not in earlier:
                later = any(other.get("name") == named for other in stages[i:])
                what = f"is 'stage:{named}'; " + (
                    "that stage does not come earlier" if later else "no stage has that name"
                )
                yield Problem(where(("stages", i, *path)), what, did_you_mean(named, earlier) if earlier else "")
        name = stage.get("name")
        if not isinstance(name, str):
            continue
        if name in earlier:
            yield Problem(where(("stages", i, "name")), f"is {name!r}, as an earlier stage's", "give it another `name`")
        elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
            what = f"is {name!r}; must be letters, digits, - and _, for it names a directory"
            yield Problem(where(("stages", i, "name")), what, "rename it")
        earlier.append(name)


def _stages_meant(values: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield the places where a stage's settings name ``stage:NAME``, and the names."""
    if isinstance(values, str) and values.startswith("stage:"):
        yield path, values.removeprefix("stage:")
    items: Any = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from _stages_meant(value, (*path, key))


HOMES = old_homes() | homes(Stage, leave_out=Choice)
