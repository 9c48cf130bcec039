"""GSM8K (Cobbe et al. 2021, 2110.14168): word problems with a number for an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Self

from pydantic import model_validator

from align.evals import Episode, Generate, Item, Result
from align.plugins.evals.static.lm_eval_task import LmEvalTask
from align.plugins.evals.static.static_eval import FewShotEval, GroupedRow, content_ids


class GSM8KRow(GroupedRow):
    """A row of ``openai/gsm8k``."""

    question: str
    answer: str

    @property
    def group(self) -> str:
        """Every row is of one group."""
        return "gsm8k"

    @property
    def final(self) -> str:
        """The number after ``####``."""
        return self.answer.rpartition("####")[2].strip()

    @model_validator(mode="after")
    def _has_a_number(self) -> Self:
        if "####" not in self.answer or not re.fullmatch(r"-?\$?[\d,]*\.?\d+", self.final):
            raise ValueError("answer needs '#### NUMBER' at its end")
        return self


class GSM8K(FewShotEval):
    """Share of problems whose last number is right (lm-eval's ``flexible-extract``, 5 shots).

    ``strict`` is its ``strict-match``: the number after ``####``, as the examples write it.
    """

    name = "gsm8k"
    domain = "math"

    class Config(FewShotEval.Config):
        """Settings of GSM8K. data: the test split of configuration ``main``; shots: its train split."""

        subset: str | None = "main"
        """Configuration name of a hub dataset."""
        shots_split: str = "train"
        """The split of a hub dataset or a directory that the shots come from."""

    config: Config

    def load(self) -> Sequence[Item]:
        """Read the problems and the examples. Raises AlignError where there are too few."""
        rows = self.read(GSM8KRow)
        # lm-eval draws examples anew for each problem, in the order that it happens to ask them.
        first = {"sampler": "first_n"}
        (self._task,) = self.tasks_by_group("gsm8k/{}.yaml", rows, GSM8KRow, fewshot_config=first).values()
        return [Item(id, row.final, columns=row.model_dump()) for id, row in zip(content_ids(rows), rows, strict=True)]

    def run(self, item: Item) -> Episode:
        """Generate a solution and read its number."""
        task: LmEvalTask = self._task
        prompt = self.content(task.prompt(item.columns, self.config.num_fewshot))
        sampling = self.config.sampled(task.sampling())
        (reply,) = yield [Generate(prompt, sampling, shorter=self.shorter(task, item.columns))]
        found = task.extract(item.columns, reply.text)
        scores = {name: float(task.score(item.columns, [number])["exact_match"]) for name, number in found.items()}
        number = found["flexible-extract"]
        if not any(character.isdigit() for character in number):
            return Result(0.0, {"strict": 0.0}, valid=False, error="no number found")
        return Result(scores["flexible-extract"], {"strict": scores["strict-match"]}, number)
