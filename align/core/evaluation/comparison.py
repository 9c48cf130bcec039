"""The comparison of two stored runs by a policy: items are matched first, then the gate judges them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from align.core.evaluation.eval import Eval, Row, mean, sha
from align.core.evaluation.gate import (
    Benchmark,
    Check,
    Domain,
    GateResult,
    Judgement,
    Outcome,
    Rules,
    gate,
    length_check,
    rate_check,
)
from align.core.evaluation.statistics import Floats, clustered_mean
from align.core.evaluation.store import differing, read_run
from align.schemas.errors import AlignError, did_you_mean
from align.schemas.evals import GatePolicy

METRIC_DRAWS = 1000
"""Bootstrap draws of a metric that is no mean: each fits a model anew."""
_INSTRUMENTS = ("align-llm", "lm-eval")
"""Libraries that make prompts and score: another version of one may score the same output otherwise."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A complete run as it is on disk."""

    directory: Path
    manifest: Mapping[str, Any]
    rows: Mapping[str, Sequence[Row]]
    """Eval -> its rows."""
    metrics: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, directory: Path) -> StoredRun:
        """Read and verify a run. Raises AlignError where it is incomplete or damaged."""
        manifest, rows, metrics = read_run(directory)
        by_eval: dict[str, list[Row]] = {name: [] for name in manifest["evals"]}
        for row in rows:
            by_eval[row.eval].append(row)
        return cls(directory, manifest, by_eval, metrics)


@dataclass(frozen=True, slots=True)
class Flip:
    """An item on which the two sides differ. change: of its score, above 0 where the candidate is better."""

    eval: str
    item: str
    change: float
    prompt: Any
    target: Any
    baseline: Sequence[Any]
    candidate: Sequence[Any]


@dataclass(frozen=True, slots=True)
class GateReport:
    """The gate's judgement of two runs.

    outcome: ``invalid`` where they cannot be compared (``problems`` says why, and there is no result). checks: of rates
    and lengths, those that cannot tell or are warnings only included. flips: the items that changed most, by eval.
    """

    outcome: Outcome | str
    policy: GatePolicy
    policy_sha: str
    baseline: StoredRun
    candidate: StoredRun
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    result: GateResult | None = None
    checks: tuple[Check, ...] = ()
    flips: Mapping[str, Sequence[Flip]] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 0 pass, 1 regression, 2 inconclusive, 3 not comparable, or a margin that is not supported."""
        if self.outcome == "inconclusive" and self.policy.on_inconclusive == "warn":
            return 0
        return {"pass": 0, "regressed": 1, "inconclusive": 2}.get(self.outcome, 3)

    def units(self) -> Iterator[Judgement]:
        """Yield the judgements: domains first, then evals."""
        if self.result is not None:
            yield from (*self.result.domains, *self.result.benchmarks)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; a number that is not finite (a limit that is none) becomes None."""
        values: dict[str, Any] = _finite(self._values())
        return values

    def _values(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "status": self.status,
            "policy": self.policy.model_dump(mode="json"),
            "policy_sha": self.policy_sha,
            "baseline": _side(self.baseline),
            "candidate": _side(self.candidate),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "result": None if self.result is None else asdict(self.result),
            "checks": [asdict(each) for each in self.checks],
            "flips": {name: [asdict(flip) for flip in flips] for name, flips in self.flips.items()},
        }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _side(run: StoredRun) -> dict[str, Any]:
    return {"directory": str(run.directory), "model": run.manifest["model"], "metrics": run.metrics}


def compare_runs(
    baseline: StoredRun, candidate: StoredRun, policy: GatePolicy, evals: Mapping[str, Eval], *, flips: int = 50
) -> GateReport:
    """Judge a candidate's run against a baseline's.

    evals: each eval of the runs by name, for metrics that are no mean of rows. flips: most changed items that are kept
    for each eval. Raises AlignError for a policy that does not fit the runs' evals (``check_policy``).
    """
    check_policy(policy, {**baseline.rows, **candidate.rows}, evals)
    problems, warnings, pairs = _match(baseline, candidate, policy)
    report = GateReport(
        "invalid",
        policy,
        sha(policy.model_dump(mode="json")),
        baseline,
        candidate,
        tuple(problems),
        tuple(warnings),
    )
    if problems:
        return report
    rules = Rules(
        alpha=policy.alpha,
        power=policy.power,
        least_power=policy.least_power,
        minimum_loss=policy.minimum_loss,
        allow_underpowered=policy.allow_underpowered,
        bootstrap=METRIC_DRAWS,
    )
    benchmarks = [benchmark(name, each, evals[name], policy) for name, each in pairs.items()]
    domains = [
        # A verdict's name says which unit it is of: a domain of the eval `math` may be called `math` too.
        Domain(f"domain {name}" if name in pairs else name, dict(each.evals), each.margin)
        for name, each in policy.domains.items()
    ]
    demanded, reported = _checks(pairs, candidate, policy)
    failed = [check for check in demanded if check.verdict == "failed"]
    result = gate(benchmarks, domains, failed, rules)
    outcome: Outcome = result.outcome
    # A domain's evals have the role watch too, as the domain gates for them; their losses are its own.
    in_domains = {name for domain in policy.domains.values() for name in domain.evals}
    watched = [each for each in result.benchmarks if each.role == "watch" and each.name not in in_domains]
    flagged = [each.name for each in watched if each.verdict == "regressed"]
    if flagged and policy.on_watch == "fail" and outcome != "regressed":
        result = replace(result, outcome="regressed", blocking=tuple(flagged))
        outcome = "regressed"
    warnings += [f"{name}: a clear loss on the watch list" for name in flagged]
    warnings += [_words(check) for check in reported if check.verdict == "failed"]
    return replace(
        report,
        outcome=outcome,
        warnings=tuple(warnings),
        result=result,
        checks=(*demanded, *reported),
        flips={name: _flips(name, each, flips, evals[name].higher_is_better) for name, each in pairs.items()},
    )


