"""Arena-Hard (2406.11939) v0.1 and v2.0: two games against a baseline's answer to each hard prompt, with five verdicts.

A verdict of "much better" counts three times. With a single model and its baseline v0.1's Bradley-Terry win rate is the
weighted mean outcome too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import yaml

from align import AlignError
from align.evals import (
    ArenaItem,
    Episode,
    Generate,
    Item,
    Result,
    Row,
    Style,
    arena_hard_scores,
    load_rows,
    mean,
    outcome,
    style,
)
from align.plugins.evals.judged.default_prompts import ARENA_HARD_SYSTEM, ARENA_HARD_TEMPLATE
from align.plugins.evals.judged.judging import (
    Game,
    JudgedEval,
    JudgePrompt,
    check_placeholders,
    fastchat_turns,
    file_text,
    position_bias,
    rows_of,
    text_of,
    unreadable,
)
from align.settings import Sampling

DEFAULT = "default"
"""The judge's prompt for categories without one of their own."""
TIE = "A=B"
"""The neutral verdict, which stands for an unreadable one."""
STYLE = ("tokens", "headers", "lists", "bold")


class ArenaHard(JudgedEval):
    """Each answer plays two games against the baseline's, in both orders; the headline is the win rate, from 0 to 1.

    It is no mean of rows: a row with strict verdicts weighs more.
    """

    name: ClassVar[str] = "arena_hard"
    is_mean: ClassVar[bool] = False

    class Config(JudgedEval.Config):
        """Settings of ``arena_hard``."""

        baseline: str | dict[str, str]
        """File of the baseline's answers, or one for each category (``{hard_prompt: o3.jsonl, ...}``)."""
        version: Literal["v0.1", "v2.0"] = "v2.0"
        """The protocol: the judge's longest reply, the features of style and the level of intervals."""
        style_control: bool = False
        """True: the headline is the win rate at equal length and markdown."""

    config: Config

    def default_prompts(self) -> dict[str, JudgePrompt]:
        """Return align's own prompts."""
        return {name: JudgePrompt(system, ARENA_HARD_TEMPLATE) for name, system in ARENA_HARD_SYSTEM.items()}

    def read_prompts(self, path: str) -> dict[str, JudgePrompt]:
        """Return the prompts of a judge's configuration in Arena-Hard's format.

        v2.0 keeps its system prompts elsewhere: ``system_prompt`` is a text here, or one for each category. Without it
        align's own are used.
        """
        values = _yaml(path)
        template = values.get("prompt_template")
        if isinstance(template, list) and len(template) == 1:
            template = template[0]
        template = text_of(template, "prompt_template", path)
        systems = values.get("system_prompt", ARENA_HARD_SYSTEM)
        if isinstance(systems, str):
            systems = {DEFAULT: systems}
        if not isinstance(systems, dict) or not all(isinstance(each, str) for each in systems.values()):
            raise AlignError("has a system_prompt that is no text", "write a text, or one by category", where=path)
        prompts = {str(name): JudgePrompt(system, template) for name, system in systems.items()}
        old = "{question_1}" in template
        needed = ("question_1", "answer_1", "answer_2") if old else ("QUESTION", "ANSWER_A", "ANSWER_B")
        for prompt in prompts.values():
            check_placeholders(prompt, needed, path)
        return prompts

    @property
    def comparable(self) -> bool:
        """False where prompts of align's own are used, if only as system prompts."""
        path = self.config.judge_prompts
        return path is not None and "system_prompt" in _yaml(path)

    def judge_settings(self) -> Sampling:
        """Return the judge's settings: the likeliest text, as long as the protocol allows."""
        return Sampling(temperature=0, max_completion_length=4096 if self.config.version == "v0.1" else 16_000)

    def load(self) -> Sequence[Item]:
        """Return the prompts; their target is the baseline's answer."""
        prompts, baselines = self.prompts, self._baselines()
        items = []
        for where, row in load_rows(self.config.source):
            name = str(row.get("uid") or row.get("question_id"))
            category = str(row.get("category") or "")
            prompt = row["prompt"] if "prompt" in row else _first_turn(row, where)
            if category not in prompts and DEFAULT not in prompts:
                fix = f"add it, or a prompt {DEFAULT!r}, to system_prompt"
                raise AlignError(f"has no prompt for {category}", fix, where=str(self.config.judge_prompts))
            answers, path = baselines.get(category) or baselines.get("") or ({}, str(self.config.baseline))
            if name not in answers:
                what = f"has no answer of the baseline to {name} ({category})"
                raise AlignError(what, "name the baseline's answers for each category", where=path)
            columns = {"prompt": text_of(prompt, "prompt", where), "category": category}
            tags = dict.fromkeys(str(each) for each in (row.get("category"), row.get("subcategory")) if each)
            items.append(Item(name, {"baseline": answers[name]}, name, columns, tuple(tags)))
        return items

    def _baselines(self) -> dict[str, tuple[dict[str, str], str]]:
        """Return the baseline's answers with their file by category; ``""`` for all."""
        given = self.config.baseline
        files = {"": given} if isinstance(given, str) else given
        return {category: (_answers(path), path) for category, path in files.items()}

    def run(self, item: Item) -> Episode:
        """Ask the model, then for the verdicts of both games; in the first one A is the baseline."""
        prompt, baseline = item.columns["prompt"], item.target["baseline"]
        sampling = self.config.sampled(Sampling(temperature=0, max_completion_length=4096))
        (answer,) = yield [Generate([{"role": "user", "content": prompt}], sampling)]
        judge_prompt = self.prompts.get(item.columns["category"]) or self.prompts[DEFAULT]
        queries = []
        for a, b in ((baseline, answer.text), (answer.text, baseline)):
            texts = {"QUESTION": prompt, "ANSWER_A": a, "ANSWER_B": b}
            texts |= {"question_1": prompt, "answer_1": a, "answer_2": b}
            queries.append(self.ask_judge(judge_prompt.messages(texts)))
        replies = yield queries
        labels = [read_verdict(reply.text) for reply in replies]
        counted = [outcome(label or TIE, model_is_first=bool(game)) for game, label in enumerate(labels)]
        games = [Game(bool(n), None if label is None else counted[n][0]) for n, label in enumerate(labels)]
        weight = sum(times for _, times in counted)
        won = sum(share * times for share, times in counted)
        metrics = {
            "won": won,
            "weight": float(weight),
            "strict": mean(float(times > 1) for _, times in counted),
            "position_bias": position_bias(games),
            "unreadable": unreadable(games),
            **_counts("", answer.text),
            **_counts("baseline_", baseline),
        }
        valid = None not in labels
        extracted = " ".join(label or "?" for label in labels)
        return Result(won / weight, metrics, extracted, valid, "" if valid else "no verdict such as [[A>B]]")

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the win rate and the style-controlled one, each with the protocol's interval over resampled prompts.

        The protocol's level is 95 % for v0.1 and 90 % for v2.0.
        """
        metrics = {"score": self.headline(rows)}
        for name, controlled in (("win_rate", False), ("style_controlled", True)):
            score = self._scored(rows, controlled, 100)
            metrics |= {name: score[0], f"{name}_low": score[1], f"{name}_high": score[2]}
        return metrics | {name: value for name, value in super().aggregate(rows).items() if name != "score"}

    def headline(self, rows: Sequence[Row]) -> float:
        """Return the win rate, or with ``style_control`` the one at equal style."""
        if self.config.style_control:
            return self._scored(rows, True, 1)[0]
        return sum(row.metrics["won"] for row in rows) / sum(row.metrics["weight"] for row in rows)

    def category_score(self, rows: Sequence[Row]) -> float:
        """Return the headline of a category's rows."""
        return self.headline(rows)

    def _scored(self, rows: Sequence[Row], controlled: bool, repeats: int) -> tuple[float, float, float]:
        """Return the score and its interval. Rows may repeat, in a resample or as samples of one prompt."""
        items = [
            ArenaItem(number, "model", _labels(row), _style(row, ""), _style(row, "baseline_"))
            for number, row in enumerate(rows)
        ]
        version: Literal["v0.1", "v2"] = "v0.1" if self.config.version == "v0.1" else "v2"
        found = arena_hard_scores(items, version=version, style_control=controlled, repeats=repeats)["model"]
        return found.win_rate, found.low, found.high


