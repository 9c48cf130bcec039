"""Run files: YAML and overrides to a checked Run, with everything that is wrong reported at once; and back.

Top-level keys are the defaults of every stage, and a stage's own are laid over them. A file without ``stages`` is
one stage, named after its algorithm. ``null`` laid over a value undoes it: the setting's own default stands again,
unless null is itself a value of that setting (``max_grad_norm: null``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path as File
from typing import Any

from align.core.config import yaml_loader
from align.core.plugin_system.settings import Path, check, dotted, unknown
from align.core.runcheck import HOMES, accepts_null, choices, every_problem, unread
from align.schemas.errors import AlignError, Problem
from align.schemas.run import Run, Stage

LARGEST = 256 * 1024
RUN_KEYS = ("output", "project", "overrides", "stages")

# Another ``type`` here is another thing, to which the default's settings do not belong.
_WHOLE = (("algorithm",), ("devices", "strategy"), ("reference",), ("rollout", "generator"), ("rollout", "gold"))


def load(path: str | File, overrides: Sequence[str] = ()) -> Run:
    """Read and check a run file; ``overrides`` are ``train.max_steps=2`` or ``stages.dpo.algorithm.beta=0.2``.

    Raises AlignError with every problem of file and overrides: place, value and mend. Plugins named in the file are
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
        for key in [key for key in self.values if key not in known]:
            self._problem((key,), "is not a key here", unknown(key, known, HOMES))
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

    def _problem(self, path: Path, what: str, mend: str) -> None:
        place = next(self.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.places)
        self.problems.append(Problem(f"{place}: {dotted(path)}", what, mend))


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
