"""What is wrong with the installed plugins: everything is loaded, and every name resolved."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from align.core.kinds import KINDS
from align.core.plugin_system.registry import Offer, Registry, clash, config_of
from align.schemas.errors import AlignError, Problem


def examine(registry: Registry, reserved: Collection[str] = ()) -> Iterator[Problem]:
    """Every fault of every plugin. ``reserved``: the commands that are align's own."""
    for kind in KINDS:
        for name, offers in registry.offers(kind).items():
            if len(offers) > 1:
                yield Problem(f"{kind} {name}", clash(offers), "uninstall one of them")
            for offer in offers:
                yield from _faults(offer)
    for name in set(registry.names("command")) & set(reserved):
        for offer in registry.offers("command")[name]:
            yield Problem(
                f"plugin {offer.plugin}", f"its command {name!r} is never reached: align has its own", "rename it"
            )
    for plugin in registry.hooks.plugins():
        for what, why in plugin.broken.items():
            frames = [line.strip() for line in plugin.trace.splitlines() if line.lstrip().startswith("File ")]
            failed = "fails to load" if what == "load" else f"fails to register its {what}s"
            yield Problem(f"plugin {plugin}", f"{failed}: {why}", frames[-1] if frames else "")


def _faults(offer: Offer) -> Iterator[Problem]:
    try:
        thing = offer.resolve()
    except AlignError as error:
        yield from error.problems
        return
    if KINDS[offer.kind].configured:
        for name, field in config_of(thing).model_fields.items():
            if not field.description and isinstance(thing, type):
                what = f"setting {name!r} of {offer.kind} {offer.name!r} has no description"
                yield Problem(f"plugin {offer.plugin}", what, "write a docstring under the field", level="warning")
