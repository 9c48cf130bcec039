"""Running evals: rows on disk, resuming, nested subsets, and everything that must not become a zero."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from align import AlignError, Eval
from align.core.evaluation.eval import check_items
from align.core.evaluation.store import RowStore, read_rows
from align.core.inference.eval_runner import EvalRunner, choose_items
from align.evals import Episode, Generate, Item, LogLikelihood, Result, Row
from align.settings import Sampling
from align.testing import ScriptedModel, run_eval


class Sums(Eval):
    """Asks for a sum, and once more whether it is sure; two rounds of queries for each item."""

    name: ClassVar[str] = "sums"

    class Config(Eval.Config):
        """Settings."""

        count: int = 5

    config: Config

    def load(self) -> Sequence[Item]:
        """Make the sums."""
        return [Item(f"{n}+{n}", str(2 * n), tags=("even",)) for n in range(self.config.count)]

    def run(self, item: Item) -> Episode:
        """Ask twice; the second answer counts."""
        (first,) = yield [Generate(item.id, Sampling(temperature=0))]
        (second,) = yield [Generate(f"{item.id}: {first.text}. sure?", Sampling(temperature=0))]
        return Result(float(second.text == item.target), {"first": float(first.text == item.target)}, second.text)


def right(prompt: Any, _seed: int) -> str:
    """Answer sums rightly."""
    a, _, b = str(prompt).partition(":")[0].partition("+")
    return str(int(a) + int(b))


def test_rows_hold_the_exchange_and_metrics_their_means() -> None:
    rows, metrics = run_eval(Sums, {"count": 3}, ScriptedModel(right), samples=2)
    assert metrics == {"score": 1.0, "first": 1.0}
    assert len(rows) == 6
    row = next(row for row in rows if row.item_id == "2+2" and row.sample_idx == 1)
    assert row.prompts == ["2+2", "2+2: 4. sure?"]
    assert row.outputs == ["4", "4"]
    assert (row.target, row.extracted, row.n_tokens, row.finish_reason, row.valid) == ("4", "4", 2, "stop", True)
    assert row.tags == ["even"]
    assert len({each.seed for each in rows}) == 6


def test_a_smaller_number_of_items_is_a_part_of_a_larger_one_with_the_same_rows() -> None:
    few, _ = run_eval(Sums, {"count": 40}, ScriptedModel(lambda p, seed: str(seed)), n=7)
    many, _ = run_eval(Sums, {"count": 40}, ScriptedModel(lambda p, seed: str(seed)), n=20)
    assert few == many[:7]


def runner(answer: Any, eval: type[Eval] = Sums) -> EvalRunner:
    made = eval(eval.Config())
    return EvalRunner(made, made.name, {"model": ScriptedModel(answer, lambda c, t: math.nan)}, window=2)


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    items = choose_items(Sums(Sums.Config()).load(), None)
    asked: list[str] = []

    def fails(prompt: Any, seed: int) -> str:
        if len(asked) == 8:  # two items of two rounds each are on disk, and two further first rounds were asked
            raise KeyboardInterrupt
        asked.append(str(prompt))
        return right(prompt, seed)

    with pytest.raises(KeyboardInterrupt), RowStore(tmp_path, {"model": 1}) as store:
        runner(fails).measure(items, 1, store)
    kept = read_rows(tmp_path)
    assert 0 < len(kept) < 5
    with open(tmp_path / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write('{"cut off')
    with RowStore(tmp_path, {"model": 1}) as store:
        model = ScriptedModel(right)
        resumed = EvalRunner(Sums(Sums.Config()), "sums", {"model": model}).measure(items, 1, store)
    assert len(model.asked) == 2 * (5 - len(kept))
    whole, _ = run_eval(Sums, {}, ScriptedModel(right))
    assert resumed == whole
    assert sorted(row.item_id for row in read_rows(tmp_path)) == sorted(item.id for item in items)


def test_another_model_cannot_go_on_with_a_run(tmp_path: Path) -> None:
    with RowStore(tmp_path, {"model": {"weights": "a", "context": 8}}):
        pass
    with pytest.raises(AlignError, match=r"was begun with another model\.weights"):
        RowStore(tmp_path, {"model": {"weights": "b", "context": 8}})


def test_a_changed_row_is_found(tmp_path: Path) -> None:
    with RowStore(tmp_path, {}) as store:
        runner(right).measure(choose_items(Sums(Sums.Config()).load(), 2), 1, store)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"score": 1.0', '"score": 0.0', 1), encoding="utf-8")
    with pytest.raises(AlignError, match=r"rows.jsonl:1\n    is not what was written"):
        read_rows(tmp_path)


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(AlignError, match="is not empty"):
        RowStore(tmp_path, {})


class Choices(Eval):
    """Takes the likelier of two continuations."""

    name: ClassVar[str] = "choices"

    class Config(Eval.Config):
        """Settings."""

    def load(self) -> Sequence[Item]:
        """Make one item."""
        return [Item("only", 0)]

    def run(self, item: Item) -> Episode:
        """Ask for two likelihoods."""
        one, two = yield [LogLikelihood("a", " b"), LogLikelihood("a", " c")]
        return Result(float(one.logp > two.logp))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_likelihoods_that_are_not_finite_stop_the_run(value: float) -> None:
    with pytest.raises(AlignError, match="log-probability is"):
        run_eval(Choices, {}, ScriptedModel(logp=lambda context, text: value))


def test_a_model_that_gives_no_text_stops_the_run() -> None:
    with pytest.raises(AlignError, match="no text"):
        run_eval(Sums, {}, ScriptedModel(lambda p, s: None))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (Result(1.5), r"scored 1.5, outside \[0, 1\]"),
        (Result(math.nan), "scored nan"),
        (Result(1.0, {"x": math.inf}), "gave x = inf"),
        (0.5, "returned no Result"),
    ],
)
def test_a_score_out_of_range_is_the_evals_error(result: Result, message: str) -> None:
    class Broken(Choices):
        """Scores what it must not."""

        def run(self, item: Item) -> Episode:
            """Score."""
            yield [Generate("a", Sampling())]
            return result

    with pytest.raises(AlignError, match=message):
        run_eval(Broken, {}, ScriptedModel(right_or_a))


def right_or_a(prompt: Any, _seed: int) -> str:
    """Answer a."""
    return "a"


def test_an_eval_that_raises_is_named_with_its_item() -> None:
    class Raises(Choices):
        """Divides by zero."""

        def run(self, item: Item) -> Episode:
            """Fail."""
            yield [Generate("a", Sampling())]
            return Result(1 / 0)

    with pytest.raises(AlignError, match=r"eval choices\n    item 'only': the eval failed: ZeroDivisionError"):
        run_eval(Raises, {}, ScriptedModel(right_or_a))


def test_a_judge_that_is_missing_is_named() -> None:
    class Judged(Choices):
        """Asks a judge."""

        def run(self, item: Item) -> Episode:
            """Ask."""
            yield [Generate("a", Sampling(), by="judge")]
            return Result(1.0)

    with pytest.raises(AlignError, match="name a judge in the suite"):
        run_eval(Judged, {}, ScriptedModel(right_or_a))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "has no items"),
        ([Item("a", 1), Item("a", 2)], "two items with the id 'a'"),
        ([Item("a", None)], "item 'a' has no target"),
    ],
)
def test_items_that_cannot_be_scored_are_refused(items: list[Item], message: str) -> None:
    with pytest.raises(AlignError, match=message):
        check_items(items, Sums(Sums.Config()))


def test_a_row_survives_its_file() -> None:
    rows, _ = run_eval(Sums, {"count": 1}, ScriptedModel(right))
    assert Row.parsed(rows[0].line()) == rows[0]
    with pytest.raises(ValueError, match="is no row"):
        Row.parsed(json.dumps({"eval": "sums"}))


def test_an_eval_knows_whether_its_judge_scores_given_text_and_has_its_headline_alone() -> None:
    scoring = ScriptedModel(right, lambda context, text: -1.0)
    seen = []
    for judge in (None, ScriptedModel(right), scoring):
        made = Sums(Sums.Config())
        models = {"model": ScriptedModel(right)} | ({"judge": judge} if judge else {})
        EvalRunner(made, made.name, models)
        seen.append(made.judge_likelihoods)
    assert seen == [False, False, True]
    rows, metrics = run_eval(Sums, {"count": 3}, ScriptedModel(right))
    assert made.headline(rows) == metrics["score"]


def test_a_reply_that_is_no_unicode_is_kept_and_read_back(tmp_path: Path) -> None:
    (item,) = choose_items(Sums(Sums.Config()).load(), 1)
    with RowStore(tmp_path, {}) as store:
        (row,) = runner(lambda prompt, seed: "\ud83d half \\\udc00").measure([item], 1, store)
    assert read_rows(tmp_path) == [row]
    assert row.outputs[0] == "\ud83d half \\\udc00"
    json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8"))


def test_two_processes_do_not_measure_into_one_directory(tmp_path: Path) -> None:
    with RowStore(tmp_path, {}), pytest.raises(AlignError, match="another process is measuring into it"):
        RowStore(tmp_path, {})
    with RowStore(tmp_path, {}):
        pass


class Unpacked(Sums):
    """Yields a query in place of a list of them."""

    def run(self, item: Item) -> Episode:
        """Ask wrongly."""
        yield Generate(item.id, Sampling())  # type: ignore[misc]
        return Result(0.0)


def test_a_query_outside_a_list_is_named_as_the_evals_mistake() -> None:
    with pytest.raises(AlignError, match="yielded something else than a list of queries"):
        run_eval(Unpacked, {}, ScriptedModel(right))


def test_a_target_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(AlignError, match="target of item 'a' is no JSON"):
        check_items([Item("a", {1, 2})], Sums(Sums.Config()))
    with pytest.raises(AlignError, match="target of item 'a' is no JSON"):
        check_items([Item("a", math.nan)], Sums(Sums.Config()))
