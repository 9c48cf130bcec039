"""AlpacaEval 2 (2404.04475): answers to 805 instructions compared with a baseline's, with length control.

The judge's preference is a probability where its likelihoods can be had: that of the label m against M.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from align import AlignError
from align.evals import (
    Episode,
    Gamed,
    Generate,
    Item,
    LogLikelihood,
    Query,
    Reply,
    Result,
    Row,
    length_controlled_metric,
    length_controlled_win_rate,
    load_rows,
    sha,
)
from align.plugins.evals.judged.default_prompts import ALPACA_EVAL
from align.plugins.evals.judged.judging import (
    Game,
    JudgedEval,
    JudgePrompt,
    check_placeholders,
    file_text,
    position_bias,
    rows_of,
    share_won,
    text_of,
    unreadable,
)
from align.settings import Sampling

PROMPT = "comparison"
LABELS = ("m", "M")
"""The judge's names of the first and the second answer."""


class AlpacaEval(JudgedEval):
    """Each answer is compared with the baseline's; the headline is the length-controlled win rate, from 0 to 1.

    It is no mean: the win rate that a logistic regression expects at equal lengths.
    """

    name: ClassVar[str] = "alpaca_eval"
    is_mean: ClassVar[bool] = False

    class Config(JudgedEval.Config):
        """Settings of ``alpaca_eval``."""

        baseline: str | None = None
        """File of the baseline's outputs (``instruction``, ``output``); null: the column ``output`` of ``data``."""
        orders: Literal["both", "hash"] = "both"
        """``both``: each pair is judged twice. ``hash``: once, in the order that a hash of the instruction gives, as
        the leaderboard does; then position bias stays in the score as noise."""
        preference: Literal["auto", "likelihood", "text"] = "auto"
        """``likelihood``: the probability of m against M; ``text``: the label that the judge writes; ``auto``: the
        first where the judge gives likelihoods (a server does not)."""
        gamed: str | None = None
        """AlpacaEval's ``df_gamed.csv``, which the full length control needs; without it and ``difficulty`` the minimal
        one is computed, by lengths alone."""
        difficulty: str | None = None
        """AlpacaEval's ``instruction_difficulty.csv``; not needed with ``gamed``."""

    config: Config

    def default_prompts(self) -> dict[str, JudgePrompt]:
        """Return align's own prompt."""
        return {PROMPT: JudgePrompt(*ALPACA_EVAL)}

    def read_prompts(self, path: str) -> dict[str, JudgePrompt]:
        """Return the prompt of a template in AlpacaEval's format: ChatML with placeholders."""
        prompt = read_template(file_text(path), path)
        check_placeholders(prompt, ("instruction", "output_1", "output_2"), path)
        return {PROMPT: prompt}

    def judge_settings(self) -> Sampling:
        """Return the judge's settings where it writes its label: the likeliest text, a few tokens."""
        return Sampling(temperature=0, max_completion_length=16)

    def load(self) -> Sequence[Item]:
        """Return the instructions; their target is the baseline's output."""
        _ = self.prompts, self._gamed
        baseline = _outputs(self.config.baseline)
        seen: Counter[str] = Counter()
        items = []
        for number, (where, row) in enumerate(load_rows(self.config.source)):
            instruction = text_of(row.get("instruction"), "instruction", where)
            output = row.get("output") if baseline is None else baseline.get(instruction)
            if not isinstance(output, str):
                place = where if baseline is None else str(self.config.baseline)
                what = f"has no output of the baseline for {instruction[:60]!r}"
                raise AlignError(what, "name the baseline's outputs as `baseline`", where=place)
            name = sha(instruction)
            seen[name] += 1
            columns = {"instruction": instruction} | self._difficulty_of(row.get("index", number), where)
            tags = (str(row["dataset"]),) if row.get("dataset") else ()
            unique = name if seen[name] == 1 else f"{name}-{seen[name]}"
            items.append(Item(unique, {"baseline": output}, name, columns, tags))
        return items

    def _difficulty_of(self, index: Any, where: str) -> dict[str, float]:
        if not self._difficulties:
            return {}
        if int(index) not in self._difficulties:
            raise AlignError(f"instruction {index} has no difficulty", "take both files of one version", where=where)
        return {"difficulty": self._difficulties[int(index)]}

    def run(self, item: Item) -> Episode:
        """Ask the model, then for the judge's preferences."""
        instruction, baseline = item.columns["instruction"], item.target["baseline"]
        sampling = self.config.sampled(Sampling(temperature=0, max_completion_length=2048))
        (answer,) = yield [Generate([{"role": "user", "content": instruction}], sampling)]
        orders = (True, False) if self.config.orders == "both" else (_model_first(instruction),)
        queries = [self._queries(instruction, answer.text, baseline, order) for order in orders]
        replies = yield [query for each in queries for query in each]
        size = len(queries[0])
        games = [
            Game(order, self._model_share(replies[n * size : (n + 1) * size], order)) for n, order in enumerate(orders)
        ]
        share = share_won(games)
        metrics = {
            "discrete_win_rate": 0.5 if share == 0.5 else float(share > 0.5),
            "position_bias": position_bias(games),
            "unreadable": unreadable(games),
            "length": float(len(answer.text)),
            "baseline_length": float(len(baseline)),
        }
        if "difficulty" in item.columns:
            metrics["difficulty"] = item.columns["difficulty"]
        valid = all(game.model is not None for game in games)
        extracted = " ".join("?" if game.model is None else f"{game.model:.4g}" for game in games)
        return Result(share, metrics, extracted, valid, "" if valid else "no verdict m or M")

    @property
    def _by_likelihood(self) -> bool:
        chosen = self.config.preference
        return self.judge_likelihoods if chosen == "auto" else chosen == "likelihood"

    def _queries(self, instruction: str, answer: str, baseline: str, model_first: bool) -> list[Query]:
        first, second = (answer, baseline) if model_first else (baseline, answer)
        texts = {"instruction": instruction, "output_1": first, "output_2": second}
        messages = self.prompts[PROMPT].messages(texts)
        if self._by_likelihood:
            return [LogLikelihood(messages, label, by="judge") for label in LABELS]
        return [self.ask_judge(messages)]

    def _model_share(self, replies: Sequence[Reply], model_first: bool) -> float | None:
        """Return the model's share of the win: p(first) / (p(first) + p(second)), or what the label says."""
        if self._by_likelihood:
            first = _logistic(replies[0].logp - replies[1].logp)
        else:
            label = read_label(replies[0].text)
            if label is None:
                return None
            first = float(label == LABELS[0])
        return first if model_first else 1 - first

    def judge_prompts(self) -> Any:
        """Return the prompt and settings of the judge."""
        return {**super().judge_prompts(), "orders": self.config.orders, "preference": self.config.preference}

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the win rates: ``score``, length-controlled with its interval, raw with its standard error, discrete.

        ``score`` is the length-controlled one with next to no penalty, which the gate can resample;
        ``length_controlled_win_rate`` has the published penalty, chosen by cross-validation.
        """
        table = _table(rows)
        hard = table[:, 3] if table.shape[1] > 3 else None
        clusters = [row.cluster_id for row in rows]
        found = length_controlled_win_rate(
            table[:, 0], table[:, 1], table[:, 2], hard, self._gamed, clusters=clusters, repeats=100
        )
        own = {
            "score": self.headline(rows),
            "length_controlled_win_rate": found.win_rate,
            "length_controlled_low": found.low,
            "length_controlled_high": found.high,
            "length_control_extreme": float(found.extreme),
            "win_rate": found.raw,
            "win_rate_standard_error": found.raw_standard_error,
        }
        return own | {name: value for name, value in super().aggregate(rows).items() if name != "score"}

    def headline(self, rows: Sequence[Row]) -> float:
        """Return the length-controlled win rate with next to no penalty."""
        return length_controlled_metric(gamed=self._gamed)(_table(rows))

    @cached_property
    def _gamed(self) -> Gamed | None:
        """The rows of the gamed baselines."""
        if self.config.gamed is None:
            return None
        rows = [(where, row) for where, row in rows_of(self.config.gamed) if not _true(row.get("not_gamed_baseline"))]
        columns = ("preference", "std_delta_len", "instruction_difficulty")
        numbers = np.array([[_number(row, name, where) for name in columns] for where, row in rows])
        if not len(numbers):
            raise AlignError("has no rows of gamed baselines", "take df_gamed.csv", where=self.config.gamed)
        return Gamed(numbers[:, 0], numbers[:, 1], numbers[:, 2])

    @cached_property
    def _difficulties(self) -> dict[int, float]:
        """The difficulty of each instruction by its place in the published file."""
        if self.config.difficulty is not None:
            found = {}
            for where, row in rows_of(self.config.difficulty):
                index, value = list(row)[:2]
                found[int(_number(row, index, where))] = _number(row, value, where)
            return found
        if self.config.gamed is None:
            return {}
        rows = rows_of(self.config.gamed)
        return {int(_number(row, "index", at)): _number(row, "instruction_difficulty", at) for at, row in rows}


def _table(rows: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return preference, baseline's length, model's length and, where it is known, difficulty of each row."""
    names = ["baseline_length", "length"] + (["difficulty"] if "difficulty" in rows[0].metrics else [])
    return np.array([[row.score, *(row.metrics[name] for name in names)] for row in rows])


