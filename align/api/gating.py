"""The gate between two measured models, the number of rows that it needs, and its noise on reruns of one model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.core.config.suite_file import load_policy
from align.core.evaluation.calibration import Calibration, calibrate
from align.core.evaluation.comparison import GateReport, StoredRun, benchmark, compare_runs, matched_items
from align.core.evaluation.eval import Eval
from align.core.evaluation.gate import Comparison, Rules, combine, compare
from align.core.evaluation.power import pass_probability, rows_needed, smallest_margin
from align.core.plugin_system.registry import registry
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError
from align.schemas.evals import EvalChoice, GatePolicy, Suite

DISAGREEMENT = 0.15
"""Assumed share of items on which two unchanged models disagree, typical of 0/1 evals; calibration measures it."""


@explaining()
def gate(baseline: str | Path, candidate: str | Path, policy: str | Path | GatePolicy) -> GateReport:
    """Judge a candidate's eval run against a baseline's by a policy.

    baseline, candidate: directories of complete runs. policy: a policy file, or its values. The report's ``status`` is
    the command's exit status: 0 pass, 1 regression, 2 inconclusive, 3 not comparable. Raises AlignError for a run that
    is incomplete or damaged, and for a policy that does not fit the runs.
    """
    made = policy if isinstance(policy, GatePolicy) else load_policy(policy)
    ours, theirs = StoredRun.read(Path(baseline)), StoredRun.read(Path(candidate))
    return compare_runs(ours, theirs, made, _evals(ours))


def _evals(run: StoredRun) -> dict[str, Eval]:
    """Return the evals of a run, made from the suite in its manifest; their data is not read."""
    suite = Suite.model_validate(run.manifest["suite"])
    return {each.name or each.type: _made(each) for each in suite.evals}


def _made(choice: EvalChoice) -> Eval:
    made: Eval = registry.build("eval", choice)
    return made


@dataclass(frozen=True, slots=True)
class Power:
    """The needs of one margin of a policy.

    rows: items of the domain. disagreement: the assumed share of items on which unchanged models differ. chance: that
    an unchanged model passes. smallest_margin: that these rows support. rows_needed: for the policy's power.
    """

    name: str
    margin: float
    rows: int
    disagreement: float
    chance: float
    smallest_margin: float
    rows_needed: int


@explaining()
def gate_power(
    policy: str | Path | GatePolicy, baseline: str | Path, *, disagreement: float = DISAGREEMENT
) -> list[Power]:
    """Return the needs of each margin of a policy, before a candidate is measured.

    baseline: a run, for its numbers of items. disagreement: the share of items on which two unchanged models differ by
    1, so the variance of a difference is that share; ``gate_calibrate`` measures it. The chance that all domains pass
    is the product of theirs.
    """
    made = policy if isinstance(policy, GatePolicy) else load_policy(policy)
    run = StoredRun.read(Path(baseline))
    wanted = [(name, dict(each.evals), each.margin) for name, each in made.domains.items()]
    wanted += [(name, {name: 1.0}, margin) for name, margin in made.safety.items()]
    if not wanted:
        raise AlignError("has no gating domain and no safety eval", "add domains: with margins", where="policy")
    found = []
    for name, weights, margin in wanted:
        if missing := [each for each in weights if each not in run.rows]:
            raise AlignError(f"names the eval {missing[0]!r}, which {run.directory} does not have", where="policy")
        counts = {each: len({row.item_id for row in run.rows[each]}) for each in weights}
        total = sum(weights.values())
        # Var(sum w_j d_j) = sum w_j^2 q / n_j, written as the variance per row of all rows together.
        error = math.sqrt(sum((weight / total) ** 2 * disagreement / counts[each] for each, weight in weights.items()))
        rows = sum(counts.values())
        variance = error**2 * rows
        found.append(
            Power(
                name,
                margin,
                rows,
                disagreement,
                pass_probability(margin, error, 0.0, made.alpha),
                smallest_margin(variance, rows, made.alpha, made.power),
                rows_needed(variance, margin, made.alpha, made.power),
            )
        )
    return found


@explaining()
def gate_calibrate(runs: Sequence[str | Path]) -> tuple[list[Calibration], GatePolicy]:
    """Measure the noise of evals on reruns, and suggest a policy that the rows support.

    runs: two or more complete runs that should not differ: one model sampled with other seeds, or one recipe trained
    with other seeds. The policy has a gating domain for each domain of the suite, with the smallest margin that its
    rows support, rounded up to a tenth of a point. Raises AlignError for runs that have no eval in common.
    """
    if len(runs) < 2:
        raise AlignError("needs two runs or more", "measure once more, with another seed=", where="calibrate")
    if len({Path(each).resolve() for each in runs}) < len(runs):
        raise AlignError("names a run twice, which shows no noise", "give each run once", where="calibrate")
    stored = [StoredRun.read(Path(each)) for each in runs]
    evals, rules, nothing = _evals(stored[0]), Rules(), GatePolicy()
    names = [name for name in stored[0].rows if all(name in run.rows for run in stored)]
    if not names:
        raise AlignError("the runs have no eval in common", where="calibrate")
    found: list[Calibration] = []
    reruns: dict[str, list[Comparison]] = {}
    for name in names:
        matched = [matched_items(left, right, name) for left, right in itertools.combinations(stored, 2)]
        if not all(matched):
            raise AlignError("two runs have no item in common", where=f"calibrate: {name}")
        if any(len({left[0].cluster_id for left, _ in pairs}) < 2 for pairs in matched):
            what = "a single item (or cluster of items) shows no spread"
            raise AlignError(what, "measure more items of it, or leave it out", where=f"calibrate: {name}")
        reruns[name] = [compare(benchmark(name, pairs, evals[name], nothing), rules) for pairs in matched]
        found.append(calibrate(name, reruns[name], rules))
    domains: dict[str, list[str]] = {}
    for name in names:
        domains.setdefault(str(stored[0].manifest["evals"][name]["domain"]), []).append(name)
    suggested = {}
    for domain, members in domains.items():
        spans = [evals[each].score_range[1] - evals[each].score_range[0] for each in members]
        weights = [1 / span / len(members) for span in spans]
        together = [combine(parts, weights) for parts in zip(*(reruns[each] for each in members), strict=True)]
        noise = calibrate(f"domain {domain}", together, rules)
        found.append(noise)
        margin = max(0.001, math.ceil(1000 * noise.margin) / 1000)
        suggested[domain] = {"margin": margin, "evals": dict.fromkeys(members, 1.0)}
    return found, GatePolicy.model_validate({"domains": suggested})
