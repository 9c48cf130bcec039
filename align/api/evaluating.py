"""Measuring a model with a suite of evals."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from align.core.config.suite_file import LoadedEval, load_suite
from align.core.evaluation.eval import Item, Row, check_items, mean, sha
from align.core.evaluation.store import RowStore, read_run
from align.core.inference.eval_models import EvalModel, ModelChoice, open_model
from align.core.inference.eval_runner import EvalRunner, choose_items
from align.core.util.progress import showing, working
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError
from align.schemas.evals import Suite
from align.schemas.run import Choice

LIBRARIES = ("align-llm", "torch", "transformers", "tokenizers", "lm-eval", "vllm", "numpy", "scipy")
"""Libraries whose versions are part of what was measured with."""


@dataclass(frozen=True, slots=True)
class EvalRun:
    """A complete run: its directory, and the metrics of each eval by name; ``score`` is the headline."""

    directory: Path
    manifest: Mapping[str, Any]
    rows: Sequence[Row]
    metrics: Mapping[str, Mapping[str, float]]


@explaining()
def evaluate(
    model: str | Path,
    suite: str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    generator: str | Choice = "local",
    served_model: str = "",
    key_env: str | None = None,
    context: int | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> EvalRun:
    """Measure a model, and return the run; one that was interrupted goes on where it ended.

    model: a directory, a hub id, or the address of an OpenAI-compatible server (``https://HOST/v1``), whose model is
    ``served_model``. suite: a suite file, or the name of one that comes with align. out: a new directory, or that of
    the same run. overrides: ``NAME.KEY=VALUE`` for an eval of the suite, ``KEY=VALUE`` for the suite. context: most
    tokens of prompt and completion; None: the model's.

    Raises AlignError for a suite, data or a model that do not work, for a likelihood that is not finite, and where a
    judge leaves more verdicts unreadable than the suite's ``max_invalid``.
    """
    made, evals = load_suite(suite, overrides)
    out = Path(out)
    with showing(progress), ExitStack() as opened:
        for each in evals:
            opened.callback(each.eval.close)
        items = {each.name: _items(each) for each in evals}
        choice = _model_choice(str(model), generator, served_model, key_env, context, trust_remote_code)
        models: dict[str, EvalModel] = {"model": opened.enter_context(open_model(choice))}
        if made.judge is not None and any(each.eval.judged for each in evals):
            models["judge"] = opened.enter_context(open_model(_judge_choice(made)))
        _check_likelihoods(evals, models["model"])
        store = opened.enter_context(RowStore(out, _identity(made, evals, items, models)))
        started = time.time()
        metrics: dict[str, dict[str, float]] = {}
        for each in evals:
            runner = EvalRunner(each.eval, each.name, models, made.seed)
            rows = runner.measure(items[each.name], each.choice.samples, store)
            metrics[each.name] = _summary(each, rows)
            if each.eval.judged:
                _check_invalid(each.name, rows, made.max_invalid)
        store.complete(metrics, _facts(str(model), made, evals, started))
    manifest, rows, stored = read_run(out)
    return EvalRun(out, manifest, rows, stored)


def _items(each: LoadedEval) -> list[Item]:
    with working(f"reading {each.name}"):
        items = each.eval.load()
        check_items(items, each.eval)
    return choose_items(items, each.choice.n)


def _model_choice(
    model: str, generator: str | Choice, served: str, key_env: str | None, context: int | None, trust: bool
) -> ModelChoice:
    if model.startswith(("http://", "https://")):
        return ModelChoice(served, url=model, key_env=key_env)
    kind = Choice(type=generator) if isinstance(generator, str) else generator
    return ModelChoice(model, generator=kind, trust_remote_code=trust, context=context)


def _judge_choice(suite: Suite) -> ModelChoice:
    assert suite.judge is not None
    judge = suite.judge
    return ModelChoice(judge.model, url=judge.url, key_env=judge.key_env, generator=judge.generator)


def _check_likelihoods(evals: Sequence[LoadedEval], model: EvalModel) -> None:
    """Raise AlignError before anything is measured where an eval needs what the model does not have."""
    needing = [each.name for each in evals if each.eval.likelihoods]
    if needing and not model.likelihoods:
        fix = "measure the model's directory, or take the eval's generative variant"
        raise AlignError(f"{', '.join(needing)}: needs log-probabilities, which a server does not give", fix)


def _identity(
    suite: Suite, evals: Sequence[LoadedEval], items: Mapping[str, Sequence[Item]], models: Mapping[str, EvalModel]
) -> dict[str, Any]:
    """Return everything that decides a row. The content of data counts, not its path, and so does every item's."""
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
    """Return what a reader wants to know of a run, and no row depends on."""
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
    """Return an eval's own metrics and those of every eval: how many rows, how many not valid, how many cut off."""
    own = each.eval.aggregate(rows)
    return own | {
        "items": float(len({row.item_id for row in rows})),
        "rows": float(len(rows)),
        "invalid": mean(float(not row.valid) for row in rows),
        "truncated": mean(float(row.finish_reason == "length") for row in rows),
        "mean_tokens": mean(float(row.n_tokens) for row in rows),
    }


def _check_invalid(name: str, rows: Sequence[Row], most: float) -> None:
    invalid = [row for row in rows if not row.valid]
    if len(invalid) > most * len(rows):
        share = f"{len(invalid)} of {len(rows)} verdicts cannot be read, more than {most:.0%}"
        what = f"{share}; the first: {invalid[0].error}"
        fix = "look at the judge's replies in rows.jsonl; take a better judge, or raise max_invalid in the suite"
        raise AlignError(what, fix, where=f"eval {name}")
