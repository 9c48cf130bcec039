"""The inputs of a stage, identified by content: a resumed run must learn from the same bytes as before.

A path is only a location: a relative one, a link or a copy elsewhere is the same input, and other bytes at the same
path are another. So settings that decide what is learned are compared without their paths, and the files that they
name by sha256: the model (under an adapter too), its tokenizer and template, the data, reward files.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from align.core.data.sources import data_files
from align.core.models.architecture import base_of, is_adapter, resolve_model_path
from align.core.plugin_system.registry import registry
from align.core.rewards.scorer import reward_of
from align.core.util.atomic_files import sha256
from align.schemas.run import Source, Stage

Content = Mapping[str, str]
"""sha256 of each file of an input, by its name in the directory; a file that is an input by itself is called ''."""

MODEL_FILES = (
    *("*.safetensors", "config.json", "generation_config.json", "adapter_config.json", "*.py"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template*", "additional_chat_templates/*"),
)
"""The files in a model's directory that loading reads. Others there (notes, evaluations) may change."""

THREADS = 4
"""Files hashed at a time; hashlib releases the GIL."""


class Input(NamedTuple):
    """One input of a stage. name: the setting that names it. path: as it is spelt. files: those it consists of."""

    name: str
    path: str
    files: Callable[[], Mapping[str, Path]]

    def content(self) -> Content:
        """Return the sha256 of every file; for what is not on this machine (a judge, a hub data set) only its name.

        Raises AlignError if there is no such model.
        """
        files = self.files()
        if not files:
            return {self.path: ""}
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(files, pool.map(sha256, files.values()), strict=True))

    def place(self, output: Path) -> str:
        """Return the resolved path; inside the run's directory a relative one, so that the directory may be moved."""
        local = Path(self.path).expanduser()
        if not local.exists():
            return self.path  # of the hub, or gone
        real, home = (Path(os.path.realpath(path)) for path in (local, output))
        return f"output:{real.relative_to(home)}" if real.is_relative_to(home) else str(real)


def inputs(stage: Stage) -> Iterator[Input]:
    """Yield everything that a stage reads and that decides what it learns, except its rows (``rows``).

    ``stage`` is located: no path is called ``stage:NAME``.
    """
    model = stage.model
    spelt = model.path if model.revision is None else f"{model.path}@{model.revision}"
    yield Input("model.path", spelt, partial(_model, model.path, model.revision, model.trust_remote_code))
    yield from _named("model", {"chat_template": model.chat_template}, ["chat_template"])
    yield from _named("algorithm", stage.algorithm.settings, registry.build("algorithm", stage.algorithm).reads)
    if stage.rollout is not None:
        choices = [(f"rollout.rewards.{i}", choice) for i, choice in enumerate(stage.rollout.rewards)]
        choices += [("rollout.gold", stage.rollout.gold)] if stage.rollout.gold else []
        for name, choice in choices:
            yield from _named(name, choice.settings, reward_of(choice).reads)
            yield from _arguments(f"{name}.settings", choice.settings.get("settings"))


def data_inputs(stage: Stage) -> Iterator[Input]:
    """Yield the sources of a stage's rows: training and held-out ones."""
    for part, sources in (("train", stage.data.train), ("validation", stage.data.validation or ())):
        for index, source in enumerate(sources):
            yield Input(f"data.{part}.{index}.path", source.path, partial(_rows, source))


def without_paths(settings: Mapping[str, Any], reads: Collection[str]) -> dict[str, Any]:
    """Return a plugin's settings without those that name a file or model, which are compared by content."""
    return {name: value for name, value in settings.items() if not (name in reads and isinstance(value, str))}


def _named(where: str, settings: Mapping[str, Any], reads: Collection[str]) -> Iterator[Input]:
    """Yield the files and models that a plugin's settings name. reads: the settings that may."""
    for name in sorted(reads & settings.keys()):
        if isinstance(value := settings[name], str):
            yield Input(f"{where}.{name}", value, partial(_file_or_model, value))


def _arguments(where: str, settings: Any) -> Iterator[Input]:
    """Yield the settings of a Python reward that name an existing file."""
    for name, value in settings.items() if isinstance(settings, Mapping) else ():
        if isinstance(value, str) and _file_or_model(value):
            yield Input(f"{where}.{name}", value, partial(_file_or_model, value))


def _file_or_model(path: str) -> dict[str, Path]:
    """Return the files of a model, or a file and, if it is Python, what it imports; empty if not on this machine."""
    local = Path(path).expanduser()
    try:
        if local.is_dir():
            return _model(path, None, trusted=False)
        if not local.is_file():
            return {}
        file = local.resolve()
        return {"": file} | {str(near.relative_to(file.parent)): near for near in sorted(_imported(file) - {file})}
    except (OSError, ValueError):  # longer than a name may be, or with a NUL
        return {}


def _model(path: str, revision: str | None, trusted: bool) -> dict[str, Path]:
    """Return the files that loading a model reads, including those of the base under an adapter."""
    directory = resolve_model_path(path, revision, trusted)
    found = {path for pattern in MODEL_FILES for path in directory.glob(pattern) if path.is_file()}
    files = {str(path.relative_to(directory)): path for path in sorted(found)}
    if is_adapter(directory):
        below = resolve_model_path(*base_of(directory), trusted)
        if not is_adapter(below):  # loading refuses an adapter on an adapter
            files |= {f"base/{name}": path for name, path in _model(str(below), None, trusted).items()}
    return files


def _rows(source: Source) -> dict[str, Path]:
    root = Path(source.path).expanduser()
    return {str(file.relative_to(root)) if file != root else "": file for file in data_files(source)}


def _imported(file: Path) -> set[Path]:
    """Return a Python file and the neighbours that it imports, also indirectly; found by parsing, not by running."""
    found, ahead = set[Path](), [file] if file.suffix == ".py" else []
    while ahead:
        found.add(path := ahead.pop())
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            continue  # loading it will say so
        for place, name in _names(tree, path, file.parent):
            parts = name.split(".")
            # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
            for near in (place.joinpath(*parts[: n + 1]) for n in range(len(parts))):
                ahead += [p for p in (near.with_suffix(".py"), near / "__init__.py") if p.is_file() and p not in found]
    return found


def _names(tree: ast.AST, path: Path, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield each module that a file at ``path`` may import, and the directory that its name starts from.

    root: what absolute names start from, in a neighbour of a neighbour too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield root, alias.name
        elif isinstance(node, ast.ImportFrom):
            # One dot is the file's own directory, each further one the directory above.
            place = path.parents[min(node.level, len(path.parents)) - 1] if node.level else root
            for alias in node.names:  # a name of the module, or a module of the package
                yield place, ".".join(filter(None, [node.module, alias.name]))