Pair = tuple[Sequence[Row], Sequence[Row]]
"""The rows of one item on both sides, sample by sample."""


def _match(
    baseline: StoredRun, candidate: StoredRun, policy: GatePolicy
) -> tuple[list[str], list[str], dict[str, list[Pair]]]:
    """Return why the runs cannot be compared, what to know of them, and the items that both have, by eval."""
    ours, theirs = baseline.manifest["identity"], candidate.manifest["identity"]
    # Evals that the policy leaves out are left out here too: what changed in them says nothing about the others.
    both = [name for name in baseline.rows if name in candidate.rows and policy.judges(name)]
    in_one = sorted(name for name in baseline.rows.keys() ^ candidate.rows.keys() if policy.judges(name))
    problems = [f"the runs differ in {key}" for key in differing(ours["judge"], theirs["judge"], "judge")]
    for name in both:
        changed = differing(ours["evals"][name], theirs["evals"][name], name)
        problems += [f"the runs differ in {key}" for key in changed if not key.endswith(".items")]  # rows are matched
    problems += [f"{name} was measured in one run only" for name in in_one if name in policy.named]
    other = list(differing(ours["versions"], theirs["versions"]))
    problems += [f"the runs differ in the version of {name}" for name in other if name in _INSTRUMENTS]
    warnings = [f"measured with another version of {name}" for name in other if name not in _INSTRUMENTS]
    warnings += [f"{name} was measured in one run only" for name in in_one if name not in policy.named]
    pairs: dict[str, list[Pair]] = {}
    for name in both:
        matched = matched_items(baseline, candidate, name)
        items = [{row.item_id for row in run.rows[name]} for run in (baseline, candidate)]
        most = max(map(len, items))
        if len(matched) < policy.matched * most:
            first = min(set.union(*items) - {rows[0].item_id for rows, _ in matched})
            what = f"{name}: {len(matched)} of {most} items have the same prompt, target and settings in both runs"
            problems.append(f"{what}; {policy.matched:.0%} are needed. The first that has not: {first!r}")
        elif len(matched) < most:
            warnings.append(f"{name}: {most - len(matched)} of {most} items are in one run only, or differ")
        if len({left[0].cluster_id for left, _ in matched}) > 1:
            pairs[name] = matched
        elif matched:
            what = f"{name}: a single item (or cluster of items) shows no spread, so that nothing can be compared by it"
            (problems if name in policy.named else warnings).append(what)
    return problems, warnings, pairs


def matched_items(baseline: StoredRun, candidate: StoredRun, name: str) -> list[Pair]:
    """Return the items of an eval that both runs have with equal prompt, target, settings and judge."""
    left, right = _by_item(baseline.rows[name]), _by_item(candidate.rows[name])
    return [(left[item], right[item]) for item in left if item in right and _same(left[item], right[item])]


