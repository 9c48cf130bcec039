"""``align schema``: for editors that complete and check YAML."""

from __future__ import annotations

import json

import rich_click as click


@click.command()
def schema() -> None:
    """Print the JSON schema of run files, the settings of every installed plugin in it.

    Start a run file with `# yaml-language-server: $schema=run.schema.json`, and editors complete and check it.

    \b
    Example:
      align schema > run.schema.json
    """
    from align.core.config.json_schema import run_schema
    from align.core.plugin_system.registry import registry

    found, broken = run_schema(registry)
    click.echo(json.dumps(found, indent=2))
    for error in broken:
        click.echo(f"left out: {error}", err=True)
