"""``align reward``: parse, call, print."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import rich_click as click

from align.cli.choices import plugin_names
from align.cli.command_context import loading, quiet, show_progress
from align.cli.tables import print_columns
from align.schemas.text import stripped

NAMED = 5
"""Lines without a score that are named; the table or the JSON has them all."""

if TYPE_CHECKING:
    from align.core.inference.audit import Audit
    from align.core.rewards.score_file import Summary, Verdict
    from align.schemas.run import RewardChoice

_set = click.option(
    "--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A setting, as in a run file; repeatable."
)
_device = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="For models."
)
_name = click.argument(
    "name", shell_complete=plugin_names("reward"), help="A reward of `align reward list`, or path.py:function."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def reward() -> None:
    """Rewards: what there is, what one says of a file, and whether it can be gamed.

    A reward is a NAME from `align reward list`, or path.py:function for a function of your own.

    \b
    Example:
      align reward list
      align reward audit math prompts.jsonl
    """


@reward.command("list")
@_json
def list_(as_json: bool) -> None:
    """List all rewards: where from, the columns they need, whether each answer has its own process, what they are.

    \b
    Example:
      align reward list --json
    """
    from align.api.catalogue import list_rewards

    rewards = list_rewards()
    if as_json:
        click.echo(json.dumps([each.to_json() for each in rewards], indent=2))
        return
    cells = [(r.name, r.distribution, ", ".join(r.required_columns), "yes" * r.isolated, r.about) for r in rewards]
    print_columns([("NAME", "FROM", "NEEDS", "ISOLATED", "ABOUT"), *cells])


@reward.command()
@_name
@click.argument(
    "file", type=click.Path(path_type=Path), help="JSONL with `completion`, and what else the reward needs."
)
@_set
@click.option(
    "--together",
    type=click.IntRange(min=1),
    default=1,
    help="Answers per call of the reward; the time shown is then the call's.",
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON lines here.")
@_device
@_json
@quiet
def score(
    name: str,
    file: Path,
    pairs: tuple[str, ...],
    together: int,
    output: Path | None,
    device: Literal["cpu", "cuda"],
    as_json: bool,
    quiet: bool,
) -> None:
    """Score each line of FILE with the reward NAME.

    A line out for every line in. Exits with 1 where a line could not be scored.

    \b
    Example:
      align reward score math answers.jsonl
      align reward score rewards.py:polite answers.jsonl --set limit=200 --json
    """
    show_progress(not (quiet or as_json))
    with loading("the reward"):
        from align.api.scoring import score as score_rows
        from align.core.rewards.score_file import summarize
        from align.core.util.atomic_files import growing_file

    with ExitStack() as stack:
        # Opened with the first line: a reward that cannot be opened leaves no empty file.
        out: TextIO | None = None

        def report(verdict: Verdict) -> None:
            nonlocal out
            if output and out is None:
                out = stack.enter_context(growing_file(output))
            if out:
                out.write(json.dumps(verdict.row()) + "\n")
            elif as_json:
                click.echo(json.dumps(verdict.row()))

        verdicts = score_rows(_choice(name, pairs), file, together=together, device=device, report=report)
    if not as_json:
        shown = [(_number(v.score.value), v.score.outcome, f"{v.milliseconds:.1f}", v.score.why) for v in verdicts]
        places = [v.line.where for v in verdicts]
        print_columns([("LINE", "SCORE", "OUTCOME", "MS", ""), *((p, *c) for p, c in zip(places, shown, strict=True))])
        click.echo()
        _summary(summarize(verdicts))
    bad = [verdict for verdict in verdicts if verdict.line.fault]
    for verdict in bad[:NAMED]:
        click.echo(stripped(f"{verdict.line.where}\n    {verdict.line.fault}"), err=True)
    if len(bad) > NAMED:  # a file of the wrong kind would fill the screen with one sentence
        click.echo(f"and {len(bad) - NAMED:,} more lines that cannot be scored", err=True)
    if bad:
        sys.exit(1)


@reward.command()
@_name
@click.argument("file", type=click.Path(path_type=Path), help="JSONL with `prompt`, and `solution` or `completion`.")
@_set
@click.option("--rows", type=click.IntRange(min=1), default=100, show_default=True, help="How many rows to attack.")
@click.option("--model", help="A model directory or hub id: its answers show how many groups will teach nothing.")
@click.option("-n", "n", type=click.IntRange(min=2), default=8, show_default=True, help="--model: answers a prompt.")
@click.option(
    "--max-completion-length",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="--model: longest answer.",
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="--model: of the answers.")
@_device
@_json
@quiet
def audit(
    name: str,
    file: Path,
    pairs: tuple[str, ...],
    rows: int,
    model: str | None,
    n: int,
    max_completion_length: int,
    seed: int,
    device: Literal["cpu", "cuda"],
    as_json: bool,
    quiet: bool,
) -> None:
    """Attack the reward NAME with junk on the rows of FILE before a model does.

    Exits with 1 where junk is paid as much as gold.

    \b
    Example:
      align reward audit math prompts.jsonl
      align reward audit rewards.py:polite prompts.jsonl --model ./base -n 8
    """
    show_progress(not (quiet or as_json))
    with loading("the reward"):
        from align.api.scoring import audit as attack

    found = attack(
        _choice(name, pairs),
        file,
        limit=rows,
        model=model,
        n=n,
        max_completion_length=max_completion_length,
        seed=seed,
        device=device,
    )
    for line in found.unusable:
        click.echo(stripped(f"{line.where}\n    {line.fault}"), err=True)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_attacks(found.attacked)
        seen = found.difficulty
        if seen is not None:
            shares = f"mean {_number(seen.mean)}, right {_number(seen.passed)}"
            click.echo(f"\n{model}: {seen.n} answers to {seen.prompts + seen.unscored} prompts: {shares}")
            for sentence in seen.sentences:
                click.echo(f"  {sentence}")
    if not found.passes:
        sys.exit(1)


def _print_attacks(found: Audit) -> None:
    rows = [(a.name, a.rows, _number(a.paid, "%"), _number(a.mean), a.unscored) for a in found.attacks]
    print_columns([("ANSWER", "ROWS", "PAID", "MEAN", "UNSCORED"), *rows])
    click.echo(f"\ngold against wrong: AUC {_number(found.auc)}, mean gap {_number(found.gap)}")
    _summary(found.latency)
    for fault in found.faults:
        click.echo(f"FAULT {stripped(fault)}")
    for note in found.notes:
        click.echo(f"note  {stripped(note)}")
    if not found.faults:
        click.echo("no attack is paid as much as gold")


def _choice(name: str, pairs: tuple[str, ...]) -> RewardChoice:
    """Return the reward that is named, with the settings of ``--set``."""
    from align.api.input_types import as_reward
    from align.core.config import yaml_loader
    from align.schemas.errors import AlignError

    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--set")
        document = yaml_loader.read(value, f"--set {key}")
        if document.problems:
            raise AlignError.gather(document.problems)
        given[key] = document.values
    return as_reward({"type": name, **given})


def _summary(counted: Summary) -> None:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in counted.outcomes.items())
    click.echo(f"{counts}; mean {_number(counted.mean)}")
    if counted.p50 is not None:
        click.echo(
            f"milliseconds an answer: p50 {counted.p50:.1f}, p95 {counted.p95:.1f}, longest {counted.longest:.1f}"
        )


def _number(value: float | None, kind: str = ".4g") -> str:
    return "-" if value is None else f"{value:.0%}" if kind == "%" else f"{value:{kind}}"
