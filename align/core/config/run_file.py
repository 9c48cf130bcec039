"""Run files: YAML and overrides to a checked Run, with everything that is wrong reported at once; and back.

Top-level keys are the defaults of every stage, and a stage's own are laid over them. A file without ``stages`` is
one stage, named after its algorithm. ``null`` laid over a value undoes it: the setting's own default stands again,
unless null is itself a value of that setting (``max_grad_norm: null``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os.path import exists, isdir, isfile
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from align.core.config import yaml_loader
from align.core.plugin_system import registry
from align.core.plugin_system.registry import Path, check, dotted, fixes_by_section, takes_null, unknown
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.renamed import fixes_for_other_keys, fixes_for_settings
from align.schemas.run import (
    REWARD_KEYS,
    Checkpoint,
    Choice,
    Data,
    ImportanceSamplingCorrection,
    Model,
    Optimizer,
    Reference,
    Rollout,
    Run,
    Schedule,
    Stage,
    Train,
    Validation,
    Watch,
    expand_shorthand,
)

if TYPE_CHECKING:
    from align.core.algorithm.contract import Algorithm


# Checks of a run as a whole: keys, plugins and their settings, and keys that nothing would read.

Section = TypeVar("Section", bound=BaseModel)
Where = Callable[[Path], str]


def choices(stage: dict[str, Any]) -> Iterator[tuple[Path, str, Any, str | int]]:
    """Yield the plugins that a stage names: path, kind, and the dict or list and its key that hold the choice."""
    if stage.get("algorithm") is not None:
        yield ("algorithm",), "algorithm", stage, "algorithm"
    devices, loggers, rollout = stage.get("devices"), stage.get("loggers"), stage.get("rollout")
    validation = stage.get("validation")
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
    if isinstance(validation, dict):
        rewards = validation.get("rewards")
        for i in range(len(rewards) if isinstance(rewards, list) else 0):
            yield ("validation", "rewards", i), "reward", rewards, i


def own_keys(kind: str) -> frozenset[str]:
    """Return the keys of a choice that are not settings of the plugin."""
    return REWARD_KEYS if kind == "reward" else frozenset({"type"})


def sources(stage: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A stage's data sources in their long form, with their paths."""
    data = stage.get("data")
    for key in ("train", "validation"):
        rows = data.get(key) if isinstance(data, dict) else None
        for i, source in enumerate(rows if isinstance(rows, list) else ()):
            if isinstance(source, dict):
                yield ("data", key, i), source


def every_problem(values: dict[str, Any], where: Where) -> tuple[Run | None, list[Problem]]:
    """Return the run, or None, and all that is wrong with it. Choices are mappings: ``type`` and its settings.

    where: the place of a path into ``values``, in the user's terms.
    """
    problems: list[Problem] = []
    for i, stage in enumerate(values["stages"]):
        problems += _stage_problems(stage, ("stages", i), where)
    problems += _name_problems(values["stages"], where)
    for stage in values["stages"]:
        for _, kind, holder, key in choices(stage):
            if isinstance(holder[key], dict):
                holder[key] = expand_shorthand(holder[key], own_keys(kind))
    try:
        return check(Run, values, where, fixes=lambda: _fixes(values["stages"])), problems
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
                yield from (Problem(where((*above, *path, "format")), p.what, p.fix) for p in error.problems)
    data = _section(Data, stage.get("data"))
    if data.stream and _section(Train, stage.get("train")).max_steps is None:
        yield Problem(where((*above, "data", "stream")), "needs train.max_steps: a stream has no end", "set it")
    algorithm = _algorithm(stage)
    if algorithm is not None and algorithm.samples and data.stream:
        yield Problem(where((*above, "data", "stream")), f"{algorithm.name} asks whole files of prompts", "remove it")
    if algorithm is not None and algorithm.samples and stage.get("rollout") is None:
        fix = "give at least rollout.rewards (`align reward list` names them)"
        yield Problem(where((*above, "rollout")), f"is missing: {algorithm.name} samples its own answers", fix)
    watch, held_out = _section(Watch, _section(Rollout, stage.get("rollout")).watch), data.validation
    if watch.action == "rollback" and held_out is None and not data.validation_fraction:
        what = "is rollback, which exports the best checkpoint, and nothing is held out to judge by"
        fix = "give data.validation or data.validation_fraction"
        yield Problem(where((*above, "rollout", "watch", "action")), what, fix)
    for path, why in unread(stage).items():
        yield Problem(where((*above, *path)), why, "remove it")


