"""The options of ``align advise`` that ask a model: to read the brief, and to be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from align.cli.choices import REWARD, reward_of

if TYPE_CHECKING:
    from align.api.advising import BriefReader
    from align.api.input_types import DataFile
    from align.core.config.project_file import Brief
    from align.schemas.project import Measured

F = TypeVar("F", bound=Callable[..., Any])

READING = (
    click.option(
        "--parser",
        type=click.Choice(["rules", "llm"]),
        default="rules",
        show_default=True,
        help="What reads free words: rules alone, or a model in addition, which counts where the words support it.",
    ),
    click.option("--llm-model", metavar="NAME|DIR", help="The reading model: its name at --llm-url, or a directory."),
    click.option("--llm-url", metavar="URL", help="Of an OpenAI-compatible server: http://localhost:8000/v1."),
    click.option("--llm-key-env", metavar="VAR", help="The environment variable with the server's key."),
    click.option("--allow-network", is_flag=True, help="The brief may leave this machine, for --llm-url."),
    click.option("--offline", is_flag=True, help="Ask nothing; only replies that were recorded count."),
    click.option("--record", type=click.Path(path_type=Path, file_okay=False), help="Where replies are kept."),
)
MEASURING = (
    click.option(
        "--measure",
        is_flag=True,
        help="Measure the untouched --model on the rows of --data. (--save keeps"
        " what is found, so that it need not be measured again.)",
    ),
    click.option(
        "--reward",
        multiple=True,
        metavar="REWARD",
        help=f"What scores answers: {REWARD}. Default: words in common with the answer wanted.",
    ),
    click.option("--reference", metavar="FILE", help="Ordinary text, to hold the bits per byte of --data against."),
    click.option("--measure-rows", type=click.IntRange(min=1), default=200, show_default=True, help="Rows of a kind."),
    click.option("--samples", type=click.IntRange(min=2), default=8, show_default=True, help="Sampled answers each."),
    click.option(
        "--max-completion-length", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer."
    ),
    click.option(
        "--chat/--no-chat",
        default=None,
        help="Ask prompts that are plain text as a user's message, or not."
        " Default: where the model has a chat template.",
    ),
)
PANELS = (
    click.option_panel(
        "A model that reads too",
        options=["--parser", "--llm-model", "--llm-url", "--llm-key-env", "--allow-network", "--offline", "--record"],
    ),
    click.option_panel(
        "Measuring",
        options=[
            "--measure",
            "--reward",
            "--reference",
            "--measure-rows",
            "--samples",
            "--max-completion-length",
            "--chat",
        ],
    ),
)
"""The groups of these options in the help."""
_READING_ONLY = ("llm_model", "llm_url", "llm_key_env", "allow_network", "offline", "record")
_MEASURING_ONLY = ("reward", "reference", "chat")


def model_options(command: F) -> F:
    """Give a command the options above."""
    for option in reversed((*READING, *MEASURING, *PANELS)):
        command = option(command)
    return command


def reader(options: Mapping[str, Any]) -> BriefReader | None:
    """Return the model that ``--parser llm`` names, to read the brief; None without that option."""
    if options["parser"] == "rules":
        _refuse(options, _READING_ONLY, "--parser llm")
        return None
    if not options["llm_model"]:
        raise click.UsageError("--parser llm needs --llm-model NAME or DIR")
    if not options["llm_url"]:
        _refuse(options, ("llm_key_env", "allow_network"), "--llm-url")
    from align.api.advising import BriefReader

    return BriefReader(
        options["llm_model"],
        options["llm_url"],
        key_env=options["llm_key_env"],
        allow_network=options["allow_network"],
        offline=options["offline"],
        record=options["record"],
    )


def measured(brief: Brief, data: Sequence[DataFile], options: Mapping[str, Any]) -> Measured | None:
    """Return what ``--measure`` finds; None without that option."""
    if not options["measure"]:
        _refuse(options, _MEASURING_ONLY, "--measure")
        return None
    from align.api.measuring import measure

    def report(probe: str) -> None:
        if not options["quiet"]:
            click.echo(f"measuring: {probe}", err=True)

    return measure(
        brief,
        model=options["model"],
        data=data,
        rewards=[reward_of(word) for word in options["reward"]],
        reference=options["reference"],
        chat=options["chat"],
        rows=options["measure_rows"],
        samples=options["samples"],
        max_completion_length=options["max_completion_length"],
        report=report,
    )


def _refuse(options: Mapping[str, Any], names: tuple[str, ...], without: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if options[name] not in (None, False, ())]
    if given:
        raise click.UsageError(f"{', '.join(given)}: only with {without}")
