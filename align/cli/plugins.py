"""``align plugins``: what is installed, what it offers, and whether it works."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from typing import Any

import rich_click as click

from align.cli.choices import plugin_names
from align.cli.progress import loading, show_progress
from align.core.about import about
from align.core.kinds import KINDS
from align.core.registry import Offer, config_of, registry
from align.schemas.errors import AlignError, did_you_mean
from align.schemas.text import visible

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def plugins() -> None:
    """List, show and examine plugins.

    ALIGN_PLUGINS=NAME,NAME lets only those plugins (or distributions) take part; the others are not imported.

    \b
    Example:
      align plugins list --kind algorithm
      align plugins show dpo
    """


@plugins.command("list")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Only one kind.")
@click.option("--no-load", is_flag=True, help="Only what is installed; import none of it.")
@as_json
def list_(kind: str | None, no_load: bool, as_json: bool) -> None:
    """List what plugins offer, by kind and name, each with what it is.

    \b
    Example:
      align plugins list --kind reward
    """
    installed = registry.hooks.installed() if no_load else registry.hooks.plugins()
    kinds = [] if no_load else [kind] if kind else list(KINDS)
    offers = [offer for kind in kinds for offers in registry.offers(kind).values() for offer in offers]
    if as_json:
        _print_json(
            {
                "plugins": [
                    {"name": p.name, "module": p.module, "distribution": p.distribution, "version": p.version}
                    | {"left_out": p.left_out, "broken": p.broken}
                    for p in installed
                ],
                "offers": [
                    {"kind": o.kind, "name": o.name, "plugin": o.plugin.name, "about": about(o)} for o in offers
                ],
            }
        )
        return
    if offers:
        shown = [(o.kind, o.name, o.plugin.name, visible(about(o))) for o in offers]
        _print_columns([("KIND", "NAME", "PLUGIN", "ABOUT"), *shown])
        click.echo()
    status = {
        p.name: "left out by ALIGN_PLUGINS" if p.left_out else "broken: align plugins doctor" if p.broken else ""
        for p in installed
    }
    rows = [(p.name, p.distribution, p.version, p.module, status[p.name]) for p in installed]
    _print_columns([("PLUGIN", "DISTRIBUTION", "VERSION", "MODULE", ""), *rows])


@plugins.command()
@click.argument("name", shell_complete=plugin_names(), help="A name from `align plugins list`.")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Only of this kind.")
@as_json
def show(name: str, kind: str | None, as_json: bool) -> None:
    """Show what NAME is, where it comes from, and its settings.

    \b
    Example:
      align plugins show dpo
    """
    kinds = [kind] if kind else list(KINDS)
    found = [offer for kind in kinds for offer in registry.offers(kind).get(name, [])]
    if not found and kind:
        registry.find(kind, name)
    if not found:
        known = {known for kind in kinds for known in registry.names(kind)}
        raise AlignError(f"no plugin offers {name!r}", did_you_mean(name, known))
    described = [_describe(offer) for offer in found]
    if as_json:
        _print_json(described)
        return
    for one in described:
        click.echo(f"{one['kind']} {one['name']}, of plugin {one['plugin']}, from {one['target']}")
        if one["paper"]:
            click.echo(f"paper: {one['paper']}")
        click.echo(f"\n{one['about']}\n" if one["about"] else "")
        for setting in one["settings"]:
            default = "required" if setting["required"] else f"default {json.dumps(setting['default'])}"
            click.echo(f"{setting['name']}: {setting['type']}, {default}")
            if setting["about"]:
                click.echo(f"    {setting['about']}")


@plugins.command()
@as_json
def doctor(as_json: bool) -> None:
    """Load every plugin and everything it offers; status 1 when something is broken.

    \b
    Example:
      align plugins doctor
    """
    from align.cli import COMMANDS
    from align.core.examine import examine

    show_progress(not as_json)
    with loading("every plugin"):
        problems = list(examine(registry, reserved=COMMANDS))
    if as_json:
        _print_json([{"level": p.level, "where": p.where, "what": p.what, "mend": p.mend} for p in problems])
    else:
        for problem in problems:
            click.echo(f"{problem.level}: {problem}")
        click.echo(f"plugins: {len(registry.hooks.plugins())}, problems: {len(problems)}")
    sys.exit(any(problem.level == "error" for problem in problems))


def _describe(offer: Offer) -> dict[str, Any]:
    thing = offer.resolve()
    schema = config_of(thing).model_json_schema() if KINDS[offer.kind].configured else {}
    return {
        "kind": offer.kind,
        "name": offer.name,
        "plugin": str(offer.plugin),
        "target": f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', offer.name)}",
        "about": inspect.getdoc(thing) or "",
        "paper": getattr(thing, "paper", ""),
        "settings": [
            {
                "name": name,
                "type": _type(setting),
                "required": name in schema.get("required", ()),
                "default": setting.get("default"),
                "about": " ".join(setting.get("description", "").split()),
            }
            for name, setting in schema.get("properties", {}).items()
        ],
    }


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words: ``number > 0``, ``"linear" | "cosine"``."""
    if "anyOf" in schema:
        return " | ".join(map(_type, schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "enum" in schema or "const" in schema:
        return " | ".join(map(json.dumps, schema.get("enum", [schema.get("const")])))
    bounds = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return " ".join([str(schema.get("type", "any")), *limits])


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def _print_columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Only a terminal gets lines cut to its width: in a pipe, for grep, they stay whole.
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(line if len(line) <= most else f"{line[: most - 1]}…")
