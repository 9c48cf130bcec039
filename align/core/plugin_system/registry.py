"""The plugin registry: names to classes, one kind at a time and only when asked.

The module's functions are those of the plugins installed in this process; tests make a Registry of their own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from align.core.hooks import SUBSET, Hooks, Plugin
from align.core.kinds import KINDS
from align.core.plugin_system.settings import Where, check, dotted, function_config
from align.schemas.base import Config
from align.schemas.choice import Choice
from align.schemas.errors import AlignError, did_you_mean


@dataclass(frozen=True, slots=True)
class Offer:
    """One registered name. target: a class, a function, or ``module:Class``, imported on first use."""

    kind: str
    name: str
    plugin: Plugin
    target: Any

    def resolve(self) -> Any:
        """The class or function itself.

        Raises AlignError when it cannot be imported or is not what its kind asks for.
        """
        with self.plugin.attribute(f"cannot load its {self.kind} {self.name!r} from {self.target}"):
            thing = _imported(self.target) if isinstance(self.target, str) else self.target
            fault = self._fault(thing)
        if fault:
            raise AlignError(f"plugin {self.plugin}: its {self.kind} {self.name!r} {fault}", "fix or uninstall it")
        return thing

    def _fault(self, thing: Any) -> str:
        kind, config = KINDS[self.kind], getattr(thing, "Config", None)
        if not kind.configured:
            return ""
        if not inspect.isclass(thing):
            return "" if kind.functions and callable(thing) else "is not a class" + " or a function" * kind.functions
        if kind.base is not None and not issubclass(thing, _imported(kind.base)):
            return f"does not derive from {kind.base.replace(':', '.')}"
        if not (inspect.isclass(config) and issubclass(config, Config)):
            return "has no nested Config that derives from align.Config"
        return ""


class Registry:
    """Offers by kind and name. ``hooks`` finds the plugins and carries every call that is not a registration."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self.collect, self.first, self.notify = hooks.collect, hooks.first, hooks.notify
        self._offers: dict[str, dict[str, list[Offer]]] = {}

    def offers(self, kind: str) -> dict[str, list[Offer]]:
        """Everything of a kind by name, without importing it; two offers of one name are a clash."""
        if kind not in self._offers:
            taken: dict[str, list[Offer]] = {}
            for plugin, call in self.hooks.each(KINDS[kind].hook):
                with plugin.guard(kind):
                    for offer in _commands(plugin, call) if kind == "command" else _registered(kind, plugin, call):
                        taken.setdefault(offer.name, []).append(offer)
            self._offers[kind] = dict(sorted(taken.items()))
        return self._offers[kind]

    def names(self, kind: str) -> list[str]:
        """The names of a kind, sorted."""
        return list(self.offers(kind))

    def find(self, kind: str, name: str) -> Offer:
        """Return the offer of a name, without importing it.

        Raises AlignError when two plugins offer it, or none: then near names are given, and the plugins that are
        broken or left out, with their reasons.
        """
        offers = self.offers(kind).get(name, [])
        if len(offers) == 1:
            return offers[0]
        if offers:
            raise AlignError(clash(offers), f"uninstall one, or leave it out: {SUBSET}=NAME,NAME lists those to keep")
        hints = [did_you_mean(name, self.names(kind)), *self.absent(kind)]
        raise AlignError(f"no {kind} is called {name!r}", "\n    ".join(filter(None, hints)))

    def absent(self, kind: str) -> list[str]:
        """A sentence for every plugin that may offer something of a kind and cannot: broken, or left out."""
        plugins = self.hooks.plugins()
        left_out = [
            f"plugin {plugin} may offer it and is left out by {SUBSET}" for plugin in plugins if plugin.left_out
        ]
        return left_out + [
            f"plugin {plugin} may offer it and failed: {why}"
            for plugin in plugins
            for what, why in plugin.broken.items()
            if what in ("load", kind)
        ]

    def working(self, kind: str) -> dict[str, Any]:
        """Everything of a kind that can be used, by name: for what is chosen by trying (formats).

        What cannot is kept as its plugin's fault, which ``absent`` reports.
        """
        things: dict[str, Any] = {}
        for name, offers in self.offers(kind).items():
            with offers[-1].plugin.guard(kind):
                things[name] = self.get(kind, name)
        return things

    def get(self, kind: str, name: str) -> Any:
        """The class or function of that name. Raises AlignError as ``find`` does, or when it cannot be imported."""
        return self.find(kind, name).resolve()

    def build(self, kind: str, choice: Choice, where: Where | None = None) -> Any:
        """Make what a run file chose: settings checked by its Config, then given to its constructor.

        A function comes back with its settings bound. where: the place of a setting in the user's terms, ``kind.key``
        by default. Raises AlignError as ``get`` does, or for every bad setting.
        """
        offer = self.find(kind, choice.type)
        thing: Any = offer.resolve()
        place = where or (lambda path: dotted((kind, *path)))
        config = check(config_of(thing), choice.settings, place, section=kind)
        if not isinstance(thing, type):
            return functools.partial(thing, **{name: getattr(config, name) for name in type(config).model_fields})
        with offer.plugin.attribute(f"cannot make its {kind} {choice.type!r}"):
            return thing(config)


def config_of(thing: Any) -> type[Config]:
    """The settings of a plugin: a class's nested Config, or one made of a function's keyword-only arguments."""
    config: type[Config] = getattr(thing, "Config", None) or function_config(thing)
    return config


def clash(offers: list[Offer]) -> str:
    """The sentence about a name that is offered more than once."""
    by = " and ".join(f"plugin {offer.plugin}" for offer in offers)
    return f"{offers[0].kind} {offers[0].name!r} is offered {len(offers)} times: by {by}"


def _imported(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))


def _registered(kind: str, plugin: Plugin, call: Callable[..., Any]) -> list[Offer]:
    """Return all that a plugin registers of a kind; raises when it fails on the way, and then none of it counts."""
    offers: list[Offer] = []

    def register(thing: Any, target: Any = None, /) -> None:
        name = thing if isinstance(thing, str) else _own_name(thing)
        if target is None:
            target = thing
        elif not isinstance(thing, str):
            raise AlignError(f"register({thing!r}, {target!r}) has no name first: write register('name', target)")
        if not isinstance(name, str) or not name:
            raise AlignError(f"register({thing!r}) lacks a name: give the class a class attribute `name`")
        if not callable(target) and not (isinstance(target, str) and re.fullmatch(r"[\w.]+:[\w.]+", target)):
            given = repr(thing) if target is thing else f"{thing!r}, {target!r}"
            raise AlignError(
                f"register({given}) lacks its target: write register({thing!r}, 'module:Class'), or give the class or "
                "function itself"
            )
        offers.append(Offer(kind, name, plugin, target))

    call(register=register)
    return offers


def _own_name(thing: Any) -> Any:
    """The name that a class or function brings along: ``name`` of a class, ``__name__`` of a function."""
    return getattr(thing, "name" if inspect.isclass(thing) else "__name__", None)


def _commands(plugin: Plugin, call: Callable[..., Any]) -> list[Offer]:
    """The commands that a plugin adds to a group of its own; none of ours is within its reach."""
    import click

    cli = click.Group()
    call(cli=cli)
    return [Offer("command", name, plugin, command) for name, command in cli.commands.items()]


registry = Registry(Hooks())
"""The plugins installed in this process."""

offers, names, find, get, build = registry.offers, registry.names, registry.find, registry.get, registry.build
absent, working = registry.absent, registry.working
hooks, collect, first, notify = registry.hooks, registry.collect, registry.first, registry.notify