def _choice_problems(kind: str, choice: dict[str, Any], path: Path, where: Where) -> Iterator[Problem]:
    settings = {key: value for key, value in choice.items() if key not in own_keys(kind)}
    # Who comes from a flat config writes all of it here; a key of another plugin resembles a section's by chance only.
    fixes = (lambda: _fixes([{"algorithm": choice}])) if kind == "algorithm" else None
    chosen = Choice(type=choice["type"], settings=settings)
    try:
        registry.build(kind, chosen, lambda below: where((*path, *below)), fixes)
    except AlignError as error:
        for problem in error.problems:
            yield problem if problem.where else Problem(where((*path, "type")), problem.what, problem.fix)


def accepts_null(stage: dict[str, Any], path: Path) -> bool:
    """Return whether ``null`` is a value of the setting at ``path``; else it stands for "not set"."""
    for above, kind, holder, key in choices(stage):
        below = path[len(above) :]
        if path[: len(above)] != above or not below or below[0] in own_keys(kind):
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
    if algorithm is not None and algorithm.makes_rows:
        silent[("gate",)] = "is not read: this stage makes rows and no model"
    silent |= _unread_rollout(stage.get("rollout"))
    held_out = data.validation is not None or data.validation_fraction != 0
    if not held_out:
        for key in Validation.model_fields:
            silent["validation", key] = "is not read without data.validation or data.validation_fraction"
    validation = _section(Validation, stage.get("validation"))
    for key in ("generate", "rewards", "sampling", "max_prompts"):
        if algorithm is not None and algorithm.samples:
            silent["validation", key] = "is not read: an online stage completes and scores held-out prompts anyway"
        elif held_out and key != "generate" and not validation.generate:
            silent["validation", key] = "is read with validation.generate: true only"
    for i in range(len(validation.rewards)):
        silent["validation", "rewards", i, "normalize"] = "is not read: nothing is learned from this reward"
    if not held_out and _section(Checkpoint, stage.get("checkpoint")).export == "best":
        silent["checkpoint", "export"] = "is best, and nothing is held out: set data.validation or validation_fraction"
    if data.validation is not None:
        silent["data", "validation_fraction"] = "is not read together with data.validation"
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
    *(("rollout", key) for key in ("zero_std_groups", "refill_tokens")),
    *(
        ("rollout", section, key)
        for section, of in (("importance_sampling_correction", ImportanceSamplingCorrection), ("watch", Watch))
        for key in of.model_fields
    ),
]
"""Settings that only a stage that learns reads."""


def _unread_rollout(rollout: Any) -> dict[Path, str]:
    """The keys of an online stage's ``rollout`` that nothing in it would read."""
    given = _section(Rollout, rollout)
    silent: dict[Path, str] = {}
    if given.zero_std_groups != "refill":
        silent["rollout", "refill_tokens"] = "is read with zero_std_groups: refill only"
    section = "importance_sampling_correction"
    correction = _section(ImportanceSamplingCorrection, given.importance_sampling_correction)
    if correction.type == "none":
        for key in ImportanceSamplingCorrection.model_fields:
            silent["rollout", section, key] = f"is read with an {section}.type other than none only"
        del silent["rollout", section, "type"]
    elif correction.level == "token":
        silent["rollout", section, "length_normalized"] = f"is read with {section}.level: sequence only"
    watch = _section(Watch, given.watch)
    if given.gold is None and watch.gold is not None:
        silent["rollout", "watch", "gold"] = "is not read without rollout.gold"
    for key in ("weight", "normalize"):
        silent["rollout", "gold", key] = "is not read: the gold reward is measured as it is"
    return silent


