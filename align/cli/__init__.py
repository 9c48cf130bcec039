"""The ``align`` command. Each subcommand's module is imported when it is used, and not before."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import rich_click as click

from align.schemas.errors import AlignError, did_you_mean
from align.schemas.renamed import RENAMED_OPTIONS

COMMANDS = {
    "quickstart": ("align.cli.quickstart:quickstart", "Train a small model end to end, and see that it learned."),
    "advise": ("align.cli.advise:advise", "Say whether training is the answer, which kind, and what it takes."),
    "train": ("align.cli.train:train", "Train what a run file describes."),
    "resume": ("align.cli.resume:resume", "Go on with a run, or prove that going on changes nothing."),
    "launch": ("align.cli.launch:launch", "Start a run on several GPUs or nodes, or write the job for a cluster."),
    "status": ("align.cli.status:status", "Say how a run is: alive or not, step, time left, what each process does."),
    "eval": ("align.cli.eval:evaluation", "Measure a model with benchmarks and evals of your own."),
    "gate": ("align.cli.gate:gate", "Judge whether a change may ship, by paired statistics."),
    "report": ("align.cli.report:report", "Show what runs learned: one page with curves, samples and differences."),
    "diff": ("align.cli.report:diff", "Say why two runs differ."),
    "estimate": ("align.cli.estimate:estimate", "Say what a run takes: memory, whether it fits, how long."),
    "sample": ("align.cli.sample:sample", "Ask a model: one prompt or a file of them, scored by rewards if you like."),
    "data": ("align.cli.data:data", "Look at data as the model will see it, and check it."),
    "reward": ("align.cli.reward:reward", "List rewards, score a file with one, see whether one can be gamed."),
    "plugins": ("align.cli.plugins:plugins", "List, show and examine plugins."),
    "schema": ("align.cli.schema:schema", "Print the JSON schema of run files, for editors."),
    "worker": ("align.cli.train:worker", ""),
    "launch-check": ("align.cli.launch:launch_check", ""),
}
"""The place of each command, and its line in ``align --help``; one without a line is not listed."""


class Align(click.RichGroup):
    """A group that imports a command when it is used, and looks among plugins for those that it does not have."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List align's own commands: printing help loads no plugin."""
        return [name for name, (_, summary) in COMMANDS.items() if summary]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a placeholder with the command's summary, for help: the command itself is not imported."""
        return click.RichCommand(name=cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is to run. Raises AlignError for one that is unknown, and for a renamed option."""
        name = args[0]
        if name in COMMANDS:
            for option in [arg.partition("=")[0] for arg in args[1:]]:
                if option in RENAMED_OPTIONS:
                    what, fix = "has a new name", f"write it as {RENAMED_OPTIONS[option]}"
                    raise AlignError(what, fix, where=f"command line: {option}")
            module, _, attribute = COMMANDS[name][0].partition(":")
            with importing():
                return name, getattr(importlib.import_module(module), attribute), args[1:]
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        from align.core.plugin_system import registry

        if ctx.resilient_parsing and name not in registry.names("command"):
            return None, None, []  # TAB completion: a message about a mistyped command would land in the prompt
        own = did_you_mean(name, self.list_commands(ctx))
        if name not in registry.names("command") and own.startswith("did"):
            raise AlignError(f"no command is called {name!r}", own)
        return name, registry.get("command", name), args[1:]

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; print errors of the user or the machine without a traceback, and exit with status 2."""
        # Python ends with a search for garbage in all that is about to be freed: a tenth of a short command.
        atexit.register(gc.freeze)
        try:
            try:
                return super().main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # a full disk fails here, where it is reported, and not as the interpreter ends
        except AlignError as error:
            _fail(error)
        except Exception as error:
            from align.core.util.system_errors import explain

            if isinstance(error, BrokenPipeError):  # ``align ... | head``
                _silence(sys.stdout)
                sys.exit(1)
            found = explain(error)
            if found is None:
                raise
            _fail(found)


@contextmanager
def importing() -> Iterator[None]:
    """Let the garbage collector rest during imports.

    Their modules are thousands of objects, with PyTorch a million, and stay: looking through them again and again for
    garbage takes a tenth to a fifth of the time. Afterwards, too, the collector leaves them out.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def _fail(error: AlignError) -> NoReturn:
    _silence(sys.stdout)
    click.echo(str(error), err=True)
    sys.exit(2)


def _silence(stream: TextIO) -> None:
    """Flush a stream; where that fails, send it to nowhere, since the interpreter flushes once more at its end."""
    try:
        stream.flush()
    except OSError:
        if stream is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@click.group(cls=Align, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="align-llm", prog_name="align")
def main() -> None:
    """Align a language model: fine-tune it, teach it what is preferred, see what changed.

    Start with `align quickstart`. Plugins may add commands; `align plugins list` shows what they offer.
    To complete commands and options by TAB: eval "$(_ALIGN_COMPLETE=bash_source align)" (docs/quickstart.md).

    \b
    Example:
      align data check chats.jsonl
      align train run.yaml
      align sample runs/first/sft/export "Is 7 prime?"
    """