_VERDICTS = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))


def read_verdict(text: str) -> str | None:
    """Return the last label in double brackets, else in single ones, such as ``A>>B``; None for none that is known."""
    for pattern in _VERDICTS:
        if found := pattern.findall(text.upper()):
            try:
                outcome(found[-1], model_is_first=True)
            except ValueError:
                return None
            return str(found[-1])
    return None


_TOKEN = re.compile(r"\w+|[^\w\s]")


def _counts(side: str, text: str) -> dict[str, float]:
    """Return an answer's length in words and signs, and its markdown outside of code blocks."""
    found = style(text, len(_TOKEN.findall(text)))
    return {f"{side}{name}": float(getattr(found, name)) for name in STYLE}


def _style(row: Row, side: str) -> Style:
    return Style(*(int(row.metrics[f"{side}{name}"]) for name in STYLE))


def _labels(row: Row) -> tuple[str, str]:
    first, second = (TIE if label == "?" else label for label in str(row.extracted).split(" "))
    return first, second


def _answers(path: str) -> dict[str, str]:
    """Return the answers of a file by the prompt's id; both versions' formats."""
    found = {}
    for where, row in rows_of(path):
        name = str(row.get("uid") or row.get("question_id"))
        found[name] = _last_message(row, where) if "messages" in row else _only(fastchat_turns(row, where), where)
    return found


def _last_message(row: Mapping[str, Any], where: str) -> str:
    """Return the answer of a row in v2.0's format: the last message's content, or the ``answer`` in it."""
    messages = row["messages"]
    content = messages[-1].get("content") if isinstance(messages, list) and messages else None
    return text_of(content.get("answer") if isinstance(content, dict) else content, "answer", where)


def _first_turn(row: Mapping[str, Any], where: str) -> str:
    """Return the prompt of a row in v0.1's first format."""
    turns = row.get("turns")
    if not isinstance(turns, list) or len(turns) != 1:
        raise AlignError("has no prompt", "see docs/evals_judged.md for the format", where=where)
    return text_of(turns[0].get("content") if isinstance(turns[0], dict) else turns[0], "content", where)


def _only(turns: Sequence[str], where: str) -> str:
    if len(turns) != 1:
        raise AlignError(f"has {len(turns)} turns", "answers have one turn", where=where)
    return turns[0]


def _yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file_text(path))
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise AlignError(f"is no YAML: {what}", "take the published file", where=path) from None
    if not isinstance(values, dict):
        raise AlignError("is not a mapping of keys to values", "take the published file", where=path)
    return values
