"""MMLU-Pro (Wang et al. 2024, 2406.01574): up to ten choices, reasoning before the answer, letters read from text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from align.evals import Episode, Generate, Item, Result, Row
from align.plugins.evals.static.static_eval import FewShotEval, GroupedRow, macro

LETTERS = "ABCDEFGHIJ"


class MMLUProRow(GroupedRow):
    """A row of ``TIGER-Lab/MMLU-Pro``."""

    question_id: int | str
    question: str
    options: Annotated[list[str], Field(min_length=2, max_length=10)]
    answer: Annotated[str, Field(pattern="^[A-J]$")]
    category: str
    cot_content: str = ""

    @model_validator(mode="after")
    def _without_padding(self) -> Self:
        self.options = [option for option in self.options if option != "N/A"]
        if LETTERS.index(self.answer) >= len(self.options):
            raise ValueError(f"the answer {self.answer} is none of {len(self.options)} options")
        return self

    @property
    def group(self) -> str:
        """The category."""
        return self.category


class MMLUPro(FewShotEval):
    """Share of questions answered with the right letter after reasoning (5 shots of the same category).

    The official evaluation guesses at random where it reads no letter; here such an answer is wrong and marked as not
    valid, since a guess would add noise to every comparison. ``macro`` is the mean over categories, the clusters.
    """

    name = "mmlu_pro"
    domain = "knowledge"

    class Config(FewShotEval.Config):
        """Settings of MMLU-Pro. data: the test split; shots: the validation split."""

        shots_split: str = "validation"
        """The split of a hub dataset or a directory that the shots come from."""
        variant: Literal["official", "lm-eval"] = "official"
        """``official``: the letter is read by the three rules of the official evaluation, in their order; ``lm-eval``:
        by the first of them alone. Numbers of the two are not comparable."""

    config: Config

    def load(self) -> Sequence[Item]:
        """Read the questions and each category's examples. Raises AlignError where a category has too few."""
        rows = self.read(MMLUProRow)
        # Rows are split by category here, which saves lm-eval its filtered copies on disk.
        self._tasks = self.tasks_by_group("mmlu_pro/mmlu_pro_{}.yaml", rows, MMLUProRow, process_docs=None)
        return [Item(str(row.question_id), row.answer, row.category, row.model_dump(), (row.category,)) for row in rows]

    def run(self, item: Item) -> Episode:
        """Generate an answer, with fewer examples where all of them do not fit."""
        task = self._tasks[item.tags[0]]
        prompt = self.content(task.prompt(item.columns, self.config.num_fewshot))
        sampling = self.config.sampled(task.sampling())
        (reply,) = yield [Generate(prompt, sampling, shorter=self.shorter(task, item.columns))]
        if self.config.variant == "official":
            letter = official_letter(reply.text)
        else:
            found = task.extract(item.columns, reply.text)["custom-extract"]
            letter = found if found in LETTERS else None
        if letter is None:
            return Result(0.0, valid=False, error="no letter found")
        return Result(float(letter == item.target), extracted=letter)

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean over questions, and the mean over categories of their means."""
        return {**super().aggregate(rows), "macro": macro(rows)}


_OFFICIAL = (
    re.compile(r"answer is \(?([A-J])\)?"),
    re.compile(r".*[aA]nswer:\s*([A-J])"),
    re.compile(r"\b([A-J])\b(?!.*\b[A-J]\b)", re.DOTALL),
)
"""The sentence that the prompt wants (its first occurrence), ``Answer: X``, the last letter that stands alone."""


def official_letter(text: str) -> str | None:
    """Return the letter that the first fitting rule of the official evaluation reads; None where none fits."""
    for rule in _OFFICIAL:
        if found := rule.search(text):
            return found[1]
    return None
