"""``align resume``: parse, call, print; with ``--verify``, end with the result of the proof as exit status."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from align.cli.command_context import ends_on_signals, loading, quiet, show_progress
from align.cli.train import run_stages
from align.schemas.text import shown_argument

if TYPE_CHECKING:
    from align.api.resuming import ResumeProof


@click.command()
@click.argument("run", type=click.Path(path_type=Path), help="The run's directory: what its file calls output.")
@click.option("--profile", is_flag=True, help="Measure where the time goes: a table, and STAGE/profile.json.")
@click.option("--verify", is_flag=True, help="Prove in a temporary directory that resuming changes nothing.")
@click.option(
    "--steps",
    nargs=2,
    type=click.IntRange(min=1),
    default=(5, 5),
    show_default=True,
    metavar="N M",
    help="--verify: steps before the kill, and after it.",
)
@click.option("--stage", help="--verify: the stage; by default the first that is not finished, else the last.")
@click.option("--scratch", type=click.Path(path_type=Path), help="--verify: put the temporary directory here.")
@quiet
def resume(
    run: Path,
    profile: bool,
    verify: bool,
    steps: tuple[int, int],
    stage: str | None,
    scratch: Path | None,
    quiet: bool,
) -> None:
    """Go on with the run in the directory RUN, by the run file that is kept there.

    It does what `align train FILE --resume` does. With --verify nothing in RUN is changed: N + M steps of the run are
    compared to the bit with N steps, a kill, and M steps after resuming, over as many processes as the run had. It ends
    with status 0 if all is equal, and with 1 if not.

    \b
    Example:
      align resume runs/first
      align resume runs/first --verify
      align resume runs/first --verify --steps 10 20 --stage grpo
    """
    again = shlex.join(["align", "resume", shown_argument(str(run))])
    if verify:
        show_progress(not quiet)
        from align.api.resuming import verify_resume

        proof = verify_resume(run, steps=steps, stage=stage, scratch=scratch, progress=not quiet)
        print_proof(proof)
        sys.exit(not proof.identical)
    from align.core.engine.processes import join_slurm, rank

    join_slurm()
    ends_on_signals(again if rank() == 0 else "")
    show_progress(not quiet)
    with loading():
        from align.api.resuming import run_in

        checked = run_in(run)
        from align.core.training import fit, launch  # noqa: F401 (PyTorch's and Lightning's imports, which take seconds)

    run_stages(checked, again, resume=True, quiet=quiet, profile=profile)


def print_proof(proof: ResumeProof) -> None:
    """Print each step's metrics in both runs, what was compared, and the sentence that sums it up."""
    from align.cli.tables import print_columns

    before, after = proof.steps
    processes = f"{proof.processes} process{'es' if proof.processes > 1 else ''}"
    click.echo(f"{proof.stage}: {before} + {after} steps on {processes}, killed after step {before} and resumed\n")
    print_columns(_steps(proof))
    click.echo()
    print_columns([["compared", "values", "different", "largest difference"], *_lines(proof)])
    click.echo(f"\n{_verdict(proof)}")


def _steps(proof: ResumeProof) -> list[list[str]]:
    """Return a row for each step: every metric without interruption, then killed and resumed."""
    metrics = list(dict.fromkeys(name for _, name, _, _ in proof.step_metrics))
    rows: dict[int, list[str]] = {}
    for step, _, whole, resumed in proof.step_metrics:
        rows.setdefault(step, [str(step)]).extend([repr(whole), repr(resumed)])
    heading = ["step", *(cell for name in metrics for cell in (name, "resumed"))]
    return [heading, *rows.values()]


def _lines(proof: ResumeProof) -> list[list[str]]:
    rows = []
    for each in proof.compared:
        largest = f"{each.largest:.1e} of the largest" if math.isfinite(each.largest) else "in texts, counts or shapes"
        rows.append([each.name, f"{each.values:,}", f"{each.different:,}", largest if each.different else ""])
    return rows


def _verdict(proof: ResumeProof) -> str:
    if proof.identical and not proof.learned:
        return (
            "Equal to the bit, but no step after the kill had a gradient (all rewards of a group were alike?), so this "
            "proves little: take more steps with --steps."
        )
    if proof.identical:
        return "Equal to the bit: resuming changes nothing."
    if not proof.deterministic:
        return (
            "Not equal to the bit; but two runs without interruption are not equal either. This machine gives no two "
            "runs the same numbers (sums on a GPU have no fixed order), or the run depends on something outside it."
        )
    return "Not equal to the bit, and two runs without interruption are: resuming changes this run."
