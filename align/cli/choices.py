"""A plugin and its settings in one word on the command line: ``length:target=200,weight=0.1``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from align.api.input_types import DataFile
    from align.schemas.project import DataKind
    from align.schemas.run import Choice, RewardChoice

SPELT = "NAME or NAME:KEY=VALUE,KEY=VALUE"
REWARD = f"{SPELT}, where path.py:function is a NAME too"
_WORD = re.compile(r"([^:]*\.py:\w+(?=:|$)|[^:]*):?(.*)", re.DOTALL)


def files(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete a word that may be a file's name: the shell does it."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="file")]


def plugin_names(*kinds: str) -> Any:
    """Complete the names of plugins of these kinds; of every kind where none is given."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from align.core.plugin_system.registry import KINDS, registry

        known = {name for kind in kinds or KINDS for name in registry.names(kind)}
        return [CompletionItem(name) for name in sorted(known) if name.startswith(begun)]

    return complete


def choice_of(word: str, option: str) -> Choice:
    """Return the plugin that ``option`` chose; values are YAML. Raises AlignError for those that are not."""
    from align.core.config import yaml_loader
    from align.schemas.errors import AlignError
    from align.schemas.run import Choice

    name, rest = _WORD.fullmatch(word).groups()  # type: ignore[union-attr]  # it matches every string
    settings = {}
    for pair in re.split(r",(?=\w+=)", rest) if rest else []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint=f"--{option}")
        document = yaml_loader.read(value, f"--{option} {name}: {key}")
        if document.problems:
            raise AlignError.gather(document.problems)
        settings[key] = document.values
    return Choice(type=name, settings=settings)


def reward_of(word: str) -> RewardChoice:
    """Return the reward that ``--reward`` chose, its weight and the like separated from its own settings."""
    from align.api.input_types import as_reward

    choice = choice_of(word, "reward")
    return as_reward({"type": choice.type, **choice.settings}, "--reward")


def prompt_or_file(word: str) -> str | Path:
    """Return the path that a word names, or the word, which is a prompt. A directory has a ``/`` in its name."""
    given = os.path.expanduser(word)  # leaves a ~ alone that names nobody, where Path's raises
    named = os.path.exists(given) and (os.sep in word or not os.path.isdir(given))
    return Path(given) if named else word


def data_file(word: str) -> DataFile:
    """Return the file that ``--data FILE`` or ``--data KIND=FILE`` names. Raises AlignError for an unknown kind."""
    from align.api.input_types import DataFile
    from align.schemas.errors import AlignError, did_you_mean
    from align.schemas.project import DATA_KINDS

    kind, equals, path = word.partition("=")
    if not equals or Path(word).exists():
        return DataFile(word)
    known: DataKind | None = next((each for each in DATA_KINDS if each == kind), None)
    if known is None:
        raise AlignError(f"{kind!r} is no kind of data", did_you_mean(kind, DATA_KINDS), where=f"--data {word}")
    return DataFile(path, known)
