"""A reward for short answers that are still answers, an algorithm, and a command."""

from __future__ import annotations

import click

import align


def brevity(completions: list[str], *, limit: int = 200) -> list[float | None]:
    """1 for an answer of no length, falling to 0 at ``limit`` characters."""
    # no answer, no opinion
    return [max(0.0, 1 - len(said) / limit) if said.strip() else None for said in completions]


@align.hookimpl
def register_rewards(register: align.Register) -> None:
    register(brevity)


@align.hookimpl
def register_algorithms(register: align.Register) -> None:
    register("plain_nll", "align_brevity_loss:PlainNLL")


@align.hookimpl
def register_commands(cli: click.Group) -> None:
    @cli.command()
    @click.argument("text")
    def shortness(text: str) -> None:
        """Print the reward of TEXT."""
        click.echo(brevity([text])[0])
