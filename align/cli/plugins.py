"""``align plugins``: what is installed, what it offers, and whether it works."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import Any

import rich_click as click

from align.api.catalogue import describe_plugin, list_plugins
from align.cli.choices import plugin_names
from align.cli.command_context import loading, show_progress
from align.cli.tables import print_columns
from align.core.plugin_system.registry import KINDS, registry
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

    The adviser's rules are counted only, unless you give --kind rule.

    \b
    Example:
      align plugins list --kind reward
    """
    installed = registry.hooks.installed() if no_load else registry.hooks.plugins()
    offers = [] if no_load else list_plugins(kind)
    if as_json:
        _print_json(
            {
                "plugins": [
                    {"name": p.name, "module": p.module, "distribution": p.distribution, "version": p.version}
                    | {"left_out": p.left_out, "broken": p.broken}
                    for p in installed
                ],
                "offers": [asdict(offer) for offer in offers],
            }
        )
        return
    if offers:
        # The adviser's rules alone would fill two screens, and few readers look for one.
        listed = [offer for offer in offers if kind == "rule" or offer.kind != "rule"]
        rows = [(offer.kind, offer.name, offer.plugin, visible(offer.about)) for offer in listed]
        if kind is None:
            rules = Counter(offer.plugin for offer in offers if offer.kind == "rule")
            hint = "Rules of `align advise`; to list them: align plugins list --kind rule"
            rows += [("rule", f"({count})", plugin, hint) for plugin, count in sorted(rules.items())]
        print_columns([("KIND", "NAME", "PLUGIN", "ABOUT"), *rows], cut=True)
        click.echo()
    status = {
        p.name: "left out by ALIGN_PLUGINS" if p.left_out else "broken: align plugins doctor" if p.broken else ""
        for p in installed
    }
    origins = [(p.name, p.distribution, p.version, p.module, status[p.name]) for p in installed]
    print_columns([("PLUGIN", "DISTRIBUTION", "VERSION", "MODULE", ""), *origins], cut=True)


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
    described = describe_plugin(name, kind)
    if as_json:
        _print_json([each.to_json() for each in described])
        return
    for each in described:
        click.echo(f"{each.kind} {each.name}, of plugin {each.plugin}, from {each.target}")
        if each.paper:
            click.echo(f"paper: {each.paper}")
        click.echo(f"\n{each.about}\n" if each.about else "")
        for setting in each.settings:
            default = "required" if setting.required else f"default {json.dumps(setting.default)}"
            click.echo(f"{setting.name}: {setting.type}, {default}")
            if setting.about:
                click.echo(f"    {setting.about}")


@plugins.command()
@as_json
def doctor(as_json: bool) -> None:
    """Load every plugin and everything it offers; status 1 when something is broken.

    \b
    Example:
      align plugins doctor
    """
    from align.cli import COMMANDS
    from align.core.plugin_system.diagnose import examine

    show_progress(not as_json)
    with loading("every plugin"):
        problems = list(examine(registry, reserved=COMMANDS))
    if as_json:
        _print_json([{"level": p.level, "where": p.where, "what": p.what, "fix": p.fix} for p in problems])
    else:
        for problem in problems:
            click.echo(f"{problem.level}: {problem}")
        click.echo(f"plugins: {len(registry.hooks.plugins())}, problems: {len(problems)}")
    sys.exit(any(problem.level == "error" for problem in problems))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))
