"""``align eval``: parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import rich_click as click

from align.cli.choices import SPELT, choice_of, files
from align.cli.command_context import loading, quiet, show_progress

if TYPE_CHECKING:
    from align.core.inference.eval_suite import EvalRun


@click.group("eval")
def evaluation() -> None:
    """Measure a model with benchmarks and evals of your own.

    \b
    Example:
      align eval run --model runs/first/sft/export --suite suite.yaml --out evals/first
      align gate --baseline evals/base --candidate evals/first --policy gate.yaml
    """


@evaluation.command("run")
@click.option("--model", required=True, shell_complete=files, help="A model directory, a hub id, or a server's URL.")
@click.option("--suite", required=True, shell_complete=files, help="A suite file, or a named suite.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where the rows go.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", help="Settings of evals: mmlu.data=mmlu.jsonl.")
@click.option("--generator", default="local", show_default=True, metavar="GENERATOR", help=f"{SPELT}.")
@click.option("--served-model", default="", help="The model's name on a server; default: the only one.")
@click.option("--key-env", help="The environment variable that holds a server's API key.")
@click.option("--context", type=click.IntRange(min=2), help="Most tokens of prompt and completion.")
@click.option("--trust-remote-code", is_flag=True, help="Run model code that comes with the weights.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@quiet
def run(
    model: str,
    suite: str,
    out: Path,
    overrides: tuple[str, ...],
    generator: str,
    served_model: str,
    key_env: str | None,
    context: int | None,
    trust_remote_code: bool,
    form: str,
    quiet: bool,
) -> None:
    """Measure a model with every eval of a suite.

    Rows are written as they are measured: the same command goes on after an interruption.

    \b
    Example:
      align eval run --model runs/first/sft/export --suite math --out evals/first gsm8k.data=gsm8k.jsonl gsm8k.n=200
    """
    show_progress(not quiet)
    with loading():
        from align.api.evaluating import evaluate

    found = evaluate(
        model,
        suite,
        out,
        overrides=overrides,
        generator=choice_of(generator, "generator"),
        served_model=served_model,
        key_env=key_env,
        context=context,
        trust_remote_code=trust_remote_code,
        progress=not quiet,
    )
    click.echo(json.dumps(found.metrics, indent=1) if form == "json" else _table(found))


@evaluation.command("list")
def list_suites() -> None:
    """List the named suites with their evals.

    \b
    Example:
      align eval list
    """
    from align.core.config import yaml_loader
    from align.core.config.suite_file import named_suites

    for name, text in sorted(named_suites().items()):
        entries = yaml_loader.read(text, name).values["evals"]
        types = [entry if isinstance(entry, str) else entry["type"] for entry in entries]
        click.echo(f"{name:14} {', '.join(dict.fromkeys(types))}")


@evaluation.command("show")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), help="Eval runs.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def show(runs: tuple[Path, ...], form: str) -> None:
    """Show the scores of eval runs side by side, with HELM's mean win rate.

    The mean win rate depends on which other runs are shown, so it decides nothing: `align gate` does.

    \b
    Example:
      align eval show evals/base evals/first evals/second
    """
    from align.api.evaluating import compare_scores

    table = compare_scores(runs)
    if form == "json":
        click.echo(json.dumps(table, indent=1))
        return
    names = list(dict.fromkeys(name for scores in table.values() for name in scores))
    width = max(len(name) for name in names)
    columns = [max(10, len(run)) for run in table]
    heads = "  ".join(f"{run:>{size}}" for run, size in zip(table, columns, strict=True))
    click.echo(f"{'eval':{width}}  {heads}")
    for name in names:
        cells = [scores.get(name) for scores in table.values()]
        shown = [f"{'–' if cell is None else f'{cell:.4f}':>{size}}" for cell, size in zip(cells, columns, strict=True)]
        click.echo(f"{name:{width}}  {'  '.join(shown)}")


@evaluation.command("ratings")
@click.argument("votes", shell_complete=files, help="File of votes, JSON or JSON lines.")
@click.option(
    "--system",
    type=click.Choice(["bradley_terry", "elo"]),
    default="bradley_terry",
    show_default=True,
    help="One fit to all votes, or Elo updates in their order.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=100, show_default=True, help="Resamples of the votes.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resamples.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def ratings(votes: str, system: Literal["bradley_terry", "elo"], repeats: int, seed: int, form: str) -> None:
    """Rate models from a file of votes between two of them (Chatbot Arena's format).

    \b
    Example:
      align eval ratings votes.jsonl --system elo
    """
    with loading():
        from align.api.vote_ratings import arena_ratings

    found = arena_ratings(votes, system, repeats=repeats, seed=seed)
    if form == "json":
        click.echo(json.dumps({name: asdict(rating) for name, rating in found.items()}, indent=1))
        return
    width = max(len("model"), *(len(name) for name in found))
    click.echo(f"{'model':{width}}   rating  95 % interval       votes")
    for name, rating in found.items():
        interval = f"{rating.low:7.1f} to {rating.high:7.1f}"
        click.echo(f"{name:{width}}  {rating.rating:7.1f}  {interval}  {rating.battles:6,}")


def _table(found: EvalRun) -> str:
    """Return a line for each eval: its headline, its items, and what a reader must know of its rows."""
    width = max(len(name) for name in found.metrics)
    lines = [f"{'eval':{width}}     score  items  invalid  cut off"]
    for name, metrics in found.metrics.items():
        shares = f"{metrics['invalid']:7.1%}  {metrics['truncated']:7.1%}"
        lines.append(f"{name:{width}}  {metrics['score']:8.4f}  {metrics['items']:5.0f}  {shares}")
    return "\n".join([*lines, f"rows: {found.directory / 'rows.jsonl'}"])
