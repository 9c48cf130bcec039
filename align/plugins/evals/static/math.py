r"""MATH (Hendrycks et al. 2021, 2103.03874) and MATH-500: answers in ``\boxed{}``, judged by align's math verifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import AliasChoices, Field, model_validator

from align import AlignError, Answer, Problem
from align.evals import Episode, Generate, Item, Result, Row
from align.plugins.evals.static.samples import sample_metrics
from align.plugins.evals.static.static_eval import Published, StaticEval, content_ids
from align.rewards import RewardContext, RunningReward
from align.settings import RewardChoice, Sampling


class MATHRow(Published):
    """A row of ``EleutherAI/hendrycks_math`` or ``HuggingFaceH4/MATH-500``."""

    problem: str
    solution: str = ""
    answer: str | None = None
    level: str | int = ""
    subject: str = Field("", validation_alias=AliasChoices("subject", "type"))
    unique_id: str | None = None

    @model_validator(mode="after")
    def _has_an_answer(self) -> Self:
        if self.answer is None and not self.solution:
            raise ValueError("needs a column answer, or solution with a box")
        return self

    @property
    def gold(self) -> str:
        """The answer, or the solution with its answer in a box."""
        return self.solution if self.answer is None else self.answer


class MATH(StaticEval):
    """Share of problems whose final answer equals the published one, decided by the reward ``math``."""

    name = "math"
    domain = "math"

    class Config(StaticEval.Config):
        """Settings of MATH. data: the test split."""

        chat: bool = True
        """Send the prompt as one user message through the chat template; false: as plain text."""
        instruction: str = r"Solve the problem step by step, and put the final answer in \boxed{}."
        """Follows the problem in the prompt."""
        boxed: bool = True
        """Only an answer in a box counts; false: "the answer is 7" and a bare answer do too, but then a refusal is a
        wrong answer and no longer one that cannot be read."""

    config: Config
    _verifier: RunningReward | None = None

    def load(self) -> Sequence[Item]:
        """Read the problems. Raises AlignError for a published answer that the verifier cannot read."""
        rows = self.read(MATHRow)
        ids = [row.unique_id or id for row, id in zip(rows, content_ids(rows), strict=True)]
        choice = RewardChoice(type="math", settings={"boxed": self.config.boxed})
        self._verifier = RunningReward(choice, RewardContext())
        problems = []
        for id, row in zip(ids, rows, strict=True):
            if fault := self._verifier.reward.unfit({"solution": row.gold}):
                problems.append(Problem(f"{self.name}: item {id}", fault, "leave the row out, or correct its answer"))
        if problems:
            raise AlignError.gather(problems)
        return [
            Item(id, row.gold, columns={"problem": row.problem}, tags=(row.subject,) if row.subject else ())
            for id, row in zip(ids, rows, strict=True)
        ]

    def run(self, item: Item) -> Episode:
        """Generate a solution and have its final answer judged."""
        assert self._verifier is not None, "load comes first"
        prompt = self.content(f"{item.columns['problem'].strip()}\n\n{self.config.instruction}")
        protocol = Sampling(temperature=0, max_completion_length=4096)
        (reply,) = yield [Generate(prompt, self.config.sampled(protocol))]
        answer = Answer(prompt, reply.text, reply.text, finish=reply.finish, columns={"solution": item.target})
        (score,) = self._verifier.score([answer])
        if score.outcome in ("right", "wrong"):
            return Result(float(score.outcome == "right"))
        return Result(0.0, valid=False, error=score.why or score.outcome)

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean over all samples, and the metrics of several samples."""
        return {**super().aggregate(rows), **sample_metrics(rows)}

    def close(self) -> None:
        """End the verifier's processes."""
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
