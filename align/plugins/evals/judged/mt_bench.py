"""MT-Bench (2306.05685): 80 questions of two turns in eight categories, graded by a judge or compared with a baseline.

Files are FastChat's: ``question.jsonl``, reference answers and a baseline's answers in the format of model answers, and
``judge_prompts.jsonl``.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

from align import AlignError, Message
from align.evals import Episode, Generate, Item, Query, Reply, Result, load_rows, mean
from align.plugins.evals.judged.default_prompts import MT_BENCH
from align.plugins.evals.judged.judging import (
    Game,
    JudgedEval,
    JudgePrompt,
    check_placeholders,
    fastchat_turns,
    position_bias,
    rows_of,
    text_of,
    unreadable,
)
from align.settings import Sampling

TEMPERATURES = {"stem": 0.1, "humanities": 0.1, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0}
"""The model's temperature by category; 0.7 in all others."""
WITH_REFERENCE = frozenset({"math", "reasoning", "coding"})
"""Categories in which the judge sees a reference answer."""
NEUTRAL = 5.5
"""The grade that stands for an unreadable one: the middle of the scale."""


class _TwoTurns(JudgedEval):
    """Reads the questions and lets the model answer both turns."""

    class Config(JudgedEval.Config):
        """Settings of MT-Bench."""

        references: str | None = None
        """File of reference answers for the questions on maths, reasoning and coding, in FastChat's format; not needed
        where ``data`` has a column ``reference``."""

    config: Config
    kinds: ClassVar[Mapping[str, tuple[str, ...]]]
    """The prompts that are used, by name, with the placeholders that each must have."""

    def default_prompts(self) -> dict[str, JudgePrompt]:
        """Return align's own prompts."""
        return {name: JudgePrompt(*MT_BENCH[name]) for name in self.kinds}

    def read_prompts(self, path: str) -> dict[str, JudgePrompt]:
        """Return the prompts of ``judge_prompts.jsonl``."""
        found: dict[str, JudgePrompt] = {}
        for where, row in rows_of(path):
            if row.get("name") in self.kinds:
                system = text_of(row.get("system_prompt"), "system_prompt", where)
                prompt = JudgePrompt(system, text_of(row.get("prompt_template"), "prompt_template", where))
                check_placeholders(prompt, self.kinds[row["name"]], where)
                found[row["name"]] = prompt
        missing = [name for name in self.kinds if name not in found]
        if missing:
            raise AlignError(f"has no prompt {', '.join(missing)}", "take FastChat's judge_prompts.jsonl", where=path)
        return found

    def judge_settings(self) -> Sampling:
        """Return the judge's settings: the likeliest text, 2048 tokens."""
        return Sampling(temperature=0, max_completion_length=2048)

    def load(self) -> Sequence[Item]:
        """Return the questions; their target is what the judge compares with."""
        _ = self.prompts
        references = _answers(self.config.references)
        return [self._item(row, where, references) for where, row in load_rows(self.config.source)]

    def _item(self, row: dict[str, Any], where: str, references: Mapping[str, list[str]]) -> Item:
        name = str(row.get("question_id"))
        turns = row.get("turns")
        if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
            raise AlignError("has no two turns", "see docs/evals_judged.md for the format", where=where)
        category = text_of(row.get("category"), "category", where)
        target = {"reference": references.get(name) or row.get("reference") or None}
        if category in WITH_REFERENCE and len(target["reference"] or ()) != 2:
            fix = "name FastChat's reference answers as `references`"
            raise AlignError(f"question {name} ({category}) has no two reference answers", fix, where=where)
        return Item(name, target, name, {"turns": turns, "category": category}, (category,))

    def _dialogue(self, item: Item) -> Generator[Sequence[Query], Sequence[Reply], list[str]]:
        """Let the model answer both turns; its own first answer stands before the second question."""
        first, second = item.columns["turns"]
        temperature = TEMPERATURES.get(item.columns["category"], 0.7)
        sampling = self.config.sampled(Sampling(temperature=temperature, max_completion_length=1024))
        (answer,) = yield [Generate([{"role": "user", "content": first}], sampling)]
        context: list[Message] = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": second},
        ]
        (last,) = yield [Generate(context, sampling)]
        return [answer.text, last.text]

    def _shown(self, item: Item, turn: int, answers: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Return the texts for the placeholders of one turn's prompt.

        answers: of both turns, by the name of their placeholder.
        """
        first, second = item.columns["turns"]
        texts = {"question": first, "question_1": first, "question_2": second}
        for name, (one, two) in answers.items():
            texts |= {name: one, f"{name}_1": one, f"{name}_2": two}
        if item.columns["category"] in WITH_REFERENCE:
            texts |= {f"ref_answer_{n}": each for n, each in enumerate(item.target["reference"][: turn + 1], 1)}
        return texts

    def _prompt(self, item: Item, turn: int, kind: str, plain: str) -> JudgePrompt:
        """Return the prompt for a turn: with or without a reference, for the first turn or the second."""
        name = f"{kind}-math-v1" if item.columns["category"] in WITH_REFERENCE else f"{kind}-{plain}"
        return self.prompts[f"{name}-multi-turn" if turn else name]


class MTBench(_TwoTurns):
    """Both answers of each question are graded from 1 to 10; the score of a question is their mean."""

    name: ClassVar[str] = "mt_bench"
    score_range: ClassVar[tuple[float, float]] = (1.0, 10.0)
    kinds: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "single-v1": ("question", "answer"),
        "single-math-v1": ("question", "answer", "ref_answer_1"),
        "single-v1-multi-turn": ("question_1", "question_2", "answer_1", "answer_2"),
        "single-math-v1-multi-turn": ("question_1", "question_2", "answer_1", "answer_2", "ref_answer_2"),
    }

    class Config(_TwoTurns.Config):
        """Settings of ``mt_bench``."""

    def run(self, item: Item) -> Episode:
        """Ask both turns, then for both grades at once."""
        answers = yield from self._dialogue(item)
        wanted = []
        for turn in range(2):
            texts = self._shown(item, turn, {"answer": answers})
            wanted.append(self.ask_judge(self._prompt(item, turn, "single", "v1").messages(texts)))
        replies = yield wanted
        grades = [read_grade(reply.text) for reply in replies]
        counted = [NEUTRAL if grade is None else grade for grade in grades]
        lost = [turn for turn, grade in enumerate(grades, 1) if grade is None]
        metrics = {"turn_1": counted[0], "turn_2": counted[1], "unreadable": len(lost) / 2}
        error = f"no grade from 1 to 10 for turn {lost[0]}" if lost else ""
        extracted = " ".join("?" if grade is None else f"{grade:g}" for grade in grades)
        return Result(mean(counted), metrics, extracted, not lost, error)


class MTBenchPairwise(_TwoTurns):
    """Both answers of each question are compared with a baseline's, in both orders.

    A turn is won or lost only where both orders agree; all else is a tie, which counts 1/2.
    """

    name: ClassVar[str] = "mt_bench_pairwise"
    kinds: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "pair-v2": ("question", "answer_a", "answer_b"),
        "pair-math-v1": ("question", "answer_a", "answer_b", "ref_answer_1"),
        "pair-v2-multi-turn": ("question_1", "question_2", "answer_a_1", "answer_a_2", "answer_b_1", "answer_b_2"),
        "pair-math-v1-multi-turn": ("question_1", "question_2", "answer_a_2", "answer_b_2", "ref_answer_2"),
    }

    class Config(_TwoTurns.Config):
        """Settings of ``mt_bench_pairwise``."""

        baseline: str
        """File of the baseline's answers, in FastChat's format of model answers."""

    config: Config

    def load(self) -> Sequence[Item]:
        """Return the questions with the baseline's answers."""
        baseline = _answers(self.config.baseline)
        items = []
        for item in super().load():
            answers = baseline.get(item.id, [])
            if len(answers) != 2:
                where = self.config.baseline
                raise AlignError(f"has no two answers to question {item.id}", "name a complete file", where=where)
            target = {**item.target, "baseline": answers}
            items.append(Item(item.id, target, item.cluster, item.columns, item.tags))
        return items

    def run(self, item: Item) -> Episode:
        """Ask both turns, then for the verdicts on both turns in both orders."""
        answers = yield from self._dialogue(item)
        baseline = item.target["baseline"]
        wanted = []
        for turn in range(2):
            prompt = self._prompt(item, turn, "pair", "v2")
            for a, b in ((answers, baseline), (baseline, answers)):
                wanted.append(self.ask_judge(prompt.messages(self._shown(item, turn, {"answer_a": a, "answer_b": b}))))
        replies = yield wanted
        games = [Game(n % 2 == 0, _model_share(reply.text, n % 2 == 0)) for n, reply in enumerate(replies)]
        turns = [agreed(*games[:2]), agreed(*games[2:])]
        metrics = {
            "win": mean(float(turn == 1) for turn in turns),
            "tie": mean(float(turn == 0.5) for turn in turns),
            "loss": mean(float(turn == 0) for turn in turns),
            "turn_1": turns[0],
            "turn_2": turns[1],
            "position_bias": position_bias(games),
            "unreadable": unreadable(games),
        }
        valid = all(game.model is not None for game in games)
        extracted = " ".join(read_winner(reply.text) or "?" for reply in replies)
        return Result(mean(turns), metrics, extracted, valid, "" if valid else "no verdict [[A]], [[B]] or [[C]]")


def agreed(one: Game, other: Game) -> float:
    """Return what both orders agree on: 1 for a win of the model, 0 for a loss, else 1/2."""
    return one.model if one.model is not None and one.model == other.model else 0.5


_GRADES = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def read_grade(text: str) -> float | None:
    """Return the first grade in double brackets, else in single ones; None without one from 1 to 10."""
    for pattern in _GRADES:
        if found := pattern.search(text):
            grade = float(found[1])
            return grade if 1 <= grade <= 10 else None
    return None


def read_winner(text: str) -> str | None:
    """Return ``A``, ``B`` or ``C`` (a tie), whichever stands in double brackets; in this order if there are several."""
    return next((name for name in "ABC" if f"[[{name}]]" in text), None)


def _model_share(text: str, model_first: bool) -> float | None:
    winner = read_winner(text)
    if winner is None or winner == "C":
        return None if winner is None else 0.5
    return float((winner == "A") == model_first)


def _answers(path: str | None) -> dict[str, list[str]]:
    """Return the turns of each question in a file of answers, by the question's id."""
    if path is None:
        return {}
    return {str(row.get("question_id")): fastchat_turns(row, where) for where, row in rows_of(path)}
