"""Suite files and gate policies: YAML to checked values, every mistake with its line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path as File
from typing import Any

from align.core.config import yaml_loader
from align.core.config.project_file import text_of
from align.core.evaluation.eval import Eval
from align.core.plugin_system.registry import Model, Path, Where, check, dotted, registry
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.evals import EvalChoice, GatePolicy, Suite

SUITES = "align.core.config"
"""The package whose directory ``suites`` holds the named ones."""


@dataclass(frozen=True, slots=True)
class LoadedEval:
    """An entry of a suite with its eval. name: of its rows."""

    name: str
    choice: EvalChoice
    eval: Eval


def named_suites() -> dict[str, str]:
    """Return the suites that come with align: name -> text of the file."""
    folder = resources.files(SUITES) / "suites"
    if not folder.is_dir():
        return {}
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def load_suite(suite: str | File, overrides: Sequence[str] = ()) -> tuple[Suite, list[LoadedEval]]:
    """Return a suite and its evals, made but not loaded.

    suite: a path, or the name of one that comes with align. overrides: ``mmlu.data=PATH`` for an entry by its name, or
    ``judge.model=DIR`` for a key of the suite. Raises AlignError with every problem of the file, the overrides and the
    evals' own settings.
    """
    known = named_suites()
    inside = isinstance(suite, str) and suite in known
    if not inside and not File(suite).exists() and File(suite).suffix not in (".yaml", ".yml"):
        raise AlignError(f"no suite is called {str(suite)!r}", did_you_mean(str(suite), known), where="--suite")
    name = str(suite)
    values, where, problems = _values(known[name] if inside else text_of(name), f"suite {name}" if inside else name)
    for override in overrides:
        _lay(values, override)
    made = _checked(Suite, values, where, problems)
    evals: list[LoadedEval] = []
    faults: list[Problem] = []
    for place, choice in enumerate(made.evals):
        try:
            own = registry.build("eval", choice, _place_of(where, place))
            evals.append(LoadedEval(choice.name or choice.type, choice, own))
        except AlignError as error:
            spot = where(("evals", place))
            faults += [each if each.where else replace(each, where=spot) for each in error.problems]
    for place, each in enumerate(evals):
        if each.name in [other.name for other in evals[:place]]:
            fix = "give one of them a `name`"
            faults.append(Problem(where(("evals",)), f"has two evals that are called {each.name!r}", fix))
        if each.eval.judged and made.judge is None:
            fix = "add `judge: {model: ...}` to the suite"
            faults.append(Problem(where(("evals",)), f"{each.name} needs a judge, and the suite has none", fix))
    if faults:
        raise AlignError.gather(faults)
    return made, evals


def load_policy(path: str | File) -> GatePolicy:
    """Return a gate's policy. Raises AlignError with every problem of the file."""
    values, where, problems = _values(text_of(str(path)), str(path))
    return _checked(GatePolicy, values, where, problems)


def _values(text: str, name: str) -> tuple[dict[str, Any], Where, list[Problem]]:
    """Return a file's values, the place of a path in it, and what was refused."""
    document = yaml_loader.read(text, name)
    if not isinstance(document.values, dict):
        raise AlignError("is not a mapping of keys to values", "see docs/evals.md for one", where=name)
    lines = document.lines

    def where(path: Path) -> str:
        line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
        place = name if line is None else f"{name} line {line}"
        return f"{place}: {dotted(path)}" if path else place

    return document.values, where, document.problems


def _checked(model: type[Model], values: dict[str, Any], where: Where, problems: list[Problem]) -> Model:
    try:
        made = check(model, values, where)
    except AlignError as error:
        raise AlignError.gather([*problems, *error.problems]) from None
    if problems:
        raise AlignError.gather(problems)
    return made


def _place_of(where: Where, number: int) -> Where:
    return lambda path: where(("evals", number, *path))


def _lay(values: dict[str, Any], override: str) -> None:
    """Lay ``KEY=VALUE`` over the values of a suite."""
    place = f"command line: {override}"
    key, equals, text = override.partition("=")
    if not equals:
        raise AlignError("is not an override", "write KEY=VALUE", where=place)
    document = yaml_loader.read(text, f"command line: {key}")
    if document.problems:
        raise AlignError.gather(document.problems)
    first, *rest = key.split(".")
    holder: Any = values
    if first not in Suite.model_fields:
        holder, rest = _entry(values, first, place), rest
    else:
        rest = [first, *rest]
    if not rest:
        raise AlignError("names no setting", f"write {first}.KEY=VALUE", where=place)
    for part in rest[:-1]:
        holder = holder.setdefault(part, {})
        if not isinstance(holder, dict):
            raise AlignError(f"{part!r} holds no settings", where=place)
    holder[rest[-1]] = document.values


def _entry(values: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    """Return the entry of a suite by its name, in its long form."""
    found = values.get("evals")
    entries: list[Any] = found if isinstance(found, list) else []
    names = []
    for number, entry in enumerate(entries):
        long = {"type": entry} if isinstance(entry, str) else entry
        if isinstance(long, dict):
            names.append(str(long.get("name") or long.get("type")))
            if names[-1] == name:
                entries[number] = long
                return long
    raise AlignError(f"the suite has no eval {name!r}", did_you_mean(name, names), where=place)
