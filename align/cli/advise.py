"""``align advise``: parse, call, print."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from align.advisor.render import FORMATS, Format
from align.cli import importing
from align.cli.advise_model import measured, model_options, reader
from align.cli.choices import data_file, files
from align.cli.command_context import quiet, show_progress

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from align.advisor.interview_questions import InterviewQuestion
    from align.advisor.precedents import History
    from align.api.advising import AdviceCase
    from align.core.config.project_file import Brief
    from align.schemas.advice import Advice


class _WithInit(click.RichCommand):
    """A command with one subcommand: ``init``. (A file of that name is ``./init``.)"""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        if args[:1] == ["init"]:
            return init.make_context(f"{info_name} init", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


FILE = click.Path(path_type=Path, dir_okay=False)


def _init_or_file(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the subcommand, or a file's name."""
    from click.shell_completion import CompletionItem

    subcommands = [CompletionItem(name) for name in ("init",) if name.startswith(begun)]
    return [*subcommands, *files(context, parameter, begun)]


@click.command(cls=_WithInit)
@click.argument(
    "brief",
    required=False,
    shell_complete=_init_or_file,
    help="A form (.yaml, .json), free words (.md, .txt), or - for standard input.",
)
@click.option("--text", help="The brief itself, in free words.")
@click.option("--data", multiple=True, metavar="[KIND=]FILE", help="Count and check a data file; repeatable.")
@click.option("--model", metavar="DIR-OR-ID", help="The model to start from.")
@click.option("--hardware", metavar="auto|FILE", help="This machine, or a file with the form's `hardware`.")
@click.option(
    "--history",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Runs and evals here before, as precedents; or one run or a gate's JSON, for advice after its verdict.",
)
@click.option("--ask", is_flag=True, help="Ask what could change the answer, at most nine questions.")
@click.option("--answers", type=FILE, help="Answers to such questions, FIELD: VALUE each; the rest is unknown.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Correct a fact that was misread: data.0.kind=preference_pairs; repeatable.",
)
@click.option("--save", type=FILE, help="Write the form, filled with all that is known.")
@click.option("--emit", type=FILE, help="Write a run file for `align train`.")
@click.option("--force", is_flag=True, help="Let --save and --emit write over a file.")
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), default="text", show_default=True, help="How to print."
)
@click.option("--output", type=FILE, help="Write the advice there instead of printing it.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "never"]),
    default="error",
    show_default=True,
    help="The lowest level of finding that exits with 1.",
)
@click.option("--exit-zero", is_flag=True, help="End with status 0, whatever the advice is.")
@click.option("--why-not", metavar="OPTION", help="The reasons for and against an option, and what would flip to it.")
@click.option("--what-if", multiple=True, metavar="KEY=VALUE", help="Show what would change with it; repeatable.")
@click.option("--thresholds", type=FILE, help="Thresholds of your own over the shipped ones.")
@click.option("--prices", type=FILE, help="Prices of GPU-hours, for costs.")
@quiet
@click.option_panel(
    "What is known", options=["--text", "--data", "--model", "--hardware", "--history", "--ask", "--answers", "--set"]
)
@click.option_panel("What comes out", options=["--format", "--output", "--save", "--emit", "--force", "--quiet"])
@click.option_panel("Questions to it", options=["--why-not", "--what-if", "--thresholds", "--prices"])
@click.option_panel("How it ends", options=["--fail-on", "--exit-zero"])
@model_options
def advise(brief: str | None, text: str | None, **options: Any) -> None:
    """Say whether training is the answer, which kind, whether it fits, and what must hold before it ships.

    `align advise init` writes a form to fill in. Exits with 0; with 1 where the advice stops a launch; with 3 where
    too little is known; with 2 for mistakes.

    \b
    Example:
      align advise brief.md --data sft_pairs=letters.jsonl --hardware auto
      align advise brief.md --set data.0.kind=preference_pairs
      align advise brief.md --what-if knowledge.changes=daily
      align advise brief.md --emit run.yaml
      align advise brief.md --history runs
    """
    with importing():
        from align.api.advising import AdviceCase, as_history

    show_progress(not options["quiet"] and options["format_"] != "json")
    history = as_history(options["history"])
    read = _brief(brief, text, history, ask=options["ask"])
    data = [data_file(word) for word in options["data"]]
    reading_model = reader(options)
    asking = options["ask"] and not options["answers"]  # answers of a file take the place of questions
    if asking:
        click.echo("At most nine questions, only such as could change the answer. Ctrl-D: stop and advise.", err=True)
    case = AdviceCase.collect(
        read,
        data=data,
        model=options["model"],
        hardware=options["hardware"],
        measured=measured(read, data, options),
        answers=options["answers"],
        settings=options["settings"],
        ask=_prompt if asking else None,
        reader=reading_model,
        thresholds=options["thresholds"],
        history=history,
    )
    if options["why_not"]:
        _why_not(case, options["why_not"])
        return
    advice = case.advice(options["prices"])
    if options["what_if"]:
        _what_if(case, advice, options)
        return
    if options["save"]:
        _write(options["save"], _yaml(case.form().model_dump(mode="json", exclude_defaults=True)), options["force"])
    _show(advice, read, options["format_"], options["output"])
    if options["emit"]:
        _emit(advice, case, options["emit"], options["force"])
    sys.exit(_status(advice, options["fail_on"], options["exit_zero"]))


