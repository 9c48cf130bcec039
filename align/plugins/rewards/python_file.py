"""Rewards from a file of the user's own, in the signatures of TRL, veRL and OpenRLHF."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from align import AlignError, Answer, Reward, Score
from align.rewards import components, describe, from_function, load_function


class _FromFile(Reward):
    """The base of the three: a function in a file, called in TRL's signature."""

    reads = frozenset({"file"})

    class Config(Reward.Config):
        """The file and the name of the function."""

        file: str
        """A Python file; its directory can be imported from while it is loaded."""
        function: str
        """The function's name in it."""
        settings: dict[str, Any] = Field(default_factory=dict)
        """Keyword arguments that it is always given."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Raises AlignError where the function cannot be had."""
        super().__init__(config)
        function = functools.partial(load_function(config.file, config.function), **config.settings)
        self._inner = self._adapt(function, f"{config.file}:{config.function}")
        self.required_columns = self._inner.required_columns  # type: ignore[misc]

    def _adapt(self, function: Callable[..., Any], name: str) -> Reward:
        return from_function(function, name)

    @property
    def label(self) -> str:
        """The function's file and name."""
        return f"{self.config.file}:{self.config.function}"

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """A column that the function must be given."""
        return self._inner.unfit(columns)

    @property
    def overlaps(self) -> bool:
        """True for an ``async def``."""
        return self._inner.overlaps

    def score(self, answers: Sequence[Answer]) -> Sequence[Score | float | None]:
        """Return the function's scores."""
        return self._inner.score(answers)

    def counts(self) -> Mapping[str, float]:
        """Return what the function logged."""
        return self._inner.counts()

    def close(self) -> None:
        """End its event loop, if it has one."""
        self._inner.close()


class PythonReward(_FromFile):
    """A function of a file in TRL's signature: ``f(prompts, completions, completion_ids, **columns)``."""

    name = "python"

    class Config(_FromFile.Config):
        """The file and the name of the function."""


class VerlReward(_FromFile):
    """veRL's ``compute_score(data_source, solution_str, ground_truth, extra_info)``, one answer at a time.

    It gives a number, or a mapping with ``score``; the mapping's other numbers are kept as parts, the rest as words.
    """

    name = "verl"

    class Config(_FromFile.Config):
        """The file and the name of the function."""

        function: str = "compute_score"
        """The function's name in it."""

    def _adapt(self, function: Callable[..., Any], name: str) -> Reward:
        return _VerlFunction(function, name)


class OpenRLHFReward(_FromFile):
    """OpenRLHF's ``reward_func(queries, prompts, labels, **kwargs)``; queries are prompt and answer together.

    It gives a tensor or list of scores, or a mapping with ``rewards`` (and ``scores``, ``extra_logs``: kept as parts).
    """

    name = "openrlhf"

    class Config(_FromFile.Config):
        """The file and the name of the function."""

        function: str = "reward_func"
        """The function's name in it."""
        label: str = "label"
        """The column that it gets as ``labels``; None for rows without it."""

    config: Config

    def _adapt(self, function: Callable[..., Any], name: str) -> Reward:
        label = self.config.label

        def as_trl(prompts: list[Any], completions: list[Any], log_extra: Any, **columns: Any) -> Any:
            texts = [_text(prompt) for prompt in prompts]
            queries = [text + _text(completion) for text, completion in zip(texts, completions, strict=True)]
            labels = columns.get(label, [None] * len(prompts))
            given = function(queries, texts, labels)
            if not isinstance(given, Mapping):
                return given
            if "rewards" not in given:
                raise AlignError(
                    "gave no 'rewards'", "return a list, or a mapping with rewards", where=f"reward {name}"
                )
            logs = {"scores": given.get("scores"), **(given.get("extra_logs") or {})}
            for key, values in logs.items():
                values = values.tolist() if hasattr(values, "tolist") else values
                if isinstance(values, list | tuple) and len(values) == len(prompts):
                    log_extra(key, list(values))
            return given["rewards"]

        return from_function(as_trl, name)


class _VerlFunction(Reward):
    """veRL's convention over rows as its format plugin reads them."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        super().__init__(self.Config())
        self._function, self._where = function, f"reward {name}"

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """A row without its ground truth."""
        return None if _truth(columns) is not None else "has no 'reward_model' with a 'ground_truth'"

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Its score of each answer. Raises AlignError where that is no number."""
        return [self._score(answer) for answer in answers]

    def _score(self, answer: Answer) -> Score:
        columns = answer.columns
        given = self._function(
            data_source=columns.get("data_source"),
            solution_str=answer.text,
            ground_truth=_truth(columns),
            extra_info=columns.get("extra_info"),
        )
        others = dict(given) if isinstance(given, Mapping) else {"score": given}
        value = others.pop("score", None)
        if value is None:
            return Score(None, "abstained")
        parts = components(others)
        try:
            return Score(float(value), parts=parts, why=describe(others, parts))
        except (TypeError, ValueError):
            fix = "return a number, or a mapping with 'score'"
            raise AlignError(f"gave a {type(value).__name__} for an answer", fix, where=self._where) from None


def _truth(columns: Mapping[str, Any]) -> Any:
    model = columns.get("reward_model")
    return model.get("ground_truth") if isinstance(model, Mapping) else columns.get("ground_truth")


def _text(content: Any) -> str:
    """Return a string as it is, and messages as their texts in order, one a line."""
    if isinstance(content, str):
        return content
    return "\n".join(str(message.get("content") or "") for message in content)
