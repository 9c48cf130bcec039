"""Parts that judged evals share: settings, judge prompts of a file or our own, verdicts in both orders, metrics.

A verdict that cannot be read counts as the neutral score, and its row is not valid: dropping it, as the published
scripts do, rewards a model whose answers confuse the judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from align import AlignError, Eval, Message
from align.evals import Domain, EvalSettings, Generate, Row, load_rows, mean
from align.settings import Sampling


class JudgedSettings(EvalSettings):
    """Settings of every judged eval."""

    judge_prompts: str | None = None
    """A file with the published judge prompts. Without it align's own are used, and the scores are not comparable with
    those of a leaderboard."""
    judge_sampling: dict[str, Any] = Field(default_factory=dict)
    """Settings of ``sampling`` for the judge, in place of the protocol's own."""

    @field_validator("sampling", "judge_sampling")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        Sampling.model_validate(value)
        return value


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One prompt of a judge. system: may be empty. template: with placeholders in braces, ``{question}``."""

    system: str
    template: str

    def messages(self, texts: Mapping[str, str]) -> list[Message]:
        """Return the messages with the placeholders filled in, all at once: one inside of an answer stays text."""
        user = {"role": "user", "content": filled(self.template, texts)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def filled(template: str, texts: Mapping[str, str]) -> str:
    """Return a template with its known placeholders replaced."""
    return _PLACEHOLDER.sub(lambda found: texts.get(found[1], found[0]), template)


def placeholders(template: str) -> set[str]:
    """Return the names of a template's placeholders."""
    return set(_PLACEHOLDER.findall(template))


def check_placeholders(prompt: JudgePrompt, needed: Iterable[str], where: str) -> None:
    """Raise AlignError where a template has no place for something that the judge must see."""
    missing = sorted(set(needed) - placeholders(prompt.template))
    if missing:
        names = " ".join(f"{{{name}}}" for name in missing)
        raise AlignError(f"its template has no {names}", "take the published file", where=where)


def rows_of(path: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a file next to the questions (answers, references), each with its origin."""
    return load_rows(EvalSettings(data=path).source)


def file_text(path: str) -> str:
    """Return a file's text. Raises AlignError where it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise AlignError(f"cannot be read: {why}", "name the published file", where=path) from None


def text_of(value: Any, name: str, where: str) -> str:
    """Return a value of a row that must be text. Raises AlignError for another one."""
    if not isinstance(value, str):
        shown = "has no" if value is None else f"has a {type(value).__name__} in place of a text as"
        raise AlignError(f"{shown} {name!r}", "see docs/evals_judged.md for the format", where=where)
    return value


def fastchat_turns(row: Mapping[str, Any], where: str) -> list[str]:
    """Return the turns of a row in FastChat's format of answers; a turn is a text, or has it as ``content``."""
    try:
        turns = row["choices"][0]["turns"]
        return [turn if isinstance(turn, str) else str(turn["content"]) for turn in turns]
    except (KeyError, IndexError, TypeError):
        fix = "see docs/evals_judged.md for the format"
        raise AlignError("has no choices[0].turns", fix, where=where) from None


class JudgedEval(Eval):
    """Base class of judged evals."""

    domain: ClassVar[Domain] = "chat"
    judged: ClassVar[bool] = True
    has_targets: ClassVar[bool] = False

    class Config(JudgedSettings, Eval.Config):
        """Settings of every judged eval."""

    config: Config

    @cached_property
    def prompts(self) -> dict[str, JudgePrompt]:
        """The judge's prompts by name. Raises AlignError for a file that cannot be used."""
        path = self.config.judge_prompts
        return self.default_prompts() if path is None else self.read_prompts(path)

    def default_prompts(self) -> dict[str, JudgePrompt]:
        """Return align's own prompts."""
        raise NotImplementedError

    def read_prompts(self, path: str) -> dict[str, JudgePrompt]:
        """Return the prompts of a file in the published format."""
        raise NotImplementedError

    def judge_settings(self) -> Sampling:
        """Return the protocol's sampling settings of the judge."""
        raise NotImplementedError

    @property
    def comparable(self) -> bool:
        """False where scores cannot be set next to a leaderboard's, whichever the judge."""
        return self.config.judge_prompts is not None

    def judge_prompts(self) -> Any:
        """Return the prompts and settings of the judge."""
        return {
            "comparable": "only with the leaderboard's judge" if self.comparable else "no",
            "sampling": self._judge_sampling.model_dump(),
            "prompts": {name: asdict(prompt) for name, prompt in self.prompts.items()},
        }

    def ask_judge(self, messages: list[Message]) -> Generate:
        """Return the query of one verdict."""
        return Generate(messages, self._judge_sampling, by="judge")

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean score and metrics, those of each category, and ``comparable``: 0 where align's prompts judge.

        There is no 1: whether the judge is the leaderboard's cannot be known.
        """
        metrics = super().aggregate(rows)
        for tag in dict.fromkeys(tag for row in rows for tag in row.tags):
            metrics[f"category/{tag}"] = self.category_score([row for row in rows if tag in row.tags])
        return metrics if self.comparable else metrics | {"comparable": 0.0}

    def category_score(self, rows: Sequence[Row]) -> float:
        """Return the score of a category's rows."""
        return mean(row.score for row in rows)

    @cached_property
    def _judge_sampling(self) -> Sampling:
        return Sampling.model_validate({**self.judge_settings().model_dump(), **self.config.judge_sampling})


@dataclass(frozen=True, slots=True)
class Game:
    """One comparison by the judge. model_first: the order shown. model: the model's share of the win, None unreadable.

    The share is 1 for a win, 0 for a loss, 1/2 for a tie, or a judge's probability.
    """

    model_first: bool
    model: float | None

    @property
    def first(self) -> float:
        """The win of the answer that was shown first: from -1 (the second won) to 1; 0 for a tie or unreadable."""
        if self.model is None:
            return 0.0
        return 2 * self.model - 1 if self.model_first else 1 - 2 * self.model


def position_bias(games: Iterable[Game]) -> float:
    """Return how much a judge prefers what it sees first, in [-1, 1]: 1 if the first always wins, 0 without a bias.

    Only games in both orders tell it from a preference for one side.
    """
    return mean(game.first for game in games)


def share_won(games: Iterable[Game]) -> float:
    """Return the model's mean share of the wins; a verdict that cannot be read counts 1/2."""
    return mean(0.5 if game.model is None else game.model for game in games)


def unreadable(games: Sequence[Game]) -> float:
    """Return the share of verdicts that could not be read."""
    return mean(float(game.model is None) for game in games)
