"""``align quickstart``: parse, call, print."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import rich_click as click

from align.cli.command_context import ends_on_signals, loading, quiet, show_progress

SHOWN, WIDTH = 2, 160
"""Prompts whose answers are printed before and after, and characters of each."""


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default="quickstart", help="Where everything is written.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, help="Everything random follows from it.")
@click.option("--model", help="Your own model instead of a small new one: a directory or a hub id. Needs --data.")
@click.option("--data", help="Your own rows instead of sums: chats, prompts with answers, or preferences.")
@quiet
def quickstart(output: Path, seed: int, model: str | None, data: str | None, quiet: bool) -> None:
    """Train a model end to end and see that it learned; a minute or two on two cores, without a download.

    A small model is made and taught to read sums (pretrain), to answer questions (sft), to answer as people like (dpo)
    and to be right (grpo, its own answers checked). Every stage is measured on questions that are in no training file.
    What is written is an ordinary run: its run file, its data, and models that transformers and vLLM load.

    \b
    Example:
      align quickstart
      align quickstart --model Qwen/Qwen3-0.6B --data chats.jsonl --output mine
    """
    from align.core.util.stopping import Interrupted

    ends_on_signals("the same command")
    show_progress(not quiet)
    with loading():
        from align.core.report import print_table
        from align.quickstart.pipeline import quickstart as train_and_compare

    try:
        result = train_and_compare(output, seed=seed, model=model, data=data, progress=not quiet)
    except Interrupted as stop:
        click.echo(f"{stop}; the same command goes on", err=True)
        sys.exit(128 + stop.signal_number)
    print_table(result.table)
    for sample in result.changes[:SHOWN]:
        click.echo(f"prompt     {_line(sample.prompt)}")
        for answer in sample.answers:
            click.echo(f"  {answer.stage:<9}{_line(answer.text)}")
        if sample.expected is not None:
            click.echo(f"  {'wanted':<9}{_line(sample.expected)}")
    if result.agreement is not None:
        before, after = result.agreement
        click.echo(f"words shared with the answer wanted: {before:.0%} before, {after:.0%} after")
    for number, line in enumerate(result.gate):
        click.echo(f"{'gate' if number == 0 else '':<10}{line}")
    click.echo(f"report    {result.page}")
    click.echo(f"model     {result.model}")
    click.echo(f"run file  {result.run_file}")
    question = "YOUR PROMPT" if model is not None else "What is 22+53?"  # as the quickstart's rows ask
    click.echo(f'ask it    align sample {shlex.quote(str(result.model))} "{question}"')
    click.echo(f"again     align train {shlex.quote(str(result.run_file))} output=runs/other")


def _line(text: str) -> str:
    """Return a text on one line of at most ``WIDTH`` characters, control characters made visible."""
    from align.schemas.text import visible

    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= WIDTH else f"{flat[: WIDTH - 1]}…"
