"""``align data show``: parse, call, print."""

from __future__ import annotations

import sys

import rich_click as click

from align.cli.choices import files
from align.cli.command_context import loading, quiet, show_progress


@click.command()
@click.argument("file", shell_complete=files, help="A data file, a directory of them, or a hub id.")
@click.option("--model", required=True, help="A model directory or hub id, for its tokenizer and chat template.")
@click.option("--rows", default=3, show_default=True, type=click.IntRange(min=0), help="How many rows to show.")
@click.option("--algorithm", default="sft", show_default=True, help="What is to learn from them.")
@click.option("--max-length", default=1024, show_default=True, type=click.IntRange(min=1), help="As data.max_length.")
@click.option("--format", "format_", default="auto", show_default=True, help="A format by name.")
@click.option("--chat-template", type=click.Path(exists=True), help="A Jinja file in place of the model's template.")
@click.option("--allow", multiple=True, help="A finding to accept, by its id, as in data.allow; repeatable.")
@click.option(
    "--special-token", multiple=True, help="As data.special_tokens: one that rows contain on purpose; repeatable."
)
@quiet
def show(
    file: str,
    model: str,
    rows: int,
    algorithm: str,
    max_length: int,
    format_: str,
    chat_template: str | None,
    allow: tuple[str, ...],
    special_token: tuple[str, ...],
    quiet: bool,
) -> None:
    """Show the first rows of FILE as the tokens a model learns from, and what is wrong with any row.

    Exits with 1 where training on it would not start.

    \b
    Example:
      align data show chats.jsonl --model Qwen/Qwen3-0.6B --rows 1
      align data show pairs.jsonl --model ./base --algorithm dpo
    """
    show_progress(not quiet)
    with loading():
        from rich.console import Console

        from align.api.data_checking import preview_data
        from align.core.data.preview import format_example, legend, visible

    preview = preview_data(
        file,
        model,
        rows=rows,
        algorithm=algorithm,
        max_length=max_length,
        format=format_,
        chat_template=chat_template,
        allow=allow,
        special_tokens=special_token,
    )
    seen, encoder = preview.seen, preview.encoder
    console = Console(highlight=False)
    colour = console.color_system is not None
    console.print(legend(colour))
    for record, examples in seen.first:
        console.print()
        for example in examples:
            console.print(format_example(example, encoder, colour), soft_wrap=True)
        if not examples:
            nothing = f"{visible(record.source)}: gives nothing to learn from"
            console.print(nothing, style="bold", markup=False, soft_wrap=True)
    console.print()
    for finding in seen.findings:
        style = "red" if finding.level == "error" else "yellow"
        console.print(visible(f"{finding.level}: {finding}"), style=style, markup=False, soft_wrap=True)
    for row in seen.bad.rows[:5]:
        console.print(visible(f"error: {row}"), style="red", markup=False, soft_wrap=True)
    console.print(f"readable rows: {seen.rows:,}; {seen.bad.summary}; findings: {len(seen.findings)}", markup=False)
    if not seen.clean:
        sys.exit(1)
