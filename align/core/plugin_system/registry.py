"""The plugin registry: names to classes, one kind at a time and only when asked, and the check of their settings.

The module's functions are those of the plugins installed in this process; tests make a Registry of their own.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import logging
import os
import re
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import ErrorDetails, to_json

from align import hookspecs
from align.core.util.error_line import error_line
from align.schemas.base import Config, field_docstrings
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.renamed import fix_for, new_name
from align.schemas.text import is_secret, redacted

if TYPE_CHECKING:
    from align.schemas.run import Choice

# --- settings --------------------------------------------------------------------------------------------------------

# Checking settings against a Config, strictly, and saying what is wrong in the user's terms.
#
# Values are checked as JSON in pydantic's strict mode: ``true`` is no number, ``"5"`` is no number, 2.0 is no count.

Path = tuple[str | int, ...]
Where = Callable[[Path], str]
Fixes = Callable[[], Mapping[str, str]]
"""Returns the fix for keys that are often misplaced or have another name here; called for an unknown key only."""
Model = TypeVar("Model", bound=BaseModel)

_WORDS = {
    "a valid array": "a list",
    "a valid dictionary": "a mapping",
    "an object": "a mapping",
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}


def dotted(path: Path) -> str:
    """``('loggers', 0, 'type')`` as ``loggers[0].type``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def check(model: type[Model], values: Any, where: Where, fixes: Fixes | None = None, section: str = "") -> Model:
    """Make a model of plain values.

    where: the place of a path into ``values``, in the user's terms. fixes: of keys that belong elsewhere. section: the
    part of a stage that ``values`` are (``algorithm``), to recognise keys that were renamed. Raises AlignError
    with every problem there is.
    """
    try:
        return model.model_validate_json(to_json(values), strict=True)
    except ValidationError as error:
        problems = _problems(error.errors(include_url=False), model, values, where, fixes, section)
        raise AlignError.gather(problems) from None


def unknown(key: str, known: Iterable[str], fixes: Mapping[str, str]) -> str:
    """Return the fix for an unknown key. fixes: of keys that are known to belong elsewhere, or to be needless."""
    return fixes.get(key) or did_you_mean(key, known) or "remove it"


@functools.cache
def function_config(function: Callable[..., Any]) -> type[Config]:
    """A Config made of a function's keyword-only arguments."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    annotations = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    # Only these are resolved: the other arguments' types may stand behind TYPE_CHECKING.
    holder = SimpleNamespace(__annotations__=annotations)
    types = typing.get_type_hints(holder, function.__globals__, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (types.get(p.name, Any), ... if p.default is p.empty else p.default) for p in parameters
    }
    return create_model(function.__name__, __base__=Config, __module__=function.__module__, **fields)


def model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that a path into another leads to, or None where it leads to none or to one of several."""
    for key in path:
        if isinstance(key, int):
            continue  # lists are looked through
        if key not in model.model_fields:
            return None
        inner = set(_models(model.model_fields[key].annotation))
        if len(inner) != 1:
            return None
        model = inner.pop()
    return model


def takes_null(model: type[BaseModel], path: Path) -> bool:
    """Return whether ``null`` is a value of the field at ``path``: ``max_grad_norm: null`` is no clipping.

    True also where there is no such field: an unknown key is for ``check`` to report.
    """
    owner = model_at(model, path[:-1])
    field = owner.model_fields.get(str(path[-1])) if owner is not None else None
    return field is None or field.annotation is Any or type(None) in typing.get_args(field.annotation)


def fixes_by_section(model: type[BaseModel], leave_out: type[BaseModel] | None = None) -> dict[str, str]:
    """Return the fix for keys that one section of a model has, written elsewhere: ``write it as train.max_steps``."""
    found: dict[str, list[str]] = {}
    for name in model.model_fields:
        section = model_at(model, (name,))
        for key in section.model_fields if section is not None and section is not leave_out else ():
            found.setdefault(key, []).append(f"{name}.{key}")
    return {key: f"write it as {places[0]}" for key, places in found.items() if len(places) == 1}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _problems(
    errors: list[ErrorDetails],
    model: type[BaseModel],
    values: Any,
    where: Where,
    fixes: Fixes | None,
    section: str,
) -> Iterator[Problem]:
    """One problem per place: the alternatives of a union fail one by one and are one mistake."""
    by_place: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        by_place.setdefault(_real(error, values), []).append(error)
    for path, found in by_place.items():
        first, value = found[0], _value(values, path)
        if first["type"] == "extra_forbidden":
            owner = model_at(model, path[:-1])
            known = owner.model_fields if owner else ()
            above, key = _section(section, path[:-1]), str(path[-1])
            if new_name(above, key) in known:
                yield Problem(where(path), "has a new name", fix_for(above, key))
            else:
                yield Problem(where(path), "is not a key here", unknown(key, known, fixes() if fixes else {}))
        elif first["type"] == "missing":
            owner = model_at(model, path[:-1])
            about = field_docstrings(owner).get(str(path[-1]), "") if owner else ""
            first_sentence = re.split(r"(?<=[.;])\s", " ".join(about.split()), maxsplit=1)[0]
            yield Problem(where(path), "is missing", first_sentence)
        elif first["type"] == "value_error":
            yield from _from_message(str(first["ctx"]["error"]), model, path, where)
        elif not any(len(other) > len(path) and other[: len(path)] == path for other in by_place):
            wanted = " or ".join(dict.fromkeys(_wanted(error) for error in found)).replace(" or must be ", " or ")
            expected = [word for error in found for word in _expected(error)]
            near = did_you_mean(value, expected) if isinstance(value, str) else ""
            yield Problem(where(path), f"is {_shown(path, value)}; {wanted}", near if near.startswith("did") else "")