def _fixes(stages: Iterable[Any]) -> dict[str, str]:
    """Return ``FIXES``, and over them those for settings of the stages' algorithms: ``beta`` is ``algorithm.beta``.

    Only of these algorithms: ``num_generations`` in a run of sft has no place to be sent to.
    """
    found = dict(FIXES)
    for stage in stages:
        algorithm = stage.get("algorithm") if isinstance(stage, dict) else None
        name = algorithm.get("type") if isinstance(algorithm, dict) else None
        if not isinstance(name, str):
            continue
        try:
            found |= fixes_for_settings(registry.config_of(registry.get("algorithm", name)).model_fields)
        except AlignError:  # an unknown algorithm is reported with the choice itself
            continue
    return found


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


FIXES: Mapping[str, str] = fixes_for_other_keys() | fixes_by_section(Stage, leave_out=Choice)
"""The fixes for keys that belong in a section, or have another name here, wherever they are written."""

LARGEST = 256 * 1024
RUN_KEYS = ("output", "project", "overrides", "stages")

# Another ``type`` here is another thing, to which the default's settings do not belong.
_WHOLE = (("algorithm",), ("devices", "strategy"), ("reference",), ("rollout", "generator"), ("rollout", "gold"))


def load(path: str | File, overrides: Sequence[str] = ()) -> Run:
    """Read and check a run file; ``overrides`` are ``train.max_steps=2`` or ``stages.dpo.algorithm.beta=0.2``.

    Raises AlignError with every problem of file and overrides: place, value and fix. Plugins named in the file are
    imported, and nothing else.
    """
    return parse(_text(File(path)), str(path), overrides)


def parse(text: str, name: str, overrides: Sequence[str] = ()) -> Run:
    """``load`` for a run file's text; ``name`` is what messages call it."""
    file = _RunFile(name, text)
    for override in overrides:
        file.override(override)
    return file.run()


def dump(run: Run) -> str:
    """The run with all its defaults as YAML, which ``load`` reads back to an equal Run."""
    stages = []
    for stage in run.stages:
        values: dict[str, Any] = stage.model_dump()
        for _, _, holder, key in choices(values):
            own = {k: v for k, v in holder[key].items() if k != "settings"}
            holder[key] = {**own, **holder[key]["settings"]}
        for path in unread(values):
            _remove(values, path)
        stages.append({key: value for key, value in values.items() if value != {}})
    project = None if run.project is None else run.project.model_dump(exclude_defaults=True)
    optional = {"project": project, "overrides": [override.model_dump() for override in run.overrides] or None}
    about = {key: value for key, value in optional.items() if value is not None}
    return yaml_loader.write({"output": run.output, **about, "stages": stages})


def overriding(run: Run, rules: Sequence[str], reasons: Sequence[str]) -> Run:
    """The run with what the command line overrides, each with its reason. Raises AlignError where one lacks it."""
    if len(rules) != len(reasons):
        what = f"{len(rules)} overrides and {len(reasons)} reasons"
        raise AlignError(what, "give --override RULE --reason TEXT, as often as needed", where="command line")
    if rules and run.project is None:
        raise AlignError("has no project:, so there is no advice to override", "leave --override out", where=run.output)
    given = [{"rule": rule, "reason": reason} for rule, reason in zip(rules, reasons, strict=True)]
    kept = [override.model_dump() for override in run.overrides if override.rule not in rules]
    laid_over = {**run.model_dump(), "overrides": [*kept, *given]}
    return check(Run, laid_over, lambda path: f"command line: {dotted(path)}")