def _model_first(instruction: str) -> bool:
    """Return the order of a pair that is judged once; it follows from the instruction alone."""
    return hashlib.sha256(instruction.encode()).digest()[0] % 2 == 0


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


_LABEL = re.compile(r"(?<![\w'’])[mM](?![\w'’])")


def read_label(text: str) -> str | None:
    """Return the label that a judge wrote, ``m`` or ``M``: the text's first word, else the only one of them in it."""
    found: list[str] = _LABEL.findall(text)
    opening = re.match(r"[\s\"'`*(\[]*([mM])(?![\w'’])", text)
    if opening:
        return opening[1]
    return found[0] if len(set(found)) == 1 else None


_MESSAGE = re.compile(r"<\|im_start\|>(\w+)[^\n]*\n(.*?)<\|im_end\|>", re.DOTALL)


def read_template(text: str, where: str) -> JudgePrompt:
    """Return a template in ChatML, or of a text without it, which is the user's message."""
    messages = _MESSAGE.findall(text)
    if not messages:
        return JudgePrompt("", text.strip())
    roles = [role for role, _ in messages]
    if roles not in (["system", "user"], ["user"]):
        fix = "write one system message and one user message"
        raise AlignError(f"has messages of {', '.join(roles)}", fix, where=where)
    parts = {role: content.strip() for role, content in messages}
    return JudgePrompt(parts.get("system", ""), parts["user"])


def _outputs(path: str | None) -> dict[str, str] | None:
    """Return the outputs of a model by instruction; of an instruction that is there twice, the first."""
    if path is None:
        return None
    found: dict[str, str] = {}
    for where, row in rows_of(path):
        instruction = text_of(row.get("instruction"), "instruction", where)
        found.setdefault(instruction, text_of(row.get("output"), "output", where))
    return found


def _number(row: Mapping[str, Any], name: str, where: str) -> float:
    try:
        value = float(row[name])
    except (KeyError, TypeError, ValueError):
        raise AlignError(f"has no number {name!r}", "take AlpacaEval's file", where=where) from None
    if not math.isfinite(value):
        raise AlignError(f"{name!r} is {value}", "take AlpacaEval's file", where=where)
    return value


def _true(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "1.0")
