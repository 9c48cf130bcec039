"""Arguments that the functions of this package accept in several forms, and their conversion to one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from align.core.config import project_file
from align.core.config.project_file import Brief
from align.core.plugin_system.registry import check, dotted
from align.schemas.errors import AlignError, did_you_mean
from align.schemas.project import DATA_KINDS, DataKind, Project

if TYPE_CHECKING:
    # Building the models of run files takes a tenth of a second, which advice need not wait for.
    from align.schemas.run import Choice, RewardChoice, Sampling

BriefLike = str | Path | Mapping[str, Any] | Project | Brief
"""A brief: see ``as_brief``."""
RewardLike: TypeAlias = "str | Mapping[str, Any] | RewardChoice"
"""A reward: see ``as_reward``."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file or directory. kind: what it is for; None: what its rows look like."""

    path: str
    kind: DataKind | None = None


Files = Iterable[str | Path | DataFile] | Mapping[DataKind, str | Path | Iterable[str | Path]]
"""Data files, or data files by what they are for: ``{"sft_pairs": "letters.jsonl", "eval_set": ["a.jsonl"]}``."""


def as_brief(brief: BriefLike) -> Brief:
    """Return a brief from a file, from free words, or from a form.

    A Path is a file. A string is one too where it is a single line that ends in .yaml, .yml, .json, .md or .txt; any
    other string is the brief's own words. A mapping is the form's values.
    Raises AlignError for a file that cannot be read, and with every problem of a form.
    """
    if isinstance(brief, Brief):
        return brief
    if isinstance(brief, Project):
        return Brief("project", brief, brief.description or "")
    if isinstance(brief, Mapping):
        return project_file.of_values(brief)
    # No look at the disk: a mistyped name must not be advised on as if it were the description.
    if isinstance(brief, Path) or ("\n" not in brief and brief.lower().endswith(project_file.SUFFIXES)):
        return project_file.read_file(str(brief))
    return project_file.of_text(brief, "brief")


def as_files(files: Files) -> list[DataFile]:
    """Return data files with what each is for. Raises AlignError for an unknown kind of data."""
    if not isinstance(files, Mapping):
        if isinstance(files, str | Path):  # one file: a string would be taken for a list of characters
            files = [files]
        return [file if isinstance(file, DataFile) else DataFile(str(file)) for file in files]
    found = []
    for kind, paths in files.items():
        if kind not in DATA_KINDS:
            raise AlignError(f"{kind!r} is no kind of data", did_you_mean(str(kind), DATA_KINDS), where="data")
        some = [paths] if isinstance(paths, str | Path) else paths
        found += [DataFile(str(path), kind) for path in some]
    return found


def as_reward(reward: RewardLike, where: str = "reward") -> RewardChoice:
    """Return a reward chosen by name, or with settings: ``"math"``, ``{"type": "length", "target": 200}``.

    The name may be ``path.py:function``. where: begins the place that an error names.
    Raises AlignError for settings that do not belong to a choice; the reward checks its own when it is opened.
    """
    from align.schemas.run import REWARD_KEYS, RewardChoice, expand_shorthand

    if isinstance(reward, RewardChoice):
        return reward
    values = {"type": reward} if isinstance(reward, str) else dict(reward)
    name = str(values.get("type", ""))
    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        common = {key: value for key, value in values.items() if key in REWARD_KEYS}
        own = {key: value for key, value in values.items() if key not in REWARD_KEYS}
        settings = {"file": file, "function": function, "settings": own}
        choice: Any = {**common, "type": "python", "settings": settings}
    else:
        choice = expand_shorthand(values, REWARD_KEYS)
    return check(RewardChoice, choice, lambda path: f"{where} {name}: {dotted(path)}")


def plugin_choice(plugin: str | Choice) -> Choice:
    """Return a plugin chosen by name, or with its settings."""
    from align.schemas.run import Choice

    return Choice(type=plugin) if isinstance(plugin, str) else plugin


def sampling_settings(values: Mapping[str, Any]) -> Sampling:
    """Return settings of ``sampling`` in a run file. Raises AlignError for unknown ones and values out of range."""
    from align.schemas.run import Sampling

    return check(Sampling, values, dotted)