class _RunFile:
    """Plain values, the place of each, and the problems found so far."""

    def __init__(self, name: str, text: str) -> None:
        document = yaml_loader.read(text, name)
        if not isinstance(document.values, dict):
            raise AlignError("is not a mapping of keys to values", "start with `output: runs/first`", where=name)
        self.values: dict[str, Any] = document.values
        self.places = {path: f"{name} line {line}" for path, line in document.lines.items()}
        self.problems = document.problems
        self.undone: set[Path] = set()
        """Paths at which the command line lays null over a value."""
        self._spell_out()

    def _spell_out(self) -> None:
        """``algorithm: dpo`` and ``train: rows.jsonl`` in their long forms, so that all that follows sees one form."""
        stages = self.values.get("stages")
        for level in [self.values, *(stages if isinstance(stages, list) else [])]:
            if isinstance(level, dict):
                for _, _, holder, key in choices(level):
                    if isinstance(holder[key], str):
                        holder[key] = {"type": holder[key]}
                data = level.get("data")
                for key in ("train", "validation"):
                    if isinstance(data, dict) and isinstance(data.get(key), str | dict):
                        data[key] = [data[key]]
                    if isinstance(data, dict) and isinstance(data.get(key), list):
                        data[key] = [{"path": row} if isinstance(row, str) else row for row in data[key]]

    def override(self, text: str) -> None:
        """Lay ``key=value`` over the values; what is wrong with it is kept as a problem."""
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+([.\[][\w-]+\]?)*", key):
            self.problems.append(Problem(f"command line: {text}", "is not an override", "write KEY=VALUE"))
            return
        path: Path = ()
        holder: Any = self.values
        parts = re.findall(r"[\w-]+", key)
        for part, below in zip(parts, [*parts[1:], None], strict=True):
            step = _step(holder, part)
            if step is None:
                what = f"{dotted(path)} has no {part!r}" if path else f"there is no {part!r}"
                self.problems.append(Problem(f"command line: {key}", what, "give it in the file"))
                return
            path = (*path, step)
            if below is None:
                break
            if isinstance(holder, dict) and holder.get(part) is None and not below.isdecimal() and part != "stages":
                holder[part] = {}
                self.places[path] = "command line"
            holder = holder.get(part) if isinstance(holder, dict) else holder[step]
        try:
            document = yaml_loader.read(value, f"command line: {key}")
        except AlignError as error:
            self.problems += error.problems
            return
        self.problems += document.problems
        if document.values is None and isinstance(holder, dict) and holder.get(part) is not None:
            self.undone.add(path)
        holder[path[-1]] = document.values
        self.places = {old: place for old, place in self.places.items() if old[: len(path)] != path}
        self.places[path] = "command line"
        self._spell_out()

    def run(self) -> Run:
        """The checked run. Raises AlignError with every problem."""
        stages, inherited = self._stages()
        self._drop_unread_defaults(stages, inherited)

        def where(path: Path) -> str:
            """The place of a path into the run, whose stages are laid over the defaults."""
            if path[:1] == ("stages",) and len(path) > 1:
                own = path[2:]
                if _within(own, inherited[path[1]]):  # type: ignore[index]
                    path = own
            place = next(self.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.places)
            return f"{place}: {dotted(path)}" if path else place

        values = {key: self.values[key] for key in RUN_KEYS if key in self.values} | {"stages": stages}
        run, problems = every_problem(values, where)
        known = {problem.where for problem in self.problems}
        self.problems += [problem for problem in problems if problem.where not in known]
        if self.problems or run is None:
            raise AlignError.gather(sorted(dict.fromkeys(self.problems), key=_line))
        return run

    def _stages(self) -> tuple[list[Any], list[set[Path]]]:
        """Each stage laid over the defaults, and the paths in it that came from them."""
        known = {*RUN_KEYS, *Stage.model_fields}
        stages = self.values.get("stages")
        for key in [key for key in self.values if key not in known]:
            fixes = _fixes([self.values, *(stages if isinstance(stages, list) else ())])
            self._problem((key,), "is not a key here", unknown(key, known, fixes))
        defaults = {key: value for key, value in self.values.items() if key in known and key not in RUN_KEYS}
        if "stages" not in self.values:
            only = copy.deepcopy(defaults)
            _undo(only, self.undone)
            return [_named(only)], [{()}]
        own = self.values["stages"]
        if not isinstance(own, list) or not all(isinstance(stage, dict) for stage in own):
            self._problem(("stages",), "must be a list of stages", "start each with `- name: NAME`")
            return [], []
        if "name" in defaults:
            self._problem(("name",), "belongs to one stage", "move it into the stage")
            del defaults["name"]
        inherited: list[set[Path]] = [set() for _ in own]
        stages = []
        for index, (stage, origin) in enumerate(zip(own, inherited, strict=True)):
            # ``stages.1.train.max_steps=null`` is ``train.max_steps`` of one stage; ``train.max_steps=null`` of all.
            undone = {path[2:] if path[:2] == ("stages", index) else path for path in self.undone}
            laid = _overlay(defaults, stage, (), origin, undone)
            _undo(laid, undone)
            stages.append(_named(laid))
        return stages, inherited

    def _drop_unread_defaults(self, stages: list[Any], inherited: list[set[Path]]) -> None:
        """A default that a stage does not read is not that stage's; one that no stage reads is a mistake."""
        silent = [
            {path: why for path, why in unread(stage).items() if _within(path, origin)}
            for stage, origin in zip(stages, inherited, strict=True)
        ]
        for stage, paths in zip(stages, silent, strict=True):
            for path in paths:
                _remove(stage, path)
        for path, why in {path: why for paths in silent for path, why in paths.items()}.items():
            if all(path in paths or not _within(path, own) for paths, own in zip(silent, inherited, strict=True)):
                self._problem(path, why, "remove it")
        for leaf in _leaves({key: self.values[key] for key in self.values if key in Stage.model_fields}):
            if stages and leaf != ("name",) and not any(_within(leaf, origin) for origin in inherited):
                self._problem(
                    leaf, "is not read: every stage has its own", f"set stages.NAME.{dotted(leaf)}, or remove it"
                )

    def _problem(self, path: Path, what: str, fix: str) -> None:
        place = next(self.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.places)
        self.problems.append(Problem(f"{place}: {dotted(path)}", what, fix))