def _section(section: str, path: Path) -> str:
    """The dotted section of a stage that a path leads to, whichever stage or item of a list it is in."""
    inside = path[1:] if path[:1] == ("stages",) else path
    return ".".join(filter(None, [section, *(key for key in inside if isinstance(key, str))]))


def _real(error: ErrorDetails, values: Any) -> Path:
    """Return the place of an error in the values: pydantic's path also names the alternatives of a union."""
    path: list[str | int] = []
    for key in error["loc"]:
        if (isinstance(values, dict) and key in values) or (isinstance(values, list) and isinstance(key, int)):
            values = values[key]  # type: ignore[index]
            path.append(key)
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


def _value(values: Any, path: Path) -> Any:
    for key in path:
        if not isinstance(values, dict | list) or (isinstance(values, dict) and key not in values):
            return None
        values = values[key]  # type: ignore[index]
    return values


def _shown(path: Path, value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if path and is_secret(str(path[-1])):
        return "hidden here"
    text = redacted(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wanted(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Input should be ")
    for pydantic, ours in _WORDS.items():
        message = message.replace(pydantic, ours)
    return f"must be {message}" if error["msg"].startswith("Input should be ") else message


def _expected(error: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))


def _from_message(message: str, model: type[BaseModel], path: Path, where: Where) -> Iterator[Problem]:
    """Yield a problem for each line of a validator's message, at the field it begins with (``model.dtype``)."""
    for line in message.splitlines():
        word, _, rest = line.partition(" ")
        *parents, name = word.strip("`':,").split(".")
        owner = model_at(model, (*path, *parents))
        if owner is not None and name in owner.model_fields:
            yield Problem(where((*path, *parents, name)), rest)
        else:
            yield Problem(where(path), line)


# --- plugins ---------------------------------------------------------------------------------------------------------

# Finding plugins and calling their hooks: each is loaded behind its own guard and called by itself.
#
# So a failure always has a name, and a broken plugin stops nothing that does not need it.

GROUP = "align"
OURS = "align-llm"
SUBSET = "ALIGN_PLUGINS"
"""Environment variable naming the plugins (or distributions) that take part, by commas; the others are not imported."""

log = logging.getLogger("align")


@dataclass(slots=True)
class Plugin:
    """One entry point of the group ``align``.

    left_out: whether ``ALIGN_PLUGINS`` keeps it out. broken: why it failed, by what it failed at (``load`` or a kind).
    trace: the traceback of the last failure.
    """

    name: str
    module: str
    distribution: str
    version: str
    left_out: bool = False
    broken: dict[str, str] = field(default_factory=dict)
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.name!r} ({self.distribution} {self.version})"

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Keep a failure as the plugin's own, ``sys.exit`` included; only the user's Ctrl-C passes."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.broken[what] = " ".join(str(error).split()) if isinstance(error, AlignError) else error_line(error)
            self.trace = traceback.format_exc()

    @contextmanager
    def attribute(self, what: str) -> Iterator[None]:
        """Raise a failure as an AlignError with the plugin's name; what it says to the user itself passes unchanged."""
        try:
            yield
        except (KeyboardInterrupt, AlignError):
            raise
        except BaseException as error:
            fix = "fix or uninstall it; `align plugins doctor` shows where it fails"
            raise AlignError(f"plugin {self} {what}: {error_line(error)}", fix) from error


class Hooks:
    """The plugins of one process. Tests give their own entry points and subset; the defaults are what is installed."""

    def __init__(
        self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None, subset: str | None = None
    ) -> None:
        self._entry_points, self._subset = entry_points, subset
        self._manager = _manager()
        self._plugins: list[Plugin] | None = None

    def installed(self) -> list[Plugin]:
        """Return the installed plugins, ours first, without importing any of them.

        Raises AlignError when ``ALIGN_PLUGINS`` names something that is not installed.
        """
        return [plugin for plugin, _ in self._found()]

    def plugins(self) -> list[Plugin]:
        """Return the installed plugins, loaded where they can be. Raises AlignError as ``installed`` does."""
        if self._plugins is None:
            found = self._found()
            for plugin, entry_point in found:
                if not plugin.left_out:
                    self._load(plugin, entry_point)
            self._plugins = [plugin for plugin, _ in found]
        return self._plugins

    def _found(self) -> list[tuple[Plugin, importlib.metadata.EntryPoint]]:
        found = self._entry_points
        if found is None:
            found = importlib.metadata.entry_points(group=GROUP)
        subset = os.environ.get(SUBSET) if self._subset is None else self._subset
        wanted = None if subset is None else {word.strip() for word in subset.split(",")} - {""}
        plugins: dict[str, tuple[Plugin, importlib.metadata.EntryPoint]] = {}
        known = {OURS}
        for entry_point in sorted(found, key=lambda e: (_origin(e)[0] != OURS, e.name)):
            distribution, version = _origin(entry_point)
            left_out = wanted is not None and distribution != OURS and not {entry_point.name, distribution} & wanted
            # Two distributions may use one name; the second is called by its full name.
            name = f"{distribution}:{entry_point.name}" if entry_point.name in plugins else entry_point.name
            plugins[name] = Plugin(name, entry_point.value, distribution, version, left_out), entry_point
            known |= {entry_point.name, distribution}
        if wanted and wanted - known:
            raise AlignError.gather(
                Problem(SUBSET, f"names {word!r}, which is not installed", did_you_mean(word, known))
                for word in sorted(wanted - known)
            )
        return list(plugins.values())

    def _load(self, plugin: Plugin, entry_point: importlib.metadata.EntryPoint) -> None:
        with plugin.guard("load"):
            module = entry_point.load()
            # Tried in a manager of its own: registration is not atomic, and a refusal there leaves no trace in ours.
            trial = _manager()
            try:
                trial.register(module, plugin.name)
                trial.check_pending()
            except pluggy.PluginValidationError as error:
                raise AlignError(f"{error}; it may need another version of align") from error
            self._manager.register(module, plugin.name)

    def each(self, hook: str) -> Iterator[tuple[Plugin, Callable[..., Any]]]:
        """The plugins that implement a hook, in calling order, each with a call that reaches it alone."""
        plugins = {plugin.name: plugin for plugin in self.plugins()}
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            others = self._manager.get_plugins() - {implementation.plugin}
            yield plugins[implementation.plugin_name], self._manager.subset_hook_caller(hook, others)

    def collect(self, hook: str, **arguments: Any) -> list[Any]:
        """Call a hook that answers with sequences (``check_run``, ``make_callbacks``) and join the answers.

        Raises AlignError naming the plugin when one fails.
        """
        joined: list[Any] = []
        for plugin, call in self.each(hook):
            with plugin.attribute(f"failed in {hook}"):
                joined += [item for answer in call(**arguments) for item in answer]
        return joined

    def first(self, hook: str, **arguments: Any) -> Any:
        """Call a hook of which one answer is wanted (``choose_strategy``); None when nobody has one.

        Raises AlignError naming the plugin when one fails.
        """
        for plugin, call in self.each(hook):
            with plugin.attribute(f"failed in {hook}"):
                answer = call(**arguments)
            if answer is not None:
                return answer
        return None

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a notice (``rollouts_scored``, ``run_finished``): a failure is logged with its plugin, never raised."""
        for plugin, call in self.each(hook):
            try:
                call(**arguments)
            except KeyboardInterrupt:
                raise
            except BaseException:
                log.exception("plugin %s failed in %s; the run goes on", plugin, hook)


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("align")
    manager.add_hookspecs(hookspecs)
    return manager


def _origin(entry_point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Distribution and version."""
    return (entry_point.dist.name, entry_point.dist.version) if entry_point.dist else ("unknown", "0")


# The kinds of things plugins offer. A new kind is one line here and one hook in hookspecs.


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of plugin.

    name: what messages call it. hook: where it registers. base: ``module:Class`` its classes derive from (imported
    only when one is used), None while any class will do. functions: whether a bare function serves as well.
    configured: whether run files choose it and give it settings.
    """

    name: str
    hook: str
    base: str | None = None
    functions: bool = False
    configured: bool = True


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("algorithm", "register_algorithms", base="align.core.algorithm.contract:Algorithm"),
        Kind("reward", "register_rewards", base="align.core.rewards.reward_base:Reward", functions=True),
        Kind("generator", "register_generators", base="align.core.generation.generator_base:Generator"),
        Kind("format", "register_formats", base="align.core.data.formats:Format"),
        Kind("eval", "register_evals", base="align.core.evaluation.eval:Eval"),
        Kind("strategy", "register_strategies", base="align.core.engine.processes:Strategy"),
        Kind("logger", "register_loggers", base="align.core.engine.logger:Logger"),
        Kind("rule", "register_rules", functions=True),
        Kind("command", "register_commands", configured=False),
    )
}


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

    def build(self, kind: str, choice: Choice, where: Where | None = None, fixes: Fixes | None = None) -> Any:
        """Make what a run file chose: settings checked by its Config, then given to its constructor.

        A function comes back with its settings bound. where: the place of a setting in the user's terms, ``kind.key``
        by default. fixes: of keys that are no settings of a plugin, but are often written among them.
        Raises AlignError as ``get`` does, or for every bad setting.
        """
        offer = self.find(kind, choice.type)
        thing: Any = offer.resolve()
        place = where or (lambda path: dotted((kind, *path)))
        config = check(config_of(thing), choice.settings, place, fixes, section=kind)
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
