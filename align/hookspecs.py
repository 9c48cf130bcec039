"""The hooks of a plugin, in the order in which they are called. docs/plugins.md has an example of each.

A plugin is a module (or object) named by an entry point of the group ``align``; it takes part by defining functions
of these names under ``@align.hookimpl``. A hook may be given fewer arguments than its specification lists.
None of these is called once per step: what happens per step is a method call on the object a plugin registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    import click
    from lightning.pytorch import Callback

    from align.schemas.errors import Problem
    from align.schemas.hardware import Footprint, Hardware
    from align.schemas.results import StageResult
    from align.schemas.run import Run

hookspec = HookspecMarker("align")
hookimpl = HookimplMarker("align")
"""Decorator that marks a plugin's function as the implementation of the hook of its name."""


class Register(Protocol):
    """The callback that registration hooks receive.

    ``register(SimPO)`` takes a class with a ``name``, or (rewards) a function;
    ``register("ACME-1", house_rule)`` gives a class or function a name of your choice, and
    ``register("simpo", "align_simpo.loss:SimPO")`` imports the module only when the name is used.
    """

    def __call__(self, thing: Callable[..., Any] | str, target: Callable[..., Any] | str | None = None, /) -> None:
        """Register one thing of the hook's kind."""


# Registration: each is called the first time that a name of its kind is looked up.


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to ``align``; called when a command is used that align itself does not have."""


@hookspec
def register_formats(register: Register) -> None:
    """Register row formats: subclasses of ``align.Format`` that turn a file's row into a Record."""


@hookspec
def register_algorithms(register: Register) -> None:
    """Register algorithms: subclasses of ``align.Algorithm``."""


@hookspec
def register_rewards(register: Register) -> None:
    """Register rewards: functions whose keyword-only arguments are their settings, or classes with a Config."""


@hookspec
def register_generators(register: Register) -> None:
    """Register generators, which turn prompts into samples with their log-probabilities."""


@hookspec
def register_evals(register: Register) -> None:
    """Register evals: subclasses of ``align.Eval``, which measure a model."""


@hookspec
def register_strategies(register: Register) -> None:
    """Register strategies: subclasses of ``align.Strategy``, which lay a fit out on the devices."""


@hookspec
def register_loggers(register: Register) -> None:
    """Register loggers: subclasses of ``align.Logger``, which write metrics."""


@hookspec
def register_rules(register: Register) -> None:
    """Register rules of the advisor."""


# Before launch


@hookspec
def check_run(run: Run, hardware: Hardware) -> Iterable[Problem] | None:
    """Check the run before anything is loaded; a Problem of level ``error`` stops the launch."""


@hookspec(firstresult=True)
def choose_strategy(hardware: Hardware, footprint: Footprint) -> str | None:
    """Name the strategy for ``strategy: auto``, or None to leave it to the next plugin; align's own comes last."""


@hookspec
def make_callbacks(run: Run) -> Iterable[Callback] | None:
    """Return Lightning callbacks for the fit: all of Lightning's events, made once per stage and process."""


# Notices: a failure is logged under the plugin's name and never stops the run.


@hookspec
def run_started(run: Run, directory: Path) -> None:
    """Called on one process when a run begins or continues: its directory is there, with ``run.yaml`` and manifest."""


@hookspec
def rollouts_scored(run: Run, phase: int, rollouts: Sequence[Any]) -> None:
    """Called on one process with one phase's answers, after scoring and before they are learned from.

    phase: counted from 1. rollouts: a mapping for each answer, the columns of the stage's samples (docs/watching.md),
    which must not be changed.
    """


@hookspec
def run_finished(run: Run, directory: Path, results: Sequence[StageResult]) -> None:
    """Called when every stage is done: the run directory, and each stage's name, directory, export and metrics."""
