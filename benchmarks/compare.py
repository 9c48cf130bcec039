"""Flag what became slower: figures of one run of a benchmark against those of an earlier one.

    python benchmarks/compare.py NEW            # against benchmarks/results
    python benchmarks/compare.py OLD NEW        # two files, or two directories whose files have the same names

A figure is *worse* where its median lost more than 5 % (``--loss``) and the two intervals are apart. Each interval
holds its true median with 95 %, so noise alone seldom does that: two of one median are apart in well under 5 % of
comparisons. Where the median lost more but the intervals overlap, it is *unclear*: the benchmark has to run longer, and
nothing is flagged. Figures that depend on the machine (seconds, bytes) are compared only between machines of the same
shape; ratios of two sides that took turns are compared everywhere. A figure that NEW lacks is flagged too: a benchmark
that fails must not pass.

Ends with status 0 where nothing is worse, 1 where something is, 2 where nothing could be compared.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from figures import RESULTS, Figure, read

LOSS = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both files. loss: share by which it got worse, below 0 where it got better."""

    name: str
    loss: float
    verdict: Literal["worse", "unclear", "same", "better", "missing"]


def judge(name: str, old: Figure, new: Figure | None, limit: float = LOSS) -> Change:
    """Return what became of a figure."""
    if new is None:
        return Change(name, float("inf"), "missing")
    sign = 1 if old.better == "lower" else -1
    loss = sign * (new.value - old.value) / abs(old.value) if old.value else 0.0
    apart = new.low > old.high or new.high < old.low
    if abs(loss) <= limit:
        return Change(name, loss, "same")
    if not apart:
        return Change(name, loss, "unclear")
    return Change(name, loss, "worse" if loss > 0 else "better")


def compare(old: Path, new: Path, limit: float = LOSS) -> list[Change]:
    """Return the changes of all figures that can be compared."""
    before, old_rest = read(old)
    after, new_rest = read(new)
    same_machine = old_rest["machine"] == new_rest["machine"]
    comparable = {name: each for name, each in before.items() if same_machine or not each.absolute}
    return [judge(name, each, after.get(name), limit) for name, each in comparable.items()]


def pairs(old: Path, new: Path) -> list[tuple[Path, Path]]:
    """Return the files to compare: of two directories those in both."""
    if new.is_dir() != old.is_dir():
        old = next((file for file in old.rglob(new.name)), old) if old.is_dir() else old
    if not new.is_dir():
        return [(old, new)]
    return [
        (old / file.relative_to(new), file)
        for file in sorted(new.rglob("*.json"))
        if (old / file.relative_to(new)).exists()
    ]


def main() -> int:
    """Compare, print, and return the status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="OLD NEW", help="files or directories; one: NEW alone")
    parser.add_argument("--loss", type=float, default=LOSS, help="share of a median that may be lost (0.05)")
    arguments = parser.parse_args()
    if len(arguments.paths) > 2:
        parser.error("takes OLD and NEW")
    old, new = arguments.paths if len(arguments.paths) == 2 else (RESULTS, arguments.paths[0])
    compared, worse = 0, 0
    for before, after in pairs(old, new):
        try:
            changes = compare(before, after, arguments.loss)
        except (ValueError, OSError) as error:
            print(f"{after.name}: not compared: {error}")
            continue
        for change in changes:
            compared += 1
            worse += change.verdict in ("worse", "missing")
            if change.verdict != "same":
                print(f"{change.verdict:8} {change.loss:+8.1%}  {after.stem}: {change.name}")
    print(f"{compared} figures compared, {worse} worse")
    return 2 if not compared else int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
