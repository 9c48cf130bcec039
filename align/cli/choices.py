"""A plugin and its settings in one word on the command line: ``length:target=200,weight=0.1``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import rich_click as click

if TYPE_CHECKING:
    from align.schemas.choice import Choice
    from align.schemas.rollout import RewardChoice

SPELT = "NAME or NAME:KEY=VALUE,KEY=VALUE"


def choice_of(word: str, option: str) -> Choice:
    """The plugin that ``--option`` chose; values are YAML. Raises AlignError for those that are not."""
    from align.core import strictyaml
    from align.schemas.choice import Choice
    from align.schemas.errors import AlignError

    name, _, rest = word.partition(":")
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
    """The reward that ``--reward`` chose, its weight and the like told from its own settings."""
    from align.core.settings import check, dotted
    from align.schemas.choice import spelt_out
    from align.schemas.rollout import BESIDE_REWARD, RewardChoice

    choice = choice_of(word, "reward")
    flat = spelt_out({"type": choice.type, **choice.settings}, BESIDE_REWARD)
    return check(RewardChoice, flat, lambda path: f"--reward {choice.type}: {dotted(path)}")
