"""``align gate``: parse, call, print, and end with the verdict as exit status."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.exceptions import Exit

from align.cli.choices import files
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError

if TYPE_CHECKING:
    from align.core.evaluation.comparison import GateReport

USAGE = 4
"""Exit status of a mistake of the user: 1 to 3 are verdicts."""


class Gate(click.RichGroup):
    """A group that is also a command, and whose errors end with status 4."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse; a usage error gets the gate's own status."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            error.exit_code = USAGE  # type: ignore[misc]  # click gives every usage error 2
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run; an error of the user is printed, and ends with status 4."""
        try:
            with explaining():
                return super().invoke(ctx)
        except click.UsageError as error:
            error.exit_code = USAGE  # type: ignore[misc]  # click gives every usage error 2
            raise
        except AlignError as error:
            click.echo(str(error), err=True)
            sys.exit(USAGE)
        except (click.ClickException, Exit, click.Abort):
            raise
        except Exception:  # a bug of ours: Python's own status for it is 1, which says that the candidate regressed
            traceback.print_exc()
            sys.exit(USAGE)


@click.group(cls=Gate, invoke_without_command=True)
@click.option("--baseline", type=click.Path(path_type=Path), help="The eval run of the model to be no worse than.")
@click.option("--candidate", type=click.Path(path_type=Path), help="The eval run of the new model.")
@click.option("--policy", type=click.Path(path_type=Path), shell_complete=files, help="The policy file: margins.")
@click.option("--json", "as_json", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as JSON.")
@click.option("--junit", "as_junit", type=click.Path(path_type=Path, dir_okay=False), help="Write it as JUnit XML.")
@click.option("--html", "as_html", type=click.Path(path_type=Path, dir_okay=False), help="Write it as a page.")
@click.option("--allow-underpowered", is_flag=True, help="Judge by margins that the data cannot support too.")
@click.pass_context
def gate(
    context: click.Context,
    baseline: Path | None,
    candidate: Path | None,
    policy: Path | None,
    as_json: Path | None,
    as_junit: Path | None,
    as_html: Path | None,
    allow_underpowered: bool,
) -> None:
    """Judge whether a change may ship: a candidate's eval run against a baseline's.

    Ends with status 0 (pass), 1 (regressed), 2 (inconclusive), 3 (not comparable, or a margin that the data cannot
    support) or 4 (a mistake in what was given).

    \b
    Example:
      align gate --baseline evals/base --candidate evals/first --policy gate.yaml --junit gate.xml
      align gate power --policy gate.yaml --baseline evals/base
    """
    if context.invoked_subcommand is not None:
        return
    missing = [f"--{name}" for name, given in (("baseline", baseline), ("candidate", candidate)) if given is None]
    if missing or policy is None:
        raise click.UsageError(f"Missing option {', '.join([*missing, *(['--policy'] if policy is None else [])])}.")
    assert baseline is not None and candidate is not None
    from align.api.gating import gate as judge
    from align.core.config.suite_file import load_policy

    made = load_policy(policy)
    if allow_underpowered:
        made = made.model_copy(update={"allow_underpowered": True})
    report = judge(baseline, candidate, made)
    _write(report, as_json, as_junit, as_html)
    click.echo(_table(report))
    if command := _advice_command(report, as_json):
        click.echo(f"what next: {command}")
    sys.exit(report.status)


@gate.command("power")
@click.option("--policy", required=True, type=click.Path(path_type=Path), shell_complete=files, help="The policy file.")
@click.option("--baseline", required=True, type=click.Path(path_type=Path), help="A run, for its numbers of items.")
@click.option(
    "--disagreement", type=click.FloatRange(0, 1), default=0.15, show_default=True, help="Items that change by chance."
)
def power(policy: Path, baseline: Path, disagreement: float) -> None:
    """Show what each margin of a policy needs, before GPU hours are spent on a candidate.

    \b
    Example:
      align gate power --policy gate.yaml --baseline evals/base --disagreement 0.1
    """
    from align.api.gating import gate_power

    rows = gate_power(policy, baseline, disagreement=disagreement)
    width = max(len(row.name) for row in rows)
    click.echo(f"{'margin of':{width}}  margin   items  chance to pass  supported  items needed")
    for row in rows:
        shown = f"{row.margin:6.3f}  {row.rows:6,}  {row.chance:14.0%}  {row.smallest_margin:9.3f}"
        click.echo(f"{row.name:{width}}  {shown}  {row.rows_needed:12,}")
    chance = 1.0
    for row in rows:
        chance *= row.chance
    click.echo(f"An unchanged model passes all of them with a chance of {chance:.0%}.")


@gate.command("calibrate")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), help="Runs that should not differ.")
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False), help="Write the suggested policy there.")
def calibrate(runs: tuple[Path, ...], write: Path | None) -> None:
    """Measure the noise of evals on reruns of one recipe, and suggest margins that the data support.

    \b
    Example:
      align gate calibrate evals/base evals/base-seed-1 evals/base-seed-2 --write gate.yaml
    """
    from align.api.gating import gate_calibrate
    from align.core.config import yaml_loader

    noise, policy = gate_calibrate(runs)
    width = max(len(each.name) for each in noise)
    click.echo(f"{'eval':{width}}   items  changed  standard error  spread of runs  smallest margin")
    for each in noise:
        shown = f"{each.rows:6,}  {each.disagreement:7.1%}  {each.standard_error:14.4f}  {each.spread:14.4f}"
        click.echo(f"{each.name:{width}}  {shown}  {each.margin:15.4f}")
    text = yaml_loader.write(policy.model_dump(mode="json", exclude_defaults=True))
    if write is None:
        click.echo(f"\nA policy that these rows support:\n{text}")
    else:
        from align.core.util.atomic_files import write_atomic

        if write.exists():
            raise AlignError("exists already", "name a new file", where=str(write))
        write_atomic(write, text.encode())


def _write(report: GateReport, as_json: Path | None, as_junit: Path | None, as_html: Path | None) -> None:
    from align.core.evaluation.junit import junit
    from align.core.util.atomic_files import write_atomic

    if as_json is not None:
        write_atomic(as_json, json.dumps(report.to_json(), indent=1, default=str).encode())
    if as_junit is not None:
        write_atomic(as_junit, junit(report))
    if as_html is not None:
        from align.core.report.gate_view import GateView
        from align.core.report.page import write_report

        title = f"{report.candidate.manifest['model']} against {report.baseline.manifest['model']}"
        write_report([], as_html, title=title, gate=GateView.from_json(report.to_json()))


def _advice_command(report: GateReport, as_json: Path | None) -> str:
    """Return the command for advice after the verdict, where the candidate's run has a project; else nothing."""
    import shlex

    from align.core.report.read import read_run

    run = Path(str(report.candidate.manifest["model"])).parent.parent
    try:
        if not (run / "run.yaml").is_file() or not read_run(run, curves=False, damaged=lambda path, why: None).project:
            return ""
    except (AlignError, KeyError, TypeError):
        return ""  # no run of this align: its advice is not to be had
    if as_json is None:
        return "add --json gate.json, then: align advise --history gate.json"
    return f"align advise --history {shlex.quote(str(as_json))}"


def _table(report: GateReport) -> str:
    """Return the verdict, what blocks, and a line for each unit."""
    from align.core.evaluation.junit import describe

    lines = [
        f"{report.outcome.upper()}  {report.candidate.manifest['model']} against {report.baseline.manifest['model']}"
    ]
    lines += [f"  not comparable: {problem}" for problem in report.problems]
    units = list(report.units())
    width = max((len(unit.name) for unit in units), default=0)
    blocking = report.result.blocking if report.result is not None else ()
    roles = {name: f"of {domain}" for domain, each in report.policy.domains.items() for name in each.evals}
    widest = max(map(len, ("gating", *roles.values())))
    for unit in units:
        mark = "!" if unit.name in blocking else " "
        lines.append(f"{mark} {unit.name:{width}}  {roles.get(unit.name, unit.role):{widest}}  {describe(unit)}")
    lines += [f"! {check.name}: {check.value:.3g}" for check in report.checks if check.name in blocking]
    lines += [f"warning: {warning}" for warning in report.warnings]
    if report.outcome == "refused":
        lines.append("Measure more items, or declare a larger margin; --allow-underpowered judges all the same.")
    return "\n".join(lines)