def _overlay(default: Any, own: Any, path: Path, inherited: set[Path], undone: set[Path]) -> Any:
    """Lay ``own`` over ``default``, mapping by mapping.

    ``inherited`` gathers the paths taken from ``default``, ``undone`` those where ``own`` is null over a value.
    """
    if own is None and default is not None:
        undone.add(path)
    if not isinstance(default, dict) or not isinstance(own, dict):
        return copy.deepcopy(own)
    if path in _WHOLE and own.get("type", default.get("type")) != default.get("type"):
        return copy.deepcopy(own)
    laid: dict[str, Any] = {}
    for key in {**default, **own}:
        if key not in own:
            inherited.add((*path, key))
            laid[key] = copy.deepcopy(default[key])
        else:
            laid[key] = _overlay(default.get(key), own[key], (*path, key), inherited, undone)
    return laid


def _undo(stage: dict[str, Any], undone: set[Path]) -> None:
    """Remove each null in ``undone`` that is no value of its setting, so that the setting's default stands."""
    for path in undone:
        holder: Any = stage
        for key in path[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else _item(holder, key)
        is_null = isinstance(holder, dict) and path[-1] in holder and holder[path[-1]] is None
        if is_null and not accepts_null(stage, path):
            del holder[path[-1]]


def _item(holder: Any, key: str | int) -> Any:
    return holder[key] if isinstance(holder, list) and isinstance(key, int) and key < len(holder) else None


def _named(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage without a name is called after its algorithm."""
    algorithm = stage.get("algorithm")
    name = algorithm.get("type") if isinstance(algorithm, dict) else None
    return {"name": name if isinstance(name, str) else "unnamed", **stage}


def _step(holder: Any, part: str) -> str | int | None:
    """The key or index that one part of an override names: a key, a number, or the name of a stage."""
    if isinstance(holder, dict):
        return part
    if isinstance(holder, list):
        names = [_named(item).get("name") if isinstance(item, dict) else None for item in holder]
        index = int(part) if part.isdecimal() else names.index(part) if part in names else len(holder)
        return index if index < len(holder) else None
    return None


def _within(path: Path, above: set[Path]) -> bool:
    return any(path[:n] in above for n in range(len(path) + 1))


def _leaves(values: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    """The paths at which mappings end."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _remove(values: Any, path: Path) -> None:
    for key in path[:-1]:
        values = values[key]
    del values[path[-1]]


def _line(problem: Problem) -> int:
    """Problems in file order, those of the command line last."""
    line = re.search(r" line (\d+)", problem.where)
    return int(line[1]) if line else LARGEST


def _text(file: File) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise AlignError(f"cannot be read: {error.strerror}", "give the path of a run file", where=str(file)) from None
    if len(raw) > LARGEST:
        raise AlignError(f"has {len(raw)} bytes; a run file has at most {LARGEST}", where=str(file))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise AlignError("is not UTF-8", "save it as UTF-8", where=f"{file} line {line}") from None
