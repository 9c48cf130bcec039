"""The reward ``exact``: an answer is right where it equals a column."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from align import Answer, Reward, Score
from align.rewards import Pattern


class ExactReward(Reward):
    """1 where the answer equals a column, both normalised, else 0."""

    name = "exact"
    seconds: ClassVar[float | None] = 2.0
    """A regular expression may take for ever; without one it runs in this process."""

    class Config(Reward.Config):
        """Settings of the comparison."""

        column: str = "solution"
        """The column with the answer; a list there holds several that are all right."""
        after: Annotated[str, Field(min_length=1)] | None = None
        """Compare only what comes after the last of these words (``####``, ``Answer:``), up to the end of its line."""
        pattern: Pattern | None = None
        """Compare only the last match of this regular expression (its first group, where it has one)."""
        case: bool = False
        """True: case counts."""
        whitespace: bool = False
        """True: whitespace counts; else it is stripped, and each run of it is one space."""
        punctuation: bool = True
        """True: punctuation counts; else a final ``.``, ``,``, ``;``, ``!`` or ``?`` is dropped."""

        @model_validator(mode="after")
        def _one_way(self) -> ExactReward.Config:
            if self.after is not None and self.pattern is not None:
                raise ValueError("after cannot be set together with pattern")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.required_columns = (config.column,)  # type: ignore[misc]  # known with the settings only
        if config.pattern is None:
            self.seconds = None  # type: ignore[misc]

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """1 or 0; ``unparsed``, with 0, where there is nothing to compare."""
        return [self._score(answer) for answer in answers]

    def _score(self, answer: Answer) -> Score:
        gold = answer.columns.get(self.config.column)
        if gold is None:
            return Score(None, "error", why=f"the row has no {self.config.column!r}")
        taken = self._taken(answer.text)
        if taken is None:
            return Score(0.0, "unparsed", why=f"has no {self.config.after or self.config.pattern!r}")
        wanted = [str(one) for one in (gold if isinstance(gold, list) else [gold])]
        right = {self.normal(self._taken(one) or one) for one in wanted}
        return Score(1.0, "right") if self.normal(taken) in right else Score(0.0, "wrong")

    def _taken(self, text: str) -> str | None:
        """Return the part of a text that is compared, None where the text lacks it."""
        if self.config.after is not None:
            _, found, rest = text.rpartition(self.config.after)
            return rest.strip().partition("\n")[0] if found else None
        if self.config.pattern is not None:
            last = None
            for last in re.finditer(self.config.pattern, text):  # noqa: B007
                pass
            return None if last is None else last[1 if last.re.groups else 0] or ""
        return text

    def normal(self, text: str) -> str:
        """Unicode's compatible form, and what does not count left out."""
        text = unicodedata.normalize("NFKC", text)
        text = text if self.config.whitespace else " ".join(text.split())
        text = text if self.config.punctuation else text.rstrip(".,;!? ")
        return text if self.config.case else text.casefold()
