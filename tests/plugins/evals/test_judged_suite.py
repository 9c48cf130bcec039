"""The suite of docs/evals_judged.md, and judged evals under the gate's resampling."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from align.core.config.suite_file import load_suite
from align.core.evaluation.statistics import paired_bootstrap
from align.plugins.evals.judged.alpaca_eval import AlpacaEval
from align.plugins.evals.judged.arena_hard import ArenaHard
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals.judged import judge, user, write_jsonl

PAGE = Path(__file__).parents[3] / "docs" / "evals_judged.md"


def test_the_pages_suite_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    path = tmp_path / "suite.yaml"
    path.write_text(block)
    suite, evals = load_suite(path)
    assert [each.name for each in evals] == ["mt_bench", "alpaca_eval", "arena_hard"]
    assert suite.max_invalid == 0.02 and all(each.eval.judged for each in evals)


def test_a_headline_that_is_no_mean_is_resampled_in_pairs(tmp_path: Path) -> None:
    """A better model is shown to be better and one against itself to be equal, by the functions the gate calls."""
    count = 40
    prompts = [f"Prompt {n}" for n in range(count)]
    baseline = [f"<base> {'b' * (20 + n * 7 % 31)}" for n in range(count)]
    alpaca = [{"instruction": p, "output": b} for p, b in zip(prompts, baseline, strict=True)]
    arena = [{"uid": p, "category": "hard_prompt", "prompt": p} for p in prompts]
    answers = [
        {"uid": p, "messages": [{"role": "assistant", "content": b}]} for p, b in zip(prompts, baseline, strict=True)
    ]

    def model(strength: int) -> ScriptedModel:
        """Right on ``strength`` of 10 prompts, with answers of about the baseline's length."""

        def answer(prompt: object, _seed: int) -> str:
            n = int(user(prompt).split()[1])  # type: ignore[arg-type]
            mark = "<good>" if n % 10 < strength else "<poor>"
            return f"{mark} {'m' * (20 + n * 11 % 31)}"

        return ScriptedModel(answer)

    def verdict(text: str) -> str:
        first_is_model = max(text.find("<good>"), text.find("<poor>")) < text.find("<base>")
        first = first_is_model == ("<good>" in text)
        return (
            ("[[A>B]]" if first else "[[B>A]]") if "[[A>>B]]" in text or "answer A" in text else ("m" if first else "M")
        )

    for kind, settings in (
        (AlpacaEval, {"data": write_jsonl(tmp_path / "alpaca.jsonl", alpaca)}),
        (
            ArenaHard,
            {
                "data": write_jsonl(tmp_path / "arena.jsonl", arena),
                "baseline": write_jsonl(tmp_path / "answers.jsonl", answers),
                "style_control": True,
            },
        ),
    ):
        low, _ = run_eval(kind, settings, model(3), judge(verdict))
        high, _ = run_eval(kind, settings, model(8), judge(verdict))
        made = kind(kind.Config.model_validate(settings))
        rows = [*low, *high]

        def metric(numbers: object, made: AlpacaEval | ArenaHard = made, rows: list = rows) -> float:  # type: ignore[type-arg]
            return made.headline([rows[int(n)] for n in numbers])  # type: ignore[attr-defined]

        left, right = np.arange(count), np.arange(count, 2 * count)
        better = paired_bootstrap(metric, left, right, repeats=100, seed=0)
        assert better.low > 0.2 and better.value == metric(right) - metric(left)
        same = paired_bootstrap(metric, left, left, repeats=100, seed=0)
        assert (same.value, same.low, same.high) == (0, 0, 0)
