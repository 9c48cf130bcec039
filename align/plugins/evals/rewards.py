"""The eval ``rewards``: prompts of the user's own, answers scored by the rewards that training uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from align import AlignError, Answer, Content, Eval, Score
from align.evals import Episode, EvalSettings, Generate, Item, Reply, Result, Row, load_rows, sha
from align.rewards import RewardContext, Scorer
from align.settings import RewardPlugin, Sampling

FAILED = frozenset({"timeout", "error"})
"""Outcomes that say something of the reward, and nothing of the answer."""


class RewardsEval(Eval):
    """The score of an answer is the weighted mean of its rewards: training's weighted sum, divided by the weights' sum.

    A row is not valid where a reward finds nothing to judge (``unparsed``), has no opinion (``abstained``) or fails; it
    keeps the mean of the other rewards, and without any it has the smallest score.
    """

    name: ClassVar[str] = "rewards"

    class Config(EvalSettings, Eval.Config):
        """Settings of ``rewards``."""

        rewards: Annotated[list[RewardPlugin], Field(min_length=1)]
        """Reward plugins with their weights, as in a run file's ``rollout``."""
        score_range: tuple[float, float] = (0.0, 1.0)
        """Smallest and largest weighted mean of the rewards; the gate's margins are shares of its width."""
        max_failed: Annotated[float, Field(ge=0, le=1)] = 0.02
        """Largest share of the answers on which a reward itself may fail (timeout, error); above it the run fails."""
        device: Literal["cpu", "cuda"] = "cpu"
        """The device of rewards that are models."""

        @model_validator(mode="after")
        def _usable(self) -> RewardsEval.Config:
            self.sampled(Sampling())
            low, high = self.score_range
            if not low < high:
                raise ValueError("score_range must rise, as in [-1, 1]")
            if not any(choice.weight for choice in self.rewards):
                raise ValueError("every reward has the weight 0")
            if changing := [choice.type for choice in self.rewards if choice.normalize]:
                raise ValueError(f"normalize ({changing[0]}) makes a score depend on the other answers; leave it out")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.score_range = config.score_range  # type: ignore[misc]  # known with the settings only
        self._scorer: Scorer | None = None

    def load(self) -> Sequence[Item]:
        """Return the rows of the file as items; all columns but the prompt and the id are the target.

        Raises AlignError for rows without a prompt, for those that a reward cannot score (a column is missing), and for
        two with one id, or without ids and alike.
        """
        places: dict[str, str] = {}
        items = []
        for where, row in load_rows(self.config.source):
            item = self._item(row, where)
            if (first := places.setdefault(item.id, where)) != where:
                same = "has the id of" if row.get("id") is not None else "is the same row as"
                raise AlignError(f"{same} {first}", "remove one of them, or give each an `id` of its own", where=where)
            items.append(item)
        return items

    def run(self, item: Item) -> Episode:
        """Ask for one answer, and score it with every reward."""
        prompt = item.columns["prompt"]
        sampling = self.config.sampled(Sampling(temperature=0, max_completion_length=1024))
        (reply,) = yield [Generate(prompt, sampling)]
        scorer = self._opened()
        scores = scorer.score_each([_answer(prompt, reply, item.columns)])[0]
        total = scorer.combine([scores])[0].reward
        weights = sum(abs(choice.weight) for choice in self.config.rewards)
        return self._result(scores, None if total is None else total / weights)

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean score, each reward's mean over the answers it scored, and the share of each outcome.

        Raises AlignError where rewards failed on more than ``max_failed`` of the answers.
        """
        metrics = super().aggregate(rows)
        for name in metrics:
            if "/" in name:  # an outcome: rows that lack it count as 0
                metrics[name] = sum(row.metrics.get(name, 0.0) for row in rows) / len(rows)
        failed = [row for row in rows if any(f"/{outcome}" in name for name in row.metrics for outcome in FAILED)]
        if len(failed) > self.config.max_failed * len(rows):
            what = f"rewards failed on {len(failed)} of {len(rows)} answers; the first: {failed[0].error}"
            fix = "see `align reward score` for the reward on such an answer; repair it, or raise max_failed"
            raise AlignError(what, fix, where=f"eval {rows[0].eval}")
        return metrics

    def close(self) -> None:
        """Close the rewards."""
        if self._scorer is not None:
            self._scorer.close()
        self._scorer = None

    def _opened(self) -> Scorer:
        if self._scorer is None:
            scorer = Scorer(self.config.rewards, RewardContext(accelerator=self.config.device))
            scorer.open()
            self._scorer = scorer
        return self._scorer

    def _item(self, row: dict[str, Any], where: str) -> Item:
        prompt = row.get("prompt")
        if not prompt or not _is_content(prompt):
            fix = "rename the file's column: columns: {prompt: question}"
            raise AlignError("has no 'prompt' that is a text or a list of messages", fix, where=where)
        columns = {name: value for name, value in row.items() if name not in ("prompt", "id")}
        for reward in self._opened().rewards.values():
            if why := reward.reward.unfit(columns):
                fix = "rename the file's column (columns: {solution: answer}), or name it in the reward's settings"
                raise AlignError(f"{why}, which reward {reward.choice.type} needs", fix, where=where)
        name = str(row["id"]) if row.get("id") is not None else sha([prompt, columns])
        return Item(name, columns, columns={"prompt": prompt, **columns})

    def _result(self, scores: Mapping[str, Score], average: float | None) -> Result:
        """Return the result of one answer; average: None where no reward scored it."""
        low, high = self.score_range
        value = low if average is None else average
        rounding = 1e-9 * (high - low)
        if not low - rounding <= value <= high + rounding:
            fix = f"set score_range to what the rewards can give; it is [{low:g}, {high:g}]"
            raise AlignError(f"an answer scored {value:g}", fix, where=f"eval {self.name}")
        metrics: dict[str, float] = {}
        lost = []
        for name, score in scores.items():
            if score.value is not None:
                metrics[name] = score.value
            metrics[f"{name}/{score.outcome}"] = 1.0
            if score.outcome in FAILED | {"unparsed", "abstained"}:
                lost.append(f"{name}: {score.outcome}" + (f" ({score.why})" if score.why else ""))
        extracted = "; ".join(f"{name} {score.outcome}" for name, score in scores.items())
        return Result(min(max(value, low), high), metrics, extracted, not lost, "; ".join(lost))


def _answer(prompt: Content, reply: Reply, columns: Mapping[str, Any]) -> Answer:
    """Return a reply as rewards are given it: in the form of its prompt, without the prompt among the columns."""
    completion: Content = reply.text if isinstance(prompt, str) else [{"role": "assistant", "content": reply.text}]
    own = {name: value for name, value in columns.items() if name != "prompt"}
    return Answer(prompt, completion, reply.text, finish=reply.finish, columns=own)


def _is_content(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return True
    if not isinstance(prompt, list):
        return False
    return all(isinstance(each, dict) and isinstance(each.get("content"), str) and "role" in each for each in prompt)
