"""The measurement of a model with a suite of evals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.core.evaluation.ratings import mean_win_rates
from align.core.evaluation.store import read_run
from align.core.inference.eval_models import ModelChoice, open_model
from align.core.inference.eval_suite import EvalRun, measure_suite, open_judge, opened_suite
from align.core.util.progress import showing
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError
from align.schemas.run import Choice


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
    if not str(model):
        raise AlignError("is empty", "give a directory, a hub id, or a server's address", where="model")
    choice = _model_choice(str(model), generator, served_model, key_env, context, trust_remote_code)
    with (
        showing(progress),
        opened_suite(suite, overrides) as given,
        open_model(choice) as opened,
        open_judge(given.suite, given.evals) as judge,
    ):
        return measure_suite(given, {"model": opened, **judge}, Path(out), str(model))


def _model_choice(
    model: str, generator: str | Choice, served: str, key_env: str | None, context: int | None, trust: bool
) -> ModelChoice:
    if model.startswith(("http://", "https://")):
        return ModelChoice(served, url=model, key_env=key_env)
    kind = Choice(type=generator) if isinstance(generator, str) else generator
    return ModelChoice(model, generator=kind, trust_remote_code=trust, context=context)


MEAN_WIN_RATE = "mean win rate"


@explaining()
def compare_scores(runs: Sequence[str | Path]) -> dict[str, dict[str, float | None]]:
    """Return the headline of every eval of complete runs, and HELM's mean win rate of each run among these.

    Keys: the run's directory, then the eval; a run without an eval lacks its key. The mean win rate is None of a run
    that shares no eval with another. Raises AlignError for a run that is incomplete or damaged.
    """
    stored = {str(each): read_run(Path(each)) for each in runs}
    scores = {run: {name: each["score"] for name, each in metrics.items()} for run, (_, _, metrics) in stored.items()}
    facts = {name: each for manifest, _, _ in stored.values() for name, each in manifest["evals"].items()}
    directions = {name: each["higher_is_better"] for name, each in facts.items()}
    rates = mean_win_rates(scores, directions)
    return {run: {**own, MEAN_WIN_RATE: rates[run]} for run, own in scores.items()}
