"""MMLU (Hendrycks et al. 2021, 2009.03300): four choices in 57 subjects, scored by the likelihoods of the letters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from align.evals import Episode, Item, Row, mean
from align.plugins.evals.static.lm_eval_task import LmEvalTask
from align.plugins.evals.static.static_eval import (
    FewShotEval,
    Published,
    choice_result,
    content_ids,
)

LETTERS = "ABCD"
_YAML = "mmlu/default/_default_template_yaml"


class MMLURow(Published):
    """A row of ``cais/mmlu``."""

    question: str
    subject: str
    choices: Annotated[list[str], Field(min_length=4, max_length=4)]
    answer: Annotated[int, Field(ge=0, le=3)]


class MMLU(FewShotEval):
    """Share of questions whose right letter is the likeliest after ``Answer:`` (lm-eval's ``mmlu``, 5 shots).

    ``score`` is the mean over questions, ``macro`` the mean over subjects. Subjects are the clusters.
    """

    name = "mmlu"
    domain = "knowledge"
    likelihoods = True

    class Config(FewShotEval.Config):
        """Settings of MMLU. data: ``cais/mmlu``'s test split; shots: its dev split."""

    config: Config

    def load(self) -> Sequence[Item]:
        """Read the questions and, for each subject, its examples. Raises AlignError where a subject has too few."""
        rows = self.read(MMLURow)
        shots = defaultdict(list)
        for shot in self.read_shots(MMLURow):
            shots[shot.subject].append(shot)
        self._tasks: dict[str, LmEvalTask] = {}
        for row in rows:
            if row.subject not in self._tasks:
                self._tasks[row.subject] = self._task(row, shots[row.subject])
        return [
            Item(id, row.answer, row.subject, row.model_dump(), (row.subject,))
            for id, row in zip(content_ids(rows), rows, strict=True)
        ]

    def _task(self, example: MMLURow, shots: Sequence[MMLURow]) -> LmEvalTask:
        subject = example.subject.replace("_", " ")
        description = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        shown = self.examples(shots, example.subject)
        return LmEvalTask(_YAML, example.model_dump(), shown, description=description)

    def run(self, item: Item) -> Episode:
        """Compare the likelihoods of the four letters."""
        task = self._tasks[item.tags[0]]
        prompt = task.prompt(item.columns, self.config.num_fewshot)
        replies = yield self.likelihoods_of(prompt, task.continuations(item.columns, self.config.chat))
        return choice_result(replies, item.target, LETTERS)

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean over questions, and the mean over subjects of their means."""
        return {**super().aggregate(rows), "macro": macro(rows)}


def macro(rows: Sequence[Row]) -> float:
    """Return the mean over groups (the first tag of a row) of their mean scores."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.tags[0]].append(row.score)
    return mean(mean(scores) for scores in groups.values())
