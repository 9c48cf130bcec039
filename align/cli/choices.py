"""A plugin and its settings in one word on the command line: ``length:target=200,weight=0.1``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from align.schemas.choice import Choice
    from align.schemas.rollout import RewardChoice

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

        from align.core.kinds import KINDS
        from align.core.registry import registry

        known = {name for kind in kinds or KINDS for name in registry.names(kind)}
        return [CompletionItem(name) for name in sorted(known) if name.startswith(begun)]

    return complete


def choice_of(word: str, option: str) -> Choice:
    """Return the plugin that ``option`` chose; values are YAML. Raises AlignError for those that are not."""
    from align.core import strictyaml
    from align.schemas.choice import Choice
    from align.schemas.errors import AlignError

    name, rest = _WORD.fullmatch(word).groups()  # type: ignore[union-attr]  # it matches every string
    settings = {}
    for pair in re.split(r",(?=\w+=)", rest) if rest else []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint=f"--{option}")
        document = strictyaml.read(value, f"--{option} {name}: {key}")
        if document.problems:
            raise AlignError.gather(document.problems)
        settings[key] = document.values
    return Choice(type=name, settings=settings)


def reward_of(word: str) -> RewardChoice:
    """The reward that ``--reward`` chose, its weight and the like separated from its own settings."""
    choice = choice_of(word, "reward")
    return reward_named(choice.type, choice.settings, "--reward")


def reward_named(name: str, given: dict[str, Any], where: str) -> RewardChoice:
    """A reward's name, or path.py:function, with flat settings. where: begins the place that a fault names."""
    from align.core.settings import check, dotted
    from align.schemas.choice import spelt_out
    from align.schemas.rollout import BESIDE_REWARD, RewardChoice

    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        beside = {key: value for key, value in given.items() if key in BESIDE_REWARD}
        own = {key: value for key, value in given.items() if key not in BESIDE_REWARD}
        choice: Any = {"type": "python", "settings": {"file": file, "function": function, "settings": own}, **beside}
    else:
        choice = spelt_out({"type": name, **given}, BESIDE_REWARD)
    return check(RewardChoice, choice, lambda path: f"{where} {name}: {dotted(path)}")
