"""The measurement of a suite: its evals one after the other on open models, into one run directory."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from align.core.config.suite_file import LoadedEval, load_suite
from align.core.evaluation.eval import Item, Row, check_items, mean, sha
from align.core.evaluation.store import RowStore, read_run
from align.core.inference.eval_models import EvalModel, ModelChoice, open_model
from align.core.inference.eval_runner import EvalRunner, choose_items
from align.core.util.progress import working
from align.schemas.errors import AlignError
from align.schemas.evals import Suite

LIBRARIES = ("align-llm", "torch", "transformers", "tokenizers", "lm-eval", "vllm", "numpy", "scipy")
"""Libraries whose versions are part of a run's identity: a new one may give another completion or score."""


@dataclass(frozen=True, slots=True)
class EvalRun:
    """A complete run: its directory, and the metrics of each eval by name; ``score`` is the headline."""

    directory: Path
    manifest: Mapping[str, Any]
    rows: Sequence[Row]
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class OpenSuite:
    """A suite with its evals, and the items of each that its entry asks for."""

    suite: Suite
    evals: Sequence[LoadedEval]
    items: Mapping[str, Sequence[Item]]


@contextmanager
def opened_suite(suite: str | Path, overrides: Sequence[str] = ()) -> Iterator[OpenSuite]:
    """Load a suite and its items, and close its evals at the end: reading items may start rewards.

    Raises AlignError as ``load_suite`` does, and for items that cannot be scored.
    """
    made, evals = load_suite(suite, overrides)
    with ExitStack() as opened:
        for each in evals:
            opened.callback(each.eval.close)
        yield OpenSuite(made, evals, {each.name: _items(each) for each in evals})


@contextmanager
def open_judge(suite: Suite, evals: Sequence[LoadedEval]) -> Iterator[dict[str, EvalModel]]:
    """Open the suite's judge if an eval needs it: yield it as ``judge``, else an empty mapping. Close it at the end.

    Raises AlignError as ``open_model`` does.
    """
    judge = suite.judge
    if judge is None or not any(each.eval.judged for each in evals):
        yield {}
        return
    with open_model(ModelChoice(judge.model, judge.url, judge.key_env, judge.generator)) as opened:
        yield {"judge": opened}


def measure_suite(given: OpenSuite, models: Mapping[str, EvalModel], out: Path, name: str) -> EvalRun:
    """Measure what the directory ``out`` lacks, mark the run as complete, and return it as it was read back.

    models: ``model``, and ``judge`` for evals that need one. name: the model's, for readers. Raises AlignError as
    ``align.evaluate`` does.
    """
    suite, evals, items = given.suite, given.evals, given.items
    _check_likelihoods(evals, models["model"])
    started = time.time()
    metrics: dict[str, dict[str, float]] = {}
    with RowStore(out, _identity(suite, evals, items, models)) as store:
        for each in evals:
            runner = EvalRunner(each.eval, each.name, models, suite.seed)
            rows = runner.measure(items[each.name], each.choice.samples, store)
            metrics[each.name] = _summary(each, rows)
            if each.eval.judged:
                _check_invalid(each.name, rows, suite.max_invalid)
        if not store.was_complete:  # else the run's time and name would be those of this start, which measured nothing
            store.complete(metrics, _facts(name, suite, evals, started))
    manifest, stored, read = read_run(out)
    return EvalRun(out, manifest, stored, read)


def _items(each: LoadedEval) -> list[Item]:
    with working(f"reading {each.name}"):
        items = each.eval.load()
        check_items(items, each.eval)
    return choose_items(items, each.choice.n)


def _check_likelihoods(evals: Sequence[LoadedEval], model: EvalModel) -> None:
    """Raise AlignError before anything is measured where an eval needs what the model does not have."""
    needing = [each.name for each in evals if each.eval.likelihoods]
    if needing and not model.likelihoods:
        fix = "measure the model's directory, or take the eval's generative variant"
        raise AlignError(f"{', '.join(needing)}: needs log-probabilities, which a server does not give", fix)


def _identity(
    suite: Suite, evals: Sequence[LoadedEval], items: Mapping[str, Sequence[Item]], models: Mapping[str, EvalModel]
) -> dict[str, Any]:
    """Return everything that decides a row: of data its content, item by item, and not its path."""
    return {
        "model": models["model"].identity,
        "judge": models["judge"].identity if "judge" in models else None,
        "seed": suite.seed,
        "evals": {
            each.name: {
                "type": each.choice.type,
                "version": each.eval.version,
                "samples": each.choice.samples,
                "settings": sha({k: v for k, v in each.choice.settings.items() if k != "data"}),
                "items": sha([[item.id, item.target, item.columns] for item in items[each.name]]),
                "judge_prompts": sha(each.eval.judge_prompts()),
            }
            for each in evals
        },
        "versions": versions(),
    }


def _facts(model: str, suite: Suite, evals: Sequence[LoadedEval], started: float) -> dict[str, Any]:
    """Return the facts for readers of a run, which no row depends on."""
    return {
        "model": model,
        "suite": suite.model_dump(mode="json"),
        "evals": {
            each.name: {
                "type": each.choice.type,
                "domain": each.choice.domain or each.eval.domain,
                "higher_is_better": each.eval.higher_is_better,
                "is_mean": each.eval.is_mean,
                "judged": each.eval.judged,
            }
            for each in evals
        },
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
        "seconds": round(time.time() - started, 1),
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that measure; those that are not installed are left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _summary(each: LoadedEval, rows: Sequence[Row]) -> dict[str, float]:
    """Return an eval's own metrics and those of every eval: numbers of items and rows, shares not valid and cut off."""
    return aggregate(each, rows) | {
        "items": float(len({row.item_id for row in rows})),
        "rows": float(len(rows)),
        "invalid": mean(float(not row.valid) for row in rows),
        "truncated": mean(float(row.finish_reason == "length") for row in rows),
        "mean_tokens": mean(float(row.n_tokens) for row in rows),
    }


def aggregate(each: LoadedEval, rows: Sequence[Row]) -> dict[str, float]:
    """Return an eval's own metrics. Raises AlignError for one that is not finite: it would win every comparison."""
    metrics = each.eval.aggregate(rows)
    if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
        fix = "return a finite number, or leave the metric out"
        raise AlignError(f"aggregate gives {bad[0]} = {metrics[bad[0]]}", fix, where=f"eval {each.name}")
    return metrics


def _check_invalid(name: str, rows: Sequence[Row], most: float) -> None:
    invalid = [row for row in rows if not row.valid]
    if len(invalid) > most * len(rows):
        share = f"{len(invalid)} of {len(rows)} verdicts cannot be read, more than {most:.0%}"
        what = f"{share}; the first: {invalid[0].error}"
        fix = "look at the judge's replies in rows.jsonl; take a better judge, or raise max_invalid in the suite"
        raise AlignError(what, fix, where=f"eval {name}")