def _by_item(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return an eval's rows by item, in the order of item ids, so that no order of measuring matters."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.item_id, row.sample_idx)):
        found.setdefault(row.item_id, []).append(row)
    return found


def _same(left: Sequence[Row], right: Sequence[Row]) -> bool:
    return [_instrument(row) for row in left] == [_instrument(row) for row in right]


def _instrument(row: Row) -> tuple[Any, ...]:
    """Return the part of a row that does not come from the model."""
    judged = (row.judge_id, row.judge_prompt_sha)
    return row.eval_version, row.sample_idx, row.prompt_sha, row.target_sha, row.gen_kwargs_sha, *judged


def check_policy(
    policy: GatePolicy,
    known: Collection[str],
    evals: Mapping[str, Eval],
    holders: str = "neither run has",
    where: str = "policy",
) -> None:
    """Raise AlignError for a policy that names an unknown eval, has nothing that gates, or a floor without a meaning.

    known: names of evals that it may have. holders: the end of the message about another name.
    """
    if missing := [name for name in policy.named if name not in known]:
        fix = did_you_mean(missing[0], known)
        raise AlignError(f"names the eval {missing[0]!r}, which {holders}", fix, where=where)
    if not policy.domains and not policy.safety:
        raise AlignError("has no gating domain and no safety eval", "add domains: with margins", where=where)
    for name in policy.floors.keys() & evals.keys():
        if not evals[name].is_mean or not evals[name].higher_is_better:
            fix = "leave it out, or give the eval a margin"
            problem = f"has a floor for {name!r}, whose score is no mean of rows of which more is better"
            raise AlignError(problem, fix, where=where)


def benchmark(name: str, pairs: Sequence[Pair], eval: Eval, policy: GatePolicy) -> Benchmark:
    """Return an eval's items as arrays of scores on both sides; of several samples of an item their mean."""
    low, high = eval.score_range
    shape: dict[str, Any] = {
        "clusters": [left[0].cluster_id for left, _ in pairs],
        "higher_is_better": eval.higher_is_better,
        "role": "safety" if name in policy.safety else "watch",
        "margin": policy.safety.get(name),
        "span": high - low,
    }
    if eval.is_mean:
        before, after = _per_item(pairs, lambda rows: mean(row.score for row in rows))
        return Benchmark(name, before, after, **shape)
    # Items are numbered over both sides; the metric is given numbers, and takes their rows.
    groups = [left for left, _ in pairs] + [right for _, right in pairs]

    def metric(numbers: Any) -> float:
        return eval.headline([row for number in numbers for row in groups[int(number)]])

    count = len(pairs)
    return Benchmark(name, np.arange(count), np.arange(count, 2 * count), metric=metric, **shape)


def _checks(
    pairs: Mapping[str, Sequence[Pair]], candidate: StoredRun, policy: GatePolicy
) -> tuple[list[Check], list[Check]]:
    """Return the checks that block where they fail (invalid rows, floors), and those that only warn (lengths)."""
    both = [(left, right) for each in pairs.values() for left, right in each]
    labels = [f"{left[0].eval}/{left[0].cluster_id}" for left, _ in both]
    most, alpha = policy.max_invalid_increase, policy.alpha
    invalid = _per_item(both, lambda rows: any(not row.valid for row in rows))
    cut = _per_item(both, lambda rows: any(row.finish_reason == "length" for row in rows))
    lengths = _per_item(both, lambda rows: mean(row.n_tokens for row in rows))
    demanded = [rate_check("invalid rows", invalid[0], invalid[1], labels, most, alpha)]
    reported = [rate_check("length: cut off", cut[0], cut[1], labels, most, alpha)]
    if all(side.any() for side in lengths):  # evals of likelihoods generate nothing
        reported.append(length_check("length of outputs", lengths[0], lengths[1], labels, *policy.length_ratio))
    for name, floor in policy.floors.items():
        rows = candidate.rows[name]
        score = clustered_mean([row.score for row in rows], [row.cluster_id for row in rows], 1 - 2 * policy.alpha)
        verdict: Literal["pass", "failed"] = "pass" if score.low >= floor else "failed"
        demanded.append(Check(f"floor of {name}", score.value, score.low, score.high, floor, float("inf"), verdict))
    return demanded, reported


def _per_item(pairs: Sequence[Pair], value: Callable[[Sequence[Row]], float]) -> tuple[Floats, Floats]:
    """Return ``value`` of each item's rows: [items] of the baseline, and of the candidate."""
    before, after = ([float(value(pair[side])) for pair in pairs] for side in (0, 1))
    return np.array(before), np.array(after)


def _words(check: Check) -> str:
    return f"{check.name}: {check.value:.3g} (from {check.low:.3g} to {check.high:.3g})"


def _flips(name: str, pairs: Sequence[Pair], most: int, higher_is_better: bool) -> list[Flip]:
    """Return the items whose score changed most: the largest losses first, then the largest gains."""
    found = []
    for left, right in pairs:
        change = mean(row.score for row in right) - mean(row.score for row in left)
        before, after = [[row.outputs for row in side] for side in (left, right)]
        better = change if higher_is_better else -change
        found.append(Flip(name, left[0].item_id, better, left[0].prompts, left[0].target, before, after))
    losses = sorted((flip for flip in found if flip.change < 0), key=lambda flip: (flip.change, flip.item))
    gains = sorted((flip for flip in found if flip.change > 0), key=lambda flip: (-flip.change, flip.item))
    return losses[: most // 2] + gains[: most // 2]
