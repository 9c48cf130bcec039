"""``align data label``: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from align.cli.choices import REWARD, SPELT, choice_of, files, reward_of
from align.cli.command_context import quiet, show_progress

if TYPE_CHECKING:
    from align.core.inference.preferences import LabelSummary


@click.command()
@click.argument("prompts", shell_complete=files, help="A data file of prompts.")
@click.argument(
    "output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The preference file to write: .jsonl, not there yet.",
)
@click.option("--reward", multiple=True, required=True, metavar="REWARD", help=f"{REWARD}; repeatable, summed.")
@click.option("--model", help="Whose answers are judged, where a row has none: a model directory or hub id.")
@click.option("-n", "n", type=click.IntRange(min=2), default=4, show_default=True, help="Answers to each prompt.")
@click.option("--max-completion-length", type=int, default=256, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Divides the logits.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Keep the likeliest that reach this.")
@click.option("--generator", default="local", show_default=True, metavar="GENERATOR", help=f"{SPELT}.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="All draws follow from it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and no progress.")
@quiet
def label(
    prompts: str,
    output: Path,
    reward: tuple[str, ...],
    model: str | None,
    n: int,
    generator: str,
    seed: int,
    as_json: bool,
    quiet: bool,
    **drawn: Any,
) -> None:
    """Make a preference file OUTPUT of PROMPTS: of each prompt's answers the best over the worst, by a reward.

    Answers are the row's own `completions` (a list), or sampled from --model. A run that was stopped goes on where it
    was, by the same command. Exits with 1, without an OUTPUT, where no prompt gives a pair.

    \b
    Example:
      align data label prompts.jsonl pairs.jsonl --model ./base --reward math -n 8
      align data label answered.jsonl pairs.jsonl --reward judge.py:score
    """
    show_progress(not (quiet or as_json))
    from align.api.labelling import label_data
    from align.core.plugin_system.registry import check, dotted
    from align.schemas.run import Sampling

    sampling = check(Sampling, drawn, lambda path: "--" + dotted(path).replace("_", "-"))
    found = label_data(
        prompts,
        output,
        [reward_of(word) for word in reward],
        model=model,
        n=n,
        generator=choice_of(generator, "generator"),
        seed=seed,
        **sampling.model_dump(),
    )
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        _print(found)
    if not found.counts["labelled"]:
        fix = "take a reward that tells them apart (align reward score shows what it gives), or "
        if model:
            fix += "sample more answers, or more varied ones: -n, --temperature"
        else:
            fix += "give answers that differ more"
        click.echo(f"{output}: not written: no prompt has an answer that is scored better than another", err=True)
        click.echo(f"    {fix}", err=True)
        sys.exit(1)


def _print(found: LabelSummary) -> None:
    counts = found.counts
    click.echo(
        f"{found.output}: {counts['labelled']} of {found.prompts} prompts; "
        f"{counts['tied']} tied, {counts['abstained']} without two scores; {counts['blank']} blank answers left out"
    )
    for name, spent in found.spent.items():
        if spent:
            click.echo(f"  {name}: " + ", ".join(f"{what} {number:g}" for what, number in spent.items()))