@click.command()
@click.argument(
    "file", type=FILE, default="brief.yaml", help="Where the form is written: .yaml. Never over a file that is there."
)
def init(file: Path) -> None:
    """Write a form to fill in to FILE: every field with what it means.

    \b
    Example:
      align advise init brief.yaml
    """
    from align.advisor.blank_form import blank

    _write(file, blank(str(file)), force=None)
    click.echo(f"{file}: fill in what you know, then: align advise {file}")


def _brief(path: str | None, text: str | None, history: History, *, ask: bool) -> Brief:
    from align.api.advising import brief_or_project
    from align.core.config import project_file

    if path is not None and text is not None:
        raise click.UsageError("give BRIEF or --text, not both")
    if text is not None:
        return project_file.of_text(text)
    if path is None and history.project is not None:
        return brief_or_project(None, history)
    if path is None and not ask:
        raise click.UsageError("give a BRIEF, --text or --ask; `align advise init` writes a form to fill in")
    if path is None:
        return project_file.of_text("", "answers")
    if path == "-" and ask:
        raise click.UsageError("--ask reads standard input: give the brief as a file")
    return project_file.read(path, lambda: sys.stdin.buffer.read(project_file.LARGEST_TEXT + 1))


def _prompt(question: InterviewQuestion) -> Any:
    """Ask at the terminal until the answer is one; an empty one is unknown. Raises EOFError at the end of input."""
    from align.advisor.interview_questions import parse_answer

    click.echo(f"\n{question.text}", err=True)
    for number, choice in enumerate(question.choices, 1):
        example = f" (e.g. {choice.example})" if choice.example else ""
        click.echo(f"  {number}  {choice.words}{example}", err=True)
    if question.example:
        click.echo(f"  e.g. {question.example}", err=True)
    how = "numbers, as 1,3; 0: none of them; empty: I do not know" if question.several else "empty: I do not know"
    while True:
        try:
            entered = click.prompt("", prompt_suffix=f"({how}) > ", default="", show_default=False, err=True)
        except click.Abort:
            raise EOFError from None
        value, fault = parse_answer(question, entered)
        if not fault:
            return value
        click.echo(fault, err=True)


def _show(advice: Advice, read: Brief, format_: Format, output: Path | None) -> None:
    from align.advisor.render import BriefFile, render

    brief = BriefFile(read.name, read.source, read.offset) if Path(read.name).is_file() else None
    terminal = output is None and sys.stdout.isatty()
    colour = terminal and not os.environ.get("NO_COLOR")
    width = shutil.get_terminal_size().columns if terminal or os.environ.get("COLUMNS") else None
    shown = render(advice, format_, brief=brief, width=width, colour=colour)
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal may lack signs
        click.echo(shown, nl=False)
    else:
        _write(output, shown, force=True)


def _emit(advice: Advice, case: AdviceCase, file: Path, force: bool) -> None:
    _write(file, case.run_file(advice, str(file)), force)
    click.echo(f"{file}: check it, then: align train {file} --check", err=True)


def _yaml(values: Any) -> str:
    from align.core.config.yaml_loader import write

    return write(values)


def _write(file: Path, text: str, force: bool | None) -> None:
    """Write a file atomically. force: also over an existing one; None: never, and the command has no such option."""
    from align.core.util.atomic_files import write_atomic
    from align.core.util.system_errors import explain
    from align.schemas.errors import AlignError

    if file.exists() and not force:
        fix = "choose another name" if force is None else "choose another name, or add --force"
        raise AlignError("is there already", fix, where=str(file))
    try:
        write_atomic(file, text.encode())
    except OSError as error:
        refused = explain(error)
        why = error.strerror if refused is None else refused.problems[0].what
        raise AlignError(f"cannot be written: {why}", "choose another name", where=str(file)) from None


def _why_not(case: AdviceCase, option: str) -> None:
    found = case.why_not(option)
    if found.chosen:
        click.echo(f"{option} is advised.")
    for title, lines in (("supports it", found.supported_by), ("opposes it", found.opposed_by)):
        click.echo(f"What {title}:" + " no known fact" * (not lines))
        for line in lines:
            click.echo(f"  {line}")
    if not found.chosen:
        click.echo(f"{found.flips_if[:1].upper()}{found.flips_if[1:]}.")
        if found.what_if:
            click.echo("  " + " ".join(f"--what-if {shlex.quote(setting)}" for setting in found.what_if))


def _what_if(case: AdviceCase, before: Advice, options: dict[str, Any]) -> None:
    from align.advisor.alternatives import compare

    after = case.what_if(options["what_if"], options["prices"])
    differences = compare(before, after)
    if options["format_"] == "json":
        rows = [{"what": what, "now": now, "then": then} for what, now, then in differences]
        advised = json.loads(after.model_dump_json(by_alias=True))
        click.echo(json.dumps({"what_if": options["what_if"], "differences": rows, "advice": advised}, indent=1))
        return
    if options["format_"] != "text":
        raise click.UsageError("--what-if prints text or json")
    heading = f"{', '.join(options['what_if'])}:" if differences else "Nothing would change."
    click.echo(heading)
    if after.primary == before.primary:
        click.echo(f"  {'primary':<11} {after.primary}, as before")
    for what, now, then in differences:
        click.echo(f"  {what:<11} {now}  →  {then}")


def _status(advice: Advice, fail_on: str, exit_zero: bool) -> int:
    if exit_zero:
        return 0
    if advice.primary == "insufficient":
        return 3
    stops = bool(advice.blocking) or (fail_on == "warning" and any(w.level == "warning" for w in advice.warnings))
    return int(stops and fail_on != "never")
