"""Running an eval on a scripted model, as the runner of ``align eval`` does."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.core.evaluation.eval import Eval, Row, check_items
from align.core.evaluation.store import RowStore, read_rows
from align.core.inference.eval_models import EvalModel
from align.core.inference.eval_runner import EvalRunner, choose_items
from align.core.plugin_system.registry import registry


def run_eval(
    eval: str | type[Eval],
    settings: Mapping[str, Any],
    model: EvalModel,
    judge: EvalModel | None = None,
    *,
    samples: int = 1,
    n: int | None = None,
    seed: int = 0,
) -> tuple[list[Row], dict[str, float]]:
    """Return an eval's rows and metrics on a model; every row is read back from its file.

    eval: a registered name, or the class. settings: as in a suite file. Raises AlignError as ``align eval run`` does.
    """
    kind = registry.get("eval", eval) if isinstance(eval, str) else eval
    made: Eval = kind(kind.Config.model_validate(settings))
    models = {"model": model} | ({"judge": judge} if judge is not None else {})
    with tempfile.TemporaryDirectory() as directory:
        items = made.load()
        check_items(items, made)
        with RowStore(Path(directory), {}) as store:
            runner = EvalRunner(made, made.name, models, seed)
            rows = runner.measure(choose_items(items, n), samples, store)
        stored = {row.key: row for row in read_rows(Path(directory))}
        rows = [stored[row.key] for row in rows]
    made.close()
    return rows, made.aggregate(rows)
