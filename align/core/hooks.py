"""Finding plugins and calling their hooks: each is loaded behind its own guard and called by itself.

So a failure always has a name, and a broken plugin stops nothing that does not need it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pluggy

from align import hookspecs
from align.core.error_line import error_line
from align.schemas.errors import AlignError, Problem, did_you_mean

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
            mend = "fix or uninstall it; `align plugins doctor` shows where it fails"
            raise AlignError(f"plugin {self} {what}: {error_line(error)}", mend) from error


class Hooks:
    """The plugins of one process. Tests give their own entry points and subset; the defaults are what is installed."""

    def __init__(
        self, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None, subset: str | None = None
    ) -> None:
        self._entry_points, self._subset = entry_points, subset
        self._manager = _manager()
        self._plugins: list[Plugin] | None = None

    def installed(self) -> list[Plugin]:
        """What is installed, ours first, without importing any of it.

        Raises AlignError when ``ALIGN_PLUGINS`` names something that is not installed.
        """
        return [plugin for plugin, _ in self._found()]

    def plugins(self) -> list[Plugin]:
        """What is installed, loaded where it can be. Raises AlignError as ``installed`` does."""
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
