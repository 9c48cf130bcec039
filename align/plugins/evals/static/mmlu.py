"""MMLU (Hendrycks et al. 2021, 2009.03300): four choices in 57 subjects, scored by the likelihoods of the letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from align.evals import Episode, Item, Row
from align.plugins.evals.static.static_eval import FewShotEval, GroupedRow, choice_result, content_ids, macro

LETTERS = "ABCD"


class MMLURow(GroupedRow):
    """A row of ``cais/mmlu``."""

    question: str
    subject: str
    choices: Annotated[list[str], Field(min_length=4, max_length=4)]
    answer: Annotated[int, Field(ge=0, le=3)]

    @property
    def group(self) -> str:
        """The subject."""
        return self.subject


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
        """Read the questions and each subject's examples. Raises AlignError where a subject has too few."""
        rows = self.read(MMLURow)
        self._tasks = self.tasks_by_group("mmlu/default/mmlu_{}.yaml", rows, MMLURow)
        return [
            Item(id, row.answer, row.subject, row.model_dump(), (row.subject,))
            for id, row in zip(content_ids(rows), rows, strict=True)
        ]

    def run(self, item: Item) -> Episode:
        """Compare the likelihoods of the four letters."""
        task = self._tasks[item.tags[0]]
        prompt = task.prompt(item.columns, self.config.num_fewshot)
        replies = yield self.likelihoods_of(prompt, task.continuations(item.columns, self.config.chat))
        return choice_result([reply.logp for reply in replies], item.target, LETTERS)

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean over questions, and the mean over subjects of their means."""
        return {**super().aggregate(rows), "macro": macro(rows)}
